"""The streams a worker has dialled, from their handshakes to their callers' FINs.

On a response stream a caller seldom says anything, and nearly always only its FIN: a task for each would cost more than
all else that a short request needs, and a third of the memory of an open stream. So one task hears all of them by one
epoll descriptor; where the system has none, or the stream is none of the kernel's own, each has its task after all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from ._descriptors import StreamDescriptors
from ._failures import must_pass
from ._network import TcpStream, close_now

logger = logging.getLogger("ingress.dialback")

# A whole answer whose caller has not closed yet holds a descriptor. Callers close within milliseconds; of those who
# never do, so many are waited for, and then the one that was waited for longest is closed; fewer where descriptors are
# few.
MAX_LINGERING = 1024

# Control words have 34 bytes.
_READ_SIZE = 4096


class Listener(Protocol):
    """What is told of the caller's side of one stream; called by tasks of the event loop, and never waits."""

    def receive(self, data: bytes) -> bool:
        """Take what the caller sent; False when nothing more is to be read."""

    def end(self) -> None:
        """The caller has closed its side."""

    def broke(self, error: trio.BrokenResourceError) -> None:
        """The connection was lost."""


class DialledStreams:
    """Hears the dialled streams of one worker and closes those whose answers are whole; for its event loop.

    Works while :meth:`serve` runs.

    Args:
        descriptors: what the streams may take; those that linger are counted here, others by whoever opened them.
    """

    def __init__(self, descriptors: StreamDescriptors | None = None) -> None:
        self.descriptors = StreamDescriptors() if descriptors is None else descriptors
        self._nursery: trio.Nursery | None = None
        self._has_epoll = hasattr(select, "epoll")
        self._epoll: select.epoll | None = None
        self._epoll_wanted = trio.Event()
        self._heard: dict[int, tuple[TcpStream, Listener]] = {}
        self._lingering: dict[trio.abc.Stream, float] = {}
        """When each is closed at the latest; those that linger longest come first."""
        self._linger_began = trio.Event()
        self._idle: trio.Event | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the streams until cancelled; what is open then is closed, and what was started by :meth:`start_soon`
        is cancelled."""
        try:
            await self._serve(task_status)
        finally:
            for stream, _ in list(self._heard.values()):
                self.descriptors.held -= self._forget(stream)
                stream.close_nowait()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._close_overdue)
            task_status.started()
            await self._epoll_wanted.wait()
            try:
                epoll = select.epoll()
            except OSError as exc:  # no descriptor left
                logger.warning("no epoll descriptor, so that each stream has a task: %s", exc)
                self._has_epoll = False
                for stream, listener in self._heard.values():
                    self.start_soon(self._listen, stream, listener)
                await trio.sleep_forever()
            with epoll:
                self._register_all(epoll)
                self._epoll = epoll
                try:
                    while True:
                        await trio.lowlevel.wait_readable(epoll.fileno())
                        self._hear_ready(epoll)
                finally:
                    self._epoll = None  # tasks that close their streams as they are cancelled come after it

    def start_soon(self, serve: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Run what serves one stream in a task, behind a wall: a bug in it ends this task and no other."""
        if self._nursery is None:
            raise RuntimeError("the dialled streams are not being served")
        self._nursery.start_soon(self._walled, serve, *arguments, name=serve)

    def listen(self, stream: trio.abc.Stream, listener: Listener) -> None:
        """Read the stream until the listener has enough, the caller closes it or it breaks; then close it."""
        if not self._has_epoll or not isinstance(stream, TcpStream):
            self.start_soon(self._listen, stream, listener)
            return
        self._heard[stream.fileno()] = stream, listener
        if self._epoll is not None:
            self._register(self._epoll, stream, listener)
        else:
            self._epoll_wanted.set()

    async def close(self, stream: trio.abc.Stream) -> None:
        """Close without waiting for the caller: a FIN, or a reset where its bytes were not read."""
        is_counted = self._forget(stream)
        try:
            await close_now(stream)
        finally:
            if is_counted:
                self.descriptors.held -= 1

    def linger(self, stream: trio.abc.Stream, seconds: float) -> None:
        """The answer is whole: let the caller close first, so that nothing under way is lost to a reset.

        A stream that is not closed by then is closed, as is the first of more than ``MAX_LINGERING``, or than
        a quarter of what there are descriptors for.
        """
        self._lingering[stream] = trio.current_time() + seconds
        self.descriptors.held += 1
        count = len(self._lingering)
        if count > MAX_LINGERING or count > self.descriptors.most_lingering:
            self._close_lingering(next(iter(self._lingering)))
        if not self._linger_began.is_set():
            self._linger_began.set()

    async def wait_idle(self) -> None:
        """Wait until no stream waits for its caller any more."""
        while self._lingering:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    # -- hearing -------------------------------------------------------------------------------------------------------

    def _register(self, epoll: select.epoll, stream: TcpStream, listener: Listener) -> None:
        try:
            epoll.register(stream.fileno(), select.EPOLLIN)
        except OSError:  # the user has no watches left, which the system counts
            self.start_soon(self._listen, stream, listener)

    def _register_all(self, epoll: select.epoll) -> None:
        for stream, listener in list(self._heard.values()):
            self._register(epoll, stream, listener)

    def _hear_ready(self, epoll: select.epoll) -> None:  # not in serve(), whose frame would keep the last one heard
        for number, _ in epoll.poll(0):
            if (heard := self._heard.get(number)) is not None and not self._hear_one(*heard):
                is_counted = self._forget(heard[0])
                heard[0].close_nowait()
                self.descriptors.held -= is_counted

    def _hear_one(self, stream: TcpStream, listener: Listener) -> bool:
        """Read what has come of one stream; False when that was the last of it."""
        try:
            data = stream.receive_nowait(_READ_SIZE)
            if data is None:
                return True
            if data:
                return listener.receive(data)
            listener.end()
        except trio.BrokenResourceError as exc:
            listener.broke(exc)
        except BaseException as exc:
            if must_pass(exc):
                raise
            logger.exception("internal error while hearing a caller")
        return False

    async def _listen(self, stream: trio.abc.Stream, listener: Listener) -> None:
        try:
            while data := await stream.receive_some(_READ_SIZE):
                if not listener.receive(bytes(data)):
                    break
            else:
                listener.end()
        except trio.ClosedResourceError:
            pass  # closed by us: the request has ended already
        except trio.BrokenResourceError as exc:
            listener.broke(exc)
        finally:
            await self.close(stream)

    async def _walled(self, serve: Callable[..., Awaitable[None]], *arguments: object) -> None:
        try:
            await serve(*arguments)
        except BaseException as exc:
            if must_pass(exc):
                raise
            logger.exception("internal error while serving a dialled stream")

    # -- closing -------------------------------------------------------------------------------------------------------

    def _forget(self, stream: trio.abc.Stream) -> bool:
        """Neither hear nor wait for a stream any more; True where it has lingered, and is counted still."""
        if isinstance(stream, TcpStream):
            number = stream.fileno()
            if self._heard.pop(number, None) is not None and self._epoll is not None:
                # Closing would do, but for a child that an engine forked and that holds the stream still.
                with contextlib.suppress(OSError):
                    self._epoll.unregister(number)
        has_lingered = self._lingering.pop(stream, None) is not None
        if not self._lingering and self._idle is not None:
            self._idle.set()
            self._idle = None
        return has_lingered

    def _close_lingering(self, stream: trio.abc.Stream) -> None:
        """Give up a caller that has not closed its side: at once where the stream can, TLS has a goodbye."""
        close_nowait: Callable[[], None] | None = getattr(stream, "close_nowait", None)
        if close_nowait is None:
            del self._lingering[stream]
            self.start_soon(self._say_goodbye, stream)
            return
        self._forget(stream)
        close_nowait()
        self.descriptors.held -= 1

    async def _say_goodbye(self, stream: trio.abc.Stream) -> None:
        try:
            await self.close(stream)
        finally:
            self.descriptors.held -= 1

    async def _close_overdue(self) -> None:
        while True:
            await self._linger_began.wait()
            await trio.sleep_until(next(iter(self._lingering.values()), -math.inf))
            now = trio.current_time()
            for stream in [stream for stream, deadline in self._lingering.items() if deadline <= now]:
                self._close_lingering(stream)
            if not self._lingering:
                self._linger_began = trio.Event()
