"""Counting the passes of the event loop, and holding up what waits for one: what happens in one keeps all others
waiting.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from ingress._heavy_work import MAX_SECONDS_A_PASS, HeavyWork, heavy_work
from ingress.testing._leaks import instrument


class Passes(trio.abc.Instrument):
    """Counts them."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@asynccontextmanager
async def counted_passes() -> AsyncIterator[Passes]:
    """Count while inside."""
    passes = Passes()
    with instrument(passes):
        yield passes


def a_slow_clock() -> Callable[[], float]:
    """A clock by which whatever lies between two looks takes longer than a pass may."""
    seconds = itertools.count(0.0, 2 * MAX_SECONDS_A_PASS)
    return lambda: next(seconds)


@asynccontextmanager
async def nobody_let_go(monkeypatch: pytest.MonkeyPatch, account: HeavyWork | None = None) -> AsyncIterator[trio.Event]:
    """Let heavy work wait while inside, or until the event is set."""
    let_go = HeavyWork._let_go
    is_over = trio.Event()

    async def let_go_when_over(work: HeavyWork) -> None:
        await is_over.wait()
        await let_go(work)

    monkeypatch.setattr(HeavyWork, "_let_go", let_go_when_over)
    (account or heavy_work()).spent = 1.0
    try:
        yield is_over
    finally:
        is_over.set()
