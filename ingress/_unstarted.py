"""Requests that wait for something before the engine is asked, and which of them gives its slot up.

Bodies can come faster than they are decoded, and requests whose callers cannot be reached faster than dials are given
up: both would have all slots at last, while the engine has next to nothing to do. So where no slot is left they make
room: those of an address that has more requests than the one that comes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from attrs import frozen

if TYPE_CHECKING:
    from ._admission import Slot

# So many addresses are looked at for each request that finds no slot, the next ones for the next.
LOOKS = 32

# An address gives way where without the one that it gives it still has more than so many times what the other has: it
# was told that its request is taken, and the other may ask elsewhere.
_MORE = 1.5

# Of so many slots one is the most that may have been given up by requests that have not ended yet.
_UNTOLD_SHARE = 8


class Unstarted:
    """Those of one worker; for its event loop.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self._most_untold = max(slots // _UNTOLD_SHARE, 1)
        self.untold: set[Slot] = set()
        """Slots that were given up, of requests that have not ended yet."""
        self._by_peer: OrderedDict[str, dict[Slot, _Wait]] = OrderedDict()  # only those that have some

    @contextmanager
    def waiting(self, slot: Slot, patience: float) -> Iterator[None]:
        """Let a request wait inside, unless nobody knows whose it is; cancelled where it gives way.

        Args:
            patience: seconds that it may wait before it does.
        """
        with trio.CancelScope() as scope:
            if slot.has_given_way:
                scope.cancel()
            if slot.has_given_way or slot.peer is None:
                yield
                return
            outer = self._by_peer.get(slot.peer, {}).get(slot)
            self._set(slot, _Wait(scope, trio.current_time() + patience))
            try:
                yield
            finally:
                self._set(slot, None if slot.has_given_way else outer)

    def _set(self, slot: Slot, wait: _Wait | None) -> None:
        peer = slot.peer or ""
        slots = self._by_peer.setdefault(peer, {})
        if wait is not None:
            slots[slot] = wait
        else:
            slots.pop(slot, None)
            if not slots:
                del self._by_peer[peer]

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
        wait = self._by_peer[slot.peer or ""][slot]
        self._set(slot, None)
        slot.has_given_way = True
        self.untold.add(slot)
        wait.scope.cancel()


@frozen
class _Wait:
    scope: trio.CancelScope
    gives_way_at: float
