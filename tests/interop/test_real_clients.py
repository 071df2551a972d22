"""Real Dynamo clients call our worker."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress
from ingress.wire.records import InstanceRecord

from . import peers
from .conftest import Observe
from .peer_process import open_client_process

pytestmark = pytest.mark.interop


def codecs_of(version: str) -> list[str]:
    """The codecs a client's release can be made to use by a record of ours."""
    return ["json", "msgpack"] if tuple(map(int, version.split("."))) >= (1, 4) else ["json"]


class Engine:
    """Does what the request says, and remembers how each request ended."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: list[str] = []
        self._changed = trio.Event()

    async def __call__(self, request: dict[str, Any], context: ingress.Context) -> AsyncIterator[dict[str, Any]]:
        self.started += 1
        self._wake()
        state = "cancelled"
        try:
            for i in range(request.get("n", 3)):
                if request.get("raise_at") == i:
                    raise ValueError("boom")
                await trio.sleep(request.get("delay", 0))
                yield {"i": i, "t": f"tök{i}"}
            state = "finished"
        except ValueError:
            state = "raised"
            raise
        finally:
            self.ended.append(f"{state}, stopped={context.is_stopped}, killed={context.is_killed}")
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, wanted: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not wanted():
                await self._changed.wait()


def items(count: int, start: int = 0) -> Iterable[dict[str, Any]]:
    return ({"i": i, "t": f"tök{i}"} for i in range(start, count))


@pytest.fixture(params=["json", "msgpack"])
def codec(request: pytest.FixtureRequest, client_version: str) -> str:
    """The codec of our record, and so of clients from 1.4.2 on; older ones always write JSON."""
    if request.param not in codecs_of(client_version):
        pytest.skip(f"{client_version} clients write JSON only")
    return str(request.param)


def serving(engine: Any, file_kv: Path, **options: Any) -> Any:
    options = {"endpoint": "demo.backend.generate", "linger": 0.0, "drain_budget": 5.0, **options}
    return ingress.serving(engine, discovery=ingress.FileDiscovery(file_kv), **options)


async def test_an_answer_arrives_whole(client_version: str, codec: str, file_kv: Path, observed: Observe) -> None:
    engine = Engine()
    async with serving(engine, file_kv, codec=codec) as worker, open_client_process(client_version, file_kv) as client:
        assert await client.wait_instances(1) == [worker.instance_id]
        tag = await client.send(op="call", request={"n": 3})
        outcome = await client.outcome(tag)
        assert outcome["event"] == "end" and client.items(tag) == list(items(3))
        assert engine.ended == ["finished, stopped=False, killed=False"]
        assert sample(worker, "dynamo_component_requests_total") == 1
    observed("3 items, end")


async def test_ten_thousand_chunks(client_version: str, codec: str, file_kv: Path, observed: Observe) -> None:
    async with serving(Engine(), file_kv, codec=codec), open_client_process(client_version, file_kv) as client:
        await client.wait_instances(1)
        outcome = await client.call({"n": 10_000}, quiet=True)
        assert (outcome["event"], outcome["items"]) == ("end", 10_000)
        assert outcome["sha"] == peers.items_sha(items(10_000))
    observed("10,000 items, in order, unaltered")


@pytest.mark.parametrize("raise_at", [0, 2])
async def test_an_engine_that_raises(
    client_version: str, codec: str, raise_at: int, file_kv: Path, observed: Observe
) -> None:
    async with (
        serving(Engine(), file_kv, codec=codec) as worker,
        open_client_process(client_version, file_kv) as client,
    ):
        await client.wait_instances(1)
        tag = await client.send(op="call", request={"n": 5, "raise_at": raise_at})
        outcome = await client.outcome(tag)
        assert outcome["event"] == "error" and client.items(tag) == list(items(raise_at))
        # 1.0.2 does not know the kind and says so instead, as it does to a real 1.6.1 worker.
        assert ("unknown variant" if client_version == "1.0.2" else "ValueError: boom") in outcome["message"]
        assert sample(worker, "dynamo_component_errors_total", error_type="generate") == 1
        assert (await client.call({"n": 1}))["event"] == "end", "the instance stays in rotation"
    when = "before the first" if raise_at == 0 else f"after {raise_at}"
    observed(f"{when}: {outcome['type']} {outcome['message']!r}")


async def test_stop_ends_the_stream_and_the_engine(
    client_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    engine = Engine()
    async with serving(engine, file_kv, codec=codec) as worker, open_client_process(client_version, file_kv) as client:
        await client.wait_instances(1)
        tag = await client.send(op="call", request={"n": 1000, "delay": 0.02}, stop_after=3)
        outcome = await client.outcome(tag)
        assert outcome["event"] == "end" and 3 <= outcome["items"] < 100
        assert outcome["seconds"] < 8, "FIN at once, not after the 10 s that workers up to 1.1.1 take"
        (ended,) = engine.ended
        # A client that leaves in the moment of its stop has killed the request too, when the engine comes to its end.
        assert ended.startswith("cancelled, stopped=True, ")
        await settled(worker, "dynamo_component_cancellation_total", 1)
        assert worker.metrics.endpoints[0].outcomes["cancelled", "stop"] == 1
    observed("silent end, engine cancelled")


async def test_a_dropped_iteration_cancels_the_engine(
    client_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    engine = Engine()
    async with serving(engine, file_kv, codec=codec) as worker, open_client_process(client_version, file_kv) as client:
        await client.wait_instances(1)
        outcome = await client.call({"n": 1000, "delay": 0.02}, drop_after=3)
        assert outcome["event"] == "dropped"
        await engine.wait(lambda: bool(engine.ended))
        assert engine.ended == ["cancelled, stopped=True, killed=True"]
        await settled(worker, "dynamo_component_cancellation_total", 1)
    observed("engine cancelled")


async def test_d12_a_killed_client_process_cancels_its_engines(
    client_version: str, file_kv: Path, observed: Observe
) -> None:
    engine = Engine()
    async with serving(engine, file_kv) as worker:
        async with open_client_process(client_version, file_kv) as client:
            await client.wait_instances(1)
            tags = [await client.send(op="call", request={"n": 1000, "delay": 0.02}) for _ in range(10)]
            for tag in tags:
                await client.item_seen(tag)
            os.kill(client.process.pid, signal.SIGKILL)
            await engine.wait(lambda: len(engine.ended) == 10)
        assert engine.ended == ["cancelled, stopped=True, killed=True"] * 10
        await settled(worker, "dynamo_component_inflight_requests", 0)
        await settled(worker, "dynamo_component_cancellation_total", 10)
    observed("10 engines cancelled")


async def test_an_unknown_endpoint(client_version: str, file_kv: Path, observed: Observe) -> None:
    """A record whose path the worker does not know: what is left of an earlier worker on the same port."""
    async with serving(Engine(), file_kv) as worker:
        host_port, _, path = worker.records()[0].transport["tcp"].partition("/")
        stale = InstanceRecord(
            worker.records()[0].endpoint_id, 7, {"tcp": f"{host_port}/{path.replace(path.split('/')[0], '7')}"}, "json"
        )
        stale_kv = file_kv.parent / "stale"
        async with trio.open_nursery() as nursery:
            await nursery.start(ingress.FileDiscovery(stale_kv).serve_records, [stale])
            async with open_client_process(client_version, stale_kv) as client:
                await client.wait_instances(1)
                outcome = await client.call({"n": 1})
            nursery.cancel_scope.cancel()
        assert outcome["event"] == "error" and outcome["seconds"] < 8
        assert "unknown endpoint" in outcome["message"]
    observed(f"{outcome['type']} {outcome['message'].replace(path.split('/', 1)[1], '…')!r}")


async def test_an_overloaded_worker(client_version: str, file_kv: Path, observed: Observe) -> None:
    engine = Engine()
    limits = {"engine_request_limit": 1, "request_queue_limit": 1}
    async with serving(engine, file_kv, **limits), open_client_process(client_version, file_kv) as client:
        await client.wait_instances(1)
        running = await client.send(op="call", request={"n": 5, "delay": 0.3})
        await client.item_seen(running)
        queued = await client.send(op="call", request={"n": 1})
        await trio.sleep(0.2)
        refused = await client.call({"n": 1})
        assert refused["event"] == "error" and refused["seconds"] < 1, "refused at once"
        assert (await client.outcome(running))["event"] == "end"
        assert (await client.outcome(queued))["event"] == "end"
    observed(f"{refused['type']} {refused['message']!r}; running and queued end well")


async def test_two_workers_take_turns(client_version: str, file_kv: Path, observed: Observe) -> None:
    first, second = Engine(), Engine()
    async with (
        serving(first, file_kv),
        serving(second, file_kv),
        open_client_process(client_version, file_kv) as client,
    ):
        await client.wait_instances(2)
        for _ in range(10):
            assert (await client.call({"n": 1}))["event"] == "end"
        assert (first.started, second.started) == (5, 5)
    observed("5 and 5 of 10")


async def test_a_worker_that_shuts_down_in_mid_stream(
    client_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    engine = Engine()
    async with serving(engine, file_kv, codec=codec) as worker, open_client_process(client_version, file_kv) as client:
        await client.wait_instances(1)
        tag = await client.send(op="call", request={"n": 20, "delay": 0.05})
        await client.item_seen(tag, 3)
        worker.drain()
        assert await client.wait_instances(0) == []
        outcome = await client.outcome(tag)
        assert outcome["event"] == "end" and client.items(tag) == list(items(20))
        late = await client.call({"n": 1})
        assert late["event"] == "error"
    assert worker.cancelled_by_drain == 0
    observed("the running stream ends well, later calls find no instance")


async def test_metadata_and_headers_reach_the_engine(client_version: str, file_kv: Path, observed: Observe) -> None:
    seen: list[tuple[str, dict[str, str], bool]] = []

    async def engine(request: Any, context: ingress.Context) -> AsyncIterator[str]:
        seen.append((context.id, dict(context.metadata), "x-endpoint-path" in context.headers))
        yield "ok"

    has_metadata = tuple(map(int, client_version.split("."))) >= (1, 3)
    options: dict[str, Any] = {"id": "my-request"}
    if has_metadata:
        options["metadata"] = {"k": "v", "é": "ü"}
    async with serving(engine, file_kv), open_client_process(client_version, file_kv) as client:
        await client.wait_instances(1)
        assert (await client.call(1.5, **options))["event"] == "end"
    assert seen == [("my-request", {"k": "v", "é": "ü"} if has_metadata else {}, True)]
    observed("id, metadata, headers" if has_metadata else "id, headers")


async def test_sixty_calls_at_once(client_version: str, codec: str, file_kv: Path, observed: Observe) -> None:
    async with (
        serving(Engine(), file_kv, codec=codec) as worker,
        open_client_process(client_version, file_kv) as client,
    ):
        await client.wait_instances(1)
        outcome = await client.outcome(await client.send(op="call_many", n=60, request={"n": 20}))
        assert (outcome["calls"], outcome["errors"]) == (60, 0)
        await settled(worker, "dynamo_component_inflight_requests", 0)
        transit = sample(worker, "dynamo_work_handler_network_transit_seconds_count")
        assert transit == (0 if client_version == "1.0.2" else 60)
    observed("60 whole answers")


async def settled(worker: ingress.Worker, name: str, value: float) -> None:
    """Wait until a sample has its value: a request is counted right after its engine has ended."""
    with trio.move_on_after(5):
        while sample(worker, name) != value:
            await trio.sleep(0.01)
    assert sample(worker, name) == value


def sample(worker: ingress.Worker, name: str, **labels: str) -> float:
    """The value of one sample, summed over the labels that are not given."""
    values = [
        found.value
        for family in worker.metrics.registry.collect()
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    ]
    assert values or name.endswith("errors_total"), name
    return math.fsum(values)
