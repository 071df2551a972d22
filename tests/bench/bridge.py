"""One asyncio handler under the real worker and under our bridge, side by side: `python -m tests.bench.bridge`.

The handler file is the same; whoever reads the sockets throws the bytes away. Three rounds in turn, a cell is the
median. CPU is the worker process's own, as the kernel counts it. With `--uvloop no` ours runs on asyncio's own loop, as
the real one does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys

import trio
from attrs import frozen

from . import load as loads
from .workers import RunningWorker, open_worker

ROUNDS = 3

ROWS = (
    ("32 streams, handler awaits before each chunk", {"mode": "awaiting", "n": 2000}, 32, 64),
    ("32 streams, handler never awaits", {"mode": "tight", "n": 2000}, 32, 64),
    ("1 stream, handler awaits before each chunk", {"mode": "awaiting", "n": 20_000}, 1, 1),
    ("64 streams, a chunk each every 20 ms", {"mode": "paced", "n": 100, "interval": 0.02}, 64, 64),
    ("one-chunk requests, 32 at once", {"mode": "tight", "n": 1}, 32, 2000),
)


@frozen
class Figures:
    """What one run cost and took."""

    cpu_us: float
    chunks_per_second: float
    late_p50_ms: float


async def measure(row: int, worker: RunningWorker) -> Figures:
    _, request, streams, requests = ROWS[row]
    load = loads.Load(dict(request), streams, requests, measure_due="interval" in request)
    before = worker.cpu_seconds()
    await loads.run(load, worker.open_caller)
    chunks = requests * load.request["n"]
    return Figures(
        (worker.cpu_seconds() - before) / chunks * 1e6,
        chunks / load.seconds,
        statistics.median(load.late or [0.0]) * 1e3,
    )


async def main(workers: tuple[str, ...]) -> None:
    print(f"python {platform.python_version()} · {platform.machine()} · {platform.system()}; medians of {ROUNDS}\n")
    print(f"{'':48}{'CPU µs/chunk':>24}{'chunks/s':>28}{'late p50 ms':>16}     ({', '.join(workers)}, ratio)")
    async with open_worker(workers[0]) as ours, open_worker(workers[1]) as theirs:
        for row in range(len(ROWS)):
            seen: dict[str, list[Figures]] = {name: [] for name in workers}
            for counted in (False, *[True] * ROUNDS):  # a warm-up first
                for worker in (ours, theirs):
                    figures = await measure(row, worker)
                    if counted:
                        seen[worker.name].append(figures)
            a, b = (
                [statistics.median(getattr(each, name) for each in seen[worker]) for worker in workers]
                for name in ("cpu_us", "chunks_per_second")
            )
            late = [statistics.median(each.late_p50_ms for each in seen[worker]) for worker in workers]
            print(
                f"{ROWS[row][0]:48}"
                + f"{a[0]:.1f}  {a[1]:.1f}  {a[1] / a[0]:.1f}×".rjust(24)
                + f"{b[0]:,.0f}  {b[1]:,.0f}  {b[0] / b[1]:.1f}×".rjust(28)
                + (f"{late[0]:.2f}  {late[1]:.2f}" if any(late) else "–").rjust(16),
                flush=True,
            )


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the benchmark reads /proc; it needs Linux")
    parser = argparse.ArgumentParser()
    parser.add_argument("--uvloop", choices=["yes", "no"], default="yes")
    ours = "bridge" if parser.parse_args().uvloop == "yes" else "bridge without uvloop"
    trio.run(main, (ours, "Dynamo 1.6.1"))
