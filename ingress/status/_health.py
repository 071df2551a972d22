"""What ``/health`` says: which endpoints are ready, why others are not, in a released worker's layout.

    {"status":"ready","uptime":{"secs":3,"nanos":599192667},"endpoints":{"generate":"ready"}}

``status`` is ``ready`` exactly when all endpoints are. Source: docs/wire.md §9. Pure: clocks are passed in.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import trio

from ..wire.records import EndpointId

READY = "ready"
NOT_READY = "notready"

STARTING = "starting"
"""The hold that a new :class:`HealthState` has."""

DRAINING = "draining"

Clock = Callable[[], float]


class EndpointHealth:
    """One endpoint's readiness, as canaries and traffic have shown it; for the worker's own tasks."""

    def __init__(self, endpoint_id: EndpointId, *, needs_proof: bool = False, clock: Clock = trio.current_time) -> None:
        self.endpoint_id = endpoint_id
        self.reason: str | None = "no canary and no request has succeeded yet" if needs_proof else None
        """Why the endpoint is not ready; None while it is."""
        self.active_at = -math.inf
        """When it last sent a chunk that was no error, or came to a clean end."""
        self._clock = clock

    @property
    def is_ready(self) -> bool:
        return self.reason is None

    def record_activity(self) -> None:
        """Take a good chunk or a clean end as proof of health; called once a flush, so it does nothing else."""
        self.active_at = self._clock()
        self.reason = None

    def mark_not_ready(self, reason: str) -> None:
        self.reason = reason


class HealthState:
    """The readiness of a worker: that of its endpoints, and whatever holds all of them back.

    Args:
        starts_ready: say ``ready`` also before the endpoints are served (``DYN_SYSTEM_STARTING_HEALTH_STATUS``).
        clock: counts the uptime.
    """

    def __init__(self, *, starts_ready: bool = False, clock: Clock = time.monotonic) -> None:
        self._endpoints: dict[EndpointId, EndpointHealth] = {}
        self._holds = {STARTING: STARTING}
        self._checks: dict[str, Callable[[], str | None]] = {}
        self._starts_ready = starts_ready
        self._clock = clock
        self._started = clock()

    def __iter__(self) -> Iterator[EndpointHealth]:
        return iter(self._endpoints.values())

    def add(self, health: EndpointHealth) -> None:
        """Take an endpoint in; it is shown once the worker is no longer starting."""
        self._endpoints[health.endpoint_id] = health

    def hold(self, what: str, reason: str) -> None:
        """Make every endpoint not ready, until the hold of this name is released."""
        self._holds[what] = reason

    def release(self, what: str) -> None:
        """End a hold; nothing happens where there is none."""
        self._holds.pop(what, None)

    def add_check(self, what: str, trouble: Callable[[], str | None]) -> None:
        """Ask ``trouble`` whenever readiness is; while it returns a reason, that holds every endpoint back."""
        self._checks[what] = trouble

    @property
    def is_starting(self) -> bool:
        return STARTING in self._holds

    @property
    def is_ready(self) -> bool:
        if self.is_starting:
            return self._starts_ready
        return bool(self._endpoints) and not self.reasons()

    def reasons(self) -> dict[str, str]:
        """Return why the worker is not ready: by full endpoint name, or by the name of what holds all of them."""
        found = {str(health.endpoint_id): health.reason for health in self if health.reason is not None}
        return {**self._held_back(), **found}

    def to_json(self) -> dict[str, Any]:
        """Return the object that the body holds."""
        uptime = self._clock() - self._started
        return {
            "status": READY if self.is_ready else NOT_READY,
            "uptime": {"secs": int(uptime), "nanos": int(uptime % 1 * 1e9)},
            "endpoints": {} if self.is_starting else self._by_name(),
        }

    def body(self) -> bytes:
        """Return the body as a released worker lays it out."""
        return json.dumps(self.to_json(), separators=(",", ":")).encode()

    def _held_back(self) -> dict[str, str]:
        troubles = ((what, trouble()) for what, trouble in self._checks.items())
        return {**self._holds, **{what: reason for what, reason in troubles if reason is not None}}

    def _by_name(self) -> dict[str, str]:
        # Bare endpoint names, as released workers write them: of two that are alike the worse one shows.
        states: dict[str, str] = {}
        is_held_back = bool(self._held_back())
        for health in self:
            name = health.endpoint_id.endpoint
            if is_held_back or not health.is_ready:
                states[name] = NOT_READY
            else:
                states.setdefault(name, READY)
        return states
