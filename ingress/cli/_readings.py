"""One look at workers through the text of a ``/metrics``: one of ours, several processes behind one page, or a released
one as far as its page goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from attrs import define, field, frozen
from prometheus_client.parser import text_string_to_metric_families

from .._text import printable

# What is read of the page; whatever else stands on it is skipped before it is parsed.
_FAMILIES = (
    "dynamo_component_requests_total",
    "dynamo_component_inflight_requests",
    "dynamo_component_request_duration_seconds_bucket",
    "dynamo_component_cancellation_total",
    "dynamo_component_errors_total",
    "dynamo_component_uptime_seconds",
    "dynamo_work_handler_time_to_first_response_seconds_bucket",
    "dynamo_work_handler_queue_depth",
    "dynamo_work_handler_queue_capacity",
    "dynamo_work_handler_pool_active_tasks",
    "dynamo_work_handler_pool_capacity",
    "dynamo_rejection_request_total",
    "ingress_chunks_total",
    "ingress_slow_readers",
    "ingress_loop_lag_seconds_bucket",
    "ingress_loop_stalls_total",
    "ingress_drain_phase",
    "ingress_build_info",
    "ingress_process_up",
)

# A page may name as many endpoints as it likes; a screen shows no more.
MAX_ENDPOINTS = 256
_MAX_NAME = 80


@frozen
class Distribution:
    """A histogram: how many observations were at most each bound."""

    cumulative: Mapping[float, float] = field(factory=dict)

    @property
    def count(self) -> float:
        return self.cumulative.get(math.inf, 0.0)

    def since(self, earlier: Distribution) -> Distribution:
        """Return what was observed after ``earlier`` was read."""
        return Distribution({bound: n - earlier.cumulative.get(bound, 0.0) for bound, n in self.cumulative.items()})

    def quantile(self, share: float) -> float | None:
        """Estimate a quantile as Prometheus' ``histogram_quantile`` does, None without observations.

        Observations count as evenly spread within their bucket; beyond the last finite bound it answers that bound.
        """
        if self.count <= 0:
            return None
        rank = share * self.count
        bounds = [(0.0, 0.0), *sorted(self.cumulative.items())]
        for (lower, below), (upper, upto) in pairwise(bounds):
            if upto >= rank and upto > below:
                return lower if math.isinf(upper) else lower + (upper - lower) * (rank - below) / (upto - below)
        return bounds[-1][0]


@define
class EndpointReading:
    """One endpoint at one moment; counts are since the worker's start."""

    name: str
    streams: float = 0
    requests: float = 0
    chunks: float | None = None
    """None where the worker does not count them."""

    cancelled: float = 0
    errors: float = 0
    duration: Distribution = Distribution()


@define
class Reading:
    """One worker, or the processes behind one page, at one moment of the reader's clock."""

    at: float
    instance: str = ""
    """Of several processes all of them: another process is another reading's worker."""

    processes: tuple[int, int] | None = None
    """How many of how many processes serve; None where the page is one worker's."""

    uptime: float | None = None
    """Of several processes the longest."""

    phase: str | None = None
    """Of several processes those that there are."""

    version: str = ""
    progress: str | None = None
    """What ``/progress`` says: ``ok``, ``idle`` or ``stalled``."""

    running: float | None = None
    running_limit: float | None = None
    queued: float | None = None
    queue_limit: float | None = None
    rejected: float = 0
    slow_readers: float | None = None
    first_response: Distribution = Distribution()
    loop_lag: Distribution | None = None
    loop_stalls: float | None = None
    endpoints: dict[str, EndpointReading] = field(factory=dict)


def read_metrics(text: str, at: float) -> Reading:
    """Read a page of metrics.

    Raises:
        ValueError: it is none of a worker; the text says why.
    """
    wanted = [line for line in text.splitlines() if line.startswith(_FAMILIES)]
    reading = Reading(at)
    try:
        page = _Page(reading)
        for family in text_string_to_metric_families("\n".join(wanted) + "\n"):
            page.take((sample.name, sample.labels, sample.value) for sample in family.samples)
        page.finish()
    except (ValueError, KeyError, IndexError) as exc:
        raise ValueError(f"its metrics cannot be read: {printable(exc)}") from exc
    if reading.uptime is None and not reading.endpoints and reading.processes is None:
        raise ValueError("its metrics are not those of a worker")
    return reading


class _Page:
    """Puts samples where they belong in a reading."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._instances: set[str] = set()
        self._phases: list[str] = []
        self._up: list[float] = []

    def take(self, samples: Iterable[tuple[str, Mapping[str, str], float]]) -> None:
        for name, labels, value in samples:
            if "dynamo_endpoint" in labels:
                self._take_of_endpoint(name, labels, value)
            else:
                self._take_of_worker(name, labels, value)

    def finish(self) -> None:
        reading = self._reading
        reading.instance = "+".join(sorted(self._instances))
        reading.phase = "+".join(dict.fromkeys(self._phases)) or None
        if self._up:
            reading.processes = (int(sum(self._up)), len(self._up))
            reading.phase = reading.phase or "down"

    def _take_of_endpoint(self, name: str, labels: Mapping[str, str], value: float) -> None:
        parts = [labels.get(f"dynamo_{part}", "") for part in ("namespace", "component", "endpoint")]
        if not all(parts):  # pushes that reached none
            return
        title = printable(".".join(parts), _MAX_NAME)
        endpoints = self._reading.endpoints
        if title not in endpoints and len(endpoints) >= MAX_ENDPOINTS:
            return
        endpoint = endpoints.setdefault(title, EndpointReading(title))
        self._note_instance(labels)
        # Added up, because a page may hold several series of one endpoint: errors by type, instances, own labels.
        match name:
            case "dynamo_component_requests_total":
                endpoint.requests += value
            case "dynamo_component_inflight_requests":
                endpoint.streams += value
            case "dynamo_component_cancellation_total":
                endpoint.cancelled += value
            case "dynamo_component_errors_total":
                endpoint.errors += value
            case "dynamo_component_request_duration_seconds_bucket":
                endpoint.duration = _with_bucket(endpoint.duration, labels, value)
            case "ingress_chunks_total":
                endpoint.chunks = (endpoint.chunks or 0) + value
            case "ingress_slow_readers":
                self._reading.slow_readers = (self._reading.slow_readers or 0) + value

    def _take_of_worker(self, name: str, labels: Mapping[str, str], value: float) -> None:
        reading = self._reading
        # Added up here too: each process has gauges of its own.
        match name:
            case "dynamo_component_uptime_seconds":
                reading.uptime = max(reading.uptime or 0.0, value)
                self._note_instance(labels)
            case "dynamo_work_handler_pool_active_tasks":
                reading.running = (reading.running or 0) + value
            case "dynamo_work_handler_pool_capacity":
                reading.running_limit = (reading.running_limit or 0) + value
            case "dynamo_work_handler_queue_depth":
                reading.queued = (reading.queued or 0) + value
            case "dynamo_work_handler_queue_capacity":
                reading.queue_limit = (reading.queue_limit or 0) + value
            case "dynamo_rejection_request_total":
                reading.rejected += value
            case "dynamo_work_handler_time_to_first_response_seconds_bucket":
                reading.first_response = _with_bucket(reading.first_response, labels, value)
            case "ingress_loop_lag_seconds_bucket":
                reading.loop_lag = _with_bucket(reading.loop_lag or Distribution(), labels, value)
            case "ingress_loop_stalls_total":
                reading.loop_stalls = (reading.loop_stalls or 0) + value
            case "ingress_drain_phase" if value == 1 and len(self._phases) < MAX_ENDPOINTS:
                self._phases.append(printable(labels.get("phase", ""), 20))
            case "ingress_process_up" if len(self._up) < MAX_ENDPOINTS:
                self._up.append(float(value == 1))
            case "ingress_build_info":
                reading.version = printable(labels.get("version", ""), 20)

    def _note_instance(self, labels: Mapping[str, str]) -> None:
        if (instance := printable(labels.get("worker_id", ""), 32)) and len(self._instances) < MAX_ENDPOINTS:
            self._instances.add(instance)


def _with_bucket(known: Distribution, labels: Mapping[str, str], value: float) -> Distribution:
    bound = float(labels["le"])
    return Distribution({**known.cumulative, bound: known.cumulative.get(bound, 0.0) + value})
