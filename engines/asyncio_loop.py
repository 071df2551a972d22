"""One asyncio loop in a thread of its own, for as long as a worker serves the engines that live in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import trio

from ingress.errors import EngineShutdown

from ._loop_thread import LoopThread

logger = logging.getLogger("ingress.asyncio")

# A loop that does not answer is named in the log after so many seconds, with the line that blocks it; after the second
# number of them every open request is told. Compiling kernels at the first request takes the better part of a minute.
BLOCKED_WARNING = 5.0
DEFAULT_BLOCKED_TIMEOUT = 60.0

# What tasks that a handler left behind, and threads of its executor, are given to end with the loop.
SHUTDOWN_TIMEOUT = 5.0

_PING_INTERVAL = 1.0


class AsyncioLoop:
    """The loop and its thread; uvloop's where it is installed. Shared by engines whose objects know each other.

    A loop that dies is started again once, in a new thread; when that one dies too, it stays dead. For the trio thread.
    """

    def __init__(self, *, blocked_timeout: float = DEFAULT_BLOCKED_TIMEOUT, use_uvloop: bool | None = None) -> None:
        self._blocked_timeout = blocked_timeout
        self._new_loop = _loop_factory(use_uvloop)
        self._thread: LoopThread | None = None
        self._may_restart = True

    @property
    def thread(self) -> LoopThread:
        """The one that a new request belongs to; it may have died.

        Raises:
            EngineShutdown: the loop is not running.
        """
        if self._thread is None:
            raise EngineShutdown("the engine is not running: its lifespan has not been entered")
        return self._thread

    def trouble(self) -> str | None:
        """Say how it died, once it stays dead."""
        if self._thread is None or self._may_restart or (death := self._thread.death()) is None:
            return None
        return str(death)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it while inside. Who comes second shares the first one's, and has to leave first."""
        if self._thread is not None:
            yield
            return
        self._may_restart = True
        try:
            with _single_exceptions_unwrapped():
                async with trio.open_nursery() as nursery:
                    self._thread = LoopThread(self._new_loop, nursery)
                    nursery.start_soon(self._keep_alive, self._thread)
                    yield
                    nursery.cancel_scope.cancel()
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.stop()
                with trio.CancelScope(shield=True):
                    await _leave(thread)

    async def _keep_alive(self, thread: LoopThread) -> None:
        await self._watch_until_death(thread)
        # Two loops at a time would be two threads in a library that is written for one.
        await _leave(thread)
        self._may_restart = False
        try:
            self._thread = LoopThread(self._new_loop, thread.nursery)
        except Exception as exc:  # no descriptors, no threads: the system's, or uvloop's own
            logger.error("the asyncio loop cannot be started again: %r", exc)
            return
        logger.warning("the asyncio loop has been started again, as happens once, after %r", thread.failure)
        await self._watch_until_death(self._thread)
        logger.error("the asyncio loop has died for the second time and stays dead: the process has to be restarted")

    async def _watch_until_death(self, thread: LoopThread) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, thread)
            await thread.died.wait()
            nursery.cancel_scope.cancel()

    async def _watch(self, thread: LoopThread) -> None:
        """Ask the loop for a sign of life while it has requests.

        In real time, whatever clock trio runs on: it is a thread that is being watched.
        """
        while True:
            if not thread.open:
                thread.opened = trio.Event()
                await thread.opened.wait()
            answers: list[float] = []
            asked, is_told = time.monotonic(), False
            thread.call(answers.append, asked)
            await trio.sleep(_PING_INTERVAL)
            while not answers:
                silence = time.monotonic() - asked
                if silence > BLOCKED_WARNING and not is_told:
                    is_told = True
                    logger.warning("the asyncio loop has been blocked for %.0f s: %s", silence, thread.line())
                if silence > self._blocked_timeout and thread.open:
                    thread.fail_all(f"the asyncio loop of this engine has been blocked for {silence:.0f} s")
                    logger.error("its open requests have been told; blocked at %s", thread.line())
                await trio.sleep(min(_PING_INTERVAL, self._blocked_timeout))


async def _leave(thread: LoopThread) -> None:
    """Wait for the end of a loop's thread, bounded."""
    if not await thread.join(SHUTDOWN_TIMEOUT):
        logger.warning(
            "the asyncio loop has not ended within %g s, leaving without it: %s", SHUTDOWN_TIMEOUT, thread.line()
        )


@contextlib.contextmanager
def _single_exceptions_unwrapped() -> Iterator[None]:
    """Raise what was raised inside as it is: a nursery makes a group of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__


def _loop_factory(use_uvloop: bool | None) -> Callable[[], asyncio.AbstractEventLoop]:
    if use_uvloop is not False:
        try:
            import uvloop
        except ImportError:
            if use_uvloop:
                raise
        else:
            factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return factory
    return asyncio.new_event_loop
