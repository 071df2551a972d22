"""What each address has open of a plane's connections, and which of them gives way to an address that has far fewer.

Whoever opens all that there may be, and uses them as little as that takes, must not keep the others out. So the address
that has most gives up one of its own, of those that it misses least. Whatever there is, that takes a few steps: where
thousands of connections come in a second, most find no room.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import trio

from .._shares import caller_of
from ._connection import BEGUN, HELD, RESTED, RESTS, Connection, Peer

# An address gives way to one that would have less than half of what it has: who comes takes no more than it leaves.
FAR_MORE = 2

# From here on it gives up requests that have not arrived whole: it costs a caller one, and the other one all of them.
VASTLY_MORE = 8

# Of thousands so many are looked at for each that comes, the next ones for the next. That is 20 µs, beside some 80 µs
# for what every connection takes.
MOST_LOOKS = 32

# What is given up first; of each kind that whose second figure is the least.
_UNUSED, _NEW, _UNFINISHED, _UPLOAD = range(4)


class Peers:
    """Whose connections are open; for the event loop of a plane."""

    def __init__(self) -> None:
        self._by_address: dict[str, Peer] = {}  # only those that have some
        # Those that have so many. Their order is that in which they came to have them; a plain dict whose first is
        # taken again and again looks at all the places that have become empty before it.
        self._by_count: dict[int, OrderedDict[Peer, None]] = {}
        self._most = 0

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
        peer.connections[connection] = None
        peer.silent.add(connection)
        self._recount(peer, peer.open - 1)

    def remove(self, connection: Connection) -> None:
        """Count a connection no more that has left."""
        if (peer := connection.peer) is None:
            return
        del peer.connections[connection]
        peer.silent.discard(connection)
        self._recount(peer, peer.open + 1)
        if not peer.open:
            del self._by_address[peer.address]

    def least_missed(self, newcomer: Peer | None, now: float) -> Connection | None:
        """Return which connection gives way to one of another address, which has ``newcomer`` open so far; or None."""
        wanted = 1 if newcomer is None else newcomer.open + 1
        if self._most <= FAR_MORE * wanted:
            return None
        heaviest = next(iter(self._by_count[self._most]))
        return _least_missed(heaviest.connections, now, takes_unfinished=self._most >= VASTLY_MORE * wanted)

    def _recount(self, peer: Peer, before: int) -> None:
        """Note that an address has one more than before, or one less."""
        if before:
            those = self._by_count[before]
            del those[peer]
            if not those:
                del self._by_count[before]
        if peer.open:
            self._by_count.setdefault(peer.open, OrderedDict())[peer] = None
        if peer.open > self._most or self._most not in self._by_count:
            self._most = peer.open  # it was the only one that had so many, or is the first that has


def _least_missed(
    connections: OrderedDict[Connection, None], now: float, *, takes_unfinished: bool
) -> Connection | None:
    """Return the connection of one address that it misses least, of those whose turn it is to be looked at.

    One that rests, and did when it was looked at before, is taken at once: it has not been used for as long as it takes
    to look at all the others.
    """
    found: Connection | None = None
    least = (_UPLOAD if takes_unfinished else _NEW, math.inf)
    for _ in range(min(len(connections), MOST_LOOKS)):
        connection = next(iter(connections))
        connections.move_to_end(connection)
        phase = connection.phase
        if phase == RESTS:
            connection.phase = RESTED
        rank = _rank_of(connection, phase, now)
        if rank is not None and rank < least:
            found, least = connection, rank
            if rank[0] == _UNUSED and phase == RESTED:
                break
    return found


def _rank_of(connection: Connection, phase: int, now: float) -> tuple[int, float] | None:
    """Return how much an address would miss a connection; None where it is not taken."""
    if phase == HELD:
        return None
    if phase != BEGUN and not _has_unread(connection.stream):
        return _UNUSED, connection.begun_at
    if connection.incomplete_bytes:  # the slowest, not the eldest: that may be the largest
        return _UPLOAD, connection.incomplete_bytes / (now - connection.begun_at + 1)
    if not connection.is_proven:
        return _NEW, connection.opened_at
    return (_UNFINISHED, connection.begun_at) if phase == BEGUN else None


def _has_unread(stream: trio.abc.Stream) -> bool:
    """Whether a request may have come that is not read yet; of TLS that is whatever has come."""
    return bool(getattr(getattr(stream, "transport", stream), "has_unread", False))
