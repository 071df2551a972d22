"""Where a worker is in its life.

starting → serving → lingering (withdrawn, still accepting) → refusing → cancelling → closing → stopped
"""

from __future__ import annotations

import enum
import math

import trio


class Phase(enum.Enum):
    """The order is the order of a worker's life."""

    STARTING = "starting"
    SERVING = "serving"
    LINGERING = "lingering"
    REFUSING = "refusing"
    CANCELLING = "cancelling"
    CLOSING = "closing"
    STOPPED = "stopped"


# Starting too: callers see a record some milliseconds before we know that it has been written, and call at once.
_ACCEPTING = (Phase.STARTING, Phase.SERVING, Phase.LINGERING)


class Life:
    """The phase of one worker; entered by its own tasks, read by anyone on its loop."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.phase_ends_at = math.inf
        """When the present phase ends at the latest, on trio's clock; a drain's phases have such an end."""
        self.is_accepting = True
        """False from the phase on in which every request is refused."""
        self.drain_requested = trio.Event()
        self.cancelled_by_drain = 0
        """Requests that the drain budget cut short; the command's exit code 4 tells of them."""

    @property
    def is_draining(self) -> bool:
        return self.drain_requested.is_set()

    def enter(self, phase: Phase, seconds: float = math.inf) -> None:
        """Begin a phase that lasts ``seconds`` at the most."""
        self.phase = phase
        self.phase_ends_at = trio.current_time() + seconds
        self.is_accepting = phase in _ACCEPTING

    def end(self) -> None:
        """Begin the last phase, which nothing follows."""
        self.phase = Phase.STOPPED
        self.is_accepting = False
