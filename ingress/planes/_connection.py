"""A request connection that is open, what one address has of them, and which of those that were never used go first."""

from __future__ import annotations

from typing import Final

import trio

# A caller sends its first request as soon as it is connected.
MAX_SILENCE = 10.0

# One that is in the middle of a large first request is not silent as long as it sends so many bytes in that time; its
# frame's deadline asks for ten times as much. A flood opens connections, and rarely pays for them.
LEAST_SENT = 64 * 1024

# An upload that is fast enough is looked at again after so long, and not for each connection that finds no room: of
# eight thousand that trickle a look at all took 1.5 ms.
_LOOK_AGAIN = 1.0


# What a connection is about.
BEGUN: Final = 0  # its handshake or a request has begun to come, or waits for its turn
HELD: Final = 1  # a request is being handed over, or acked
RESTS: Final = 2  # it waits for the next request


class Connection:
    """One that is open; for the tasks of its plane."""

    __slots__ = (
        "begun_at",
        "gave_way",
        "incomplete_bytes",
        "is_open",
        "is_proven",
        "opened_at",
        "peer",
        "peer_host",
        "phase",
        "stream",
        "was_taken",
    )

    def __init__(self, stream: trio.abc.Stream, peer_host: str | None, opened_at: float) -> None:
        self.stream = stream
        self.peer_host = peer_host
        self.peer: Peer | None = None
        self.opened_at = opened_at
        self.begun_at = opened_at
        """When the frame began that is being read, or the last one did."""
        self.phase: int = BEGUN
        self.is_open = True
        self.is_proven = False
        """True once it has sent a whole request."""
        self.was_taken = False
        """True once such a request was taken: whoever sends junk only is missed by nobody."""
        self.incomplete_bytes = 0
        """Bytes of a large request that it has not sent whole yet; :class:`IncompleteFrames` keeps them."""
        self.gave_way = ""
        """Under which reason it was closed for another one, if it was."""


class Silent:
    """Connections that have not sent a whole request yet, and which of them gives way first.

    Whatever there is of them, each is looked at once when it has been silent for long, and once in each second after.
    """

    __slots__ = ("_uploading", "_waiting")

    def __init__(self) -> None:
        # Each with the time from when on it may give way, the earliest first.
        self._waiting: dict[Connection, float] = {}
        self._uploading: dict[Connection, float] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._uploading)

    def add(self, connection: Connection) -> None:
        self._waiting[connection] = connection.opened_at + MAX_SILENCE

    def discard(self, connection: Connection) -> None:
        if self._waiting.pop(connection, None) is None:
            self._uploading.pop(connection, None)

    def longest(self, now: float) -> Connection | None:
        """Return the one that gives way now: the oldest that sends next to nothing, else an upload that fell behind."""
        for queue in (self._waiting, self._uploading):
            fast_enough, found = list[Connection](), None
            for connection, since in queue.items():
                if since > now:
                    break
                if connection.incomplete_bytes < (now - connection.opened_at) / MAX_SILENCE * LEAST_SENT:
                    found = connection
                    break
                fast_enough.append(connection)
            for connection in fast_enough:
                del queue[connection]
                self._uploading[connection] = now + _LOOK_AGAIN
            if found is not None:
                return found
        return None


class Peer:
    """What one address has open."""

    __slots__ = ("address", "open", "silent")

    def __init__(self, address: str) -> None:
        self.address = address
        self.open = 0
        self.silent = Silent()
        """Those that have not sent a whole request yet."""
