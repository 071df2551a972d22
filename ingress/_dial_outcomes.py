"""What came of dial-backs, by which addresses are trusted, or not tried for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import trio

from ._shares import caller_of
from .wire.addresses import SocketAddress

# So many failures within a second, or one dial without an answer, and the address is refused for the next one. Dials
# that succeed are never limited: a caller has one listener for all its streams.
MAX_FAILURES = 64
FAILURE_WINDOW = 1.0

# Where a dial was not answered, answers of the same host do not count for so long: it could earn turns for hundreds of
# dials with a few answers, and leave them all.
DOUBT_TIME = 60.0

# Addresses that failed lately, and such that have answered; beyond it the one that did first is forgotten.
_MAX_REMEMBERED = 1024
_MAX_ANSWERED = 4096


class DialOutcomes:
    """What is remembered of the dials of one worker; for its event loop.

    A target is an address, or a name that was looked up for it.
    """

    def __init__(self) -> None:
        self._failures: dict[SocketAddress, _Failures] = {}
        self._answered: OrderedDict[Hashable, None] = OrderedDict()
        self._last_answered: Hashable = None
        self._doubted: OrderedDict[str, float] = OrderedDict()  # by caller: until when

    def has_answered(self, target: Hashable) -> bool:
        """Tell whether the last dial to it that has ended was a good one, as far as that is remembered and counts."""
        if target not in self._answered:
            return False
        if not self._doubted or not isinstance(target, SocketAddress):
            return True
        return self._doubted.get(caller_of(target.host), 0.0) <= trio.current_time()

    def note_answer(self, target: Hashable) -> None:
        """Note that a dial has succeeded."""
        if target is self._last_answered:  # one object for all requests of a caller
            return
        self._last_answered = target
        self._answered[target] = None
        self._answered.move_to_end(target)
        if len(self._answered) > _MAX_ANSWERED:
            self._answered.popitem(last=False)
        if self._failures and isinstance(target, SocketAddress):
            self._failures.pop(target, None)

    def note_failure(self, target: Hashable, address: SocketAddress | None, *, is_silent: bool) -> None:
        """Note that a dial to what was asked for was refused or, ``is_silent``, not answered.

        Args:
            address: what was dialled; None where a name could not even be looked up.
        """
        self._answered.pop(target, None)
        self._last_answered = None
        if address is None:
            return
        if is_silent:
            self._doubt(caller_of(address.host))
        failures = self._failures.pop(address, None) or _Failures()
        self._failures[address] = failures
        failures.add(MAX_FAILURES if is_silent else 1, trio.current_time())
        while len(self._failures) > _MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def _doubt(self, caller: str) -> None:
        self._doubted[caller] = trio.current_time() + DOUBT_TIME
        self._doubted.move_to_end(caller)
        if len(self._doubted) > _MAX_REMEMBERED:
            self._doubted.popitem(last=False)

    def is_failing(self, address: SocketAddress) -> bool:
        """Tell whether the address is to be refused now."""
        if not self._failures or (failures := self._failures.get(address)) is None:
            return False
        return trio.current_time() < failures.refused_until


class _Failures:
    """The failed dials to one address within the present window."""

    def __init__(self) -> None:
        self.refused_until = -1.0
        self._window_start = 0.0
        self._count = 0

    def add(self, count: int, now: float) -> None:
        if now - self._window_start > FAILURE_WINDOW:
            self._window_start, self._count = now, 0
        self._count += count
        if self._count >= MAX_FAILURES:
            self.refused_until = now + FAILURE_WINDOW
            self._count = 0
