"""Work that keeps the event loop to itself for some milliseconds: how much of it is done in one pass, and for whom.

Peers choose the moment: hundreds of bodies can become complete together, and hundreds of engines be asked together.
What each does is bounded; without this all of it would be done in one pass, and nobody else served for as long.
"""

from __future__ import annotations

import time

import trio

from ._fair_line import FairLine
from ._per_run import PerRun

# Of such work in one pass of the event loop; what would begin later waits for the next.
MAX_SECONDS_A_PASS = 0.01

clock = time.perf_counter

# Copying 32 MiB takes some 30 ms.
SECONDS_A_COPIED_BYTE = 1e-9


class HeavyWork:
    """The account of one trio run; for its tasks.

    Whoever does such work waits for its turn first, and adds what it took to :attr:`spent`.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        """Seconds since the event loop last had a pass for it."""
        self.line = FairLine()

    @property
    def is_wait_expected(self) -> bool:
        return self.spent > MAX_SECONDS_A_PASS or self.line.is_taken

    async def wait_turn(self) -> None:
        """Return at once while little was done; else in a later pass, one task a pass."""
        if not self.is_wait_expected:
            return
        async with self.line:
            if self.spent > MAX_SECONDS_A_PASS:
                await trio.lowlevel.checkpoint()
                self.spent = 0.0


heavy_work = PerRun("ingress heavy work", HeavyWork).get
