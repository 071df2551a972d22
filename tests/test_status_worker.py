"""A worker with its status wired in: what its life and its requests leave on the pages and in the log."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import Annotated, Engine, ErrorEvent, make_worker, serving
from ingress.discovery import MemoryDiscovery
from ingress.status import StatusOptions
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ControlWord

from .raw_caller import Stage, open_stage


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request
    yield request


def outcomes(stage: Stage) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["outcome"], sample.labels["reason"]): sample.value
        for family in stage.worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "ingress_outcome_total" and sample.value
    }


def own(stage: Stage, name: str) -> float:
    return math.fsum(
        sample.value
        for family in stage.worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    )


async def test_health_follows_the_workers_life(autojump_clock: MockClock) -> None:
    options: dict[str, Any] = {
        "discovery": MemoryDiscovery(),
        "network": MemoryNetwork(),
        "linger": 2.0,
        "drain_budget": 0.0,
    }
    seen = []
    async with trio.open_nursery() as nursery, serving(echo, **options) as worker:
        health = worker.status.health
        seen.append((worker.phase.value, health.is_ready))

        async def look_while_draining() -> None:
            while worker.phase.value in ("serving", "lingering"):
                await trio.sleep(0.5)
                seen.append((worker.phase.value, health.is_ready))

        nursery.start_soon(look_while_draining)
    assert seen[0] == ("serving", True)
    assert ("lingering", True) in seen
    assert health.reasons() == {"draining": "draining: requests are refused"}


async def test_a_worker_is_live_and_not_ready_while_its_engine_loads() -> None:
    loaded = trio.Event()

    class Slow(Engine):
        async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
            yield request

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            await loaded.wait()
            yield

    worker = make_worker(
        {"demo.backend.generate": Slow()},
        discovery=MemoryDiscovery(),
        network=MemoryNetwork(),
        status=StatusOptions(port=0),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve)
        while worker.status.address is None:
            await trio.sleep(0.01)
        host, port = worker.status.address
        async with httpx2.AsyncClient(base_url=f"http://{host}:{port}") as client:
            assert (await client.get("/live")).status_code == 200
            assert (await client.get("/health")).json()["endpoints"] == {}
            loaded.set()
            with trio.fail_after(10):
                while (await client.get("/health")).status_code != 200:
                    await trio.sleep(0.01)
            verbose = (await client.get("/health?verbose")).json()
            assert (verbose["codec"], verbose["drain"]["phase"]) == ("msgpack", "serving")
            text = (await client.get("/metrics")).text
            assert 'ingress_drain_phase{phase="serving"} 1\n' in text
            assert 'ingress_build_info{codec="msgpack",plane="tcp",' in text
        nursery.cancel_scope.cancel()


async def test_every_request_has_one_outcome() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        if request == "raise":
            raise ValueError
        yield 1
        if request == "error item":
            yield Annotated.from_error(ErrorEvent("bad"))
        if request == "wait":
            await trio.sleep_forever()

    async with open_stage(engine, engine_request_limit=1) as stage:
        await stage.tell("fine")
        await stage.tell("raise")
        await stage.tell("error item")
        await stage.tell(b"not json")
        for word in (ControlWord.STOP, ControlWord.KILL, None):
            response = await stage.call("wait")
            await response.read_items(1)
            if word is ControlWord.STOP:
                assert "overloaded" in await stage.ask(stage.caller.payload("second"))
            if word is not None:
                await response.send_word(word)
                await response.read_to_end()
            await response.aclose()
            await wait_all_tasks_blocked()
        await stage.ask(b"junk")
        await stage.ask(b"junk", path="nowhere")
        assert outcomes(stage) == {
            ("completed", "ok"): 1,
            ("failed", "generate"): 2,
            ("failed", "deserialization"): 1,
            ("cancelled", "stop"): 1,
            ("cancelled", "kill"): 1,
            ("cancelled", "disconnect"): 1,
            ("refused", "overloaded"): 1,
            ("refused", "invalid_message"): 1,
            ("refused", "unknown_endpoint"): 1,
        }


async def test_chunks_and_flushes_are_counted_with_the_bytes_that_left() -> None:
    async with open_stage(echo) as stage:
        before = own(stage, "ingress_flush_bytes_sum")
        await stage.tell("x" * 100)
        assert own(stage, "ingress_chunks_total") == 2
        assert own(stage, "ingress_flush_bytes_sum") - before > 200
        assert own(stage, "ingress_slow_readers") == 0


async def test_a_request_has_two_info_lines_and_its_cancellation_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        await trio.sleep_forever()

    caplog.set_level(logging.INFO)
    async with open_stage(engine) as stage:
        response = await stage.call("a secret prompt", request_id="r-1")
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        await response.read_to_end()
        await wait_all_tasks_blocked()
        records = [record for record in caplog.records if record.name == "ingress.request"]
        assert [(record.levelname, record.getMessage()) for record in records] == [
            ("INFO", "request received"),
            ("INFO", "request completed"),
        ]
        fields: Mapping[str, Any] = vars(records[1])["fields"]
        assert (fields["request_id"], fields["status"], fields["cancelled_by"], fields["chunks"]) == (
            "r-1", "cancelled", "stop", 1,
        )  # fmt: skip
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert "secret" not in caplog.text + str([vars(record).get("fields") for record in records])


class Shaky(MemoryDiscovery):
    """Discovery whose renewals fail as a test says."""

    missed_renewals = 0
    rewritten_records = 3
    skipped_records: Mapping[str, int] = {"kind": 2}


async def test_k05_two_missed_renewals_make_a_worker_not_ready_and_it_serves_on() -> None:
    discovery = Shaky()
    async with open_stage(echo, discovery=discovery) as stage:
        health = stage.worker.status.health
        for missed, is_ready in ((1, True), (2, False), (90, False), (0, True)):
            discovery.missed_renewals = missed
            assert health.is_ready is is_ready
            assert own(stage, "ingress_missed_renewals") == missed
            await stage.assert_alive()
            if not is_ready:
                assert f"{missed} times in a row" in health.reasons()["discovery"]
        assert own(stage, "ingress_records_rewritten_total") == 3
        assert own(stage, "ingress_records_skipped_total") == 2


class Troubled(Engine):
    """An engine whose trouble is as a test says."""

    def __init__(self, trouble: Any = None) -> None:
        self.now = trouble

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield request

    def trouble(self) -> str | None:
        if isinstance(self.now, BaseException):
            raise self.now
        answer: str | None = self.now
        return answer


class TroubledBothWays(Troubled):
    generate = Engine.generate  # type: ignore[assignment]  # as one that has none

    async def generate_bidirectional(self, requests: AsyncIterable[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


async def test_e08_a_worker_is_not_ready_while_an_engine_has_trouble_and_serves_on() -> None:
    engine = Troubled()
    async with (
        open_stage(engine, status=StatusOptions(port=0)) as stage,
        httpx2.AsyncClient(base_url="http://{}:{}".format(*stage.worker.status.address)) as client,
    ):
        for trouble, code in ((None, 200), ("the card fell off the bus", 503), (None, 200)):
            engine.now = trouble
            assert (await client.get("/health")).status_code == code
            reasons = (await client.get("/health?verbose")).json()["reasons"]
            assert reasons == ({} if trouble is None else {"engine of demo.backend.generate": trouble})
            assert (await client.get("/live")).status_code == 200
            await stage.assert_alive()


async def test_e08_a_trouble_that_cannot_be_told_is_one() -> None:
    engine = Troubled(RuntimeError("driver is gone"))
    async with open_stage(engine) as stage:
        health = stage.worker.status.health
        told = health.reasons()["engine of demo.backend.generate"]
        assert told.startswith(
            "trouble of Troubled cannot be told: RuntimeError: driver is gone (test_status_worker.py:"
        )
        assert not health.is_ready and b"notready" in health.body()
        engine.now = None
        assert health.is_ready
        engine.now = 7
        assert health.reasons()["engine of demo.backend.generate"] == "7"


async def test_e08_each_engine_object_is_asked_once_under_the_name_of_its_first_endpoint() -> None:
    shared, both_ways, alone = Troubled("shared"), TroubledBothWays("both ways"), Troubled("alone")
    endpoints: dict[str, Any] = {
        "demo.backend.a": [shared, both_ways],
        "demo.backend.b": shared,
        "demo.backend.c": alone,
        "demo.backend.d": echo,
    }
    async with open_stage(endpoints) as stage:
        assert stage.worker.status.health.reasons() == {
            "engine of demo.backend.a": "shared",
            "engine 2 of demo.backend.a": "both ways",
            "engine of demo.backend.c": "alone",
        }
        assert [engine.trouble() for engine in stage.worker.engines.values()] == ["shared", "shared", "alone", None]


def test_an_engine_has_no_trouble_by_default() -> None:
    assert Engine().trouble() is None
