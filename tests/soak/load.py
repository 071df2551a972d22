"""The figures of a worker under load that is good but much; each takes a few seconds."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from functools import partial

import trio
from attrs import frozen

from ingress.wire.request_frame import AckDecoder, encode_request_frame
from tests.bench.callers import open_dynamo_caller
from tests.reliability.served import NETWORK, Watch, Worker, open_worker
from tests.soak.plain_client import Result, take

MIB = 1 << 20


@frozen
class Figure:
    """One line of the table."""

    name: str
    value: float
    must: float
    unit: str = ""
    at_least: bool = False
    is_guard: bool = False
    """Fails the run where it is not met. What depends on the machine's speed is shown as missed, and fails nothing."""

    @property
    def is_met(self) -> bool:
        return self.value >= self.must if self.at_least else self.value <= self.must

    def cells(self) -> tuple[str, str, str]:
        sign = "at least" if self.at_least else "at most"
        unit = f" {self.unit}" if self.unit else ""
        missed = "" if self.is_met else ", missed"
        return self.name, f"{_shown(self.value)}{unit}", f"{sign} {_shown(self.must)}{unit}{missed}"


def _shown(value: float) -> str:
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


async def many_streams(worker: Worker, streams: int = 1000, chunks: int = 50) -> list[Figure]:
    """Streams at once, with a chunk each every 20 ms, over 8 connections."""
    request = {"do": "count", "n": chunks, "pause": 0.02, "text": " token"}
    memory, peak = worker.memory(), 0
    results: list[Result] = []

    async def run() -> None:
        load = partial(take, worker.record, request, streams, chunks=chunks, connections=8, at_once=streams)
        results.append(await trio.to_thread.run_sync(load))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while not results:
            peak = max(peak, worker.memory())
            await trio.sleep(0.1)
    (result,) = results
    first = result.first or [float("inf")]
    return [
        Figure(f"streams lost of {streams:,} at once", result.lost, 0, is_guard=True),
        Figure(f"{streams:,} streams of {chunks} chunks, 20 ms apart", result.seconds, 4, "s"),
        Figure("time to the first chunk there, median", statistics.median(first), 0.5, "s"),
        Figure("time to the first chunk there, 99 of 100", first[int(len(first) * 0.99)], 2, "s"),
        Figure("memory a stream", max(peak - memory, 0) / streams / 1024, 25, "KiB"),
    ]


async def pipelined(worker: Worker, requests: int = 8000, at_once: int = 128) -> list[Figure]:
    """Requests of one chunk over one connection, many unanswered at a time."""
    request = {"do": "count", "n": 1}
    load = partial(take, worker.record, request, requests, chunks=1, connections=1, at_once=at_once)
    result = await trio.to_thread.run_sync(load)
    return [
        Figure("pipelined requests a second on one connection", requests / result.seconds, 1800, at_least=True),
        Figure("pipelined requests lost", result.lost, 0, is_guard=True),
    ]


async def idle_connections(worker: Worker, count: int = 5000) -> list[Figure]:
    memory = worker.memory()
    streams = [await NETWORK.connect(*worker.address) for _ in range(count)]
    await _settled(lambda: worker.descriptors() >= count)
    each = (worker.memory() - memory) / count / 1024
    for stream in streams:
        stream.close_nowait()
    await _settled(lambda: worker.descriptors() < 100)
    return [
        Figure("idle connections at once", count, 5000, at_least=True),
        Figure("memory an idle connection", max(each, 0.0), 5, "KiB"),
    ]


async def never_readers(worker: Worker, count: int = 50) -> list[Figure]:
    """Callers that ask for a gigabyte and take nothing of it."""
    memory = worker.memory()
    async with open_dynamo_caller(worker.record) as caller:
        request = {"do": "count", "n": 10**6, "text": "x" * 1000}
        streams = [await caller.push(request) for _ in range(count)]
        await trio.sleep(2)
        each = (worker.memory() - memory) / count / MIB
        for stream in streams:
            await stream.aclose()
    return [Figure("memory a caller that never reads", max(each, 0.0), 1, "MiB", is_guard=True)]


async def large_bodies(worker: Worker, count: int = 10) -> list[Figure]:
    """Good bodies near the limit of values, and how late the loop was meanwhile."""
    before = await _late(worker)
    async with worker.open_caller() as caller:
        for _ in range(count):
            said = await worker.tell(caller, {"do": "measure", "list": list(range(700_000))})
            assert said.items == [700_000], said
    after = await _late(worker)
    grown = [
        bound for bound, value in after.items() if value - before[bound] < after[float("inf")] - before[float("inf")]
    ]
    # The histogram's bounds: the worst was later than the last bound that lacks some, and not later than the next.
    worst = min((bound for bound in after if bound > max(grown, default=0.0)), default=float("inf"))
    return [Figure("worst stall of the loop under large good bodies, under", worst, 0.25, "s")]


async def _late(worker: Worker) -> dict[float, float]:
    found = {}
    for series, value in (await worker.samples()).items():
        if match := re.fullmatch(r"ingress_loop_lag_seconds_bucket\{le=(\S+)\}", series):
            found[float(match[1])] = value
    return found


async def refusals(slots: int = 100) -> list[Figure]:
    """Ten times the requests that a worker takes at a time: how soon the others are refused."""
    with open_worker("--engine-request-limit", str(slots)) as worker:
        async with worker.open_caller() as caller:
            path = worker.record.tcp_target[1]
            frames = [encode_request_frame(path, {}, caller.payload({"do": "wait"})) for _ in range(10 * slots)]
            decoder = AckDecoder()
            texts: list[str] = []
            started = time.perf_counter()
            async with await worker.connect() as stream, trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, b"".join(frames))
                while len(texts) < len(frames):
                    decoder.receive_data(await stream.receive_some())
                    texts += list(decoder)
            seconds = time.perf_counter() - started
    refused = sum(text.startswith("Server overloaded") for text in texts)
    return [
        Figure("refusals of 10 times the load", refused, 9 * slots, at_least=True, is_guard=True),
        Figure("refusal under 10 times the load, slowest", seconds, 1, "s"),
    ]


async def _settled(is_so: Callable[[], bool]) -> None:
    with trio.move_on_after(10):
        while not is_so():
            await trio.sleep(0.05)


async def all_figures() -> list[Figure]:
    """Every figure but the villain's, one after the other on one worker."""
    figures: list[Figure] = []
    with open_worker() as worker:
        await many_streams(worker, streams=100)  # warm, so that what is counted is what streams cost
        watch = Watch(worker)
        for measure in (many_streams, pipelined, idle_connections, never_readers, large_bodies):
            figures += await measure(worker)
        await watch.assert_back()
    return [*figures, *await refusals()]
