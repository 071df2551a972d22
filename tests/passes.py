"""Counting the passes of the event loop: what happens in one of them keeps everybody else waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

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
