"""Work that keeps the event loop to itself for some milliseconds: how much of it is done in one pass, and for whom.

Peers choose the moment: hundreds of bodies can become complete together, hundreds of engines be asked together, and
hundreds of connections send as fast as they can. What each does is bounded; without this all of it would be done in one
pass, and nobody else served for as long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from ._fair_line import FairLot
from ._per_run import PerRun

T = TypeVar("T")

# Of such work in one pass of the event loop; what would begin later waits for the next.
MAX_SECONDS_A_PASS = 0.01

# Work that is expected to take no more goes first, with half of that time where longer work waits too: behind one body
# each of five thousand addresses, small frames had waited for 14 s.
MAX_SECONDS_OF_LIGHT = 1e-3

# Larger bodies are decoded in threads: 32 MiB of JSON takes up to 0.7 s to check and decode, no more than 0.2 of it in
# one piece; a body of this size takes some 5 ms.
LARGE_BODY = 240 * 1024

clock = time.perf_counter

# Copying 32 MiB takes some 30 ms; so does reading them, in parts, beside the wait for each.
SECONDS_A_COPIED_BYTE = 1e-9
SECONDS_A_READ_BYTE = 2e-9


class HeavyWork:
    """The account of one trio run, or of one kind of such work in it; for its tasks.

    Whoever does such work lets :meth:`do` do it; where it is done elsewhere its time is told to :meth:`spend` first.

    Args:
        most: seconds of it in one pass.
    """

    def __init__(self, most: float = MAX_SECONDS_A_PASS) -> None:
        self._most = most
        self.spent = 0.0
        """Seconds since those who wait were last let go; where nobody waits it only grows, until somebody has to."""
        self._light = FairLot()
        self._long = FairLot()
        self._expected: dict[trio.lowlevel.Task, float] = {}
        self._is_letting_go = False

    @property
    def is_wait_expected(self) -> bool:
        """True where work that came now would wait, for a pass or for others."""
        return self.spent > self._most or bool(self._light) or bool(self._long)

    async def wait_turn(self, expected: float = MAX_SECONDS_A_PASS) -> None:
        """Return at once while little was done and nobody waits; else in a later pass, when it is the address's turn.

        Args:
            expected: seconds that the work takes at most; so many go on together as one pass has time for.
        """
        if not self.is_wait_expected:
            return
        if not self._is_letting_go:
            self._is_letting_go = True
            trio.lowlevel.spawn_system_task(self._let_go)
        task = trio.lowlevel.current_task()
        self._expected[task] = expected
        lot = self._light if expected <= MAX_SECONDS_OF_LIGHT else self._long
        try:
            await lot.park()
            while self.spent > self._most:  # those before it took longer than they expected
                await lot.park()
        finally:
            del self._expected[task]

    async def do(self, work: Callable[[], T], expected: float = MAX_SECONDS_A_PASS) -> T:
        """Do work in its turn, and count what it takes; raises what it raises."""
        await self.wait_turn(expected)
        return self.do_at_once(work)

    def do_at_once(self, work: Callable[[], T]) -> T:
        """Do work that belongs to a turn which has been waited for; counts what it takes, and raises what it raises."""
        began = clock()
        try:
            return work()
        finally:
            self.spent += clock() - began

    async def spend(self, seconds: float) -> None:
        """Wait for the turn of work that takes so many seconds, and count it."""
        await self.wait_turn(seconds)
        self.spent += seconds

    async def _let_go(self) -> None:
        """Let those go on who wait, some in each second pass of the event loop, until nobody does."""
        try:
            await trio.lowlevel.checkpoint()
            while self._light or self._long:
                self.spent = expected = 0.0
                most_of_light = self._most / 2 if self._long else self._most
                for lot, most in ((self._light, most_of_light), (self._long, self._most)):
                    while expected < most and (task := lot.unpark()) is not None:
                        expected += self._expected[task]
                await trio.lowlevel.checkpoint()  # they have their turn in the same pass as this
                await trio.lowlevel.checkpoint()
        finally:
            self._is_letting_go = False


heavy_work = PerRun("ingress heavy work", HeavyWork).get
