"""What ``ingress top`` shows: a table for eyes, one for scripts, and a document for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ._readings import EndpointReading, Reading
from ._scrape import DEFAULT_STATUS_HOST
from ._watched import WINDOW, Quantiles, WatchedWorker

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "ingress.top/1"

NOTHING = "-"


Cell = Callable[[WatchedWorker, Reading | None, EndpointReading | None], str]


@frozen
class Column:
    """One column: what it is called, how a cell is made, and what a narrow terminal does without first."""

    heading: str
    cell: Cell
    is_text: bool = False
    of_worker: bool = False
    """The same in every row of a worker."""

    dispensable: int = 0
    """The highest goes first; 0 stays."""


COLUMNS = (
    Column("worker", lambda worker, reading, endpoint: str(worker.address), is_text=True, of_worker=True),
    Column("instance", lambda worker, reading, endpoint: _instance(reading), True, True, dispensable=5),
    Column("phase", lambda worker, reading, endpoint: worker.state, is_text=True, of_worker=True),
    Column("endpoint", lambda worker, reading, endpoint: endpoint.name if endpoint else NOTHING, is_text=True),
    Column("streams", lambda worker, reading, endpoint: count(endpoint, "streams")),
    Column("req/s", lambda worker, reading, endpoint: rate(worker, endpoint, "requests"), dispensable=2),
    Column("chunks/s", lambda worker, reading, endpoint: rate(worker, endpoint, "chunks")),
    Column("p50", lambda worker, reading, endpoint: of_request(worker, endpoint, "p50")),
    Column("p99", lambda worker, reading, endpoint: of_request(worker, endpoint, "p99")),
    Column("cancels", lambda worker, reading, endpoint: count(endpoint, "cancelled")),
    Column("errors", lambda worker, reading, endpoint: count(endpoint, "errors"), dispensable=3),
    Column(
        "first50", lambda worker, reading, endpoint: seconds(worker.first_quantiles().p50), False, True, dispensable=4
    ),
    Column(
        "first99", lambda worker, reading, endpoint: seconds(worker.first_quantiles().p99), False, True, dispensable=1
    ),
    Column("queue", lambda worker, reading, endpoint: count(reading, "queued"), of_worker=True),
    Column("lag99", lambda worker, reading, endpoint: seconds(worker.lag_quantiles().p99), of_worker=True),
)

LEGEND = (
    "p50, p99: whole requests · first: until the head of an answer was sent · lag: how late the event loop is\n"
    f"quantiles: of the last {WINDOW:g} s, or since the start where nothing ended in them · cancels: since the start"
)

_GAP = 2
_WORKER, _ENDPOINT = 0, 3
_LEAST_NAME = 9


# -- cells ------------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """``12``, ``41900``, ``1.2e+07``: never wider than eight characters."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.0f}" if abs(value) < 1e7 else f"{value:.2g}"


def count(reading: Reading | EndpointReading | None, name: str) -> str:
    return NOTHING if reading is None else number(getattr(reading, name))


def seconds(value: float | None) -> str:
    """``850µs``, ``12ms``, ``1.2s``, ``95s``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if value * factor < 999.5:
            return f"{value * factor:.{1 if value * factor < 9.95 and unit == 'ms' else 0}f}{unit}"
    return f"{value:.{1 if value < 9.95 else 0}f}s"


def _instance(reading: Reading | None) -> str:
    if reading is None:
        return NOTHING
    if reading.processes is not None:
        up, count = reading.processes
        return f"{up}/{count} up" if up < count else f"{count} processes"
    return reading.instance or NOTHING


def rate(worker: WatchedWorker, endpoint: EndpointReading | None, what: str) -> str:
    value = None if endpoint is None else worker.rate(endpoint.name, what)
    return f"{value:.1f}" if value is not None and 0 < value < 9.95 else number(value)


def of_request(worker: WatchedWorker, endpoint: EndpointReading | None, which: str) -> str:
    return NOTHING if endpoint is None else seconds(getattr(worker.request_quantiles(endpoint.name), which))


# -- for eyes ---------------------------------------------------------------------------------------------------------


def live_table(workers: Sequence[WatchedWorker], width: int, height: int = 1000) -> RenderableType:
    """Return the screen: a table that fits the width, what is wrong with which worker, and what the columns mean."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = list(_rows(workers))
    problems = [f"{worker.address}: {worker.problem}" for worker in workers if worker.problem]
    room = max(1, height - len(problems) - 8)
    grid = [
        [column.cell(*row[:3]) if row[3] or not column.of_worker else "" for column in COLUMNS] for row in rows[:room]
    ]
    for cells in grid:
        cells[_WORKER] = cells[_WORKER].removeprefix(DEFAULT_STATUS_HOST)
    shown = columns_that_fit(grid, width)
    _cut_endpoints(grid, shown, width)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for position in shown:
        column = COLUMNS[position]
        table.add_column(column.heading, justify="left" if column.is_text else "right", no_wrap=True)
    for (worker, *_), cells in zip(rows[:room], grid, strict=True):
        styled = [
            Text(cells[position], style=_style(worker) if COLUMNS[position].heading == "phase" else "")
            for position in shown
        ]
        table.add_row(*styled, style="" if worker.is_there else "dim")
    notes = [Text(f"{len(rows) - room} more rows do not fit", style="dim")] if len(rows) > room else []
    notes += [Text(text, style="red") for text in problems]
    return Group(_title(workers), Text(), table, *notes, Text(), Text(LEGEND, style="dim"))


def columns_that_fit(grid: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the positions of the columns that are shown: the dispensable ones go until the rest fits."""
    shown = list(range(len(COLUMNS)))
    while _excess(grid, shown, width) > 0:
        least = max(shown, key=lambda position: COLUMNS[position].dispensable)
        if not COLUMNS[least].dispensable:
            break
        shown.remove(least)
    return shown


def _excess(grid: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> int:
    widths = [max(map(len, cells)) for cells in zip([column.heading for column in COLUMNS], *grid, strict=True)]
    return sum(widths[position] + _GAP for position in shown) - _GAP - width


def _cut_endpoints(grid: Sequence[list[str]], shown: Sequence[int], width: int) -> None:
    """Cut names at their beginning, where they are alike."""
    longest = max((len(cells[_ENDPOINT]) for cells in grid), default=0)
    room = max(longest - max(0, _excess(grid, shown, width)), _LEAST_NAME)
    for cells in grid:
        if len(cells[_ENDPOINT]) > room:
            cells[_ENDPOINT] = "…" + cells[_ENDPOINT][1 - room :]


def _title(workers: Sequence[WatchedWorker]) -> RenderableType:
    from rich.text import Text

    there = [worker.latest for worker in workers if worker.is_there and worker.latest is not None]
    streams = sum(endpoint.streams for reading in there for endpoint in reading.endpoints.values())
    counted = f"{len(there)} of {len(workers)} worker{'' if len(workers) == 1 else 's'}"
    return Text.assemble(("ingress top", "bold cyan"), f" · {counted} · {number(streams)} streams")


def _style(worker: WatchedWorker) -> str:
    return {"serving": "green", "up": "green", "gone": "red", "stalled": "red", "…": "dim"}.get(worker.state, "yellow")


def _rows(
    workers: Iterable[WatchedWorker],
) -> Iterator[tuple[WatchedWorker, Reading | None, EndpointReading | None, bool]]:
    """One row an endpoint, one for a worker of which none is known; the last says whether it is the worker's first."""
    for worker in workers:
        latest = worker.latest
        endpoints = list(latest.endpoints.values()) if latest is not None else []
        for position, endpoint in enumerate(endpoints or [None]):
            yield worker, latest, endpoint, position == 0


# -- for scripts ------------------------------------------------------------------------------------------------------


def plain_rows(workers: Sequence[WatchedWorker]) -> list[list[str]]:
    """Return a row an endpoint, every cell filled and without spaces, so that ``awk`` counts what it sees."""
    return [
        [column.cell(worker, reading, endpoint).replace(" ", "_") for column in COLUMNS]
        for worker, reading, endpoint, _ in _rows(workers)
    ]


def as_document(workers: Sequence[WatchedWorker]) -> dict[str, Any]:
    """Return what ``--json`` prints; seconds and counts since the workers' starts, rates of the last interval."""
    return {"schema": SCHEMA, "workers": [_worker_document(worker) for worker in workers]}


def _worker_document(worker: WatchedWorker) -> dict[str, Any]:
    reading = worker.latest
    head = {"address": str(worker.address), "problem": worker.problem, "state": worker.state}
    if reading is None:
        return {**head, "endpoints": []}
    return {
        **head,
        "instance": reading.instance,
        "processes": None if reading.processes is None else dict(zip(("up", "of"), reading.processes, strict=True)),
        "version": reading.version,
        "phase": reading.phase,
        "progress": reading.progress,
        "uptime_seconds": reading.uptime,
        "running": reading.running,
        "running_limit": reading.running_limit,
        "queued": reading.queued,
        "queue_limit": reading.queue_limit,
        "rejected": reading.rejected,
        "slow_readers": reading.slow_readers,
        "first_response_seconds": _quantile_document(worker.first_quantiles()),
        "loop_lag_seconds": _quantile_document(worker.lag_quantiles()),
        "loop_stalls": reading.loop_stalls,
        "endpoints": [_endpoint_document(worker, endpoint) for endpoint in reading.endpoints.values()],
    }


def _endpoint_document(worker: WatchedWorker, endpoint: EndpointReading) -> dict[str, Any]:
    return {
        "endpoint": endpoint.name,
        "streams": endpoint.streams,
        "requests": endpoint.requests,
        "requests_per_second": worker.rate(endpoint.name, "requests"),
        "chunks": endpoint.chunks,
        "chunks_per_second": worker.rate(endpoint.name, "chunks"),
        "request_seconds": _quantile_document(worker.request_quantiles(endpoint.name)),
        "cancelled": endpoint.cancelled,
        "errors": endpoint.errors,
    }


def _quantile_document(found: Quantiles) -> dict[str, float | None]:
    return {"p50": found.p50, "p99": found.p99}
