"""Connections in memory that behave as TCP's do: they hold so many bytes and no more, and can send without waiting."""

from __future__ import annotations

import operator
from collections.abc import Callable

import trio

from ._memory import StreamPair

# Small enough that a test fills it on purpose, large enough that it does not by accident.
DEFAULT_CAPACITY = 64 * 1024


def pipe_pair(capacity: int = DEFAULT_CAPACITY) -> StreamPair:
    """Return the two ends of a connection that holds ``capacity`` bytes each way.

    As with a TCP socket the response pump sends on them without waiting, and waits only when they are full.
    """
    left, right = _Pipe(capacity), _Pipe(capacity)
    return PipeStream(left, right), PipeStream(right, left)


def pipes(capacity: int = DEFAULT_CAPACITY) -> Callable[[], StreamPair]:
    """Return a ``make_pair`` for :class:`MemoryNetwork` whose connections hold ``capacity`` bytes each way."""
    return lambda: pipe_pair(capacity)


class PipeStream(trio.abc.Stream):
    """One end of :func:`pipe_pair`; one task may send and one receive at a time.

    Closing drops what this end has not read; what it has sent can still be read by the other end.
    """

    def __init__(self, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._sending = _OneTask("send on")
        self._receiving = _OneTask("receive from")
        self._is_closed = False

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what fits and return how many bytes that was.

        Raises:
            trio.BrokenResourceError: either end was closed; a socket knows no difference here.
        """
        if self._is_closed:
            raise trio.BrokenResourceError("this end was closed")
        return self._outgoing.put(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_open()
            rest = memoryview(bytes(data))
            while rest := rest[self._outgoing.put(rest) :]:
                await self._outgoing.wait(lambda pipe: pipe.room > 0)
                self._check_open()

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_open()
            await self._outgoing.wait(lambda pipe: pipe.room > 0)
            self._check_open()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes must be at least 1, got {max_bytes!r}")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            self._check_open()
            await self._incoming.wait(lambda pipe: bool(pipe.data))
            self._check_open()
            return self._incoming.take(max_bytes)

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._outgoing.end()
            self._incoming.abandon()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this end was closed")


class _OneTask:
    """Refuses a second task where one is at work."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_busy = False

    def __enter__(self) -> None:
        if self._is_busy:
            raise trio.BusyResourceError(f"another task is about to {self._what} this pipe")
        self._is_busy = True

    def __exit__(self, *exc_info: object) -> None:
        self._is_busy = False


class _Pipe:
    """Bytes on their way in one direction."""

    def __init__(self, capacity: int) -> None:
        self.data = bytearray()
        self._capacity = capacity
        self._is_ended = False
        self._is_abandoned = False
        self._changed = trio.Event()

    @property
    def room(self) -> int:
        return self._capacity - len(self.data)

    def put(self, data: bytes | bytearray | memoryview) -> int:
        if self._is_abandoned:
            raise trio.BrokenResourceError("the other end was closed")
        fitting = data[: self.room]
        self.data += fitting
        self._wake()
        return len(fitting)

    def take(self, max_bytes: int | None) -> bytes:
        taken = bytes(self.data[:max_bytes])
        del self.data[: len(taken)]
        self._wake()
        return taken

    def end(self) -> None:
        """No more comes: the sender's end was closed."""
        self._is_ended = True
        self._wake()

    def abandon(self) -> None:
        """Nobody reads any more: the receiver's end was closed."""
        self._is_abandoned = True
        self.data.clear()
        self._wake()

    async def wait(self, is_so: Callable[[_Pipe], bool]) -> None:
        """Wait until it is so, or until one of the ends was closed."""
        while not (self._is_ended or self._is_abandoned or is_so(self)):
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
