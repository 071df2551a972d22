"""The request connections that are open: how many, whose, and which of them give way when there is no room for more.

A connection that has sent a whole request is somebody's, however long it rests. One that never has gives its place up
after a while, unless it is busy sending a large one, but only to another: whoever opens all that there may be must not
keep the others out for good.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .._shares import caller_of
from .._tallies import Tallies
from ._connection import Connection, Peer, Silent


class Connections:
    """The open connections of a plane; for its event loop.

    Args:
        most: how many may be open.
        most_of_peer: how many of one address.
        tallies: where refusals are counted.
        now: tells the time.
    """

    def __init__(
        self, most: int, most_of_peer: int, tallies: Tallies, now: Callable[[], float] = trio.current_time
    ) -> None:
        self._now = now
        self.most = most
        self.most_of_peer = most_of_peer
        self._tallies = tallies
        self._peers: dict[str, Peer] = {}  # only those that have some
        self._silent = Silent()

    def enter(self, stream: trio.abc.Stream, peer_host: str | None) -> tuple[Connection | None, Connection | None]:
        """Take a connection in; it is refused, and counted, where there is no place for it.

        Returns:
            the connection, None where it was refused; and another one that has left for it, to be closed now.
        """
        peer = None if peer_host is None else self._peers.get(caller_of(peer_host))
        given_up, reason = None, self._limit_reached(peer)
        if peer is not None and peer.open >= self.most_of_peer:
            given_up = peer.silent.longest(self._now())  # it displaces only its own
        elif reason:
            given_up = self._silent.longest(self._now())
        if reason and given_up is None:
            self._tallies.connections_refused[reason] += 1
            return None, None
        if given_up is not None:
            self._tallies.connections_refused["silent"] += 1
            self.leave(given_up)
        if peer_host is not None:
            peer = self._peers.setdefault(caller_of(peer_host), Peer())
        connection = Connection(stream, peer_host, peer, self._now())
        self._tallies.connections_open += 1
        self._silent.add(connection)
        if peer is not None:
            peer.open += 1
            peer.silent.add(connection)
        return connection, given_up

    def describe_full(self, peer_host: str | None) -> str:
        """Say which limit keeps a connection of that address out, for people."""
        peer = None if peer_host is None else self._peers.get(caller_of(peer_host))
        if peer is not None and self._limit_reached(peer) == "peer":
            return f"{peer.open} of its address are open, of at most {self.most_of_peer} of one address"
        return f"{self._tallies.connections_open} are open, of at most {self.most}"

    def prove(self, connection: Connection) -> None:
        """Note that a connection has sent a whole request: it gives way to nobody any more."""
        connection.is_proven = True
        self._no_longer_silent(connection)

    def leave(self, connection: Connection) -> None:
        """Note that a connection is closed, or about to be; once, as ``is_open`` tells."""
        connection.is_open = False
        self._tallies.connections_open -= 1
        self._no_longer_silent(connection)
        if (peer := connection.peer) is not None:
            peer.open -= 1
            if not peer.open and connection.peer_host is not None:
                del self._peers[caller_of(connection.peer_host)]

    def _no_longer_silent(self, connection: Connection) -> None:
        self._silent.discard(connection)
        if connection.peer is not None:
            connection.peer.silent.discard(connection)

    def _limit_reached(self, peer: Peer | None) -> str:
        if self._tallies.connections_open >= self.most:
            return "limit"
        return "peer" if peer is not None and peer.open >= self.most_of_peer else ""
