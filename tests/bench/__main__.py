"""Our worker and its peers under the same load, side by side: `python -m tests.bench`.

Each row runs against one worker after the other, several rounds in turn; a cell is the median of the rounds. CPU is the
worker process's own, as the kernel counts it. `--quick` takes about a minute, `--rows` and `--peers` choose. Where
INGRESS_WRITE_DOCS is set, the table of docs/benchmarks.md is written anew; `--from bench.json` measures nothing and
tells what an earlier run measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ingress.cli._machine import machine_facts, machine_line

from . import page
from .files import allow_many_files
from .report import markdown_table, markdown_targets, markdown_verdicts, read_medians, table, verdicts
from .rows import DYNAMO, FLOOR, GROWTH, GRPC, OURS, ROWS, SSE, Figures, Row, measure, measure_growth
from .workers import RunningWorker, is_available, open_worker

WORKERS = {"ours": OURS, "floor": FLOOR, "dynamo": DYNAMO, "grpc": GRPC, "sse": SSE}

SCHEMA = "ingress-bench-peers/1"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller loads, one round")
    keys = ", ".join(row.key for row in ROWS)
    parser.add_argument("--rows", nargs="+", choices=[row.key for row in ROWS], metavar="ROW", help=keys)
    parser.add_argument("--peers", nargs="+", choices=list(WORKERS), metavar="WORKER", help=", ".join(WORKERS))
    parser.add_argument("--repeats", type=int, help="rounds (default: 3, quick: 1)")
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), help="where the figures go (default: %(default)s)"
    )
    parser.add_argument("--targets", action="store_true", help="write the targets into docs/benchmarks.md, and no more")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="tell what an earlier run measured")
    return parser.parse_args()


class Bench:
    """The rounds of every row, and what came of them."""

    def __init__(self, rows: list[Row], names: list[str], repeats: int, *, is_quick: bool) -> None:
        self.rounds: dict[Row, dict[str, list[Figures]]] = {
            row: {name: [] for name in names if name != FLOOR or row.has_floor} for row in rows
        }
        self._repeats = repeats
        self._is_quick = is_quick

    @property
    def medians(self) -> dict[Row, dict[str, Figures]]:
        return {
            row: {
                name: {figure: statistics.median(each[figure] for each in rounds) for figure in row.figures}
                for name, rounds in by_name.items()
                if rounds
            }
            for row, by_name in self.rounds.items()
        }

    async def run(self, progress: Progress) -> None:
        turns = sum(len(names) * (self._repeats + (GROWTH not in row.figures)) for row, names in self.rounds.items())
        task = progress.add_task("starting", total=turns)
        async with AsyncExitStack() as stack:
            names = {name for row, by_name in self.rounds.items() if GROWTH not in row.figures for name in by_name}
            workers = {name: await stack.enter_async_context(open_worker(name)) for name in names}
            for row, by_name in self.rounds.items():
                # The first round is a warm-up, not counted; for the memory row every round is a process of its own.
                for number in range(GROWTH in row.figures, self._repeats + 1):
                    for name, rounds in by_name.items():
                        progress.update(task, description=f"{row.name} · {name}")
                        figures = await self._measure(row, name, workers)
                        if number:
                            rounds.append(figures)
                        progress.advance(task)

    async def _measure(self, row: Row, name: str, workers: dict[str, RunningWorker]) -> Figures:
        if GROWTH in row.figures:
            return await measure_growth(row, name)
        return await measure(row, workers[name], is_quick=self._is_quick)


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the rows that are asked for, and return the document of what came of them."""
    allow_many_files()
    wanted = [WORKERS[key] for key in arguments.peers or WORKERS]
    names = [name for name in wanted if is_available(name)]
    for name in wanted:
        if name not in names:
            print(
                f"{name} is not installed and left out: python tests/interop/peers/install.py 1.6.1 bench",
                file=sys.stderr,
            )
    rows = [row for row in ROWS if arguments.rows is None or row.key in arguments.rows]
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    bench, facts = Bench(rows, names, repeats, is_quick=arguments.quick), machine_facts()
    columns = (TextColumn("{task.description:54}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        trio.run(bench.run, progress)
    return {
        "schema": SCHEMA,
        "machine": facts,
        "quick": arguments.quick,
        "rounds": {row.key: by_name for row, by_name in bench.rounds.items()},
        "medians": {row.key: by_name for row, by_name in bench.medians.items()},
        "targets": [
            {"row": each.row, "target": each.what, "reached": each.reached, "wanted": each.wanted, "met": each.is_met}
            for each in verdicts(bench.medians)
        ],
    }


def show(document: dict[str, Any]) -> None:
    """Print the table, and write it into the page where that is asked for."""
    medians, line = read_medians(document, ROWS), machine_line(document["machine"])
    names = [name for name in WORKERS.values() if any(name in measured for measured in medians.values())]
    judged = verdicts(medians)
    screen = Console(width=None if sys.stdout.isatty() else 160)
    screen.print(line, soft_wrap=True, highlight=False)
    screen.print(table(medians, names))
    for verdict in judged:
        screen.print(str(verdict), soft_wrap=True, highlight=False, style="" if verdict.is_met else "bold red")
    if page.is_to_be_written():
        page.write("targets", markdown_targets(ROWS))
        page.write("peers", f"{line}\n\n{markdown_table(medians, names)}\n{markdown_verdicts(judged)}")


def main() -> int:
    arguments = parse_arguments()
    if arguments.targets:
        page.write("targets", markdown_targets(ROWS))
        return 0
    if arguments.source is not None:
        show(json.loads(arguments.source.read_text(encoding="utf-8")))
        return 0
    document = measure_all(arguments)
    arguments.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(document)
    return 0


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the benchmark reads /proc; it needs Linux")
    sys.exit(main())
