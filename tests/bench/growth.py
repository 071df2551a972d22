"""How the worker's costs grow with streams, bytes and endpoints: `python -m tests.bench.growth`.

CPU is the worker process's own, as the kernel counts it. Chunks are counted in a window of time in which all streams
flow, so that neither their opening nor their end is in the figure. Each point is the median of three rounds. Where
INGRESS_WRITE_DOCS is set, the plots and the tables of docs/benchmarks.md are written anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ingress.cli._machine import machine_facts, machine_line
from ingress.wire.codec import codec_named
from ingress.wire.two_part import PREFIX

from . import load as loads
from . import page
from .curves import Curve, cost_text, markdown_of, verdict, x_text
from .files import allow_many_files
from .growing import item_of
from .workers import RunningWorker, open_worker

SCHEMA = "ingress-bench-growth/1"

STREAMS = (1, 8, 32, 128, 512, 2000)
SIZES = (16, 256, 4096, 65536, 1 << 18, 1 << 20)
ENDPOINTS = (1, 3, 10, 30, 100)

PLOTS = ("growth-streams", "growth-sizes", "growth-endpoints")

# Of an ordinary chunk, and of the streams that carry chunks of growing size.
USUAL_SIZE = 60
USUAL_STREAMS = 8

ROUNDS = 3
WINDOW = 1.5
SETTLE = 0.3
OPEN_TIMEOUT = 60.0


async def measure_flow(worker: RunningWorker, streams: int, size: int) -> float:
    """Return the CPU seconds a chunk while so many streams flow."""
    waiting, all_open, received = set(range(streams)), trio.Event(), 0

    def seen_of(number: int) -> Callable[[bytes], None]:
        def seen(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if number in waiting:
                waiting.discard(number)
                if not waiting:
                    all_open.set()

        return seen

    async with worker.open_caller() as caller:
        async with trio.open_nursery() as nursery:
            for number in range(streams):
                nursery.start_soon(caller.call, {"mode": "flow", "size": size}, seen_of(number))
            with trio.fail_after(OPEN_TIMEOUT):
                await all_open.wait()
            await caller.call({"mode": "open the gate"}, lambda data: None)
            await trio.sleep(SETTLE)
            cpu, bytes_before = worker.cpu_seconds(), received
            await trio.sleep(WINDOW)
            cpu, chunks = worker.cpu_seconds() - cpu, (received - bytes_before) / frame_size(size)
            nursery.cancel_scope.cancel()
        await trio.sleep(SETTLE)  # the worker sees its callers leave
    return cpu / chunks


def frame_size(size: int) -> int:
    return PREFIX.size + len(codec_named("json").encode_item(item_of(size)))


async def measure_requests(worker: RunningWorker, requests: int) -> float:
    """Return the CPU seconds a one-chunk request, 32 at once, each to the next endpoint."""
    load = loads.Load({"mode": "one", "n": 1}, 32, requests)
    before = worker.cpu_seconds()
    await loads.run(load, worker.open_caller)
    return (worker.cpu_seconds() - before) / requests


class Growth:
    """The rounds, and the curves that come of them."""

    def __init__(self, *, is_quick: bool) -> None:
        self._rounds = 1 if is_quick else ROUNDS
        self._requests = 300 if is_quick else 1000
        self.streams: dict[int, list[float]] = {count: [] for count in STREAMS}
        self.sizes: dict[int, list[float]] = {size: [] for size in SIZES}
        self.endpoints: dict[int, list[float]] = {count: [] for count in ENDPOINTS}

    async def run(self, progress: Progress) -> None:
        points = len(STREAMS) + len(SIZES) + len(ENDPOINTS)
        task = progress.add_task("starting", total=points * self._rounds)

        def begin(what: str) -> None:
            progress.update(task, description=what)

        async with open_worker("growing") as worker:
            await measure_requests(worker, 64)  # a warm-up
            for _ in range(self._rounds):
                for count, costs in self.streams.items():
                    begin(f"{count:,} streams")
                    costs.append(await measure_flow(worker, count, USUAL_SIZE))
                    progress.advance(task)
                for size, costs in self.sizes.items():
                    begin(f"chunks of {x_text(size)}B")
                    costs.append(await measure_flow(worker, USUAL_STREAMS, size))
                    progress.advance(task)
        for count, costs in self.endpoints.items():
            begin(f"{count} endpoints")
            async with open_worker("growing", endpoints=count) as worker:
                await measure_requests(worker, max(64, count))
                for _ in range(self._rounds):
                    costs.append(await measure_requests(worker, self._requests))
                    progress.advance(task)

    @property
    def curves(self) -> dict[str, list[Curve]]:
        """Return the curves by the plot that shows them."""
        by_size = [statistics.median(costs) for costs in self.sizes.values()]
        streams = _curve("streams", "more streams at once", "streams", "µs of CPU a chunk", self.streams)
        chunk = Curve(
            *("chunk", "larger chunks", "bytes a chunk", "µs of CPU a chunk"),
            *(SIZES, tuple(cost * 1e6 for cost in by_size)),
            is_judged=False,
        )
        byte = Curve(
            *("byte", "the same, a byte", "bytes a chunk", "ns of CPU a byte"),
            *(SIZES, tuple(cost / size * 1e9 for cost, size in zip(by_size, SIZES, strict=True))),
        )
        endpoints = _curve(
            "endpoints", "more endpoints in a process", "endpoints", "µs of CPU a request", self.endpoints
        )
        return dict(zip(PLOTS, ([streams], [chunk, byte], [endpoints]), strict=True))


def _curve(key: str, title: str, x_name: str, y_name: str, rounds: dict[int, list[float]]) -> Curve:
    costs = tuple(statistics.median(costs) * 1e6 for costs in rounds.values())
    return Curve(key, title, x_name, y_name, tuple(rounds), costs)


def table(curve: Curve) -> Table:
    drawn = Table(title=curve.title, title_justify="left")
    drawn.add_column(curve.x_name, no_wrap=True)
    for x in curve.xs:
        drawn.add_column(x_text(x), justify="right", no_wrap=True)
    drawn.add_row(curve.y_name, *(cost_text(cost) for cost in curve.costs))
    return drawn


def write_page(growth: Growth, line: str) -> None:
    from .plots import draw

    plots = growth.curves
    for name, curves in plots.items():
        draw(curves, page.IMAGES / f"{name}.svg")
    everything = [curve for curves in plots.values() for curve in curves]
    images = [f"![{curves[0].title}](images/{name}.svg)\n" for name, curves in plots.items()]
    verdicts = [f"{text[:1].upper()}{text[1:]}." for text in verdict(everything)]
    page.write("growth", "\n".join([f"{line}\n", *images, markdown_of(everything).rstrip("\n"), "", *verdicts]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, default=Path("bench-growth.json"), help="where the figures go")
    arguments = parser.parse_args()
    allow_many_files()
    facts, growth = machine_facts(), Growth(is_quick=arguments.quick)
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        trio.run(growth.run, progress)
    curves = [curve for group in growth.curves.values() for curve in group]
    screen = Console(width=None if sys.stdout.isatty() else 120)
    screen.print(machine_line(facts), soft_wrap=True, highlight=False)
    for curve in curves:
        screen.print(table(curve))
    for text in verdict(curves):
        screen.print(text, soft_wrap=True, highlight=False)
    document = {"schema": SCHEMA, "machine": facts, "curves": [curve.to_json() for curve in curves]}
    arguments.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if page.is_to_be_written():
        write_page(growth, machine_line(facts))
    return 0


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the benchmark reads /proc; it needs Linux")
    sys.exit(main())
