"""How many dial-backs may be pending, and whose turn it is.

Pending is a dial that was not connected at once, as nearly all are on the same machine. Of those a peer and an address
have their shares; of those who wait each caller has the next turn in its turn. Dials to addresses that have answered
before go first and have turns that others cannot take, so that who names silent addresses keeps waiting only those who
have never been reached either; who has answered and does no more is taken for one of these for a while.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import chain

import trio

from ._dial_outcomes import DialOutcomes
from ._shares import caller_of
from .errors import ResponseStreamError
from .wire.addresses import SocketAddress

# For behind one peer there may be many callers.
MAX_PENDING_DIALS = 256
MAX_PENDING_DIALS_OF_PEER = 64
MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS = 48

# To an address that has not answered yet: the first answer makes room for the others.
MAX_PENDING_DIALS_TO_NEW_ADDRESS = 8

# The part of a peer's turns that only addresses that have answered get; and the part of all.
_RESERVED_OF_PEER, _RESERVED = 1 / 4, 1 / 8

# The part of all turns that only callers get who have none: more than the one before, so that who has earned turns and
# leaves them unused keeps none waiting who comes for the first time.
_SPARED = 3 / 8

# What a dial is given once another address waits for its turn. A lost SYN is sent again after a second.
HURRIED_TIMEOUT = 1.5

# And once more wait than there are turns, where the address has never answered: time for the way there and back.
CROWDED_TIMEOUT = 0.5

# A line that is longer, and whose first has waited for so long, takes nobody more: an address that has answered may be
# slow for once; what comes in one burst has not waited.
MAX_LINE = 64
_PATIENCE_WITH_NEW, _PATIENCE = 0.25, 1.5


class DialLimits:
    """The dials of one worker; for its event loop."""

    def __init__(self) -> None:
        self._all = _Share(MAX_PENDING_DIALS, _RESERVED, _SPARED)
        self._shares: dict[Hashable, _Share] = {}
        self.outcomes = DialOutcomes()

    @property
    def is_idle(self) -> bool:
        """True while no dial is pending: the next one has its turn at once."""
        return not self._shares

    # -- turns ---------------------------------------------------------------------------------------------------------

    async def take_turn(self, peer_host: str | None, target: Hashable) -> Turn:
        """Wait for a turn among the dials of the peer to the target, of the peer, and of all; release it when done.

        The wait ends: whose turn others wait for is given up sooner.

        Raises:
            ResponseStreamError: the target has left another dial unanswered meanwhile.
        """
        turn = Turn(self, peer_host, target)
        try:
            for share in turn.shares:
                if not share.take_nowait(turn):
                    await share.wait(turn)
                turn.taken += 1
        except BaseException:
            turn.release()
            raise
        return turn

    def take_turn_nowait(self, peer_host: str | None, target: Hashable) -> Turn | None:
        """Take a turn if there is one."""
        turn = Turn(self, peer_host, target)
        for share in turn.shares:
            if not share.take_nowait(turn):
                turn.release()
                return None
            turn.taken += 1
        return turn

    def is_line_long(self, peer_host: str | None, target: Hashable) -> bool:
        """Tell whether one more had too long to wait."""
        if not self._shares:
            return False
        has_answered = self.outcomes.has_answered(target)
        patience = _PATIENCE if has_answered else _PATIENCE_WITH_NEW
        latest = trio.current_time() - patience
        peer = caller_of(peer_host or "")
        return any(
            (share := self._shares.get(key)) is not None and share.is_long(has_answered, latest)
            for key in ((peer, target), peer)
        )

    def _share(self, key: Hashable, most: int, reserved: float = 0.0) -> _Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(most, reserved)
        share.users += 1
        return share

    def _drop(self, key: Hashable) -> None:
        share = self._shares[key]
        share.users -= 1
        if not share.users:
            del self._shares[key]


class Turn:
    """The right to dial, in the shares that it counts against."""

    __slots__ = ("_keys", "_limits", "_scope", "_started_at", "peer", "shares", "taken", "target", "waits_since")

    def __init__(self, limits: DialLimits, peer_host: str | None, target: Hashable) -> None:
        self.target = target
        self.waits_since = 0.0
        self.taken = 0
        self._limits = limits
        self.peer = peer = caller_of(peer_host or "")
        self._keys: tuple[Hashable, Hashable] = ((peer, target), peer)
        most = MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS if self.is_to_answered else MAX_PENDING_DIALS_TO_NEW_ADDRESS
        self.shares = (
            limits._share(self._keys[0], most),
            limits._share(self._keys[1], MAX_PENDING_DIALS_OF_PEER, _RESERVED_OF_PEER),
            limits._all,
        )
        self._scope: trio.CancelScope | None = None
        self._started_at = 0.0

    @property
    def is_to_answered(self) -> bool:
        return self._limits.outcomes.has_answered(self.target)

    def begin(self, timeout: float) -> trio.CancelScope:
        """Return the scope to dial in: with that timeout, or less once others wait for this turn."""
        self._started_at = trio.current_time()
        # A scope of one's own, for trio.fail_after() costs three times as much.
        self._scope = trio.CancelScope(deadline=self._started_at + timeout)
        for share in self.shares[1:]:
            if share.is_waited_for_beside(self):
                self.hurry(is_crowded=share.is_crowded)
        return self._scope

    def hurry(self, *, is_crowded: bool) -> None:
        """Have the dial given up soon."""
        latest = self._started_at + (CROWDED_TIMEOUT if is_crowded and not self.is_to_answered else HURRIED_TIMEOUT)
        if self._scope is not None and self._scope.deadline > latest:
            self._scope.deadline = latest

    @property
    def timeout(self) -> float:
        """What the dial is given."""
        return self._scope.deadline - self._started_at if self._scope is not None else 0.0

    def note_answer(self) -> None:
        """Note that the dial has succeeded: those who wait for the same address may go together."""
        self._limits.outcomes.note_answer(self.target)
        self.shares[0].widen(MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS)

    def note_failure(self, address: SocketAddress | None, *, is_silent: bool) -> None:
        """Note that it has failed: without an answer those who wait for the same address need not try."""
        self._limits.outcomes.note_failure(self.target, address, is_silent=is_silent)
        if is_silent:
            for share in self.shares:
                share.dismiss(self.peer, self.target)

    def release(self) -> None:
        """Let the next one dial; once."""
        for share in self.shares[: self.taken]:
            share.give_back(self)
        for key in self._keys:
            self._limits._drop(key)


class _Share:
    """What pending dials of one kind have in common, while there are any."""

    __slots__ = ("_first", "_holders", "_most", "_of_peers", "_others", "_reserved", "_spared", "users")

    def __init__(self, most: int, reserved: float = 0.0, spared: float = 0.0) -> None:
        self.users = 0
        self._most = most
        self._reserved = round(most * reserved)
        self._spared = round(most * spared)
        self._holders: dict[Turn, None] = {}
        self._of_peers: Counter[str] = Counter()
        # Those who wait: whose addresses have answered, and the others.
        self._first = _Line()
        self._others = _Line()

    def take_nowait(self, turn: Turn) -> bool:
        is_to_answered = turn.is_to_answered
        if self._line(is_to_answered).is_waited_in_by(turn.peer) or not self._has_room(
            turn.peer, is_to_answered=is_to_answered
        ):
            return False
        self._take(turn)
        return True

    async def wait(self, turn: Turn) -> None:
        line = self._line(turn.is_to_answered)
        woken = line.add(turn)
        turn.waits_since = trio.current_time()
        is_crowded = self.is_crowded
        for holder in self._holders:
            if holder.target != turn.target:
                holder.hurry(is_crowded=is_crowded)
        try:
            await woken.wait()
        except BaseException:
            if turn in self._holders:  # handed over, and cancelled in the same moment
                self.give_back(turn)
            else:
                line.discard(turn)
            raise
        if turn not in self._holders:
            raise ResponseStreamError("its address has left another dial-back unanswered")

    def give_back(self, turn: Turn) -> None:
        del self._holders[turn]
        self._of_peers[turn.peer] -= 1
        if not self._of_peers[turn.peer]:
            del self._of_peers[turn.peer]
        self._hand_on()

    def widen(self, most: int) -> None:
        """Let more of them dial at once."""
        self._most = max(self._most, most)
        self._hand_on()

    def dismiss(self, peer: str, target: Hashable) -> None:
        """Send away those of the caller who wait for the target."""
        for line in (self._first, self._others):
            for turn in line.turns_of(peer):
                if turn.target == target:
                    line.discard(turn)

    @property
    def is_crowded(self) -> bool:
        """True while more wait, whose addresses have not answered, than can dial at once."""
        return len(self._others) > self._most - self._reserved

    def is_waited_for_beside(self, turn: Turn) -> bool:
        """Tell whether somebody waits here for another address."""
        return any(waiting.target != turn.target for line in (self._first, self._others) for waiting in line)

    def is_long(self, is_to_answered: bool, latest: float) -> bool:
        """Tell whether the line is too long for one more, its first having waited since ``latest`` or before."""
        line = self._line(is_to_answered)
        return len(line) >= MAX_LINE and next(iter(line)).waits_since <= latest

    def _line(self, is_to_answered: bool) -> _Line:
        return self._first if is_to_answered else self._others

    def _has_room(self, peer: str, *, is_to_answered: bool) -> bool:
        most = self._most if is_to_answered else self._most - self._reserved
        return len(self._holders) < (most - self._spared if self._of_peers[peer] else most)

    def _take(self, turn: Turn) -> None:
        self._holders[turn] = None
        self._of_peers[turn.peer] += 1

    def _hand_on(self) -> None:
        for is_to_answered in (True, False):
            line = self._line(is_to_answered)
            while (found := line.pop(partial(self._has_room, is_to_answered=is_to_answered))) is not None:
                turn, woken = found
                self._take(turn)
                woken.set()


class _Line:
    """Who waits for a turn: of each caller in the order in which they came, and of the callers one after the other."""

    __slots__ = ("_count", "_of_peers")

    def __init__(self) -> None:
        self._of_peers: dict[str, OrderedDict[Turn, trio.Event]] = {}  # the caller who is next stands first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Turn]:
        return chain.from_iterable(self._of_peers.values())

    def is_waited_in_by(self, peer: str) -> bool:
        return peer in self._of_peers

    def add(self, turn: Turn) -> trio.Event:
        """Begin to wait; the event comes with the turn."""
        woken = trio.Event()
        self._of_peers.setdefault(turn.peer, OrderedDict())[turn] = woken
        self._count += 1
        return woken

    def turns_of(self, peer: str) -> list[Turn]:
        return list(self._of_peers.get(peer, ()))

    def discard(self, turn: Turn) -> None:
        """Wait no more, without a turn, for who still does."""
        turns = self._of_peers.get(turn.peer)
        if turns and (woken := turns.pop(turn, None)) is not None:
            woken.set()
            self._count -= 1
            if not turns:
                del self._of_peers[turn.peer]

    def pop(self, has_room: Callable[[str], bool]) -> tuple[Turn, trio.Event] | None:
        """Return who is next of those callers for whom there is room, None where there is none."""
        for peer, turns in self._of_peers.items():
            if has_room(peer):
                turn, woken = turns.popitem(last=False)
                self._count -= 1
                del self._of_peers[peer]
                if turns:
                    self._of_peers[peer] = turns
                return turn, woken
        return None
