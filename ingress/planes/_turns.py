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

# So many of a connection are looked at in one turn: a read may hold eight thousand.
FRAMES_A_TURN = 8

# No line stands still: so many of a pass are kept for each that comes after another, and for who comes meanwhile.
_KEPT = FRAMES_A_PASS // 4


class Turns:
    """Who of the connections of a plane may look at frames; for its event loop.

    :attr:`left` is how many may be looked at before somebody has to wait: whoever looks at some takes them off it, and
    first asks :meth:`wait` where it is not above zero. What a pass leaves of it is for the next ones. Only when nothing
    is left does :meth:`serve` wake up, and renew it with each pass until nobody waits: a request pays for a comparison
    and a subtraction, and one in 128 waits for two passes.
    """

    def __init__(self) -> None:
        self.left = FRAMES_A_PASS
        self._readers = _Line()
        self._bulk = _Line()
        self._refused = _Line()
        self._wanted = trio.lowlevel.ParkingLot()

    async def wait(self, *, is_bulk: bool) -> int:
        """Wait for the turn of who has just read; returns how many frames it may look at.

        Args:
            is_bulk: whether it has read so much that it is probably more than a request or a few.
        """
        return await self._wait(self._bulk if is_bulk else self._readers)

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
        return await self._wait(line)

    async def _wait(self, line: _Line) -> int:
        self._wanted.unpark()
        frames = await line.wait()
        self.left += frames  # which were taken off when it was let go
        return frames

    async def serve(self) -> None:
        """Let those go on who wait, some with each pass of the event loop, until cancelled."""
        while True:
            self.left = FRAMES_A_PASS
            if self._readers or self._bulk or self._refused:
                self._let_go()
                await trio.lowlevel.checkpoint()
            else:
                await self._wanted.park()

    def _let_go(self) -> None:
        kept_for_refused = _KEPT if self._refused else 0
        left = FRAMES_A_PASS
        left -= self._readers.let_go(left - kept_for_refused - (_KEPT if self._bulk else 0))
        # Nobody comes in between while some still wait for their first turn.
        kept = 0 if self._readers else _KEPT
        left -= self._bulk.let_go(left - kept - kept_for_refused)
        left -= self._refused.let_go(left - kept)
        self.left = 0 if self._readers else left


class _Line:
    """Tasks that wait for their turn: one that came first and one of the address whose turn it is, alternately."""

    def __init__(self) -> None:
        # A plain dict whose first is taken again and again looks at all the places that have become empty before it.
        self._in_order: OrderedDict[trio.lowlevel.Task, str] = OrderedDict()
        self._by_address: OrderedDict[str, OrderedDict[trio.lowlevel.Task, None]] = OrderedDict()
        self._is_addresses_turn = False
        self._shares: dict[trio.lowlevel.Task, int] = {}

    def __bool__(self) -> bool:
        return bool(self._in_order)

    async def wait(self) -> int:
        task = trio.lowlevel.current_task()
        address = self._in_order[task] = working_for.get()
        self._by_address.setdefault(address, OrderedDict())[task] = None

        def leave(_: object) -> trio.lowlevel.Abort:
            self._remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        return self._shares.pop(task)

    def let_go(self, frames: int) -> int:
        """Share so many frames out between those whose turn it is; returns how many that took."""
        if not self._in_order or frames <= 0:
            return 0
        share = max(min(frames // len(self._in_order), FRAMES_A_TURN), 1)
        taken = 0
        while self._in_order and taken + share <= frames:
            task = self._next()
            self._shares[task] = share
            trio.lowlevel.reschedule(task)
            taken += share
        return taken

    def _next(self) -> trio.lowlevel.Task:
        self._is_addresses_turn = not self._is_addresses_turn
        if self._is_addresses_turn:
            address, waiting = next(iter(self._by_address.items()))
            self._by_address.move_to_end(address)
            task = next(iter(waiting))
        else:
            task = next(iter(self._in_order))
        self._remove(task)
        return task

    def _remove(self, task: trio.lowlevel.Task) -> None:
        address = self._in_order.pop(task)
        waiting = self._by_address[address]
        del waiting[task]
        if not waiting:
            del self._by_address[address]
