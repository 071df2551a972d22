"""The seam between a worker and a tracing system: what a tracer is told of a request, and what it gives back.

The worker knows no SDK. :mod:`ingress.otel` is the tracer that exports real spans; without one a request's trace is
just read from its headers.
"""

from __future__ import annotations

import logging
from typing import Protocol

from attrs import frozen

from .wire.records import EndpointId
from .wire.trace_context import TraceContext

logger = logging.getLogger("ingress.traces")


@frozen
class RequestStart:
    """What is known of a request when its span begins."""

    request_id: str
    codec: str
    size: int
    """Bytes of the payload."""

    parent: TraceContext | None
    """Where the caller says that the request belongs."""

    caller_request_id: str | None
    """``x-request-id``, where the caller passed one on."""


@frozen
class RequestEnd:
    """How a request ended."""

    outcome: str
    """One of :data:`ingress.metrics.OUTCOMES`, ``reason`` one of its reasons."""

    reason: str
    chunks: int = 0
    size: int = 0
    """Bytes of the response's data frames."""

    first_chunk_after: float | None = None
    """Seconds from the beginning to the first chunk; None where there was none."""


class RequestSpan(Protocol):
    """One request's span; for the request's own task."""

    @property
    def trace(self) -> TraceContext:
        """The place in the trace that log lines and onward calls name."""

    def end(self, how: RequestEnd) -> None:
        """End the span; called once. Never waits and never raises."""


class EndpointTracer(Protocol):
    """Begins the spans of one endpoint."""

    def start_request(self, start: RequestStart) -> RequestSpan:
        """Begin a request's span and make it the current one of the calling task. Never waits and never raises."""


class Tracer(Protocol):
    """A tracing system, as :class:`ingress.WorkerOptions` takes one."""

    def endpoint(self, endpoint_id: EndpointId, instance_id: int) -> EndpointTracer:
        """Return what traces the requests of one endpoint."""


def start_span(tracer: EndpointTracer, start: RequestStart) -> RequestSpan | None:
    """Begin a span; a tracer that fails costs the span and not the request."""
    try:
        return tracer.start_request(start)
    except Exception:
        logger.exception("tracer failed at the beginning of a request")
        return None


def end_span(span: RequestSpan | None, how: RequestEnd) -> None:
    """End a span, if there is one; as forgiving as :func:`start_span`."""
    if span is None:
        return
    try:
        span.end(how)
    except Exception:
        logger.exception("tracer failed at the end of a request")
