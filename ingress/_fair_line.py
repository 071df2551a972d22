"""Where tasks wait for each other, and addresses take turns, however many tasks of one stand there."""

from __future__ import annotations

from contextvars import ContextVar

import trio

working_for: ContextVar[str] = ContextVar("working_for", default="")
"""For whom a task works, the address; all that is unknown is one."""


class FairLot:
    """Tasks that wait, of which each address has one in turn.

    So who sends a thousand waits for them, and keeps others waiting for one.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, trio.lowlevel.ParkingLot] = {}  # by address, whose turn is next first

    def __bool__(self) -> bool:
        while self._waiting:
            peer = next(iter(self._waiting))
            if self._waiting[peer]:
                return True
            del self._waiting[peer]  # who has given up waiting is not there any more
        return False

    async def park(self) -> None:
        """Wait until let go."""
        await self._waiting.setdefault(working_for.get(), trio.lowlevel.ParkingLot()).park()

    def unpark(self) -> trio.lowlevel.Task | None:
        """Let the next one go on; None where nobody waits."""
        if not self:
            return None
        peer = next(iter(self._waiting))
        lot = self._waiting.pop(peer)
        (task,) = lot.unpark()
        if lot:
            self._waiting[peer] = lot
        return task


class FairLine:
    """``async with`` it: one task is inside at a time, of those who wait each address has one in turn."""

    def __init__(self) -> None:
        self.is_taken = False
        self._waiting = FairLot()

    async def __aenter__(self) -> None:
        if self.is_taken:
            await self._waiting.park()
        self.is_taken = True

    async def __aexit__(self, *_: object) -> None:
        self.is_taken = self._waiting.unpark() is not None
