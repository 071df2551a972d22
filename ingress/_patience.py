"""Deadlines that count a peer's time only, and not that in which this process was stopped or its loop blocked."""

from __future__ import annotations

import trio

# A deadline that is noticed later than this finds a loop that was blocked, or a process that was stopped. What a peer
# has done meanwhile may be there, and is looked at for so long.
LATE = 0.25


def is_late(deadline: float) -> bool:
    """Tell whether it is long after a deadline that has only just been noticed."""
    return trio.current_time() - deadline >= LATE


async def read_until(
    stream: trio.abc.ReceiveStream, size: int, deadline: float
) -> tuple[bytes | bytearray | None, float]:
    """Read before the deadline; returns what was read, None where nothing came, and by how much it was put off."""
    put_off = 0.0
    while True:
        with trio.move_on_at(deadline + put_off):
            return await stream.receive_some(size), put_off
        if not is_late(deadline + put_off):
            return None, put_off
        put_off = trio.current_time() - deadline + LATE
