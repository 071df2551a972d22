"""Threads for engines that block: bounded in number, and iterators that run ahead in them, held back."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import trio

from .handover import Handover

# Chunks a thread may run ahead of a slow caller.
MAX_AHEAD = 64

# Blocking engines at once, over all endpoints; more wait for a thread. A thread costs some 8 MiB of address space.
MAX_THREADS = 256


async def iterate_in_thread(make_iterator: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    """Run a blocking iterator in a thread of its own and yield what it yields.

    When the consumer leaves early the thread is told and stops at its next chunk; it is not waited for, because
    blocking code cannot be interrupted. It keeps its place among ``MAX_THREADS`` until it has really ended.
    """
    handover = Handover(max_chunks=MAX_AHEAD)
    await start_engine_thread(functools.partial(_produce, make_iterator, handover))
    try:
        while batch := await handover.take():
            for chunk in batch:
                yield chunk
    finally:
        handover.close()


_thread_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("ingress blocking engines")


def _limiter() -> trio.CapacityLimiter:
    try:
        return _thread_limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MAX_THREADS)
        _thread_limiter.set(limiter)
        return limiter


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


def _produce(make_iterator: Callable[[], Iterator[Any]], handover: Handover) -> None:
    error: BaseException | None = None
    try:
        iterator = make_iterator()
        try:
            for chunk in iterator:
                if not handover.put_wait(chunk):
                    break
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
    except BaseException as exc:
        error = exc
    handover.finish(error)
