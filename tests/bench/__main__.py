"""Our worker and its peers under the same load, side by side: `python -m tests.bench`.

Each row runs against one worker after the other, several rounds in turn; a cell is the median of the rounds. CPU is the
worker process's own, as the kernel counts it. `--quick` takes about a minute, `--rows` and `--peers` choose.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .report import machine, machine_line, table, verdicts
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


def main() -> int:
    arguments = parse_arguments()
    _allow_many_files()
    wanted = [WORKERS[key] for key in arguments.peers or WORKERS]
    names = [name for name in wanted if is_available(name)]
    rows = [row for row in ROWS if arguments.rows is None or row.key in arguments.rows]
    repeats = arguments.repeats or (1 if arguments.quick else 3)
    bench, facts = Bench(rows, names, repeats, is_quick=arguments.quick), machine()
    screen = Console(width=None if sys.stdout.isatty() else 160)
    for name in wanted:
        if name not in names:
            print(
                f"{name} is not installed and left out: python tests/interop/peers/install.py 1.6.1 bench",
                file=sys.stderr,
            )
    columns = (TextColumn("{task.description:54}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        trio.run(bench.run, progress)
    screen.print(machine_line(facts), soft_wrap=True, highlight=False)
    screen.print(table(bench.medians, names))
    judged = verdicts(bench.medians)
    for verdict in judged:
        screen.print(str(verdict), soft_wrap=True, highlight=False, style="" if verdict.is_met else "bold red")
    document = {
        "schema": SCHEMA,
        "machine": facts,
        "quick": arguments.quick,
        "rounds": {row.key: by_name for row, by_name in bench.rounds.items()},
        "medians": {row.key: by_name for row, by_name in bench.medians.items()},
        "targets": [
            {"row": each.row, "target": each.what, "reached": each.reached, "wanted": each.wanted, "met": each.is_met}
            for each in judged
        ],
    }
    arguments.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _allow_many_files() -> None:
    """A thousand streams are a thousand files, in the workers too, which inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the benchmark reads /proc; it needs Linux")
    sys.exit(main())
