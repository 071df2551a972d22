"""The TCP request plane: one listener for every endpoint of a process.

Each connection has one task, whose conversation is in :mod:`._conversation`.
Source: docs/wire.md §1.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence

import trio

from .._descriptors import present_descriptors, share_descriptors
from .._failures import must_pass
from .._hosts import join_host_port, routable_host
from .._network import close_now
from .._shares import share_of_peer
from .._tallies import Tallies
from .._text import RateLimitedLogger
from ..abc import PlaneOptions, PushReceiver, RequestPlane
from ..wire.addresses import split_advertised
from ._connection import Connection
from ._connections import Connections
from ._conversation import Conversations
from ._incomplete import IncompleteFrames

logger = logging.getLogger("ingress.planes.tcp")

AcceptNowait = Callable[[], trio.abc.Stream | None]

# Out of descriptors or memory: wait for some to come back instead of spinning.
_ACCEPT_BACKOFF = 0.1

# Where many come together, so many are taken in one pass of the event loop, some 80 µs each: with one a pass those that
# come last wait for hundreds of passes, however little they want.
_ACCEPTS_A_PASS = 64


class TcpRequestPlane(RequestPlane):
    """Listens on one address and hands every frame to the worker."""

    def __init__(self, options: PlaneOptions, *, tallies: Tallies | None = None) -> None:
        """
        Args:
            tallies: where what its limits do is counted.
        """
        self._options = options
        self._network = options.network
        self.max_connections = share_descriptors(present_descriptors(), options.max_connections).connections
        """How many are open at a time."""
        self.tallies = Tallies() if tallies is None else tallies
        """What its limits did; the worker's metrics show it."""
        of_peer = options.max_connections_per_peer
        self._connections = Connections(
            self.max_connections, share_of_peer(self.max_connections) if of_peer is None else of_peer, self.tallies
        )
        self._incomplete = IncompleteFrames(
            options.max_incomplete_bytes, options.max_frame_size, options.is_short_of_memory
        )
        self._conversations = Conversations(options, self._connections, self._incomplete, self.tallies)
        self._bound: tuple[str, int] | None = None
        self._accept_log = RateLimitedLogger(logger, per_second=1)

    @property
    def bound_address(self) -> tuple[str, int]:
        """Host and port of the listener; valid once started."""
        if self._bound is None:
            raise RuntimeError("the request plane has not started")
        return self._bound

    @property
    def own_addresses(self) -> Sequence[tuple[str, int]]:
        return [self.bound_address]

    @property
    def address(self) -> str:
        """``host:port`` as callers are told; valid once started."""
        host, port = self.bound_address
        if self._options.advertise is not None:
            advertised, own_port = split_advertised(self._options.advertise)
            return join_host_port(advertised, port) if own_port is None else self._options.advertise
        return join_host_port(routable_host() if host in ("0.0.0.0", "::") else host, port)  # noqa: S104 - compared

    def transport(self, path: str) -> Mapping[str, str]:
        return {"tcp": f"{self.address}/{path}"}

    async def serve(
        self, receive: PushReceiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with (
            await self._network.open_listener(self._options.host, self._options.port) as listener,
            trio.open_nursery() as nursery,
        ):
            self._bound = self._network.local_address(listener)
            wanted = self._options.max_connections
            if wanted is not None and wanted > self.max_connections:
                text = "max_connections of %d does not fit the limit of open files and is taken for %d"
                logger.warning(text, wanted, self.max_connections)
            nursery.start_soon(self._conversations.turns.serve)
            task_status.started()
            # Only some listeners can tell without a wait whether there are more.
            accept_nowait: AcceptNowait = getattr(listener, "accept_nowait", _accept_none)
            while True:
                try:
                    self._enter(await listener.accept(), receive, nursery)
                    for _ in range(_ACCEPTS_A_PASS - 1):
                        if (stream := accept_nowait()) is None:
                            break
                        self._enter(stream, receive, nursery)
                except OSError as exc:
                    # No errno of accept(2) says that the listener is gone, and most say "later".
                    name = errno.errorcode.get(exc.errno or 0, "?")
                    self._accept_log.log(logging.ERROR, f"accept {name}", "cannot accept a connection: %s", exc)
                    await trio.sleep(_ACCEPT_BACKOFF)

    def _enter(self, stream: trio.abc.Stream, receive: PushReceiver, nursery: trio.Nursery) -> None:
        """Serve a new connection where there is a place for it, or close it; never waits for that."""
        peer_host = self._network.peer_host(stream)
        if getattr(stream, "cannot_shake_hands", False):
            self.tallies.connections_refused["tls"] += 1
            text = "request connection from %s refused: it has left before its TLS handshake"
            self._accept_log.log(logging.WARNING, "left", text, peer_host)
            _close_soon(stream, nursery)
            return
        connection, given_up = self._connections.enter(stream, peer_host)
        if connection is not None:
            nursery.start_soon(self._serve_connection, connection, receive)
        else:
            text, full = "connection from %s refused: %s", self._connections.describe_full(peer_host)
            self._accept_log.log(logging.WARNING, "connections", text, peer_host, full)
            _close_soon(stream, nursery)
        if given_up is not None:
            text, why = "connection from %s closed to make room: %s", self._connections.describe_given_up(given_up)
            self._accept_log.log(logging.WARNING, f"{given_up.gave_way} connection", text, given_up.peer_host, why)
            _close_soon(given_up.stream, nursery)  # its own task finds it closed

    async def _serve_connection(self, connection: Connection, receive: PushReceiver) -> None:
        """The wall round one connection: whatever goes wrong with it ends it and nothing else."""
        stream, peer_host = connection.stream, connection.peer_host
        try:
            await self._conversations.hold(connection, receive)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("request connection from %s reset", peer_host)
        except BaseException as exc:
            if must_pass(exc):
                raise
            logger.exception("request connection from %s: internal error", peer_host)
        finally:
            self._incomplete.note(connection, 0)
            if connection.is_open:  # else it has been given up, and closed
                self._connections.leave(connection)
                await close_now(stream)


def _accept_none() -> None:
    return None


def _close_soon(stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
    """Close at once where the stream can, else in a task; whoever is refused keeps nobody waiting.

    TLS has no goodbye for them: there may be thousands, each with a descriptor until it is closed.
    """
    close_nowait: Callable[[], None] | None = getattr(getattr(stream, "transport", stream), "close_nowait", None)
    if close_nowait is None:
        nursery.start_soon(trio.aclose_forcefully, stream)
    else:
        close_nowait()
