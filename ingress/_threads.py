"""Blocking iterators seen from trio: a thread runs ahead, the event loop is woken once a batch.

A hop between threads per chunk costs 60 µs; here the thread appends to a deque and wakes the loop only when it sleeps.
The thread is held back when ``MAX_AHEAD`` chunks have not been taken.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import trio

# Chunks a thread may run ahead of a slow caller.
MAX_AHEAD = 64

# Blocking engines at once, over all endpoints; more wait for a thread. A thread costs some 8 MiB of address space.
MAX_THREADS = 256

_END = object()


async def iterate_in_thread(make_iterator: Callable[[], Iterator[Any]]) -> AsyncIterator[Any]:
    """Run a blocking iterator in a thread of its own and yield what it yields.

    When the consumer leaves early the thread is told and stops at its next chunk; it is not waited for, because
    blocking code cannot be interrupted. It keeps its place among ``MAX_THREADS`` until it has really ended.
    """
    bridge = _Bridge(make_iterator)
    await bridge.start()
    try:
        while (batch := await bridge.take()) is not None:
            for item in batch:
                yield item
    finally:
        bridge.close()


_thread_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("ingress blocking engines")


def _limiter() -> trio.CapacityLimiter:
    try:
        return _thread_limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MAX_THREADS)
        _thread_limiter.set(limiter)
        return limiter


class _Bridge:
    """The deque between one thread and one task."""

    def __init__(self, make_iterator: Callable[[], Iterator[Any]]) -> None:
        self._make_iterator = make_iterator
        self._token = trio.lowlevel.current_trio_token()
        self._items: deque[Any] = deque()
        self._wanted = trio.Event()
        self._is_asleep = False
        self._space = threading.Condition()
        self._is_closed = False
        self._error: BaseException | None = None

    async def start(self) -> None:
        """Wait for a thread to be free and start it."""
        limiter, token = _limiter(), self._token
        await limiter.acquire_on_behalf_of(self)

        def release(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(limiter.release_on_behalf_of, self)

        try:
            trio.lowlevel.start_thread_soon(
                functools.partial(contextvars.copy_context().run, self._produce),
                release,
                name="ingress blocking engine",
            )
        except BaseException:  # the system has no thread left
            limiter.release_on_behalf_of(self)
            raise

    def close(self) -> None:
        with self._space:
            self._is_closed = True
            self._space.notify()

    async def take(self) -> list[Any] | None:
        """Wait for chunks and return all there are; None at the end. Raises what the iterator raised."""
        items = self._items
        while not items:  # a thread that was late to see the last nap end may wake this one early
            # Announce the nap before the last look, or a chunk that arrives between the two wakes nobody.
            self._wanted = trio.Event()
            self._is_asleep = True
            if items:
                self._is_asleep = False
            else:
                await self._wanted.wait()
        batch = [items.popleft() for _ in range(len(items))]
        with self._space:
            self._space.notify()
        if batch[-1] is _END:
            batch.pop()
            if not batch:
                if self._error is not None:
                    raise self._error
                return None
            items.append(_END)
        return batch

    # -- the thread's side --

    def _produce(self) -> None:
        try:
            iterator = self._make_iterator()
            try:
                for item in iterator:
                    if not self._put(item):
                        return
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except BaseException as exc:
            self._error = exc
        finally:
            self._items.append(_END)
            self._wake()

    def _put(self, item: Any) -> bool:
        """Hand one chunk over; False when nobody wants more."""
        if len(self._items) >= MAX_AHEAD:
            with self._space:
                self._space.wait_for(lambda: len(self._items) <= MAX_AHEAD // 2 or self._is_closed)
        if self._is_closed:
            return False
        self._items.append(item)
        self._wake()
        return True

    def _wake(self) -> None:
        if self._is_asleep:
            self._is_asleep = False
            try:
                self._token.run_sync_soon(self._wanted.set)
            except trio.RunFinishedError:
                self._is_closed = True
