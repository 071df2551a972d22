"""Work that keeps the event loop to itself for some milliseconds: how much of it is done in one pass, by all tasks.

Peers choose the moment: hundreds of bodies can become complete together, and hundreds of engines be asked together.
What each does is bounded; without this all of it would be done in one pass, and nobody else served for as long.
"""

from __future__ import annotations

import time

import trio

# Of such work in one pass of the event loop; what would begin later waits for the next, in order.
MAX_SECONDS_A_PASS = 0.01

clock = time.perf_counter


class HeavyWork:
    """The account of one trio run; for its tasks.

    Whoever does such work waits for its turn first, and adds what it took to :attr:`spent`.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        """Seconds since the event loop last had a pass for it."""
        self._turn = trio.Lock()

    async def wait_turn(self) -> None:
        """Return at once while little was done; else in a later pass, one task a pass, first come, first served."""
        if self.spent <= MAX_SECONDS_A_PASS and not self._turn.locked():
            return
        async with self._turn:
            if self.spent > MAX_SECONDS_A_PASS:
                await trio.lowlevel.checkpoint()
                self.spent = 0.0


_of_runs: trio.lowlevel.RunVar[HeavyWork] = trio.lowlevel.RunVar("ingress heavy work")


def heavy_work() -> HeavyWork:
    """Return the account of this trio run."""
    try:
        return _of_runs.get()
    except LookupError:
        work = HeavyWork()
        _of_runs.set(work)
        return work
