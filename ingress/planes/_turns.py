"""Turns of a plane's connections: how many frames of all of them are looked at in one pass of the event loop.

A connection looks at what it has read at once, as long as little is looked at. Above that it waits in line, so that a
pass of the loop takes some ten milliseconds however many connections are flooding.

There are three lines. Who has just read something goes first: callers that send a request and wait for its ack stand in
this one only. After them comes who sends a great many at once, and last who goes on although requests of its last turn
were refused. So a caller that has fallen behind comes to its end, and a flood keeps its own kind waiting. In each line
half of the turns are taken by the addresses one after the other, so that who stands there on thousands of connections
keeps waiting itself; and half in order, so that thousands of addresses do not keep one waiting that asks for more than
each of them.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from .._fair_line import working_for

# Frames that are looked at in one pass of the event loop, 30 to 80 µs each where they are refused.
FRAMES_A_PASS = 128

# One that is taken counts for as many: until it is answered it takes some 0.4 ms. With 128 of them in a pass, who may
# take 10 ms of each had next to nothing.
TAKEN = 5

# So many of a connection are looked at in one turn: a read may hold eight thousand.
FRAMES_A_TURN = 16

# No line stands still: a quarter of a pass is kept for each that comes after another, and for who comes meanwhile.
_KEPT = 4


class Turns:
    """Who of the connections of a plane may look at frames; for its event loop.

    :attr:`left` is how many may be looked at before somebody has to wait: whoever looks at some takes them off, those
    that are taken for :data:`TAKEN` each, and first asks :meth:`wait` where it is not above zero. What a pass leaves of
    it is for the next ones, and what a pass has taken too much they have less. Only when nothing is left does
    :meth:`serve` wake up, and renew it with each pass until nobody waits: a request pays for a comparison and a
    subtraction, and one in 25 waits for two passes.
    """

    def __init__(self) -> None:
        self.left = FRAMES_A_PASS
        self._readers = _Line()
        self._bulk = _Line()
        self._refused = _Line()
        self._wanted = trio.lowlevel.ParkingLot()

    async def wait(self, *, is_bulk: bool, expected: int = 1) -> int:
        """Wait for the turn of who has just read; returns how many frames it may look at.

        Args:
            is_bulk: whether it has read so much that it is probably more than a request or a few.
            expected: how many its first frame counts for, as far as one can tell.
        """
        return await self._wait(self._bulk if is_bulk else self._readers, expected)

    async def go_on(self, *, is_welcome: bool) -> int:
        """Wait for the next turn of who has had one, a pass of the loop at least; as :meth:`wait`.

        Args:
            is_welcome: whether all that was looked at in that turn was taken.
        """
        line = self._bulk if is_welcome else self._refused
        if self.left > 0 and not line:
            await trio.lowlevel.checkpoint()
            if self.left > 0:
                return FRAMES_A_TURN
        return await self._wait(line, TAKEN if is_welcome else 1)

    async def _wait(self, line: _Line, expected: int) -> int:
        self._wanted.unpark()
        frames = await line.wait(expected)
        self.left += frames  # which were taken off when it was let go
        return frames

    async def serve(self) -> None:
        """Let those go on who wait, some with each pass of the event loop, until cancelled."""
        while True:
            self.left = min(self.left, 0) + FRAMES_A_PASS
            if self._readers or self._bulk or self._refused:
                self._let_go()
                await trio.lowlevel.checkpoint()
            else:
                await self._wanted.park()

    def _let_go(self) -> None:
        left = self.left
        kept = max(left, 0) // _KEPT
        kept_for_refused = kept if self._refused else 0
        left -= self._readers.let_go(left - kept_for_refused - (kept if self._bulk else 0))
        # Nobody comes in between while some still wait for their first turn.
        kept_for_newcomers = 0 if self._readers else kept
        left -= self._bulk.let_go(left - kept_for_newcomers - kept_for_refused)
        left -= self._refused.let_go(left - kept_for_newcomers)
        self.left = min(left, 0) if self._readers else left


class _Line:
    """Tasks that wait for their turn: one that came first and one of the address whose turn it is, alternately."""

    def __init__(self) -> None:
        # A plain dict whose first is taken again and again looks at all the places that have become empty before it.
        # By task, its address and for how many frames the first of its turn is expected to count.
        self._in_order: OrderedDict[trio.lowlevel.Task, tuple[str, int]] = OrderedDict()
        self._by_address: OrderedDict[str, OrderedDict[trio.lowlevel.Task, None]] = OrderedDict()
        self._is_addresses_turn = False
        self._shares: dict[trio.lowlevel.Task, int] = {}

    def __bool__(self) -> bool:
        return bool(self._in_order)

    async def wait(self, expected: int) -> int:
        task = trio.lowlevel.current_task()
        address = working_for.get()
        self._in_order[task] = address, expected
        self._by_address.setdefault(address, OrderedDict())[task] = None

        def leave(_: object) -> trio.lowlevel.Abort:
            self._remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        return self._shares.pop(task)

    def let_go(self, frames: int) -> int:
        """Share so many frames out between those whose turn it is; returns how many that took, a few more at most."""
        if not self._in_order or frames <= 0:
            return 0
        share = min(frames // len(self._in_order), FRAMES_A_TURN)
        taken = 0
        while self._in_order and taken < frames:
            task, expected = self._next()
            self._shares[task] = max(share, expected)
            taken += self._shares[task]
            trio.lowlevel.reschedule(task)
        return taken

    def _next(self) -> tuple[trio.lowlevel.Task, int]:
        self._is_addresses_turn = not self._is_addresses_turn
        if self._is_addresses_turn:
            address, waiting = next(iter(self._by_address.items()))
            self._by_address.move_to_end(address)
            task = next(iter(waiting))
        else:
            task = next(iter(self._in_order))
        return task, self._remove(task)

    def _remove(self, task: trio.lowlevel.Task) -> int:
        address, expected = self._in_order.pop(task)
        waiting = self._by_address[address]
        del waiting[task]
        if not waiting:
            del self._by_address[address]
        return expected
