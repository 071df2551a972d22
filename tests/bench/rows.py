"""The loads of the benchmark, what is measured of each, and what is to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import trio
from attrs import field, frozen

from . import load as loads
from .workers import RunningWorker, open_worker

DYNAMO, GRPC, SSE, FLOOR, OURS = "Dynamo 1.6.1", "grpc.aio", "Starlette SSE", "floor", "ours"

Figures = dict[str, float]

CPU, FIRST, LATE_50, LATE_99 = "CPU µs/chunk", "first chunk p50 ms", "late p50 ms", "late p99 ms"
CPU_REQUEST, RATE, GROWTH = "CPU µs/request", "requests/s", "RSS growth MB"
HIGHER_IS_BETTER = {RATE}

# Of a request that is made for its first chunk alone.
PROBE_CHUNKS = 50

# A process that has just freed or taken memory needs a moment to do so.
SETTLE = 0.5


@frozen
class Target:
    """Ours against one other: its figure is at least ``factor`` times ours (for a rate: ours of its)."""

    figure: str
    factor: float
    against: str | None = DYNAMO
    """None: the figure itself is at most ``factor``."""


@frozen(eq=False)
class Row:
    """One load, the same for each worker."""

    key: str
    name: str
    request: dict[str, Any]
    streams: int
    requests: int
    figures: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    has_floor: bool = False
    probes: int = 0
    """So many short requests more, one after the other, for the first chunk's median: the row's own are too few."""

    quick: Mapping[str, int] = field(factory=dict)
    """What is smaller in a quick run: ``n`` or ``requests`` or ``streams``."""

    def scaled(self, is_quick: bool) -> tuple[dict[str, Any], int, int]:
        """Return the request, how many streams at once, and how many requests in all."""
        smaller = self.quick if is_quick else {}
        request = self.request | {key: value for key, value in smaller.items() if key == "n"}
        return request, smaller.get("streams", self.streams), smaller.get("requests", self.requests)


_FIRST_NO_WORSE = Target(FIRST, 1)
_AHEAD_OF_GRPC = Target(CPU, 1, GRPC)
_NEAR_THE_FLOOR = Target(CPU, 0.5, FLOOR)

ROWS = (
    Row(
        "tight-1",
        "1 stream, engine never awaits",
        {"mode": "tight", "n": 10_000},
        *(1, 5),
        (CPU, FIRST),
        (Target(CPU, 40), _FIRST_NO_WORSE, _AHEAD_OF_GRPC),
        probes=60,
        quick={"n": 2_500},
    ),
    Row(
        "tight-32",
        "32 streams, engine never awaits",
        {"mode": "tight", "n": 500},
        *(32, 128),
        (CPU, FIRST),
        (Target(CPU, 12), _FIRST_NO_WORSE, _AHEAD_OF_GRPC),
        quick={"requests": 64},
    ),
    Row(
        "awaiting-1",
        "1 stream, engine awaits before each chunk",
        {"mode": "awaiting", "n": 10_000},
        *(1, 5),
        (CPU, FIRST),
        (Target(CPU, 9), _FIRST_NO_WORSE, _AHEAD_OF_GRPC, _NEAR_THE_FLOOR),
        has_floor=True,
        probes=60,
        quick={"n": 2_500},
    ),
    Row(
        "awaiting-32",
        "32 streams, engine awaits before each chunk",
        {"mode": "awaiting", "n": 500},
        *(32, 128),
        (CPU, FIRST),
        (Target(CPU, 3), _FIRST_NO_WORSE, _AHEAD_OF_GRPC, _NEAR_THE_FLOOR),
        has_floor=True,
        quick={"requests": 64},
    ),
    Row(
        "paced",
        "64 streams, a chunk each every 20 ms",
        {"mode": "paced", "n": 150, "interval": 0.02},
        *(64, 64),
        (CPU, LATE_50, LATE_99, FIRST),
        (Target(CPU, 1.5), Target(LATE_50, 1), Target(LATE_99, 1), _FIRST_NO_WORSE, _AHEAD_OF_GRPC),
        has_floor=True,
        quick={"n": 75},
    ),
    Row(
        "requests",
        "one-chunk requests, 32 at once",
        {"mode": "tight", "n": 1},
        *(32, 4000),
        (CPU_REQUEST, RATE, FIRST),
        (
            *(Target(CPU_REQUEST, 1.4), Target(RATE, 1.3), _FIRST_NO_WORSE),
            *(Target(CPU_REQUEST, 1, GRPC), Target(RATE, 1, GRPC)),
        ),
        quick={"requests": 1000},
    ),
    Row(
        "open",
        "1,000 open streams",
        {"mode": "held", "n": 1},
        *(1000, 1000),
        (GROWTH,),
        (Target(GROWTH, 12, None), Target(GROWTH, 1, GRPC)),
    ),
)


async def measure(row: Row, worker: RunningWorker, *, is_quick: bool) -> Figures:
    """Run one row against a running worker."""
    request, streams, requests = row.scaled(is_quick)
    load = loads.Load(request, streams, requests, measure_due=LATE_50 in row.figures)
    before = worker.cpu_seconds()
    await loads.run(load, worker.open_caller)
    cpu = worker.cpu_seconds() - before
    if row.probes:
        probes = loads.Load(request | {"n": PROBE_CHUNKS}, 1, row.probes)
        await loads.run(probes, worker.open_caller)
        load.first += probes.first
    late = sorted(load.late) or [0.0]
    figures = {
        CPU: cpu / (requests * request["n"]) * 1e6,
        CPU_REQUEST: cpu / requests * 1e6,
        RATE: requests / load.seconds,
        FIRST: statistics.median(load.first) * 1e3,
        LATE_50: late[len(late) // 2] * 1e3,
        LATE_99: late[int(len(late) * 0.99)] * 1e3,
    }
    return {name: figures[name] for name in row.figures}


async def measure_growth(row: Row, name: str) -> Figures:
    """Hold the row's streams open on a worker of their own, whose memory nothing else has grown."""
    async with open_worker(name) as worker:
        warm_up = loads.Load({"mode": "tight", "n": 1}, 32, 64)
        await loads.run(warm_up, worker.open_caller)
        await trio.sleep(SETTLE)
        before, after = worker.resident_bytes(), 0

        async def look() -> None:
            nonlocal after
            await trio.sleep(SETTLE)
            after = worker.resident_bytes()

        await loads.hold(row.streams, worker.open_caller, look)
    return {GROWTH: (after - before) / 1e6}
