"""Serves the status application with hypercorn, and keeps its clients away from everything else.

Each connection is hypercorn's own protocol on a guarded stream, behind a wall. ``hypercorn.trio.serve`` itself keeps
all connections in one nursery, which one exception ends, and writes under a shield without a deadline, so that a client
that does not read holds up the end of the worker for ever (hypercorn 0.18, ``trio/run.py``, ``trio/tcp_server.py``).
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import trio

from .._descriptors import present_descriptors, status_connections
from .._fair_line import FairLine, working_for
from .._forks import hide_from_children
from .._hosts import join_host_port
from .._shares import caller_of
from .._text import RateLimitedLogger, printable
from ..errors import StartupError

if TYPE_CHECKING:
    from hypercorn.config import Config
    from starlette.types import ASGIApp

logger = logging.getLogger("ingress.status")

DEFAULT_STATUS_HOST = "127.0.0.1"

# Request line and headers together; more is answered with 431.
MAX_HEADERS = 16 * 1024

# For the headers to arrive, for a connection between two requests, and for one answer to be taken.
DEADLINE = 5.0

# Answers of one connection before it is closed, which scrapers and browsers take for an invitation to open another. Of
# what is pipelined up to 64 KiB wait here, some 2,000 requests; more than this is not worth a page each.
MAX_REQUESTS = 50

_BACKLOG = 256
_ACCEPT_BACKOFF = 0.1


async def serve_status(
    app: ASGIApp,
    *,
    host: str = DEFAULT_STATUS_HOST,
    port: int = 0,
    deadline: float = DEADLINE,
    max_connections: int | None = None,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; reports the bound host and port as ``started``.

    A client's misbehaviour never ends it, and cancellation does not wait for clients.

    Args:
        max_connections: one more pushes out the oldest of the address that has most of them, so that whoever hoards
            them keeps no probe waiting; None for what the limit of open files leaves to it.

    Raises:
        StartupError: the address is taken or not ours.
    """
    listener = await _listen(host, port)
    async with listener, trio.open_nursery() as nursery:
        if max_connections is None:
            max_connections = status_connections(present_descriptors())
        connections = _Connections(app, deadline, max_connections)
        bound_host, bound_port = listener.socket.getsockname()[:2]
        task_status.started((str(bound_host), int(bound_port)))
        try:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    name = errno.errorcode.get(exc.errno or 0, "?")
                    connections.log.log(logging.ERROR, f"accept {name}", "status: cannot accept: %s", exc)
                    await trio.sleep(_ACCEPT_BACKOFF)
                    continue
                hide_from_children(stream.socket)
                nursery.start_soon(connections.serve, stream)
        finally:
            connections.drop_all()


async def _listen(host: str, port: int) -> trio.SocketListener:
    try:
        # A name may have several addresses; with port 0 each would get a port of its own.
        first, *others = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    except UnicodeError as exc:
        raise StartupError(f"status server: cannot listen on {join_host_port(host, port)}: {exc}") from exc
    except OSError as exc:
        reasons = [each.strerror or str(each) for each in _leaves(exc)]
        raise StartupError(f"status server: cannot listen on {join_host_port(host, port)}: {reasons[0]}") from exc
    hide_from_children(first.socket)
    for listener in others:
        await listener.aclose()
    return first


def _leaves(exc: BaseException) -> list[OSError]:
    causes = [exc.__cause__] if isinstance(exc.__cause__, BaseExceptionGroup) else [exc]
    found: list[OSError] = []
    while causes:
        cause = causes.pop()
        if isinstance(cause, BaseExceptionGroup):
            causes.extend(cause.exceptions)
        elif isinstance(cause, OSError):
            found.append(cause)
    return found or [OSError(str(exc))]


class _Connections:
    """The open connections of each address, oldest first; for one server's tasks."""

    def __init__(self, app: ASGIApp, deadline: float, limit: int) -> None:
        from hypercorn.trio.worker_context import WorkerContext
        from hypercorn.utils import wrap_app

        self.log = RateLimitedLogger(logger, per_second=2)
        self._app = wrap_app(app, 0, "asgi")  # type: ignore[arg-type]  # starlette and hypercorn spell ASGI apart
        self._config = _config(deadline)
        self._context = WorkerContext(None)
        self._deadline = deadline
        self._limit = limit
        self._streams: dict[str, dict[GuardedStream, None]] = {}
        self._turn = FairLine()

    async def serve(self, raw: trio.SocketStream) -> None:
        """The wall round one connection."""
        from hypercorn.typing import ConnectionState

        from ._http1 import Http1Connection

        peer = _peer_of(raw)
        working_for.set(peer)
        stream = GuardedStream(raw, self._turn, self._deadline)
        if sum(map(len, self._streams.values())) >= self._limit:
            self.log.log(logging.WARNING, "status connections", "status: over %d connections", self._limit)
            hoarder = max(self._streams, key=lambda each: len(self._streams[each]))
            oldest = next(iter(self._streams[hoarder]))
            self._leave(hoarder, oldest)
            oldest.drop()
        self._streams.setdefault(peer, {})[stream] = None
        try:
            with stream.use:
                await Http1Connection(self._app, self._config, self._context, ConnectionState({}), stream)  # type: ignore[arg-type]  # the parts of a stream that it uses
        except Exception as exc:
            if not stream.is_dropped:
                self.log.log(
                    logging.WARNING, type(exc).__name__, "status: connection failed: %s", printable(repr(exc), 500)
                )
                logger.debug("traceback", exc_info=exc)
        finally:
            self._leave(peer, stream)
            stream.drop()

    def _leave(self, peer: str, stream: GuardedStream) -> None:
        streams = self._streams.get(peer, {})
        streams.pop(stream, None)
        if not streams:
            self._streams.pop(peer, None)

    def drop_all(self) -> None:
        for streams in self._streams.values():
            for stream in streams:
                stream.drop()


def _peer_of(raw: trio.SocketStream) -> str:
    try:
        return caller_of(str(raw.socket.getpeername()[0]))
    except OSError:  # it has left already
        return ""


class GuardedStream(trio.abc.HalfCloseableStream):
    """A socket stream with bounds on what hypercorn leaves unbounded; the turn is shared by all connections."""

    def __init__(self, raw: trio.SocketStream, turn: FairLine, deadline: float) -> None:
        self.socket = raw.socket
        self.is_dropped = False
        self.use = trio.CancelScope()
        """Cancelled when nobody takes an answer any more: hypercorn would answer whatever was asked before, also for
        some 20 s after hundreds had left that had read slowly."""
        self._raw = raw
        self._sending = trio.Lock()
        self._turn = turn
        self._deadline = deadline

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._raw.receive_some(max_bytes)
        # One request is taken up per pass of the event loop, however many arrive at once.
        async with self._turn:
            await trio.lowlevel.checkpoint()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            with trio.move_on_after(self._deadline) as scope:
                async with self._sending:
                    await self._raw.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.use.cancel()
            raise
        if scope.cancelled_caught:
            self.drop()
            raise trio.BrokenResourceError(f"client took too little in {self._deadline:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._raw.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        async with self._sending:  # hypercorn may close while it answers, where a client waits to be told to go on
            await self._raw.send_eof()

    async def aclose(self) -> None:
        await self._raw.aclose()

    def drop(self) -> None:
        """Close at once, from any task, and end what is done for it."""
        self.is_dropped = True
        self.use.cancel()
        self.socket.close()


def _config(deadline: float) -> Config:
    from hypercorn.config import Config

    config = Config()
    config.accesslog = None
    config.errorlog = logger
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEADERS
    config.keep_alive_timeout = deadline
    config.keep_alive_max_requests = MAX_REQUESTS
    return config
