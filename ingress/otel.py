"""Real spans: one for each request, exported by OTLP. Needs the extra: ``pip install 'ingress-dispatch[otel]'``.

The OpenTelemetry SDK does the work, in a thread of its own behind a bounded queue, and reads its standard variables:
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER``,
``OTEL_BSP_*`` and so on. Spans have the name and the attributes that those of released workers have; what those lack
begins with ``ingress.``.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ._text import printable
from ._tracing import RequestEnd, RequestStart
from ._version import __version__
from .errors import StartupError
from .wire.records import EndpointId
from .wire.trace_context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.context import Context as OtelContext
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.trace import Tracer as SdkTracer

logger = logging.getLogger("ingress.traces")

SPAN_NAME = "handle_payload"

# As released workers call themselves where OTEL_SERVICE_NAME does not.
DEFAULT_SERVICE_NAME = "dynamo"

# What the end of a process gives the collector to take the last spans.
CLOSE_TIMEOUT = 2.0

_SUPPORTED_PROTOCOL = "http/protobuf"


class OtelTracer:
    """Begins and ends the spans of a worker; shared by its endpoints, for the thread of its event loop.

    Give it to a worker as ``tracer=``, and close it when the worker has ended, best by ``with`` around
    :func:`ingress.run`.

    Args:
        provider: one that the program has set up, and shuts down, itself. By default one is made that exports to where
            the variables say.

    Raises:
        StartupError: the extra is not installed, or the variables ask for what it cannot do.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        try:
            import opentelemetry.sdk.trace  # noqa: F401 - asks whether it is there
        except ImportError as exc:
            raise _missing(exc) from exc
        self._is_own = provider is None
        self._provider = _make_provider(os.environ) if provider is None else provider
        self._tracer = self._provider.get_tracer("ingress", __version__)

    def __enter__(self) -> OtelTracer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def endpoint(self, endpoint_id: EndpointId, instance_id: int) -> OtelEndpointTracer:
        """Return what traces one endpoint's requests."""
        attributes = {
            "namespace": endpoint_id.namespace,
            "component": endpoint_id.component,
            "endpoint": endpoint_id.endpoint,
            "instance_id": f"{instance_id:x}",
        }
        return OtelEndpointTracer(self._tracer, attributes)

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Export what is queued, for ``timeout`` seconds at most, and stop; blocks. False where time was up."""
        shut_down = getattr(self._provider, "shutdown", None)
        if not self._is_own or shut_down is None:
            return True
        # In a thread, because the SDK itself waits 30 s for a collector that does not answer.
        closing = threading.Thread(target=shut_down, name="ingress traces shutdown", daemon=True)
        closing.start()
        closing.join(timeout)
        if closing.is_alive():
            logger.warning("traces: the last spans were not exported within %g s", timeout)
        return not closing.is_alive()


class OtelEndpointTracer:
    """Begins the spans of one endpoint."""

    def __init__(self, tracer: SdkTracer, attributes: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._attributes = attributes

    def start_request(self, start: RequestStart) -> OtelRequestSpan:
        """Begin a span under the caller's, and make it the current one: the engine's own spans belong under it."""
        from opentelemetry import trace

        attributes: dict[str, str | int] = {
            **self._attributes,
            "request_id": printable(start.request_id),
            "ingress.codec": start.codec,
            "ingress.request_bytes": start.size,
        }
        if start.caller_request_id is not None:
            attributes["x_request_id"] = printable(start.caller_request_id)
        span = self._tracer.start_span(
            SPAN_NAME, context=_context_of(start.parent), kind=trace.SpanKind.SERVER, attributes=attributes
        )
        return OtelRequestSpan(span)


class OtelRequestSpan:
    """One request's span; for the request's own task."""

    def __init__(self, span: Span) -> None:
        from opentelemetry import context, trace

        self._span = span
        self._token: contextvars.Token[OtelContext] | None = context.attach(trace.set_span_in_context(span))
        found = span.get_span_context()
        self.trace = TraceContext(
            f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags), found.trace_state.to_header()
        )

    def end(self, how: RequestEnd) -> None:
        """Write down how the request ended, and hand the span over for export; a second call does nothing."""
        from opentelemetry import context
        from opentelemetry.trace import Status, StatusCode

        if self._token is None:
            return
        context.detach(self._token)
        self._token = None
        span = self._span
        span.set_attributes(
            {
                "ingress.outcome": how.outcome,
                "ingress.reason": how.reason,
                "ingress.chunks": how.chunks,
                "ingress.response_bytes": how.size,
            }
        )
        # When it began, which only spans of the SDK know, and only those that are sampled.
        started = getattr(span, "start_time", None)
        if how.first_chunk_after is not None and started is not None:
            span.add_event("first chunk", timestamp=started + int(how.first_chunk_after * 1e9))
        # A caller that wants no more is no error; a worker that leaves its caller is one.
        if how.outcome == "failed" or how.reason == "shutdown":
            span.set_attribute("error.type", how.reason)
            span.set_status(Status(StatusCode.ERROR, how.reason))
        span.end()


def _context_of(parent: TraceContext | None) -> OtelContext:
    """Return a context that holds the caller's span and nothing else."""
    from opentelemetry import trace
    from opentelemetry.context import Context

    if parent is None:
        return Context()
    remote = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(parent.flags),
        trace_state=trace.TraceState.from_header([parent.tracestate]),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), Context())


def _make_provider(environ: Mapping[str, str]) -> TracerProvider:
    """Make a provider that exports over HTTP to where the variables say."""
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip().lower() != _SUPPORTED_PROTOCOL:
        raise StartupError(
            f"cannot export traces: OTEL_EXPORTER_OTLP_PROTOCOL asks for {printable(protocol, 40)}, and only "
            f"{_SUPPORTED_PROTOCOL} is spoken here → OTEL_EXPORTER_OTLP_TRACES_PROTOCOL={_SUPPORTED_PROTOCOL}, and the "
            "endpoint that takes it, often port 4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise _missing(exc) from exc
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: DEFAULT_SERVICE_NAME}))
    try:
        # Not at exit: its own shutdown waits too long, close() is ours.
        provider = SdkProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as exc:
        raise StartupError(f"cannot export traces as the OTEL variables say: {exc}") from exc
    return provider


def _missing(exc: ImportError) -> StartupError:
    return StartupError(
        f"cannot export traces: the otel extra is not installed ({exc}) → pip install 'ingress-dispatch[otel]'"
    )
