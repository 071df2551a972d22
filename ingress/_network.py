"""TCP byte streams: listening, connecting, and sending without blocking.

The response pump sends what is ready at the moment an engine suspends, which needs a send that never waits. trio's own
socket stream has none, so :class:`TcpStream` keeps the plain socket beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Callable

import trio

from ._forks import hide_from_children, leave_child
from ._hosts import is_literal
from ._socket_options import bytes_untaken, set_keepalive
from .errors import StartupError

# Unacknowledged bytes on a dead link are given up after this long. The kernel takes a peer that reads nothing for dead
# as well, so that it must be more than any write-stall limit, which comes first and is counted.
DEFAULT_USER_TIMEOUT = 63.0

DEFAULT_BACKLOG = 4096
DEFAULT_READ_SIZE = 64 * 1024


# A connect under way, as POSIX and as Windows say it.
_CONNECTING = (errno.EINPROGRESS, errno.EWOULDBLOCK)
_CONNECTING_STILL = (*_CONNECTING, errno.EALREADY)

# Where the system can make a socket that way, it saves a call.
_NONBLOCKING_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


class TcpStream(trio.abc.HalfCloseableStream):
    """A TCP connection that can also send and close without waiting; one task may send and one receive at a time.

    It waits before it reads, where trio's own stream tries first: what is read here is seldom there yet. Without trio's
    socket in between, a request costs 60 µs less.
    """

    __slots__ = ("__weakref__", "_raw", "_waits")

    def __init__(self, raw: socket.socket) -> None:
        if raw.gettimeout() != 0:
            raw.setblocking(False)
        with contextlib.suppress(OSError):  # the same option that trio sets; not every kind of stream has it
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hide_from_children(raw)
        self._raw = raw
        self._waits = 0

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes now and return how many bytes that was; 0 when it takes none.

        Raises:
            trio.BrokenResourceError: the connection is gone.
        """
        try:
            return self._raw.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            if exc.errno == errno.ENOTSOCK:
                leave_child()
            raise trio.BrokenResourceError(f"send failed: {exc}") from exc

    @property
    def has_peer_left(self) -> bool:
        """Whether the peer has closed its side, or reset; what it sent before may still be unread."""
        if self._raw.fileno() < 0 or not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._raw, getattr(select, "POLLRDHUP", 0))  # a reset is always told
        return bool(poll.poll(0))

    @property
    def has_unread(self) -> bool:
        """Whether the peer has sent something that is not read yet; not its end, which may be all there is."""
        try:
            return bool(self._raw.recv(1, socket.MSG_PEEK))
        except OSError:  # nothing has come, or the connection is gone
            return False

    @property
    def untaken(self) -> int | None:
        """Bytes that were sent and that the peer's system has not taken yet; None where this system does not tell."""
        return bytes_untaken(self._raw)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check_open()
        with memoryview(data) as view:
            sent = 0
            await trio.lowlevel.checkpoint()
            while sent < len(view):
                if (count := self.send_nowait(view[sent:])) == 0:
                    await self.wait_send_all_might_not_block()
                sent += count

    async def wait_send_all_might_not_block(self) -> None:
        self._check_open()
        self._waits += 1
        try:
            await trio.lowlevel.wait_writable(self._raw)
        finally:
            self._waits -= 1

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Return what has arrived, b"" at the end of the stream, None where nothing has.

        Raises:
            trio.ClosedResourceError: this end has been closed.
            trio.BrokenResourceError: the connection is gone.
        """
        try:
            return self._raw.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise trio.ClosedResourceError from None
            raise trio.BrokenResourceError(f"receive failed: {exc}") from exc

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check_open()
        self._waits += 1
        try:
            while True:
                await trio.lowlevel.wait_readable(self._raw)
                data = self.receive_nowait(DEFAULT_READ_SIZE if max_bytes is None else max_bytes)
                if data is not None:
                    return data
        finally:
            self._waits -= 1

    async def send_eof(self) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        try:
            self._raw.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise trio.BrokenResourceError(f"end of stream not sent: {exc}") from exc

    def close_nowait(self) -> None:
        """Close at once; whoever waits for this stream is woken by ClosedResourceError."""
        if self._waits and self._raw.fileno() >= 0:
            trio.lowlevel.notify_closing(self._raw)
        self._raw.close()

    async def aclose(self) -> None:
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._raw.fileno() < 0:
            raise trio.ClosedResourceError("this stream was closed")

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._raw.fileno()

    @property
    def peer_host(self) -> str | None:
        """The other end's address, an IPv4-mapped one as IPv4."""
        try:
            name = self._raw.getpeername()
        except OSError:
            return None
        return str(name[0]).removeprefix("::ffff:") if isinstance(name, tuple) else None


class TcpListener(trio.abc.Listener[trio.abc.Stream]):
    """A listening TCP socket whose connections are :class:`TcpStream`."""

    def __init__(self, raw: socket.socket, *, user_timeout: float = DEFAULT_USER_TIMEOUT) -> None:
        raw.setblocking(False)
        hide_from_children(raw)
        self._user_timeout = user_timeout
        self._raw = raw

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._raw.getsockname()[:2]
        return str(host), int(port)

    async def accept(self) -> TcpStream:
        """Wait for a connection; raises OSError as accept(2) does, EMFILE for one."""
        while True:
            if self._raw.fileno() < 0:
                raise trio.ClosedResourceError("this listener was closed")
            await trio.lowlevel.wait_readable(self._raw)
            if (stream := self.accept_nowait()) is not None:
                return stream

    def accept_nowait(self) -> TcpStream | None:
        """Return a connection that is there already, None where none is; raises as :meth:`accept` does.

        After an :meth:`accept`, for the others of a crowd: each wait is a pass of the event loop, which may be slow.
        """
        try:
            raw, _ = self._raw.accept()
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise trio.ClosedResourceError from exc
            raise
        set_keepalive(raw, self._user_timeout)
        return TcpStream(raw)

    async def aclose(self) -> None:
        if self._raw.fileno() >= 0:
            trio.lowlevel.notify_closing(self._raw)
        self._raw.close()
        await trio.lowlevel.checkpoint()


class TcpConnect:
    """A connection that is being made."""

    __slots__ = ("_raw",)

    def __init__(self, raw: socket.socket) -> None:
        hide_from_children(raw)
        self._raw = raw

    def close(self) -> None:
        """Leave it."""
        self._raw.close()

    async def wait(self) -> TcpStream:
        """Wait for the other end, once; closes where that fails. Raises OSError; the caller bounds the wait."""
        raw = self._raw
        try:
            await trio.lowlevel.wait_writable(raw)
            if code := raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
        except BaseException:
            raw.close()
            raise
        return TcpStream(raw)


class TcpNetwork:
    """The real network; see :class:`ingress.abc.Network`.

    Args:
        user_timeout: seconds after which bytes that a peer does not acknowledge end its connection, where the system
            can; it needs to be as much as the longest that a peer may take no byte.
    """

    def __init__(self, *, user_timeout: float = DEFAULT_USER_TIMEOUT) -> None:
        self._user_timeout = user_timeout

    async def open_listener(self, host: str, port: int) -> TcpListener:
        try:
            infos = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as exc:
            raise StartupError(f"cannot listen on {host}: {getattr(exc, 'strerror', None) or exc}") from exc
        family, _, _, _, address = infos[0]
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            if sys.platform != "win32":
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            raw.bind(address)
            raw.listen(DEFAULT_BACKLOG)
        except OSError as exc:
            raw.close()
            raise StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
        return TcpListener(raw, user_timeout=self._user_timeout)

    async def connect(self, host: str, port: int) -> TcpStream:
        await trio.lowlevel.checkpoint_if_cancelled()
        if is_literal(host):
            return await self._connect(host, port)
        failure = OSError(f"{host} has no address")
        for found in await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                return await self._connect(str(found[4][0]), port)
            except OSError as exc:
                failure = exc
        raise failure

    async def _connect(self, host: str, port: int) -> TcpStream:
        started = self.start_connect(host, port)
        return await started.wait() if isinstance(started, TcpConnect) else started

    def start_connect(self, host: str, port: int) -> TcpStream | TcpConnect:
        """Begin to connect to a literal address; on the same machine that is all of it. Raises OSError."""
        raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, _NONBLOCKING_STREAM)
        try:
            if raw.gettimeout() != 0:
                raw.setblocking(False)
            set_keepalive(raw, self._user_timeout)
            code = raw.connect_ex((host, port))
            if code in _CONNECTING:
                # On the same machine it has been accepted by now: asking again is cheaper than being woken.
                code = raw.connect_ex((host, port))
                if code == errno.EISCONN:  # not on Linux, which says 0
                    code = 0
            if code in _CONNECTING_STILL:
                return TcpConnect(raw)
            if code:
                raise OSError(code, os.strerror(code))
        except BaseException:
            raw.close()
            raise
        return TcpStream(raw)

    def local_address(self, listener: trio.abc.Listener[trio.abc.Stream]) -> tuple[str, int]:
        if not isinstance(listener, TcpListener):
            raise TypeError(f"expected a listener of this network, got {type(listener).__name__}")
        return listener.address

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return stream.peer_host if isinstance(stream, TcpStream) else None


async def close_now(stream: trio.abc.Stream) -> None:
    """Close without a goodbye, and without a wait where the stream can; not cancelled half-way.

    TLS has a goodbye, for an end without one is none; its streams are bounded in what they take for it.
    """
    close_nowait: Callable[[], None] | None = getattr(stream, "close_nowait", None)
    if close_nowait is not None:
        close_nowait()
        return
    with trio.CancelScope(shield=True):
        if getattr(stream, "closes_promptly", False):
            await stream.aclose()
        else:
            await trio.aclose_forcefully(stream)
