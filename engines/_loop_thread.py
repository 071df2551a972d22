"""One asyncio loop in a thread of its own, from its start to its death or its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import trio

from ingress.errors import EngineShutdown

logger = logging.getLogger("ingress.asyncio")


class OpenRequest(Protocol):
    """What the loop needs of a request that runs in it."""

    def fail(self, error: BaseException) -> None:
        """End it for its caller, whatever its task does; in the trio thread."""


class LoopThread:
    """A loop that runs from the moment this is made. One that has died stays dead: who starts anew makes another.

    For the trio thread that made it, except :meth:`call_trio` and :meth:`death`. A request belongs to one of them for
    life, so that what a dead one still does, or never does, cannot be taken for the next one's.

    Args:
        nursery: for what requests wait for in trio; outlives them.

    Raises:
        OSError: the system has no descriptors left for a loop.
        RuntimeError: the system has no thread left.
    """

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop], nursery: trio.Nursery) -> None:
        self.loop = new_loop()
        self.nursery = nursery
        self.failure: BaseException | None = None
        """Why it died, where it did; set before any request is told."""
        self.died = trio.Event()
        """Set when it has died and its requests have been told; its thread may still be ending."""
        self.open: set[OpenRequest] = set()
        self.opened = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_armed = False
        self._is_over = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="ingress asyncio", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.loop.close()
            raise

    # -- its life ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Have it end in good order, soon."""
        self.call(self._is_over.set)

    async def join(self, seconds: float) -> bool:
        """Wait for its thread, in real time whatever clock trio runs on; tell whether it has ended."""
        own = trio.CapacityLimiter(1)  # trio's may be in the hands of engines
        await trio.to_thread.run_sync(self._thread.join, seconds, abandon_on_cancel=True, limiter=own)
        return not self._thread.is_alive()

    def death(self) -> EngineShutdown | None:
        """What to tell the requests of a loop that has died; None while it lives. For any thread."""
        if self.failure is None:
            return None
        return EngineShutdown(f"the asyncio loop of this engine has died: {self.failure!r}")

    def line(self) -> str:
        """The line of code that its thread is at."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            return "unknown"
        return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                try:
                    runner.run(self._serve())
                except BaseException as exc:  # SystemExit in some task: asyncio lets it end the loop
                    self._die(exc)
        except BaseException as exc:  # while it was closed
            self._die(exc)
        finally:
            # Tells once more: who was thrown into this thread may have cut the telling short.
            if self.failure is not None or not self._is_over.is_set():
                self._die(EngineShutdown("its thread has ended"))

    async def _serve(self) -> None:
        # A handler may cancel all tasks of its loop, as programs do at their end; this one is not the handler's.
        while not self._is_over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self._is_over.wait()

    def _die(self, exc: BaseException) -> None:
        if self.failure is None:
            self.failure = exc
            logger.error("the asyncio loop has died, and with it every engine in it: %r", exc, exc_info=exc)
        self.call_trio(self._bury)
        # Closing the loop cancels its tasks and waits for them, _serve among them.
        if not self.loop.is_closed():
            self._is_over.set()

    def _bury(self) -> None:
        self.fail_all(str(self.death()))
        self.died.set()

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
            try:
                function(*arguments)
            except Exception:  # those behind it are others' requests
                logger.exception("internal error in the asyncio loop")

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
        if (death := self.death()) is not None:
            raise death
        self.open.add(request)
        self.opened.set()
        try:
            yield
        finally:
            self.open.discard(request)

    def fail_all(self, why: str) -> None:
        """Tell every open request."""
        for request in tuple(self.open):
            request.fail(EngineShutdown(why))
