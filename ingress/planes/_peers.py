"""What each address has open of a plane's connections, and which of them gives way to an address that has far fewer.

Whoever opens all that there may be, and uses them as little as that takes, must not keep the others out; and whoever
uses what it has must not lose it. So what is missed least gives way, whosever it is, if only that address has far more
than the one that comes. Whatever there is, that takes a few steps: where thousands of connections come in a second,
most find no room.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from .._shares import caller_of
from ._connection import BEGUN, HELD, NEVER, Connection
from ._silent import Silent

# An address gives way to one that would have less than half of what it has: who comes takes no more than it leaves.
FAR_MORE = 2

# From here on it gives up requests that have not arrived whole: it costs a caller one, and the other one all of them.
VASTLY_MORE = 8

# One that has been used since is in use.
USED = 5.0

# A request that has begun so long ago is not in the middle of an ordinary one.
SLOW = 5.0

# Of thousands so many are looked at for each that comes, the next ones for the next: until one of these is missed by
# nobody, but beyond a pool or two of one caller's, which came together. That is 20 to 80 µs, beside some 80 µs for what
# every connection takes.
LOOKS, MOST_LOOKS = 32, 128

# What is given up first; of each kind that whose second figure is the least.
_USELESS, _RESTING, _UNFINISHED, _UPLOAD = range(4)


class Peer:
    """What one address has open."""

    __slots__ = ("address", "open", "silent")

    def __init__(self, address: str) -> None:
        self.address = address
        self.open = 0
        self.silent = Silent()
        """Those that have not sent a whole request yet."""


class Peers:
    """Whose connections are open; for the event loop of a plane."""

    def __init__(self) -> None:
        self._by_address: dict[str, Peer] = {}  # only those that have some
        # All of known addresses, in the order in which they came or were looked at. A plain dict whose first is taken
        # again and again looks at all the places that have become empty before it.
        self._in_turn: OrderedDict[Connection, None] = OrderedDict()

    def get(self, peer_host: str | None) -> Peer | None:
        """Return what the address has open; None where that is nothing, or nobody knows the address."""
        return None if peer_host is None else self._by_address.get(caller_of(peer_host))

    def add(self, connection: Connection) -> None:
        """Count a connection that has come, where its address is known."""
        if connection.peer_host is None:
            return
        address = caller_of(connection.peer_host)
        if (peer := self._by_address.get(address)) is None:
            peer = self._by_address[address] = Peer(address)
        connection.peer = peer
        peer.open += 1
        peer.silent.add(connection)
        self._in_turn[connection] = None

    def remove(self, connection: Connection) -> None:
        """Count a connection no more that has left."""
        if (peer := connection.peer) is None:
            return
        peer.open -= 1
        peer.silent.discard(connection)
        del self._in_turn[connection]
        if not peer.open:
            del self._by_address[peer.address]

    def least_missed(self, newcomer: Peer | None, now: float) -> Connection | None:
        """Return which connection gives way to one of another address, which has ``newcomer`` open so far; or None."""
        wanted = 1 if newcomer is None else newcomer.open + 1
        ranked = list[tuple[tuple[int, float], int, Connection]]()
        is_found = False
        for look in range(min(len(self._in_turn), MOST_LOOKS)):
            if is_found and look >= LOOKS:
                break
            connection = next(iter(self._in_turn))
            self._in_turn.move_to_end(connection)
            if (rank := _rank_of(connection, wanted, now)) is not None:
                ranked.append((rank, look, connection))
                is_found = is_found or rank[0] == _USELESS
        ranked.sort()
        return next((connection for _, _, connection in ranked if not _has_unread(connection.stream)), None)


def _rank_of(connection: Connection, wanted: int, now: float) -> tuple[int, float] | None:
    """Return how much a connection would be missed; None where it does not give way to an address with ``wanted``."""
    has = 0 if connection.peer is None else connection.peer.open
    phase = connection.phase
    if has <= FAR_MORE * wanted or phase == HELD:
        return None
    was_taken = connection.taken_at != NEVER
    if not (was_taken or connection.incomplete_bytes):
        return _USELESS, connection.opened_at
    if phase != BEGUN:
        return (_RESTING, connection.begun_at) if now - connection.begun_at >= USED else None
    if has < VASTLY_MORE * wanted or (was_taken and now - connection.begun_at < SLOW):
        return None
    if connection.incomplete_bytes:  # the slowest, not the eldest: that may be the largest
        return _UPLOAD, connection.incomplete_bytes / (now - connection.begun_at + 1)
    return _UNFINISHED, connection.begun_at


def _has_unread(stream: trio.abc.Stream) -> bool:
    """Whether a request may have come that is not read yet; of TLS that is whatever has come."""
    return bool(getattr(getattr(stream, "transport", stream), "has_unread", False))
