"""The metrics of a worker: Dynamo's families under their own names, registered once, children resolved once.

Names, help texts, labels and buckets are those of a released 1.6.1 worker (docs/wire.md §9); what it does not have is
ours and begins with ``ingress_``. Labels come from configuration and from fixed words only, never from a message, so
the number of series is fixed at start.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram

from ._bucket_counts import BucketCounts
from ._collectors import AdmissionGauges, DiscoveryCounts, HandlerCollector, OwnCollector, WorkerCollector
from ._tallies import Tallies
from .wire.records import EndpointId

ERROR_TYPES = (
    "deserialization",
    "invalid_message",
    "response_stream",
    "generate",
    "publish_response",
    "publish_final",
)

DURATION_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
TRANSIT_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
FIRST_RESPONSE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PERMIT_WAIT_BUCKETS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)

LOOP_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# How a request can end, and why. Every request has exactly one of these pairs, every pair its series from the start.
OUTCOMES: Mapping[str, tuple[str, ...]] = {
    "completed": ("ok",),
    "failed": (*ERROR_TYPES, "internal"),
    "cancelled": ("stop", "kill", "disconnect", "protocol", "shutdown"),
    "refused": (
        "overloaded",
        "queue_deadline",
        "policy",
        "token",
        "deserialization",
        "invalid_message",
        "response_stream",
    ),
}

# Refused before an endpoint could be told: these have empty endpoint labels.
UNROUTED_REASONS = ("unknown_endpoint", "draining")

# Peers' clocks differ from ours; what lies outside of an hour is a broken clock and not a measurement.
MAX_TRANSIT_SECONDS = 3600.0

# Of gauges where several processes share a status page.
PROCESS_LABEL = "process"

_ENDPOINT_LABELS = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint", "worker_id")


class WorkerMetrics:
    """The families of one worker in one registry.

    Args:
        registry: where to register; a private one when None, so metrics are never absent.
        extra_labels: names of the constant labels that endpoints add; an endpoint without one has it empty.
    """

    def __init__(
        self,
        instance_id: int,
        *,
        registry: CollectorRegistry | None = None,
        extra_labels: Sequence[str] = (),
        admission: AdmissionGauges | None = None,
        tallies: Tallies | None = None,
    ) -> None:
        self.tallies = Tallies() if tallies is None else tallies
        self.registry = CollectorRegistry() if registry is None else registry
        self.worker_id = f"{instance_id:x}"
        self._extra_labels = tuple(extra_labels)
        labels = (*_ENDPOINT_LABELS, *self._extra_labels)
        self.errors = self._counter(
            "dynamo_component_errors_total",
            "Total number of errors in work handler processing",
            (*_ENDPOINT_LABELS, "error_type", *self._extra_labels),
        )
        self.network_transit = BucketCounts(TRANSIT_BUCKETS)
        self.first_response = BucketCounts(FIRST_RESPONSE_BUCKETS)
        self.permit_wait = BucketCounts(PERMIT_WAIT_BUCKETS)
        self.enqueue_rejected = self._counter(
            "dynamo_work_handler_enqueue_rejected_total",
            "Times enqueuing work failed because the dispatcher channel was closed",
        )
        self.registry.register(WorkerCollector(self.worker_id, admission))
        # -- ours --
        self.endpoints: list[WorkHandlerMetrics] = []
        self.phases: Sequence[str] = ()
        """The phases of a worker's life in their order; none are shown while there are none."""
        self.phase: Callable[[], str] = str
        self.log_lines_dropped: Callable[[], int] = int
        self.certificate_expiries: Callable[[], Mapping[str, float]] = dict
        """Looked up at each scrape; by default 0."""
        self.build_info: Mapping[str, str] = {}
        self.discovery: DiscoveryCounts | None = None
        self.unrouted = dict.fromkeys(UNROUTED_REASONS, 0)
        self.loop_lag = Histogram(
            "ingress_loop_lag_seconds",
            "How late the event loop ran what was due, sampled",
            buckets=LOOP_LAG_BUCKETS,
            registry=self.registry,
        )
        self.loop_stalls = self._counter(
            "ingress_loop_stalls_total", "Times the event loop was blocked for longer than the watchdog allows"
        )
        self.registry.register(HandlerCollector(self, labels))
        self.registry.register(OwnCollector(self, labels))

    def endpoint(self, endpoint_id: EndpointId, extra: Mapping[str, str] | None = None) -> WorkHandlerMetrics:
        """Return the metrics of one endpoint, its series created."""
        made = WorkHandlerMetrics(self, endpoint_id, extra or {}, self._extra_labels)
        self.endpoints.append(made)
        return made

    def count_unrouted(self, reason: str) -> None:
        """Count a push that reached no endpoint; ``reason`` is one of :data:`UNROUTED_REASONS`."""
        self.unrouted[reason] += 1

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class WorkHandlerMetrics:
    """What one endpoint counts; shared by all its requests, which count on the event loop's thread.

    Plain numbers that :class:`~ingress._collectors.HandlerCollector` reads at each scrape: a call of prometheus_client
    costs 0.4 to 0.8 µs, and a request made sixteen.
    """

    def __init__(
        self, worker: WorkerMetrics, endpoint_id: EndpointId, extra: Mapping[str, str], extra_labels: Sequence[str]
    ) -> None:
        names = (endpoint_id.namespace, endpoint_id.component, endpoint_id.endpoint, worker.worker_id)
        tail = tuple(extra.get(label, "") for label in extra_labels)
        labels = (*names, *tail)
        self._errors, self._names, self._tail = worker.errors, names, tail
        self._tallies = worker.tallies
        self._network_transit = worker.network_transit
        self._first_response = worker.first_response
        self._permit_wait = worker.permit_wait
        self.label_values = labels
        self.requests = 0
        self.request_bytes = 0
        self.response_bytes = 0
        self.cancellations = 0
        self.duration = BucketCounts(DURATION_BUCKETS)
        self.outcomes = {(outcome, reason): 0 for outcome, reasons in OUTCOMES.items() for reason in reasons}
        self.running = 0
        self.busy_since = 0.0
        """When the first of the running requests began; valid while there are any."""
        self.last_chunk_at: float | None = None
        self.chunks = 0
        self.flushed_bytes = 0
        self.flushes_by_power = [0] * 65
        """``[k]`` counts the flushes of more than ``2**(k-1)`` and at most ``2**k`` bytes."""
        self.slow_readers = 0
        self.slow_reader_seconds = 0.0

    def request_in_flight(self, payload_bytes: int) -> RequestGuard:
        """Count a request on entry, and its end on every way out: ``with metrics.request_in_flight(n):``."""
        return RequestGuard(self, payload_bytes)

    def count_error(self, error_type: str) -> None:
        """Count one failure; ``error_type`` is one of :data:`ERROR_TYPES`."""
        if error_type not in ERROR_TYPES:
            raise ValueError(f"error type {error_type!r} is none of {', '.join(ERROR_TYPES)}")
        # As in the real worker, an error series appears with its first error.
        self._errors.labels(*self._names, error_type, *self._tail).inc()

    def count_cancellation(self) -> None:
        self.cancellations += 1

    def add_response_bytes(self, count: int) -> None:
        self.response_bytes += count

    def observe_permit_wait(self, seconds: float) -> None:
        self._permit_wait.observe(seconds)

    def observe_first_response(self, seconds: float) -> None:
        self._first_response.observe(seconds)

    def observe_network_transit(self, sent_ts_ns: int) -> None:
        """Observe the time since the caller's wall-clock stamp; the only use of the wall clock here."""
        seconds = (time.time_ns() - sent_ts_ns) / 1e9
        self._network_transit.observe(min(max(seconds, 0.0), MAX_TRANSIT_SECONDS))

    # -- ours ----------------------------------------------------------------------------------------------------------

    def count_outcome(self, outcome: str, reason: str) -> None:
        """Count how one request ended, once for each; the pair is one of :data:`OUTCOMES`."""
        if (outcome, reason) not in self.outcomes:
            raise ValueError(f"{outcome!r} for {reason!r} is no outcome of a request")
        self.outcomes[outcome, reason] += 1

    def record_flush(self, size: int) -> None:
        """Count one flush, by the bytes that the kernel took; some 0.3 µs."""
        self.flushes_by_power[(size - 1).bit_length()] += 1
        self.flushed_bytes += size

    def record_chunks(self, count: int, now: float) -> None:
        """Count chunks that were sent together at ``now`` of the loop's clock, once a flush."""
        self.chunks += count
        self.last_chunk_at = now

    def slow_reader(self) -> SlowReaderTimer:
        """Time a wait for a caller to take what it was sent: ``with metrics.slow_reader():``."""
        return SlowReaderTimer(self)

    def record_stall(self) -> None:
        """Count a caller that was given up because it took next to nothing for too long."""
        self._tallies.slow_peer_closed["response"] += 1


@functools.cache
def reserved_labels() -> frozenset[str]:
    """Return the names that no label of an endpoint may have: those that the families it would stand on have already.

    Read from a page that has such a label, so that they are those of whatever families there are. Beside them there is
    the one that tells the processes of one status page apart.
    """
    probe = "probe"
    worker = WorkerMetrics(0, extra_labels=[probe])
    worker.endpoint(EndpointId(probe, probe, probe)).count_error(ERROR_TYPES[0])
    samples = [sample for family in worker.registry.collect() for sample in family.samples]
    names = {name for sample in samples if probe in sample.labels for name in sample.labels}
    return frozenset(names - {probe} | {PROCESS_LABEL})


def cancelled_by(ending: str, kill_reason: str = "") -> str:
    """Return the ``cancelled`` reason for a context's ending and the text it was killed with."""
    if ending == "stopped":
        return "stop"
    if ending == "shut down" or kill_reason == "the worker was cancelled":
        return "shutdown"
    if kill_reason == "kill from the caller":
        return "kill"
    return "protocol" if kill_reason.startswith("protocol error") else "disconnect"


class SlowReaderTimer:
    """One wait for one slow caller."""

    __slots__ = ("_metrics", "_started")

    def __init__(self, metrics: WorkHandlerMetrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        self._started = trio.current_time()
        self._metrics.slow_readers += 1

    def __exit__(self, *exc_info: object) -> None:
        self._metrics.slow_readers -= 1
        self._metrics.slow_reader_seconds += trio.current_time() - self._started


class RequestGuard:
    """One request's passage; the gauge goes up and down with it on every path."""

    __slots__ = ("_metrics", "_seconds", "started")

    def __init__(self, metrics: WorkHandlerMetrics, payload_bytes: int) -> None:
        self._metrics = metrics
        self._seconds: float | None = None
        self.started = trio.current_time()
        metrics.requests += 1
        metrics.request_bytes += payload_bytes
        if metrics.running == 0:
            metrics.busy_since = self.started
        metrics.running += 1

    def __enter__(self) -> RequestGuard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._metrics.running -= 1
        self._metrics.duration.observe(self.end())

    def end(self) -> float:
        """Return the seconds that the request took; who asks first has it end there."""
        if self._seconds is None:
            self._seconds = trio.current_time() - self.started
        return self._seconds
