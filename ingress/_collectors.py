"""Metrics that are looked up at each scrape instead of being kept up to date; see :mod:`ingress.metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ._tallies import RECORD_SKIPS

if TYPE_CHECKING:
    from .metrics import WorkerMetrics, WorkHandlerMetrics

# Powers of two, as the flushes are counted.
FLUSH_BYTES_BUCKETS = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


class AdmissionGauges(Protocol):
    """What the metrics read of the worker's admission at each scrape."""

    engine_request_limit: int
    request_queue_limit: int
    running: int
    rejected: int

    @property
    def queued(self) -> int: ...


class DiscoveryCounts(Protocol):
    """What the metrics read of the worker's discovery at each scrape."""

    @property
    def missed_renewals(self) -> int: ...

    @property
    def rewritten_records(self) -> int: ...

    @property
    def skipped_records(self) -> Mapping[str, int]: ...


class WorkerCollector:
    """Values that are looked up at each scrape instead of being kept up to date."""

    def __init__(self, worker_id: str, admission: AdmissionGauges | None) -> None:
        self._worker_id = worker_id
        self._admission = admission
        self._started = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        uptime = GaugeMetricFamily(
            "dynamo_component_uptime_seconds",
            "Total uptime of the DistributedRuntime in seconds",
            labels=["worker_id"],
        )
        uptime.add_metric([self._worker_id], time.monotonic() - self._started)
        yield uptime
        if (admission := self._admission) is None:
            return
        yield GaugeMetricFamily(
            "dynamo_engine_request",
            "Current number of requests being handled by the engine (--engine-request-limit)",
            admission.running,
        )
        yield GaugeMetricFamily(
            "dynamo_request_queue",
            "Current number of requests queued in Dynamo not yet in the engine (--dynamo-request-queue-limit)",
            admission.queued,
        )
        yield CounterMetricFamily(
            "dynamo_rejection_request_total",
            "Requests rejected because the worker is at capacity (engine in-flight limit and Dynamo queue both full)",
            admission.rejected,
        )
        prefix = "dynamo_work_handler_"
        yield GaugeMetricFamily(
            prefix + "pool_active_tasks",
            "Current number of active worker-pool tasks (permits in use)",
            admission.running,
        )
        yield GaugeMetricFamily(
            prefix + "pool_capacity",
            "Configured worker-pool capacity (total permits)",
            admission.engine_request_limit,
        )
        yield GaugeMetricFamily(
            prefix + "queue_depth",
            "Current items in the bounded work queue awaiting dispatcher pickup",
            admission.queued,
        )
        yield GaugeMetricFamily(
            prefix + "queue_capacity",
            "Configured capacity of the bounded work queue",
            admission.request_queue_limit,
        )


class HandlerCollector:
    """Dynamo's families of its work handler, and how requests ended."""

    def __init__(self, worker: WorkerMetrics, labels: Sequence[str]) -> None:
        self._worker = worker
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        labels, endpoints = self._labels, self._worker.endpoints
        prefix = "dynamo_component_"
        counters: tuple[tuple[str, str, Callable[[WorkHandlerMetrics], int]], ...] = (
            ("requests_total", "Total number of requests processed by work handler", lambda each: each.requests),
            (
                "request_bytes_total",
                "Total number of bytes received in requests by work handler",
                lambda each: each.request_bytes,
            ),
            (
                "response_bytes_total",
                "Total number of bytes sent in responses by work handler",
                lambda each: each.response_bytes,
            ),
            (
                "cancellation_total",
                "Total number of requests cancelled by work handler",
                lambda each: each.cancellations,
            ),
        )
        for name, text, read in counters:
            counter = CounterMetricFamily(prefix + name, text, labels=labels)
            for endpoint in endpoints:
                counter.add_metric(endpoint.label_values, read(endpoint))
            yield counter
        gauge = GaugeMetricFamily(
            prefix + "inflight_requests",
            "Number of requests currently being processed by work handler",
            labels=labels,
        )
        duration = HistogramMetricFamily(
            prefix + "request_duration_seconds", "Time spent processing requests by work handler", labels=labels
        )
        outcomes = CounterMetricFamily(
            "ingress_outcome_total",
            "Requests by how and why they ended, each counted once",
            labels=[*labels, "outcome", "reason"],
        )
        for reason, count in self._worker.unrouted.items():
            outcomes.add_metric([*[""] * len(labels), "refused", reason], count)
        for endpoint in endpoints:
            gauge.add_metric(endpoint.label_values, endpoint.running)
            duration.add_metric(endpoint.label_values, endpoint.duration.cumulative(), endpoint.duration.total)
            for ending, count in endpoint.outcomes.items():
                outcomes.add_metric([*endpoint.label_values, *ending], count)
        yield from (gauge, duration, outcomes)
        yield from self._of_all_endpoints()

    def _of_all_endpoints(self) -> Iterator[Metric]:
        prefix = "dynamo_work_handler_"
        for name, text, counts in (
            (
                "network_transit_seconds",
                "Frontend-to-backend network transit time (cross-process wall-clock, seconds)",
                self._worker.network_transit,
            ),
            (
                "time_to_first_response_seconds",
                "Backend processing time from handle_payload entry to prologue sent (seconds)",
                self._worker.first_response,
            ),
            (
                "permit_wait_seconds",
                "Time spent waiting for a worker-pool permit (seconds)",
                self._worker.permit_wait,
            ),
        ):
            yield HistogramMetricFamily(prefix + name, text, buckets=counts.cumulative(), sum_value=counts.total)


class OwnCollector:
    """Our own families, as far as they are looked up at each scrape."""

    def __init__(self, worker: WorkerMetrics, labels: Sequence[str]) -> None:
        self._worker = worker
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        worker = self._worker
        chunks = CounterMetricFamily("ingress_chunks_total", "Chunks sent to callers", labels=self._labels)
        flushes = HistogramMetricFamily(
            "ingress_flush_bytes", "Bytes handed to the kernel at a time", labels=self._labels
        )
        seconds = CounterMetricFamily(
            "ingress_slow_reader_seconds_total",
            "Time that streams waited for callers to take what they were sent",
            labels=self._labels,
        )
        slow = GaugeMetricFamily(
            "ingress_slow_readers", "Streams that wait for their caller to take what it was sent", labels=self._labels
        )
        for endpoint in worker.endpoints:
            chunks.add_metric(endpoint.label_values, endpoint.chunks)
            flushes.add_metric(endpoint.label_values, _flush_buckets(endpoint), endpoint.flushed_bytes)
            seconds.add_metric(endpoint.label_values, endpoint.slow_reader_seconds)
            slow.add_metric(endpoint.label_values, endpoint.slow_readers)
        yield from (chunks, flushes, seconds, slow)
        if worker.phases:
            phase = GaugeMetricFamily("ingress_drain_phase", "1 for the phase the worker is in", labels=["phase"])
            current = worker.phase()
            for name in worker.phases:
                phase.add_metric([name], float(name == current))
            yield phase
        if worker.build_info:
            info = GaugeMetricFamily("ingress_build_info", "What this worker is", labels=list(worker.build_info))
            info.add_metric(list(worker.build_info.values()), 1)
            yield info
        yield GaugeMetricFamily(
            "ingress_connections_open", "Request connections that are open", worker.tallies.connections_open
        )
        for name, (text, label, counts) in worker.tallies.by_reason().items():
            family = CounterMetricFamily(name, text, labels=[label])
            for reason, count in counts.items():
                family.add_metric([reason], count)
            yield family
        expiries = GaugeMetricFamily(
            "ingress_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate in use expires, by what it is for; none without TLS",
            labels=["certificate"],
        )
        for name, expires_at in worker.certificate_expiries().items():
            expiries.add_metric([name], expires_at)
        yield expiries
        yield from _discovery_families(worker.discovery)
        yield CounterMetricFamily(
            "ingress_log_lines_dropped_total",
            "Log lines dropped because nothing took them",
            worker.log_lines_dropped(),
        )


def _discovery_families(discovery: DiscoveryCounts | None) -> Iterator[Metric]:
    found = discovery.skipped_records if discovery is not None else {}
    skipped = CounterMetricFamily(
        "ingress_records_skipped_total", "Discovery records of others that were not taken", labels=["reason"]
    )
    for reason in RECORD_SKIPS:
        skipped.add_metric([reason], found.get(reason, 0))
    yield skipped
    yield CounterMetricFamily(
        "ingress_records_rewritten_total",
        "Discovery records of this worker that others removed or altered, written again",
        discovery.rewritten_records if discovery is not None else 0,
    )
    yield GaugeMetricFamily(
        "ingress_missed_renewals",
        "Renewals of this worker's discovery records that failed in a row",
        discovery.missed_renewals if discovery is not None else 0,
    )


def _flush_buckets(endpoint: WorkHandlerMetrics) -> list[tuple[str, float]]:
    counts = endpoint.flushes_by_power
    bounds = [(str(bound), sum(counts[: bound.bit_length()])) for bound in FLUSH_BYTES_BUCKETS]
    return [*bounds, ("+Inf", sum(counts))]
