"""Our worker and the real one under the same load: `python -m tests.bench`.

Each row runs against one worker after the other, three rounds in turn; a cell is the median. CPU is the worker
process's own, as the kernel counts it.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable

import trio
from attrs import frozen

from . import load as loads
from .workers import RunningWorker, open_worker

ROUNDS = 3


@frozen
class Row:
    """One load, the same for each worker."""

    name: str
    make: Callable[[], loads.Load]


ROWS = (
    Row("1 stream, engine never awaits", lambda: loads.Load({"mode": "tight", "n": 20_000}, 1, 1)),
    Row("32 streams × 500, engine never awaits", lambda: loads.Load({"mode": "tight", "n": 500}, 32, 64)),
    Row("1 stream, engine awaits before each chunk", lambda: loads.Load({"mode": "awaiting", "n": 20_000}, 1, 1)),
    Row("32 streams × 500, engine awaits before each", lambda: loads.Load({"mode": "awaiting", "n": 500}, 32, 64)),
    Row(
        "64 streams, a chunk each every 20 ms",
        lambda: loads.Load({"mode": "paced", "n": 100, "interval": 0.02}, 64, 64, measure_due=True),
    ),
    Row("one-chunk requests, 32 at once", lambda: loads.Load({"mode": "tight", "n": 1}, 32, 3000)),
)


@frozen
class Figures:
    """What one run of a row cost and took."""

    cpu_per_chunk_us: float
    cpu_per_request_us: float
    requests_per_second: float
    first_p50_ms: float
    late_p50_ms: float
    late_p99_ms: float


async def measure(row: Row, worker: RunningWorker) -> Figures:
    load = row.make()
    before = worker.cpu_seconds()
    await loads.run(load, worker.record)
    cpu = worker.cpu_seconds() - before
    late = sorted(load.late) or [0.0]
    return Figures(
        cpu_per_chunk_us=cpu / (load.requests * load.request["n"]) * 1e6,
        cpu_per_request_us=cpu / load.requests * 1e6,
        requests_per_second=load.requests / load.seconds,
        first_p50_ms=statistics.median(load.first) * 1e3,
        late_p50_ms=late[len(late) // 2] * 1e3,
        late_p99_ms=late[int(len(late) * 0.99)] * 1e3,
    )


async def main() -> None:
    print(f"python {platform.python_version()} · {platform.machine()} · {platform.system()}; medians of {ROUNDS}\n")
    header = ("worker CPU µs/chunk", "first chunk p50 ms", "requests/s", "late p50/p99 ms")
    print(f"{'':52}" + "".join(f"{text:>28}" for text in header) + "     (ours, Dynamo 1.6.1, Dynamo ÷ ours)")
    async with open_worker("ours") as ours, open_worker("Dynamo 1.6.1") as dynamo:
        for row in ROWS:
            results: dict[str, list[Figures]] = {"ours": [], "Dynamo 1.6.1": []}
            for worker in (ours, dynamo):  # a warm-up, not counted
                await measure(row, worker)
            for _ in range(ROUNDS):
                for worker in (ours, dynamo):
                    results[worker.name].append(await measure(row, worker))
            print(f"{row.name:52}" + "".join(_cells(results["ours"], results["Dynamo 1.6.1"])))


def _cells(ours: list[Figures], theirs: list[Figures]) -> list[str]:
    def cell(name: str, digits: int) -> str:
        a, b = (statistics.median(getattr(figures, name) for figures in side) for side in (ours, theirs))
        return f"{a:.{digits}f}  {b:.{digits}f}  {b / a if a else 0:.1f}×".rjust(28)

    def pair(side: list[Figures]) -> str:
        p50, p99 = (statistics.median(getattr(f, name) for f in side) for name in ("late_p50_ms", "late_p99_ms"))
        return f"{p50:.2f}/{p99:.2f}" if p99 else "–"

    return [
        cell("cpu_per_chunk_us", 1),
        cell("first_p50_ms", 2),
        cell("requests_per_second", 0),
        f"{pair(ours)}  {pair(theirs)}".rjust(28),
    ]


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the benchmark reads /proc; it needs Linux")
    trio.run(main)
