"""Requests that have a slot and wait for something before the engine is asked, and which of them gives its slot up.

Bodies can come faster than they are decoded, and requests whose callers cannot be reached faster than dials are given
up: both would have all slots at last, while the engine has next to nothing to do. So where no slot is left they make
room: those of an address that has more requests than the one that comes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio
from attrs import frozen

if TYPE_CHECKING:
    from ._admission import Slot

# So many addresses are looked at for each request that finds no slot, the next ones for the next.
LOOKS = 32

# An address gives way to one that would have less than that: it was told that its request is taken, and the other may
# ask elsewhere.
_MORE = 1.5

# Of so many slots one is the most that may have been given up by requests that have not been told yet.
_TOLD_SHARE = 8


class Unstarted:
    """Those of one worker; for its event loop.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self._most_untold = max(slots // _TOLD_SHARE, 1)
        self.untold: set[Slot] = set()
        """Slots that were given up, of requests that have not ended yet."""
        self._by_peer: OrderedDict[str, dict[Slot, _Wait]] = OrderedDict()  # only those that have some

    def add(self, slot: Slot, waiting: trio.CancelScope, *, patience: float = 0.0) -> None:
        """Count a slot whose request begins to wait, unless nobody knows whose it is.

        Args:
            waiting: cancelled where it gives way.
            patience: seconds that it may wait before it does.
        """
        if slot.peer is not None:
            self._by_peer.setdefault(slot.peer, {})[slot] = _Wait(waiting, trio.current_time() + patience)

    def discard(self, slot: Slot) -> None:
        """Count it no more: its request goes on, or has ended."""
        if slot.peer is not None and (slots := self._by_peer.get(slot.peer)) is not None:
            slots.pop(slot, None)
            if not slots:
                del self._by_peer[slot.peer]

    def least_missed(self, newcomer: str, of_peers: Mapping[str, int]) -> Slot | None:
        """Return the slot that one more request of an address gets, of who has most; or None.

        Args:
            newcomer: whose request it is.
            of_peers: how many slots and places in line each address has.
        """
        if len(self.untold) >= self._most_untold:
            return None
        found: Slot | None = None
        most = _MORE * of_peers.get(newcomer, 0) + 1
        for _ in range(min(len(self._by_peer), LOOKS)):
            peer = next(iter(self._by_peer))
            self._by_peer.move_to_end(peer)
            if (count := of_peers.get(peer, 0)) > most and (slot := self._last_of(peer)) is not None:
                most, found = count, slot
        return found

    def _last_of(self, peer: str) -> Slot | None:
        """Return the latest of an address that gives way, or if it is too soon for that the eldest, if it does."""
        slots, now = self._by_peer[peer], trio.current_time()
        for slot in (next(reversed(slots)), next(iter(slots))):
            if slots[slot].gives_way_at <= now:
                return slot
        return None

    def give_up(self, slot: Slot) -> None:
        """End the wait of a request whose slot another one gets."""
        if slot.peer is not None:
            waiting = self._by_peer[slot.peer][slot].scope
            self.discard(slot)
            self.untold.add(slot)
            waiting.cancel()


@frozen
class _Wait:
    scope: trio.CancelScope
    gives_way_at: float
