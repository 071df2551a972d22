"""Two worker processes beside one, into a byte sink: `python -m tests.bench.scaling`.

Both fleets run all the time and are loaded in turn, so that whatever else the machine does meets both; a figure is the
median of the rounds, a ratio the median of each round's. Rounds in which others used the cores are made again. CPU is
that of all worker processes and of the parent that supervises them, as the kernel counts it; the sink's own is shown
beside it, for it needs the same cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ingress.cli._machine import machine_facts, machine_line
from ingress.discovery import FileDiscovery
from tests.interop import peers

from .sink import Plan, Taken, Target
from .workers import ENDPOINT, START_TIMEOUT

ROUNDS = 7

CPU_TARGET = 0.9
RATE_TARGET = 1.5

# Cores that others may use in a pair that counts, and how many pairs are tried for each that is to count.
QUIET = 0.2
TRIES = 5


@frozen
class Load:
    """What each process is asked for; a round takes about a second, so that it falls into a quiet moment."""

    name: str
    request: dict[str, object]
    streams: int
    requests: int


LOADS = (
    Load("engine never awaits", {"mode": "tight", "n": 10_000}, 8, 16),
    Load("engine awaits before each chunk", {"mode": "awaiting", "n": 2_000}, 16, 16),
)


@frozen
class Fleet:
    """Some worker processes of one command."""

    count: int
    pid: int
    targets: list[Target]

    def cpu_seconds(self) -> float:
        """User and system time so far of every process, the parent too."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in (self.pid, *_children_of(self.pid)))


@frozen
class Round:
    """One load into the sink."""

    chunks: int
    cpu_seconds: float
    taken: Taken

    @property
    def others(self) -> float:
        """Cores that were busy with neither the workers nor the sink."""
        own = self.cpu_seconds + self.taken.cpu_seconds
        return max(0.0, self.taken.machine_seconds - own) / self.taken.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.chunks / self.cpu_seconds

    @property
    def rate(self) -> float:
        return self.chunks / self.taken.seconds


def _children_of(pid: int) -> list[int]:
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for children in found for child in children]


@asynccontextmanager
async def open_fleet(count: int) -> AsyncIterator[Fleet]:
    """Start so many processes with their defaults and wait until all can be called."""
    with tempfile.TemporaryDirectory() as directory:
        environment = peers.environment("1.6.1", directory, DYN_LOG="info", DYN_REQUEST_PLANE_CODEC="json")
        command = [sys.executable, "-m", "ingress", "serve", "tests.bench.engine:bench", "--endpoint", str(ENDPOINT)]
        process = await trio.lowlevel.open_process(
            [*command, "--codec", "json", "--processes", str(count), "--grace", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with FileDiscovery(Path(directory)).open_view() as view:
                with trio.fail_after(START_TIMEOUT):
                    while len(view.instances(ENDPOINT)) < count:
                        await trio.sleep(0.05)
                targets = [_target(*record.tcp_target) for record in view.instances(ENDPOINT)]
            yield Fleet(count, process.pid, targets)
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()


def _target(address: str, path: str) -> Target:
    host, _, port = address.rpartition(":")
    return Target(host, int(port), path)


async def run_round(fleet: Fleet, load: Load) -> Round:
    """Load every process of the fleet alike, and wait for the end of all."""
    plan = Plan(fleet.targets, load.request, load.streams, load.requests)
    before = fleet.cpu_seconds()
    finished = await trio.run_process(
        [sys.executable, "-m", "tests.bench.sink", msgspec.json.encode(plan).decode()], capture_stdout=True
    )
    cpu = fleet.cpu_seconds() - before
    chunks = int(str(load.request["n"])) * load.requests * fleet.count
    return Round(chunks, cpu, msgspec.json.decode(finished.stdout, type=Taken))


Pair = tuple[Round, Round]
"""One process, then several, right after each other."""


def describe(name: str, pairs: Sequence[Pair], count: int) -> list[str]:
    """The figures of one load, a line a fleet, and how the targets are met."""
    lines = [name]
    for processes, rounds in ((1, [one for one, _ in pairs]), (count, [several for _, several in pairs])):
        rate = statistics.median(each.rate for each in rounds)
        per_cpu = statistics.median(each.per_cpu_second for each in rounds)
        used = statistics.median(each.cpu_seconds / each.taken.seconds for each in rounds)
        sink = statistics.median(each.taken.cpu_seconds / each.taken.seconds for each in rounds)
        others = statistics.median(each.others for each in rounds)
        lines.append(
            f"  {processes} process{'es' if processes > 1 else '':4} {rate:9,.0f} chunks/s"
            f" {per_cpu:9,.0f} chunks per worker-CPU-second"
            f"   cores: workers {used:.2f}, sink {sink:.2f}, others {others:.2f}"
        )
    ratios = {
        "chunks per worker-CPU-second": ([b.per_cpu_second / a.per_cpu_second for a, b in pairs], CPU_TARGET),
        "throughput": ([b.rate / a.rate for a, b in pairs], RATE_TARGET),
    }
    for what, (found, target) in ratios.items():
        ratio, spread = statistics.median(found), f"{min(found):.2f} to {max(found):.2f}"
        verdict = "met" if ratio >= target else "MISSED"
        lines.append(f"  {what}: {ratio:.2f}× ({spread}), target {target:g}×: {verdict}")
    return lines


async def measure(one: Fleet, several: Fleet, load: Load, rounds: int, progress: Progress) -> list[Pair]:
    """Return the quietest pairs: where others work too, the cores that a throughput needs are not always there."""
    pairs: list[Pair] = []
    task = progress.add_task(load.name, total=rounds)
    for number in range(1 + rounds * TRIES):
        pair = (await run_round(one, load), await run_round(several, load))
        if number:  # the first is a warm-up
            pairs.append(pair)
        quiet = sum(_others(pair) < QUIET for pair in pairs)
        progress.update(task, completed=quiet, description=f"{load.name} · {len(pairs)} pairs, {quiet} quiet")
        if quiet == rounds:
            break
    return sorted(pairs, key=_others)[:rounds]


def _others(pair: Pair) -> float:
    return max(each.others for each in pair)


async def main(count: int, rounds: int) -> None:
    print(machine_line(machine_facts()))
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn())
    async with open_fleet(1) as one, open_fleet(count) as several:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            measured = [(load.name, await measure(one, several, load, rounds, progress)) for load in LOADS]
    for name, pairs in measured:
        print("\n".join(describe(name, pairs, count)))


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("the benchmark reads /proc; it needs Linux")
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description=__doc__)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 2), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    arguments = parser.parse_args()
    trio.run(main, arguments.processes, arguments.rounds)
