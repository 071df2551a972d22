"""One asyncio loop in a thread of its own, for as long as a worker serves the engines that live in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from ingress.errors import EngineShutdown

logger = logging.getLogger("ingress.asyncio")

# A loop that does not answer is named in the log after so many seconds, with the line that blocks it; after the second
# number of them every open request is told. Compiling kernels at the first request takes the better part of a minute.
BLOCKED_WARNING = 5.0
DEFAULT_BLOCKED_TIMEOUT = 60.0

# What tasks that a handler left behind, and threads of its executor, are given to end with the loop.
SHUTDOWN_TIMEOUT = 5.0

_PING_INTERVAL = 1.0


class OpenRequest(Protocol):
    """What the loop needs of a request that runs in it."""

    def fail(self, error: BaseException) -> None:
        """End it for its caller, whatever its task does; in the trio thread."""


class AsyncioLoop:
    """The loop and its thread; uvloop's where it is installed. Shared by engines whose objects know each other.

    For the trio thread, except :meth:`call_trio` and :meth:`death`.
    """

    def __init__(self, *, blocked_timeout: float = DEFAULT_BLOCKED_TIMEOUT, use_uvloop: bool | None = None) -> None:
        self.failure: BaseException | None = None
        """Why it died, where it did."""
        self._blocked_timeout = blocked_timeout
        self._new_loop = _loop_factory(use_uvloop)
        self.is_running = False
        self._open: set[OpenRequest] = set()
        self._opened = trio.Event()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_armed = False

    # -- its life ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it while inside. Who comes second shares the first one's, and has to leave first."""
        if self.is_running:
            yield
            return
        thread = await self._start()
        try:
            with _single_exceptions_unwrapped():
                async with trio.open_nursery() as nursery:
                    self.nursery = nursery
                    nursery.start_soon(self._watch, thread)
                    yield
                    nursery.cancel_scope.cancel()
        finally:
            self.is_running = False
            with trio.CancelScope(shield=True):
                self.call(self._stop)
                await trio.to_thread.run_sync(thread.join, SHUTDOWN_TIMEOUT)
            if thread.is_alive():
                logger.warning(
                    "the asyncio loop has not ended within %g s, leaving without it: %s",
                    SHUTDOWN_TIMEOUT,
                    _line_of(thread),
                )

    async def _start(self) -> threading.Thread:
        self.failure = None
        self._token = trio.lowlevel.current_trio_token()
        self._calls.clear()
        self._is_armed = False
        started = threading.Event()
        thread = threading.Thread(target=self._main, args=(started,), name="ingress asyncio", daemon=True)
        thread.start()
        await trio.to_thread.run_sync(started.wait)
        self.is_running = True
        return thread

    def _main(self, started: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=self._new_loop) as runner:
                try:
                    runner.run(self._serve(started))
                except BaseException as exc:  # SystemExit in some task: asyncio lets it end the loop
                    self._die(exc)
        except BaseException as exc:  # while it was closed
            self._die(exc)
        finally:
            self.failure = self.failure or EngineShutdown("the asyncio loop has ended")
            started.set()

    async def _serve(self, started: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopping = self.loop.create_future()
        started.set()
        await self._stopping

    def _stop(self) -> None:
        if not self._stopping.done():
            self._stopping.set_result(None)

    def _die(self, exc: BaseException) -> None:
        if self.failure is None:
            self.failure = exc
            logger.error("the asyncio loop has died, and with it every engine in it: %r", exc, exc_info=exc)
            self.call_trio(self._fail_all, str(self.death()))

    def death(self) -> EngineShutdown | None:
        """What to tell the requests of a loop that has died; None while it lives. For any thread."""
        if self.failure is None:
            return None
        return EngineShutdown(f"the asyncio loop of this engine has died: {self.failure!r}")

    # -- between the threads -------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the loop call a function soon; many calls wake it once. Nothing happens where it is dead."""
        self._calls.append((function, arguments))
        if not self._is_armed:
            self._is_armed = True
            # RuntimeError: closed. Its requests have been told.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._run_calls)

    def _run_calls(self) -> None:
        self._is_armed = False  # before the look: who comes after it rings again
        while self._calls:
            function, arguments = self._calls.popleft()
            function(*arguments)

    def call_trio(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have trio call a function soon; from any thread."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *arguments)

    # -- its requests --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(self, request: OpenRequest) -> Iterator[None]:
        """Have the request told, while inside, when the loop dies or is blocked.

        Raises:
            EngineShutdown: it is dead already.
        """
        if not self.is_running:
            raise EngineShutdown("the engine is not running: its lifespan has not been entered")
        if (death := self.death()) is not None:
            raise death
        self._open.add(request)
        self._opened.set()
        try:
            yield
        finally:
            self._open.discard(request)

    def _fail_all(self, why: str) -> None:
        for request in tuple(self._open):
            request.fail(EngineShutdown(why))

    async def _watch(self, thread: threading.Thread) -> None:
        """Ask the loop for a sign of life while it has requests.

        In real time, whatever clock trio runs on: it is a thread that is being watched.
        """
        while True:
            if not self._open:
                self._opened = trio.Event()
                await self._opened.wait()
            answers: list[float] = []
            asked, is_told = time.monotonic(), False
            self.call(answers.append, asked)
            await trio.sleep(_PING_INTERVAL)
            while not answers and self.failure is None:
                silence = time.monotonic() - asked
                if silence > BLOCKED_WARNING and not is_told:
                    is_told = True
                    logger.warning("the asyncio loop has been blocked for %.0f s: %s", silence, _line_of(thread))
                if silence > self._blocked_timeout and self._open:
                    self._fail_all(f"the asyncio loop of this engine has been blocked for {silence:.0f} s")
                    logger.error("its open requests have been told; blocked at %s", _line_of(thread))
                await trio.sleep(min(_PING_INTERVAL, self._blocked_timeout))


@contextlib.contextmanager
def _single_exceptions_unwrapped() -> Iterator[None]:
    """Raise what was raised inside as it is: a nursery makes a group of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__


def _line_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "unknown"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


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
