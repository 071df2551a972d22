"""What ``ingress bench`` found, as a screen and as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from ._histogram import LogHistogram, Span, Summary
from ._load import Bounds, Measured, Spacing
from ._machine import machine_line

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = "ingress.bench/1"

ROWS = 12
_BAR = 40

# Above this share of a core the generator has no time left, and measures itself.
BUSY = 0.9

_COLUMNS = ("min", "mean", "p50", "p90", "p99", "p99.9", "max")


@frozen
class Report:
    """A load and what came of it."""

    endpoint: str
    instances: int
    codecs: tuple[str, ...]
    rate: float | None
    """None in a closed loop."""

    spacing: Spacing
    seed: int
    concurrency: int
    bounds: Bounds
    timeout: float
    machine: dict[str, Any]
    measured: Measured
    most_open: int
    open_limit: int
    generator_share: float
    """CPU time of this process in each second."""

    is_interrupted: bool = False

    @property
    def seconds(self) -> float:
        return self.measured.ended - self.measured.began

    @property
    def is_open_loop(self) -> bool:
        return self.rate is not None

    def per_second(self, count: float) -> float:
        return count / self.seconds if self.seconds > 0 else 0.0

    @property
    def histograms(self) -> dict[str, LogHistogram]:
        """What is measured in seconds, by its name on the screen."""
        measured = self.measured
        by_name = {"first chunk": measured.first, "between chunks": measured.between, "whole answer": measured.whole}
        return by_name | ({"late send": measured.late} if self.is_open_loop else {})


# -- for programs ------------------------------------------------------------------------------------------------------


def bench_document(report: Report) -> dict[str, Any]:
    """Return the figures in seconds and bytes."""
    measured, bounds = report.measured, report.bounds
    load: dict[str, Any] = {"loop": "open" if report.is_open_loop else "closed"}
    if report.is_open_loop:
        load |= {"rate": report.rate, "arrivals": report.spacing}
        load |= {"seed": report.seed} if report.spacing == "poisson" else {}
    else:
        load |= {"concurrency": report.concurrency}
    load |= {"requests": bounds.requests, "duration": bounds.seconds, "warmup": bounds.warm_up}
    return {
        "schema": SCHEMA,
        "endpoint": report.endpoint,
        "instances": report.instances,
        "codecs": list(report.codecs),
        "load": load | {"timeout": report.timeout},
        "machine": report.machine,
        "interrupted": report.is_interrupted,
        "seconds": round(report.seconds, 6),
        "requests": {
            "sent": measured.sent,
            "answered": measured.answered,
            "failed": measured.failed,
            "unfinished": measured.unfinished,
        },
        "failures": [
            {"kind": kind, "count": count, "example": measured.examples.get(kind, "")}
            for kind, count in measured.failures.most_common()
        ],
        "chunks": measured.chunks,
        "bytes": measured.bytes,
        "requests_per_second": round(report.per_second(measured.answered), 3),
        "chunks_per_second": round(report.per_second(measured.chunks), 3),
        "bytes_per_second": round(report.per_second(measured.bytes), 3),
        "latencies_from": "due time" if report.is_open_loop else "send",
        "latencies": {name.replace(" ", "_"): _latency(each.summary()) for name, each in report.histograms.items()},
        "generator": {
            "cpu_share": round(report.generator_share, 4),
            "most_open": report.most_open,
            "open_limit": report.open_limit,
        },
    }


def _latency(summary: Summary) -> dict[str, float]:
    names = ("min", "mean", "p50", "p90", "p99", "p99_9", "max")
    return {"count": summary.count} | {name: round(getattr(summary, name), 9) for name in names}


# -- for eyes ----------------------------------------------------------------------------------------------------------


def print_report(report: Report, console: Console) -> None:
    """Write the figures, the histogram, and what a reader must know to read them."""
    from rich.text import Text

    measured = report.measured

    def line(text: str = "", style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    line(f"{report.endpoint} · {_plural(report.instances, 'instance')} · {' and '.join(report.codecs)}", "bold")
    line(load_line(report))
    line(machine_line(report.machine), "dim")
    line()
    unfinished = f", {measured.unfinished:,} unfinished" if measured.unfinished else ""
    told = f"{measured.answered:,} answered, {measured.failed:,} failed{unfinished} in {report.seconds:.1f} s"
    rows = (
        ("requests", told, f"{report.per_second(measured.answered):,.1f} /s"),
        ("chunks", f"{measured.chunks:,}", f"{report.per_second(measured.chunks):,.0f} /s"),
        ("bytes", size_text(measured.bytes), f"{size_text(report.per_second(measured.bytes))}/s"),
    )
    width = max(len(each[1]) for each in rows)
    for label, total, rate in rows:
        line(f"  {label:14}{total:{width}}  {rate}")
    line()
    line("  " + " " * 14 + "".join(f"{column:>9}" for column in _COLUMNS), "dim")
    for name, histogram in report.histograms.items():
        line(f"  {name:14}" + "".join(f"{cell:>9}" for cell in _cells(histogram.summary())))
    if spans := measured.whole.spans(ROWS):
        line()
        line(f"  whole answer, {'from the due time' if report.is_open_loop else 'service time'}", "dim")
        for drawn in histogram_lines(spans):
            line(drawn)
    for kind, count in measured.failures.most_common():
        line(f"  failed {count:,}: {kind}: {measured.examples.get(kind, '')}", "red")
    line()
    for remark in remarks(report):
        line(remark)


def load_line(report: Report) -> str:
    """Say what the load was, in a line."""
    bounds = report.bounds
    end = f"{bounds.requests:,} requests" if bounds.requests is not None else f"{bounds.seconds:g} s"
    if report.rate is not None:
        drawn = f", poisson arrivals of seed {report.seed}" if report.spacing == "poisson" else ""
        kind = f"open loop: {report.rate:g} requests/s{drawn}"
    else:
        kind = f"closed loop: {_plural(report.concurrency, 'caller')}"
    return f"{kind}, {end}" + (f" after {bounds.warm_up:g} s of warm-up" if bounds.warm_up else "")


def remarks(report: Report) -> list[str]:
    """Return what must be known to read the figures, the gravest first."""
    said = []
    if report.is_interrupted:
        said.append("Interrupted: the figures so far; what was unfinished is not among the latencies.")
    if report.generator_share > BUSY:
        said.append(
            f"The generator was busy for {report.generator_share:.0%} of the time: the figures may be its own limit."
        )
    if report.is_open_loop and report.most_open >= report.open_limit:
        said.append(f"{report.open_limit:,} requests were open, as many as can be: later ones waited, and that counts.")
    if report.is_open_loop:
        said.append("Latencies count from the time a request was due, however late it was sent.")
    else:
        said.append(
            "Latencies are service times: a caller that waits sends nothing. --rate shows what a rate would see."
        )
    return said


def histogram_lines(spans: list[Span]) -> list[str]:
    """Draw a line a span; the longest bar has the most."""
    most = max(span.count for span in spans)
    lines = []
    for span in spans:
        eighths = round(span.count / most * _BAR * 8)
        bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
        if span.count and not bar:
            bar = "▏"
        lines.append(f"  {time_text(span.low):>9} – {time_text(span.high):<9} {bar} {span.count or ''}".rstrip())
    return lines


def time_text(seconds: float) -> str:
    """Return three digits and a unit."""
    if not seconds:
        return "0"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        value = seconds * factor
        if value >= 1 or unit == "µs":
            break
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {unit}"


def size_text(size: float) -> str:
    """Return bytes with a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:,.0f} B"


def _cells(summary: Summary) -> list[str]:
    if not summary.count:
        return ["–"] * len(_COLUMNS)
    names = ("min", "mean", "p50", "p90", "p99", "p99_9", "max")
    return [time_text(getattr(summary, name)) for name in names]


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
