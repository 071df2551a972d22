"""Threads for engines that block: bounded in number, and iterators that run ahead in them, held back."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import trio

from ._per_run import PerRun
from .handover import Handover

# Chunks a thread may run ahead of a slow caller.
MAX_AHEAD = 64

# A caller that reads makes room within it; one that does not must not keep a thread.
PATIENCE = 0.05

# Blocking engines at once, over all endpoints; more wait for a thread. A thread costs some 8 MiB of address space.
MAX_THREADS = 256


async def iterate_in_thread(make_iterator: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    """Run a blocking iterator in a thread and yield what it yields.

    While its consumer is slow it holds no thread, and may go on in another one. When the consumer leaves early the
    thread is told and stops at its next chunk; it is not waited for, because blocking code cannot be interrupted. It
    keeps its place among ``MAX_THREADS`` until it has really ended.
    """
    running = _Blocking(make_iterator)
    await start_engine_thread(running.run)
    try:
        while batch := await running.take():
            for chunk in batch:
                yield chunk
    finally:
        running.close()


_limiter = PerRun("ingress blocking engines", lambda: trio.CapacityLimiter(MAX_THREADS)).get


async def start_engine_thread(work: Callable[[], None]) -> None:
    """Wait until one of the ``MAX_THREADS`` is free, start the work in it and return.

    The work knows the contextvars of the caller, must not raise, and says by a :class:`~ingress.handover.Handover` what
    came of it. It keeps its place until it returns, whatever becomes of the request.

    Raises:
        RuntimeError: the system has no thread left.
    """
    limiter, token, borrower = _limiter(), trio.lowlevel.current_trio_token(), object()
    await limiter.acquire_on_behalf_of(borrower)

    def release(_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(limiter.release_on_behalf_of, borrower)

    try:
        trio.lowlevel.start_thread_soon(
            functools.partial(contextvars.copy_context().run, work), release, name="ingress blocking engine"
        )
    except BaseException:  # the system has no thread left
        limiter.release_on_behalf_of(borrower)
        raise


class _Blocking:
    """A blocking iterator, which has a thread only while it has room for what it makes."""

    def __init__(self, make_iterator: Callable[[], Iterator[Any]]) -> None:
        self._space = threading.Event()
        self._handover = Handover(max_chunks=MAX_AHEAD, on_space=self._space.set)
        self._make_iterator: Callable[[], Iterator[Any]] | None = make_iterator
        self._iterator: Iterator[Any] = iter(())
        # What it sets it finds again, in whichever thread it goes on.
        self._variables = contextvars.copy_context()
        # Between the thread that looks whether there is room, and the loop that makes some: one of them sees the other.
        self._lock = threading.Lock()
        self._is_parked = False

    async def take(self) -> list[Any]:
        """Return chunks, an empty list at the end; see :meth:`Handover.take`."""
        with self._lock:
            self._handover.give_back()
            is_resumed, self._is_parked = self._is_parked, False
        if is_resumed:
            try:
                await start_engine_thread(self.run)
            except BaseException:
                self._is_parked = True  # as it was: to be closed in a thread
                raise
        return await self._handover.take()

    def close(self) -> None:
        """Want no more; the iterator is closed in a thread, as soon as it can be."""
        with self._lock:
            self._handover.close()
            is_resumed, self._is_parked = self._is_parked, False
        if is_resumed:
            trio.lowlevel.spawn_system_task(self._close_in_thread)

    async def _close_in_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # no thread is left: it is closed when it is collected
            await start_engine_thread(self.run)

    def run(self) -> None:
        """In a thread: go on until the iterator ends, there is no room, or nobody wants more."""
        self._variables.run(self._run)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            if self._make_iterator is not None:
                make, self._make_iterator = self._make_iterator, None
                self._iterator = make()
            if self._go_on():
                return
            close = getattr(self._iterator, "close", None)
            if close is not None:
                close()
        except BaseException as exc:
            error = exc
        self._handover.finish(error)

    def _go_on(self) -> bool:
        """Hand chunks over; True where it is to go on when there is room."""
        handover = self._handover
        if handover.is_closed:
            return False
        try:
            for chunk in self._iterator:
                if not handover.put(chunk):
                    return False
                if handover.is_full and self._is_to_park():
                    return True
        except BaseException:
            with contextlib.suppress(BaseException):
                getattr(self._iterator, "close", bool)()
            raise
        return False

    def _is_to_park(self) -> bool:
        """Wait a moment for room; True where there is none, and the thread is to be left."""
        self._space.clear()
        if not self._handover.hold() or self._space.wait(PATIENCE):
            return False
        with self._lock:
            self._is_parked = self._handover.hold()
            return self._is_parked
