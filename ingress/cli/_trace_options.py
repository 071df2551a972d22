"""The options of ``ingress serve`` about traces; the rest is the OpenTelemetry SDK's, by its own variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from attrs import frozen
from cyclopts import Group, Parameter

from .._logging import is_true

if TYPE_CHECKING:
    from .._tracing import Tracer

TRACES = Group("Traces", sort_key=5)


@Parameter(name="*")
@frozen
class TraceFlags:
    """Whether spans are exported."""

    export_traces: Annotated[
        bool,
        Parameter(
            env_var="OTEL_EXPORT_ENABLED",
            group=TRACES,
            negative=(),
            help="Export a span of each request by OTLP, as the OTEL_ variables say; needs the otel extra.",
        ),
    ] = False

    @contextmanager
    def tracer(self) -> Iterator[Tracer | None]:
        """Yield the tracer, None where nothing is to be exported; leaving exports what is queued, bounded.

        Raises:
            StartupError: the extra is not installed, or the variables ask for what it cannot do.
        """
        is_off = is_true(os.environ.get("OTEL_SDK_DISABLED", "")) or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
        if not self.export_traces or is_off:
            yield None
            return
        from ..otel import OtelTracer

        with OtelTracer() as tracer:
            yield tracer


DEFAULT_TRACES = TraceFlags()
