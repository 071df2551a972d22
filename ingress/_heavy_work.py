"""Work that keeps the event loop to itself for some milliseconds: how much of it is done in one pass, and for whom.

Peers choose the moment: hundreds of bodies can become complete together, and hundreds of engines be asked together.
What each does is bounded; without this all of it would be done in one pass, and nobody else served for as long.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

import trio

# Of such work in one pass of the event loop; what would begin later waits for the next.
MAX_SECONDS_A_PASS = 0.01

clock = time.perf_counter

of_peer: ContextVar[str] = ContextVar("of_peer", default="")
"""For whose request a task works, the address; all that is unknown is one."""


class FairLine:
    """``async with`` it: one task is inside at a time, and of those who wait each address has one in turn.

    So who sends a thousand waits for them, and keeps others waiting for one.
    """

    def __init__(self) -> None:
        self.is_taken = False
        self._waiting: dict[str, trio.lowlevel.ParkingLot] = {}  # by address, whose turn is next first

    async def __aenter__(self) -> None:
        if self.is_taken:
            await self._waiting.setdefault(of_peer.get(), trio.lowlevel.ParkingLot()).park()
        self.is_taken = True

    async def __aexit__(self, *_: object) -> None:
        while self._waiting:
            peer = next(iter(self._waiting))
            lot = self._waiting.pop(peer)
            is_handed_on = bool(lot.unpark())  # who has given up waiting is not there any more
            if lot:
                self._waiting[peer] = lot
            if is_handed_on:
                return
        self.is_taken = False


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


_of_runs: trio.lowlevel.RunVar[HeavyWork] = trio.lowlevel.RunVar("ingress heavy work")


def heavy_work() -> HeavyWork:
    """Return the account of this trio run."""
    try:
        return _of_runs.get()
    except LookupError:
        work = HeavyWork()
        _of_runs.set(work)
        return work
