"""The text of ``/metrics``: as a released worker prints it, one family at a time.

prometheus_client's own printing differs from a released worker's where it hurts: ``le="1.0"`` for ``le="1"``, which
Prometheus 2 takes for two series, and a ``_created`` series for every counter and histogram. It also takes 6 ms for a
worker of three endpoints, which is long for an event loop. So counters, gauges and histograms are printed here, in both
formats alike, and whatever else a shared registry holds is left to the library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.samples import Sample

TEXT_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_EOF = b"# EOF\n"

_PLAIN_TYPES = frozenset(("counter", "gauge", "histogram"))
_PLAIN_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def exposition(registry: CollectorRegistry, *, openmetrics: bool = False) -> bytes:
    """Return the whole page."""
    return b"".join(iter_exposition(registry, openmetrics=openmetrics))


def iter_exposition(registry: CollectorRegistry, *, openmetrics: bool = False) -> Iterator[bytes]:
    """Yield the page in pieces of well under a millisecond, so that others may run in between."""
    return iter_families(registry.collect(), openmetrics=openmetrics)


def iter_families(families: Iterable[Metric], *, openmetrics: bool = False) -> Iterator[bytes]:
    """Yield a page of these families, a family at a time."""
    for metric in families:
        samples = [sample for sample in metric.samples if sample.name != f"{metric.name}_created"]
        if _is_plain(metric, samples):
            yield _print_plain(metric, samples, openmetrics).encode()
        else:
            yield _print_by_library(metric, samples, openmetrics)
    if openmetrics:
        yield _EOF


def wants_openmetrics(accept: str) -> bool:
    """Tell whether an Accept header names OpenMetrics, and names it before plain text."""
    wishes = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        media_type, *parameters = (token.strip() for token in part.split(";"))
        if media_type in wishes:
            wishes[media_type] = max(wishes[media_type], _quality(parameters))
    return 0.0 < wishes["application/openmetrics-text"] >= wishes["text/plain"]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _is_plain(metric: Metric, samples: list[Sample]) -> bool:
    """Tell whether names, labels and values are all there is to the family."""
    return (
        metric.type in _PLAIN_TYPES
        and _PLAIN_NAME.fullmatch(metric.name) is not None
        and not metric.unit
        # A sample's further fields, of which newer versions of the library have more: timestamp, exemplar, …
        and not any(field is not None for sample in samples for field in sample[3:])
        and all(_PLAIN_NAME.fullmatch(label) for sample in samples[:1] for label in sample.labels)
    )


def _print_plain(metric: Metric, samples: list[Sample], openmetrics: bool) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" and not openmetrics else metric.name
    text = metric.documentation.translate(_ESCAPES if openmetrics else _HELP_ESCAPES)
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {metric.type}"]
    lines += [f"{sample.name}{_labels(sample.labels)} {_number(sample.value)}" for sample in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    """``{…}`` in a released worker's order: by name, ``le`` at the end."""
    if not labels:
        return ""
    pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(labels.items()) if name != "le"]
    if (bound := labels.get("le")) is not None:
        pairs.append(f'le="{bound.removesuffix(".0")}"')
    return "{" + ",".join(pairs) + "}"


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _print_by_library(metric: Metric, samples: list[Sample], openmetrics: bool) -> bytes:
    only = _OneFamily(metric, samples)
    if openmetrics:
        return bytes(generate_openmetrics(only)).removesuffix(_EOF)  # type: ignore[no-untyped-call]  # the library's
    return generate_latest(only)


class _OneFamily(CollectorRegistry):
    """A registry that holds one family that has been collected already."""

    def __init__(self, metric: Metric, samples: list[Sample]) -> None:
        super().__init__()
        self._family = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        self._family.samples = samples

    def collect(self) -> Iterator[Metric]:
        yield self._family
