"""Load: when requests are sent, and what is measured of them. No screen, no sockets of its own.

In an open loop requests are sent at times that were fixed beforehand, whatever becomes of the earlier ones, and every
latency counts from the time a request was *to be* sent. A generator that waited for a stalled worker and then measured
from the actual send would leave out the very requests that suffered ("coordinated omission"). In a closed loop each of
so many callers sends its next request when it has its answer; what it measures are service times.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, Protocol

import trio
from attrs import Factory, define, frozen

from .._text import printable
from ..errors import IngressError, RemoteError
from ._histogram import LogHistogram

# After a failure a caller of a closed loop waits, for a worker that refuses at once would be called without end.
FAILURE_PAUSE = 0.01

# Kinds of failures are words of peers; what comes after so many different ones is counted together.
MAX_KINDS = 32
OTHER_KINDS = "other"

# Arrivals that are late are sent without a pass of the scheduler between them, so many at once.
_BURST = 64

Spacing = Literal["constant", "poisson"]


class Call(Protocol):
    """Sends a request; tells of each read how many chunks and bytes it had; returns when the answer was whole."""

    def __call__(self, seen: Callable[[int, int], None], /) -> Awaitable[float]: ...


def arrivals(rate: float, spacing: Spacing = "constant", seed: int = 0) -> Iterator[float]:
    """Yield for ever the seconds after the start at which requests are due, ``rate`` of them a second."""
    if spacing == "constant":
        number = 0
        while True:
            yield number / rate
            number += 1
    dice, due = random.Random(seed), 0.0  # noqa: S311 - spaces requests, guards nothing
    while True:
        due += dice.expovariate(rate)
        yield due


@frozen
class Bounds:
    """How long a load goes on: seconds that are not counted, then so many requests or seconds that are."""

    warm_up: float = 0.0
    requests: int | None = None
    seconds: float | None = None

    def allow(self, due: float, measured: int) -> bool:
        """Say whether a request that is due then, after so many measured ones, still belongs to the load."""
        if self.requests is not None:
            return measured < self.requests
        return self.seconds is None or due < self.warm_up + self.seconds


@define
class Measured:
    """What came of the requests after the warm-up; seconds in the histograms."""

    first: LogHistogram = Factory(LogHistogram)
    """To the first chunk."""

    between: LogHistogram = Factory(LogHistogram)
    """From chunk to chunk of an answer; those that one read brings came together."""

    whole: LogHistogram = Factory(LogHistogram)
    """To the end of answers that are whole."""

    late: LogHistogram = Factory(LogHistogram)
    """From the due time to the actual send; open loop only."""

    sent: int = 0
    answered: int = 0
    chunks: int = 0
    bytes: int = 0
    failures: Counter[str] = Factory(Counter)
    examples: dict[str, str] = Factory(dict)
    """What the first failure of each kind said."""

    began: float = 0.0
    ended: float = 0.0

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def unfinished(self) -> int:
        return self.sent - self.answered - self.failed

    def fail(self, exc: Exception) -> None:
        kind = f"RemoteError {printable(exc.kind, 40)}" if isinstance(exc, RemoteError) else type(exc).__name__
        if kind not in self.failures and len(self.failures) >= MAX_KINDS:
            kind = OTHER_KINDS
        self.failures[kind] += 1
        self.examples.setdefault(kind, printable(str(exc)))


class NoAnswerInTime(IngressError):
    """A call of the load was given up."""


@define
class _Exchange:
    """One request, from when it was due."""

    measured: Measured
    due: float
    last: float | None = None

    def saw(self, chunks: int, size: int) -> None:
        measured = self.measured
        measured.bytes += size
        if not chunks:
            return
        now = trio.current_time()
        measured.chunks += chunks
        if self.last is None:
            measured.first.record(now - self.due)
        else:
            measured.between.record(now - self.last)
        if chunks > 1:
            measured.between.record(0.0, chunks - 1)
        self.last = now


class Load:
    """One run of load; ``measured`` may be read while it goes on.

    Args:
        call: sends one request.
        bounds: when it ends.
        timeout: seconds for one call, from its actual send.
        most_open: how many calls there may be at once. Requests that are due meanwhile are sent later and none is left
            out; their wait counts.
    """

    def __init__(self, call: Call, bounds: Bounds, *, timeout: float, most_open: int) -> None:
        self.measured = Measured()
        self.open = 0
        self.most_open = 0
        self.began = 0.0
        self._warm_up = Measured()
        self._call = call
        self._bounds = bounds
        self._timeout = timeout
        self._slots = trio.Semaphore(most_open)

    async def run_open(self, due_times: Iterator[float]) -> None:
        """Send a request at each of the times, counted from now; return when all answers have come or failed."""
        self._begin()
        burst = 0
        async with trio.open_nursery() as nursery:
            for due in due_times:
                if not self._bounds.allow(due, self.measured.sent):
                    break
                at = self.began + due
                if at > trio.current_time() or (burst := burst + 1) == _BURST:
                    burst = 0
                    await trio.sleep_until(at)
                try:
                    self._slots.acquire_nowait()
                except trio.WouldBlock:
                    await self._slots.acquire()
                nursery.start_soon(self._send_due, self._counted(due), at)
        self._end()

    async def run_closed(self, callers: int) -> None:
        """Let so many callers send a request each, again when it is answered."""
        self._begin()
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(self._call_again_and_again)
        self._end()

    def stop(self) -> None:
        """Take the time, after a run that was cancelled."""
        self._end()

    def _begin(self) -> None:
        self.began = trio.current_time()
        self.measured.began = self.began + self._bounds.warm_up

    def _end(self) -> None:
        self.measured.ended = max(trio.current_time(), self.measured.began)

    def _counted(self, due: float) -> Measured:
        measured = self._warm_up if due < self._bounds.warm_up else self.measured
        measured.sent += 1
        return measured

    async def _send_due(self, measured: Measured, at: float) -> None:
        try:
            measured.late.record(trio.current_time() - at)
            await self._exchange(measured, at)
        finally:
            self._slots.release()

    async def _call_again_and_again(self) -> None:
        while True:
            now = trio.current_time()
            if not self._bounds.allow(now - self.began, self.measured.sent):
                return
            if not await self._exchange(self._counted(now - self.began), now):
                await trio.sleep(FAILURE_PAUSE)

    async def _exchange(self, measured: Measured, due: float) -> bool:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        exchange = _Exchange(measured, due)
        failure: Exception = NoAnswerInTime(f"no whole answer within {self._timeout:g} s")
        try:
            with trio.move_on_after(self._timeout):
                whole_at = await self._call(exchange.saw)
                measured.whole.record(whole_at - due)
                measured.answered += 1
                return True
        except IngressError as exc:
            failure = exc
        finally:
            self.open -= 1
        measured.fail(failure)
        return False
