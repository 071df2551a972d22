"""What each address has open of a plane's connections, and which of them gives way to an address that has far fewer.

Whoever opens all that there may be, and uses them as little as that takes, must not keep the others out; and whoever
uses what it has should not lose it. So what is missed least gives way, whosever it is, if only that address has far
more than the one that comes; and where all is in use, of the address that has the most. Whatever there is, that takes a
few steps: where thousands of connections come in a second, most find no room.
"""

from __future__ import annotations

from collections import OrderedDict

from .._shares import caller_of
from ._connection import HELD, NEVER, RESTS, WAITS, Connection
from ._silent import Silent

# An address gives way to one that would have less than half of what it has: who comes takes no more than it leaves.
FAR_MORE = 2

# From here on it gives up requests that have not arrived whole, and what is in use.
VASTLY_MORE = 8

# One that has been used since is in use; a request on it that began before is not in the middle of an ordinary one.
USED = 5.0

# An address with more than so many gives up what is in use, too, where there is nothing else: a request every few
# seconds on each of thousands is cheap. What is left to it is a pool, whoever comes.
POOL = 32

# And one with more than so many also what has sent a request that waits for its turn.
FLOOD = 256

# So many are looked at for each that comes, the next ones for the next. LOOKS at the least, for those that came
# together may all be of one pool; then until one is useless, MOST_LOOKS at the most. That is 20 to 80 µs, as much as
# what every connection takes.
LOOKS, MOST_LOOKS = 32, 128

# What is given up first, of each kind that whose next figures are the least. Useless is what never sent a request, and
# what sends junk.
_USELESS, _RESTING, _UNFINISHED, _UPLOAD, _IN_USE = range(5)


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
        ranked = list[tuple[tuple[float, ...], int, Connection]]()
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
        return next((connection for _, _, connection in ranked if not _may_have_asked(connection)), None)


def _rank_of(connection: Connection, wanted: int, now: float) -> tuple[float, ...] | None:
    """Return how much a connection would be missed; None where it does not give way to an address with ``wanted``."""
    has = 0 if connection.peer is None else connection.peer.open
    phase, begun_at = connection.phase, connection.begun_at
    was_taken, waits = connection.taken_at != NEVER, phase == WAITS
    if has <= FAR_MORE * wanted or phase == HELD:
        return None
    if not (was_taken or connection.incomplete_bytes or (waits and not connection.is_proven)):
        return _USELESS, connection.opened_at
    has_vastly_more = has >= VASTLY_MORE * wanted
    if waits or (was_taken and now - begun_at < USED):
        is_in_a_crowd = has > (FLOOD if waits else POOL)
        return (_IN_USE, -has, now if waits else begun_at) if has_vastly_more and is_in_a_crowd else None
    if phase == RESTS:
        return _RESTING, begun_at
    if not has_vastly_more:
        return None
    if connection.incomplete_bytes:  # the slowest, not the eldest: that may be the largest
        return _UPLOAD, connection.incomplete_bytes / (now - begun_at + 1)
    return _UNFINISHED, begun_at


def _may_have_asked(connection: Connection) -> bool:
    """Whether a request may have come that is not read yet; of TLS that is whatever has come.

    More of what is being refused is none: who sends junk by the megabyte would keep its place until all of it is read.
    """
    if connection.is_proven and connection.taken_at == NEVER and connection.phase != RESTS:
        return False
    stream = connection.stream
    return bool(getattr(getattr(stream, "transport", stream), "has_unread", False))
