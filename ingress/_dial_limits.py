"""How many dial-backs may be pending, and which addresses fail too often to be tried now."""

from __future__ import annotations

from collections import OrderedDict

import trio

from .wire.addresses import SocketAddress

# Peers wait for their own dials only: one that names a black hole holds at most its share, and what it has left serves
# its other addresses, for behind one peer there may be many callers.
MAX_PENDING_DIALS = 256
MAX_PENDING_DIALS_OF_PEER = 64
MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS = 48

# So many failures within a second, and the address is refused for the next one. Dials that succeed are never limited:
# a caller has one listener for all its streams.
MAX_FAILURES = 64
FAILURE_WINDOW = 1.0

# Addresses that failed lately; beyond it the one that failed first is forgotten.
_MAX_REMEMBERED = 1024


class DialLimits:
    """The dials of one worker; for its event loop."""

    def __init__(self) -> None:
        self._all = _Share(MAX_PENDING_DIALS)
        self._shares: dict[object, _Share] = {}
        self._failures: dict[SocketAddress, _Failures] = {}

    @property
    def is_idle(self) -> bool:
        """True while no dial is pending: the next one has its turn at once."""
        return not self._shares

    async def take_turn(self, peer_host: str | None, target: object) -> Turn:
        """Wait for a turn among the dials of the peer to the target, of the peer, and of all; release it when done.

        The caller bounds the wait.
        """
        turn = Turn(self, ((peer_host, target), peer_host))
        try:
            for share in turn.shares:
                if share.free > 0 and not share.waiting:  # without a checkpoint, for nearly every request
                    share.free -= 1
                else:
                    await share.wait()
                turn.taken += 1
        except BaseException:
            turn.release()
            raise
        return turn

    def _share(self, key: object, most: int) -> _Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(most)
        share.users += 1
        return share

    def _drop(self, key: object) -> None:
        share = self._shares[key]
        share.users -= 1
        if not share.users:
            del self._shares[key]

    def record_failure(self, address: SocketAddress) -> None:
        """Note that a dial was refused or timed out."""
        failures = self._failures.pop(address, None) or _Failures()
        self._failures[address] = failures
        failures.add(trio.current_time())
        while len(self._failures) > _MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def is_failing(self, address: SocketAddress) -> bool:
        """Tell whether the address is to be refused now."""
        if not self._failures or (failures := self._failures.get(address)) is None:
            return False
        return trio.current_time() < failures.refused_until


class Turn:
    """The right to dial, in the shares that it counts against."""

    __slots__ = ("_keys", "_limits", "shares", "taken")

    def __init__(self, limits: DialLimits, keys: tuple[object, object]) -> None:
        self._limits = limits
        self._keys = keys
        self.shares = (
            limits._share(keys[0], MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS),
            limits._share(keys[1], MAX_PENDING_DIALS_OF_PEER),
            limits._all,
        )
        self.taken = 0

    def release(self) -> None:
        """Let the next one dial; once."""
        for share in self.shares[: self.taken]:
            share.give_back()
        for key in self._keys:
            self._limits._drop(key)


class _Share:
    """What pending dials of one kind have in common, while there are any."""

    __slots__ = ("free", "users", "waiting")

    def __init__(self, most: int) -> None:
        self.free = most
        self.users = 0
        self.waiting: OrderedDict[trio.Event, None] = OrderedDict()

    async def wait(self) -> None:
        turn = trio.Event()
        self.waiting[turn] = None
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # handed over, and cancelled in the same moment
                self.give_back()
            else:
                del self.waiting[turn]
            raise

    def give_back(self) -> None:
        if self.waiting:
            self.waiting.popitem(last=False)[0].set()
        else:
            self.free += 1


class _Failures:
    """The failed dials to one address within the present window."""

    def __init__(self) -> None:
        self.refused_until = -1.0
        self._window_start = 0.0
        self._count = 0

    def add(self, now: float) -> None:
        if now - self._window_start > FAILURE_WINDOW:
            self._window_start, self._count = now, 0
        self._count += 1
        if self._count >= MAX_FAILURES:
            self.refused_until = now + FAILURE_WINDOW
            self._count = 0
