"""Request connections on which no whole request has come yet, and which of them gives way first."""

from __future__ import annotations

from ._connection import Connection

# A caller sends its first request as soon as it is connected.
MAX_SILENCE = 10.0

# One that is in the middle of a large first request is not silent as long as it sends so many bytes in that time; its
# frame's deadline asks for ten times as much. A flood opens connections, and rarely pays for them.
LEAST_SENT = 64 * 1024

# An upload that is fast enough is looked at again after so long, and not for each connection that finds no room: of
# eight thousand that trickle a look at all took 1.5 ms.
_LOOK_AGAIN = 1.0


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
