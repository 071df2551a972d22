"""A line in which addresses take turns, however many tasks of one stand in it."""

from __future__ import annotations

from contextvars import ContextVar

import trio

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
