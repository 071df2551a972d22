"""What ``/progress`` says: whether requests that run get anywhere.

    {"status":"ok","running":3,"last_chunk_age_seconds":0.02,"stall_threshold_seconds":60}

``idle``: none runs. ``stalled``: an endpoint has running requests, and sent no chunk for longer than the threshold. Of
many streams on one endpoint a single silent one does not count: engines are slow with one prompt and stuck with all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from attrs import frozen

DEFAULT_STALL_THRESHOLD = 60.0


class Activity(Protocol):
    """What is read of an endpoint's metrics."""

    running: int
    busy_since: float
    last_chunk_at: float | None


@frozen
class Progress:
    """One look at all endpoints."""

    status: str
    running: int
    last_chunk_age: float | None
    """Seconds since the last chunk of any endpoint; None where none was ever sent."""

    stall_threshold: float

    @property
    def is_stalled(self) -> bool:
        return self.status == "stalled"

    def to_json(self) -> dict[str, Any]:
        threshold = self.stall_threshold
        return {
            "status": self.status,
            "running": self.running,
            "last_chunk_age_seconds": None if self.last_chunk_age is None else round(self.last_chunk_age, 3),
            "stall_threshold_seconds": int(threshold) if threshold == int(threshold) else threshold,
        }


def read_progress(
    endpoints: Iterable[Activity], now: float, stall_threshold: float = DEFAULT_STALL_THRESHOLD
) -> Progress:
    """Look at the endpoints at time ``now`` of the clock they use."""
    endpoints = list(endpoints)
    running = sum(endpoint.running for endpoint in endpoints)
    chunk_times = [endpoint.last_chunk_at for endpoint in endpoints if endpoint.last_chunk_at is not None]
    if any(endpoint.running and now - _last_sign(endpoint) > stall_threshold for endpoint in endpoints):
        status = "stalled"
    else:
        status = "ok" if running else "idle"
    return Progress(status, running, now - max(chunk_times) if chunk_times else None, stall_threshold)


def _last_sign(endpoint: Activity) -> float:
    # After an idle hour the clock starts with the request and not with the last chunk before it.
    return max(endpoint.busy_since, endpoint.last_chunk_at or endpoint.busy_since)
