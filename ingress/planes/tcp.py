"""The TCP request plane: one listener for every endpoint of a process.

A connection carries any number of back-to-back frames. Its one task reads, decides and acks, in order and never behind
engine work; a caller that does not read its acks is not read from, and closed at the write deadline.
Source: docs/wire.md §1.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

import trio

from .._network import join_host_port, routable_host
from .._text import RateLimitedLogger
from ..abc import Network, Push, PushReceiver, RequestPlane
from ..errors import InvalidMessage, MessageTooLarge
from ..wire.request_frame import (
    DEFAULT_MAX_FRAME_SIZE,
    UNAVAILABLE_PREFIX,
    RequestFrame,
    RequestFrameDecoder,
    encode_ack,
)

logger = logging.getLogger("ingress.planes.tcp")

# Loopback unless told otherwise: the port takes bytes from anybody.
DEFAULT_HOST = "127.0.0.1"

# Acks are a few bytes each; a caller that leaves them unread for so long has stopped.
DEFAULT_ACK_WRITE_TIMEOUT = 60.0

# After a refusal that ends the connection the caller may still be sending; reading on for a while lets the ack arrive
# before the reset that unread bytes would cause.
_LINGER_TIMEOUT = 1.0

# Out of descriptors or memory: wait for some to come back instead of spinning.
_ACCEPT_BACKOFF = 0.1

_READ_SIZE = 64 * 1024


class TcpRequestPlane(RequestPlane):
    """Listens on one address and hands every frame to the worker."""

    def __init__(
        self,
        network: Network,
        *,
        host: str = DEFAULT_HOST,
        port: int = 0,
        advertise: str | None = None,
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        ack_write_timeout: float = DEFAULT_ACK_WRITE_TIMEOUT,
    ) -> None:
        """
        Args:
            advertise: host, or host:port, that callers are told; by default the bound one, and when bound to all
                addresses the machine's first that is not loopback.
        """
        self._network = network
        self._host = host
        self._port = port
        self._advertise = advertise
        self._max_frame_size = max_frame_size
        self._ack_write_timeout = ack_write_timeout
        self._bound: tuple[str, int] | None = None
        self._log = RateLimitedLogger(logger)
        self._accept_log = RateLimitedLogger(logger, per_second=1)

    @property
    def bound_address(self) -> tuple[str, int]:
        """Host and port of the listener; valid once started."""
        if self._bound is None:
            raise RuntimeError("the request plane has not started")
        return self._bound

    @property
    def advertised_address(self) -> str:
        """``host:port`` as callers are told; valid once started."""
        host, port = self.bound_address
        if self._advertise is not None:
            has_port = self._advertise.rpartition(":")[2].isdigit() and ":" in self._advertise
            is_bare_ipv6 = self._advertise.count(":") > 1 and not self._advertise.startswith("[")
            if has_port and not is_bare_ipv6:
                return self._advertise
            return join_host_port(self._advertise.removeprefix("[").removesuffix("]"), port)
        return join_host_port(routable_host() if host in ("0.0.0.0", "::") else host, port)  # noqa: S104 - compared

    def transport(self, path: str) -> Mapping[str, str]:
        return {"tcp": f"{self.advertised_address}/{path}"}

    async def serve(
        self, receive: PushReceiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with (
            await self._network.open_listener(self._host, self._port) as listener,
            trio.open_nursery() as nursery,
        ):
            self._bound = self._network.local_address(listener)
            task_status.started()
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    # No errno of accept(2) says that the listener is gone, and most say "later".
                    name = errno.errorcode.get(exc.errno or 0, "?")
                    self._accept_log.log(logging.ERROR, f"accept {name}", "cannot accept a connection: %s", exc)
                    await trio.sleep(_ACCEPT_BACKOFF)
                    continue
                nursery.start_soon(self._serve_connection, stream, receive)

    async def _serve_connection(self, stream: trio.abc.Stream, receive: PushReceiver) -> None:
        """The wall round one connection: whatever goes wrong with it ends it and nothing else."""
        peer_host = self._network.peer_host(stream)
        try:
            await self._converse(stream, receive, peer_host)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("request connection from %s reset", peer_host)
        except Exception:
            logger.exception("request connection from %s: internal error", peer_host)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.abc.Stream, receive: PushReceiver, peer_host: str | None) -> None:
        decoder = RequestFrameDecoder(max_frame_size=self._max_frame_size)
        while data := await stream.receive_some(_READ_SIZE):
            decoder.receive_data(data)
            acks = bytearray()
            refusal = None
            try:
                for frame in decoder:
                    acks += encode_ack(self._push(frame, receive, peer_host))
            except MessageTooLarge as exc:
                refusal = str(exc)
            except InvalidMessage:
                refusal = "invalid endpoint path"
            if refusal is not None:
                self._log.log(logging.WARNING, "frame refused", "frame from %s refused: %s", peer_host, refusal)
                acks += encode_ack(UNAVAILABLE_PREFIX + refusal)
            if acks and not await self._send_acks(stream, acks, peer_host):
                return
            if refusal is not None:
                await _close_after_refusal(stream)
                return
        if not decoder.is_idle:
            logger.debug("request connection from %s ended inside a frame", peer_host)

    def _push(self, frame: RequestFrame, receive: PushReceiver, peer_host: str | None) -> str:
        try:
            path = frame.path
        except InvalidMessage:
            path = None  # refused like an unknown one, so that callers who understand no refusal are told too
        return receive(Push(path, frame.payload, frame.headers, peer_host))

    async def _send_acks(self, stream: trio.abc.Stream, acks: bytearray, peer_host: str | None) -> bool:
        with trio.move_on_after(self._ack_write_timeout):
            await stream.send_all(bytes(acks))
            return True
        self._log.log(
            logging.WARNING, "acks unread", "%s read no ack for %g s, closing", peer_host, self._ack_write_timeout
        )
        return False


async def _close_after_refusal(stream: trio.abc.Stream) -> None:
    if isinstance(stream, trio.abc.HalfCloseableStream):
        with trio.move_on_after(_LINGER_TIMEOUT):
            await stream.send_eof()
            while await stream.receive_some(_READ_SIZE):
                pass
