"""A worker that is watched: its readings of the last minute, and the rates and quantiles that follow from them."""

from __future__ import annotations

from collections import deque
from typing import Any

import trio
from attrs import define, field, frozen

from ._readings import Distribution, EndpointReading, Reading, read_metrics
from ._scrape import ScrapeError, StatusAddress, fetch

# What quantiles of the live screen are of. Short enough to see a change, long enough for a worker of few requests.
WINDOW = 60.0

# Of a rate: long enough that chunks which leave in bursts do not make it flicker.
RATE_WINDOW = 3.0

# Readings kept, whatever the interval is.
_MAX_READINGS = 600

_PROGRESS = ("ok", "idle", "stalled")


@frozen
class Quantiles:
    """The median and the 99th percentile in seconds; None where nothing was observed."""

    p50: float | None
    p99: float | None
    is_recent: bool = False
    """Of the window, and not of the worker's whole life."""


@define
class WatchedWorker:
    """What is known of the worker behind one address; for one polling task and whoever shows it."""

    address: StatusAddress
    readings: deque[Reading] = field(factory=lambda: deque(maxlen=_MAX_READINGS))
    problem: str | None = None
    """Why the last poll failed; None where it did not."""

    was_polled: trio.Event = field(factory=trio.Event)
    is_lifelong: bool = False
    """Take quantiles over the worker's whole life and not over the window."""

    async def poll(self) -> None:
        """Read the worker once; raises nothing, and takes no longer than a poll may (:mod:`ingress.cli._scrape`)."""
        try:
            reading = await read_worker(self.address)
        except ScrapeError as exc:
            self.problem = str(exc)
        else:
            self.problem = None
            self.add(reading)
        self.was_polled.set()

    def add(self, reading: Reading) -> None:
        """Take a reading in; those of a former worker at the same address are forgotten."""
        last = self.latest
        is_another = last is not None and (
            last.instance != reading.instance or (reading.uptime or 0.0) < (last.uptime or 0.0)
        )
        if is_another:
            self.readings.clear()
        self.readings.append(reading)
        while self.readings[0].at < reading.at - WINDOW and len(self.readings) > 2:
            self.readings.popleft()

    @property
    def latest(self) -> Reading | None:
        return self.readings[-1] if self.readings else None

    @property
    def is_there(self) -> bool:
        return self.problem is None and self.latest is not None

    @property
    def state(self) -> str:
        """``gone``, ``stalled``, or the phase of its life, as far as it tells one."""
        if not self.is_there or self.latest is None:
            return "gone" if self.was_polled.is_set() else "…"
        if self.latest.progress == "stalled":
            return "stalled"
        return self.latest.phase or "up"

    # -- what follows from two readings --------------------------------------------------------------------------------

    def rate(self, endpoint: str, count: str) -> float | None:
        """Return how much a count of an endpoint grew a second, over the last few seconds."""
        if (latest := self.latest) is None or len(self.readings) < 2:
            return None
        earlier = next(
            reading for reading in reversed(self.readings) if reading is not latest and self._is_old(reading)
        )
        now, before = latest.endpoints.get(endpoint), earlier.endpoints.get(endpoint)
        if now is None or before is None or latest.at <= earlier.at:
            return None
        value, former = getattr(now, count), getattr(before, count)
        return None if value is None or former is None else max(0.0, value - former) / (latest.at - earlier.at)

    def _is_old(self, reading: Reading) -> bool:
        return reading is self.readings[0] or reading.at <= self.readings[-1].at - RATE_WINDOW

    def request_quantiles(self, endpoint: str) -> Quantiles:
        """Of whole requests, from entry to end."""
        latest = self.latest
        if latest is None or endpoint not in latest.endpoints:
            return Quantiles(None, None)
        earlier = self.readings[0].endpoints.get(endpoint, EndpointReading(endpoint))
        return self._quantiles(latest.endpoints[endpoint].duration, earlier.duration)

    def first_quantiles(self) -> Quantiles:
        """Of the time until an answer's head was sent, all endpoints together."""
        if (latest := self.latest) is None:
            return Quantiles(None, None)
        return self._quantiles(latest.first_response, self.readings[0].first_response)

    def lag_quantiles(self) -> Quantiles:
        """Of the event loop's lateness."""
        latest = self.latest
        if latest is None or latest.loop_lag is None:
            return Quantiles(None, None)
        return self._quantiles(latest.loop_lag, self.readings[0].loop_lag or Distribution())

    def _quantiles(self, now: Distribution, before: Distribution) -> Quantiles:
        recent = now.since(before)
        is_recent = not self.is_lifelong and len(self.readings) > 1 and recent.count > 0
        taken = recent if is_recent else now
        return Quantiles(taken.quantile(0.5), taken.quantile(0.99), is_recent)


async def read_worker(address: StatusAddress) -> Reading:
    """Read ``/metrics`` and ``/progress`` once.

    Raises:
        ScrapeError: there is no worker, or it does not answer in time.
    """
    code, body = await fetch(address, "/metrics")
    if code != 200:
        raise ScrapeError(f"expected metrics, got HTTP {code}")
    try:
        reading = read_metrics(body.decode(errors="replace"), trio.current_time())
    except ValueError as exc:
        raise ScrapeError(str(exc)) from exc
    reading.progress = await _read_progress(address)
    return reading


async def _read_progress(address: StatusAddress) -> str | None:
    """Return the status word; None of a worker that has no such page, as released ones have none."""
    import msgspec

    try:
        _, body = await fetch(address, "/progress")
        document: Any = msgspec.json.decode(body)
    except (ScrapeError, msgspec.MsgspecError, RecursionError):
        return None
    status = document.get("status") if isinstance(document, dict) else None
    return status if status in _PROGRESS else None
