"""Chunks on their way from another thread to the task of one request: for engines whose library is not trio's.

A hop between threads per chunk costs 60 µs. Here the other thread appends to a deque, and trio is woken once for all
that has gathered, of all requests, since it last looked. The other side is held back by a budget of bytes and chunks.

Writers of engines that live in a thread of their own use :class:`Handover`; functions that may block become engines by
themselves, and callbacks and asyncio have `engines.callback` and `engines.asyncio_bridge`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from ._chunk_size import estimate_size
from ._forks import leave_child, present_origin
from ._per_run import PerRun

# What one request's producer may be ahead of the response stream. Either is passed by at most one chunk.
DEFAULT_MAX_CHUNKS = 256
DEFAULT_MAX_BYTES = 256 * 1024


class Handover:
    """A bounded queue with one producer, in any thread, and one consumer, a trio task.

    The producer calls :meth:`put` and obeys :meth:`hold`, or calls :meth:`put_wait` where it may block; at the end it
    calls :meth:`finish`, once and always. The consumer iterates over :meth:`take` and calls :meth:`close` when it
    leaves. Made in the consumer's trio run.

    Args:
        max_bytes: estimated bytes that may be under way before the producer is held back, those in the consumer's
            hands included.
        max_chunks: each chunk counts for at least its share of ``max_bytes``, so that there are never more chunks.
        on_space: is called in the trio thread, after :meth:`hold` returned True, when there is room again or nobody
            wants more. A call more than asked for does no harm and may come. Not for producers that use
            :meth:`put_wait`.
    """

    def __init__(
        self,
        *,
        max_chunks: int = DEFAULT_MAX_CHUNKS,
        max_bytes: int = DEFAULT_MAX_BYTES,
        on_space: Callable[[], object] | None = None,
    ) -> None:
        self.is_closed = False
        """True once the consumer has left; for both sides."""
        self.is_full = False
        """True when the budget was used up at the last :meth:`put`; :meth:`hold` tells whether it still is."""
        self.error: BaseException | None = None
        self._max_bytes, self._least = max_bytes, -(-max_bytes // max_chunks)
        self._space = threading.Event()
        self._on_space = self._space.set if on_space is None else on_space
        self._chunks: deque[Any] = deque()
        # Each number has one writer: the producer counts what it put, the consumer what it took and is done with.
        self._put_bytes = self._taken_bytes = self._done_bytes = 0
        self._is_held = self._is_asleep = False
        self.is_finished = False
        """True once the producer has said that no chunk follows."""
        self._sleeper: trio.lowlevel.Task | None = None
        self._waker = _waker()
        self._origin = present_origin()

    # -- the producer's side, in its own thread ------------------------------------------------------------------------

    def put(self, chunk: Any) -> bool:
        """Hand one chunk over; never waits. False when nobody wants it, or :meth:`finish` has been called.

        A child that the producer has forked ends here: what it makes is nobody's.
        """
        if self._origin.is_left:
            leave_child()
        if self.is_closed or self.is_finished:
            return False
        size = estimate_size(chunk)
        # Counted first: a consumer between the two lines takes a chunk for done that it has not got, which is harmless.
        self._put_bytes += size if size > self._least else self._least
        self._chunks.append(chunk)
        if self._is_asleep:
            self._is_asleep = False
            self._waker.wake(self)
        self.is_full = self._put_bytes - self._done_bytes >= self._max_bytes
        return True

    def hold(self) -> bool:
        """Announce that the producer is about to wait for ``on_space``; False when it need not."""
        self._is_held = True
        return self._is_over_budget()

    def put_wait(self, chunk: Any) -> bool:
        """Hand one chunk over and block this thread while the budget is used up. False when nobody wants more."""
        if not self.put(chunk):
            return False
        while self.is_full and self._is_over_budget():
            self._space.clear()
            if self.hold():
                self._space.wait()
        return not self.is_closed

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no chunk follows, and why; what the consumer has not taken yet comes first. The first call counts.

        May be called from any thread, by whoever knows first that the producer is gone. A forked child ends here too.
        """
        if self._origin.is_left:
            leave_child()
        if not self.is_finished:
            self.error = error
            self.is_finished = True
            if self._is_asleep:
                self._is_asleep = False
                self._waker.wake(self)

    # -- the consumer's side, in its task ------------------------------------------------------------------------------

    async def take(self) -> list[Any]:
        """Wait for chunks and return all there are; an empty list at the end. Asking for more gives the last ones back.

        Raises:
            BaseException: what :meth:`finish` was given, once everything has been taken.
        """
        self.give_back()
        chunks = self._chunks
        while True:
            is_finished = self.is_finished  # looked at before the chunks, for a last one may come in between
            if chunks:
                break
            if is_finished:
                if self.error is not None:
                    raise self.error
                return []
            await self._sleep(lambda: bool(chunks) or self.is_finished)
        self._taken_bytes = self._put_bytes
        return [chunks.popleft() for _ in range(len(chunks))]

    def close(self) -> None:
        """Want no more: what is under way is dropped, and the producer is told at its next chunk."""
        self.is_closed = True
        self._chunks.clear()
        self._is_held = False
        self._on_space()

    async def wait_finished(self) -> None:
        """Wait until the producer has said that it is done; for after :meth:`close`."""
        while not self.is_finished:
            await self._sleep(lambda: self.is_finished)

    def _is_over_budget(self) -> bool:
        is_wanted = not (self.is_closed or self.is_finished)
        return is_wanted and self._put_bytes - self._done_bytes >= self._max_bytes

    def give_back(self) -> None:
        """Be done with what was taken last, as :meth:`take` is: there is room for as much."""
        self._done_bytes = self._taken_bytes
        if self._is_held:
            self._is_held = False
            self._on_space()

    async def _sleep(self, is_over: Callable[[], bool]) -> None:
        # Announce the nap before the last look, or a chunk that arrives between the two wakes nobody.
        self._is_asleep = True
        if is_over():
            self._is_asleep = False
            return
        self._sleeper = trio.lowlevel.current_task()
        self._waker.sleeping += 1
        try:
            await trio.lowlevel.wait_task_rescheduled(self._abort_sleep)
        finally:
            self._waker.sleeping -= 1

    def _abort_sleep(self, _: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        # None where a cancellation came first; and a wake-up that is late for one nap may end the next too early.
        if self._sleeper is not None:
            sleeper, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(sleeper)


def tasks_waiting() -> int:
    """Return how many tasks of this trio run wait for a producer in another thread."""
    return _waker().sleeping


class _Waker:
    """Wakes the consumers of one trio run: one entry into the loop for however many have something to take."""

    def __init__(self) -> None:
        self.sleeping = 0
        self._token = trio.lowlevel.current_trio_token()
        self._ready: deque[Handover] = deque()
        self._is_armed = False

    def wake(self, handover: Handover) -> None:
        """Have the consumer look again; from any thread."""
        self._ready.append(handover)
        if not self._is_armed:
            self._is_armed = True
            try:
                self._token.run_sync_soon(self._deliver)
            except trio.RunFinishedError:  # an interpreter that ends, or a thread that outlived its run
                handover.is_closed = True

    def _deliver(self) -> None:
        self._is_armed = False  # before the look: who comes after it rings again
        ready = self._ready
        while ready:
            ready.popleft()._wake()


_waker = PerRun("ingress handover", _Waker).get
