"""How many bytes of requests may be waiting for the rest of theirs, over all connections of a plane.

Each request may be large and take its time, and there may be thousands of connections; together they must not take the
memory that the answers need. What counts is what has arrived: whoever only announces much keeps nobody out.
"""

from __future__ import annotations

from collections.abc import Callable

from .._memory_watermark import share_of_memory
from .._shares import SharedBudget, caller_of
from ._connection import Connection

# Smaller requests arrive in one read, nearly always. What all connections hold of them is half a gigabyte at most.
LARGE_FRAME = 64 * 1024

# Of the memory; and what a worker takes however little there is of it.
MEMORY_SHARE = 8
LEAST_INCOMPLETE_BYTES = 64 * 1024 * 1024


class IncompleteFrames(SharedBudget):
    """The bytes of large requests that have not arrived whole; for the event loop of a plane.

    Args:
        most: bytes of all; never less than one request of the largest size.
        max_frame_size: that size.
        is_short_of_memory: whether so many bytes more would be too much for the process.
    """

    def __init__(
        self, most: int | None, max_frame_size: int, is_short_of_memory: Callable[[int], bool] | None = None
    ) -> None:
        default = share_of_memory(MEMORY_SHARE, LEAST_INCOMPLETE_BYTES)
        super().__init__(default if most is None else most, max_frame_size)
        self._is_short_of_memory = is_short_of_memory

    def note(self, connection: Connection, held: int) -> str | None:
        """Note how much a connection holds now; returns why that is too much, where it is."""
        more = held - connection.incomplete_bytes
        connection.incomplete_bytes = held
        caller = caller_of(connection.peer_host or "")
        if more <= 0:
            self.give_back(caller, -more)
            return None
        self.take(caller, more)
        if self.excess(caller) is not None:
            return "too many bytes of unfinished requests"
        if self._is_short_of_memory is not None and self._is_short_of_memory(more):
            return "worker is short of memory"
        return None
