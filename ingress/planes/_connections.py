"""The request connections that are open: how many, whose, and which of them give way when there is no room for more.

One that never has sent a whole request gives its place up after a while, unless it is busy sending a large one, but
only to another. One that has is somebody's, however long it rests. Whoever opens all that there may be must not keep
the others out: the fewer places are left, the fewer an address may have that takes one more. And where none is left,
the least used of addresses that have many give way to those that have far fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import trio

from .._tallies import Tallies
from ._connection import Connection
from ._peers import Peer, Peers
from ._silent import Silent

# An address may have so many times as many as places are left: one alone three quarters, of 20 each 403, and 134 places
# are left to all others.
_OF_FREE = 3

# The last ones, one in so many, are for addresses that have next to none.
_LAST, _NEXT_TO_NONE = 256, 4


class Connections:
    """The open connections of a plane; for its event loop.

    Args:
        most: how many may be open.
        most_of_peer: how many of one address. Where that is more than three quarters an address that is alone may have
            so many, and all where it is all.
        tallies: where refusals are counted.
        now: tells the time.
    """

    def __init__(
        self, most: int, most_of_peer: int, tallies: Tallies, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._now = now
        self.most = most
        self.most_of_peer = most_of_peer
        # How many times as many as are left one may have, so that one that is alone comes to what it may have; and how
        # many are kept for who has next to none.
        self._of_free, self._last = math.inf, 0
        if most_of_peer < most:
            self._of_free, self._last = max(most_of_peer / (most - most_of_peer), _OF_FREE), most // _LAST
        self._tallies = tallies
        self._peers = Peers()
        self._silent = Silent()

    def enter(self, stream: trio.abc.Stream, peer_host: str | None) -> tuple[Connection | None, Connection | None]:
        """Take a connection in; it is refused, and counted, where there is no place for it.

        Returns:
            the connection, None where it was refused; and another one that has left for it, to be closed now.
        """
        peer, now = self._peers.get(peer_host), self._now()
        given_up, gave_way, limit = None, "silent", self._limit_reached(peer)
        if peer is not None and peer.open >= self.most_of_peer:
            given_up = peer.silent.longest(now)  # it displaces only its own
        elif limit:
            given_up = self._silent.longest(now)
            if limit == "peer" and peer is not None and given_up is not None and not _has_more(given_up, peer):
                given_up = peer.silent.longest(now)  # there is a place for whoever has as few
            if given_up is None and peer_host is not None:
                given_up, gave_way = self._peers.least_missed(peer, now), "displaced"
        if limit and given_up is None:
            self._tallies.connections_refused[limit] += 1
            return None, None
        if given_up is not None:
            self._tallies.connections_refused[gave_way] += 1
            given_up.gave_way = gave_way
            self.leave(given_up)
        connection = Connection(stream, peer_host, now)
        self._tallies.connections_open += 1
        self._silent.add(connection)
        self._peers.add(connection)
        return connection, given_up

    def describe_full(self, peer_host: str | None) -> str:
        """Say which limit keeps a connection of that address out, for people."""
        peer = self._peers.get(peer_host)
        if peer is None or self._limit_reached(peer) != "peer":
            return f"{self._tallies.connections_open} are open, of at most {self.most}"
        if peer.open >= self.most_of_peer:
            return f"{peer.open} of its address are open, of at most {self.most_of_peer} of one address"
        free = self.most - self._tallies.connections_open
        return f"{peer.open} of its address are open, and of all no more than {free} are left"

    def describe_given_up(self, connection: Connection) -> str:
        """Say why a connection that has just left had to make room, for people."""
        if connection.gave_way != "displaced" or connection.peer is None:
            return "it has sent no whole request"
        return f"its address had {connection.peer.open + 1} open, far more than another one that found no room"

    def prove(self, connection: Connection) -> None:
        """Note that a connection has sent a whole request: it is not one of the silent ones any more."""
        connection.is_proven = True
        self._silent.discard(connection)
        if connection.peer is not None:
            connection.peer.silent.discard(connection)

    def leave(self, connection: Connection) -> None:
        """Note that a connection is closed, or about to be; once, as ``is_open`` tells."""
        connection.is_open = False
        self._tallies.connections_open -= 1
        self._silent.discard(connection)
        self._peers.remove(connection)

    def _limit_reached(self, peer: Peer | None) -> Literal["limit", "peer"] | None:
        """Tell what keeps one more connection of an address out: that none is left, or that it has its share."""
        free = self.most - self._tallies.connections_open
        if free <= 0:
            return "limit"
        if peer is None:
            return None
        share = self._of_free * free if free > self._last else _NEXT_TO_NONE
        return "peer" if peer.open >= min(share, self.most_of_peer) else None


def _has_more(connection: Connection, peer: Peer) -> bool:
    """Tell whether a connection is one of an address that has more than another."""
    return connection.peer is not None and connection.peer.open > peer.open
