"""A worker's life: one instance, many endpoints, slots, and an orderly end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import Context, Engine, Worker, make_worker, serving
from ingress._life import Phase
from ingress.abc import Push
from ingress.discovery import MemoryDiscovery
from ingress.errors import StartupError
from ingress.testing import MemoryNetwork
from ingress.wire.records import DiscoveryRecord, EndpointId

from .raw_caller import Stage, open_raw_caller, open_stage


async def wait(request: float) -> AsyncIterator[Any]:
    await trio.sleep(request)
    yield "done"


async def named_a(request: Any, context: Context) -> AsyncIterator[Any]:
    yield ["a", str(context.endpoint)]


async def named_b(request: Any, context: Context) -> AsyncIterator[Any]:
    yield ["b", str(context.endpoint)]


# -- endpoints and records -------------------------------------------------------------------------------------------


async def test_all_endpoints_share_one_instance_one_listener_and_one_connection() -> None:
    async with open_stage({"ns.comp.a": named_a, "ns.comp.b": named_b}) as stage:
        records = stage.worker.records()
        assert {record.instance_id for record in records} == {stage.worker.instance_id}
        assert len({record.tcp_target[0] for record in records}) == 1
        for record, name in zip(records, "ab", strict=True):
            address, path = record.tcp_target
            assert address == stage.worker.address
            assert path == f"{stage.worker.instance_id:x}/ns/comp/{name}"
            assert record.request_plane_codec == "msgpack"
            assert await stage.ask(stage.caller.payload(), path=path) == ""
            said = await (await stage.caller.accept()).read_to_sentinel()
            assert said.items == [[name, f"ns.comp.{name}"]]
        assert stage.sample("requests_total", dynamo_endpoint="a") == 1
        assert stage.sample("requests_total", dynamo_endpoint="b") == 1


async def test_metadata_and_headers_reach_the_engine() -> None:
    async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id, dict(context.metadata), dict(context.headers)]

    async with open_stage(engine) as stage:
        control = stage.caller.control(request_id="r", metadata={"k": "v"})
        assert await stage.ask(stage.caller.payload(1, control), headers={"traceparent": "00-x"}) == ""
        said = await (await stage.caller.accept()).read_to_sentinel()
        assert said.items == [["r", {"k": "v"}, {"traceparent": "00-x"}]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": {}}, "at least one endpoint"),
        ({"engine": {"a/b": wait}}, "must be namespace.component.endpoint"),
        ({"engine": {"demo.backend.generate": wait}, "endpoint": "a.b.c"}, "either one engine"),
        ({"engine": wait, "codec": "yaml"}, "yaml"),
        ({"engine": wait, "engine_request_limit": 0}, "engine_request_limit must be at least 1"),
        ({"engine": wait, "endpoint": "..a.b"}, "endpoint|namespace"),
    ],
)
async def test_a_worker_that_cannot_start_as_configured_says_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        async with serving(options.pop("engine"), discovery=MemoryDiscovery(), network=MemoryNetwork(), **options):
            raise AssertionError
    assert isinstance(caught.value, StartupError) or type(caught.value).__name__ == "PluginError"


async def test_r09_two_workers_serve_one_endpoint_in_one_process() -> None:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with (
        open_stage(named_a, network=network, discovery=discovery) as first,
        open_stage(named_b, network=network, discovery=discovery) as second,
    ):
        assert first.worker.instance_id != second.worker.instance_id
        assert (await first.tell()).items[0][0] == "a"
        assert (await second.tell()).items[0][0] == "b"


async def test_a_registry_may_be_given_and_endpoints_may_add_constant_labels() -> None:
    registry = CollectorRegistry()
    labels = {"demo.backend.a": {"model": "m1", "pool": "x"}, "demo.backend.b": {"model": "m2"}}
    engines = {"demo.backend.a": named_a, "demo.backend.b": named_b}
    async with open_stage(engines, registry=registry, metrics_labels=labels) as stage:
        await stage.tell()
        assert stage.sample("requests_total", model="m1", pool="x", dynamo_endpoint="a") == 1
        assert stage.sample("requests_total", model="m2", pool="") == 0
        assert stage.worker.metrics.registry is registry


@pytest.mark.parametrize(
    "label",
    [
        "dynamo_namespace",
        "dynamo_component",
        "dynamo_endpoint",
        "worker_id",
        "error_type",
        "outcome",
        "reason",
        "le",
        "process",
    ],
)
def test_a_constant_label_cannot_have_the_name_of_one_of_ours(label: str) -> None:
    labels = {"demo.backend.a": {"version": "2", label: "x"}}
    with pytest.raises(StartupError, match=f"^metrics_labels cannot have {label}: .* dynamo_component, .* worker_id "):
        make_worker({"demo.backend.a": named_a}, discovery=MemoryDiscovery(), metrics_labels=labels)


class FailingDiscovery(MemoryDiscovery):
    async def serve_records(self, records: Sequence[DiscoveryRecord], *, task_status: Any = None) -> None:
        raise StartupError("discovery cannot be written")


async def test_a_failing_start_releases_the_engines_and_is_raised_as_it_is() -> None:
    events: list[str] = []

    class Loaded(Engine):
        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            yield

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            events.append("loaded")
            try:
                yield
            finally:
                events.append("released")

    network = MemoryNetwork()
    with pytest.raises(StartupError, match="discovery cannot be written"):
        async with serving(Loaded(), discovery=FailingDiscovery(), network=network):
            raise AssertionError
    assert events == ["loaded", "released"]
    assert network.listeners == {}


async def test_a_caller_that_sees_the_record_before_the_worker_knows_it_written_is_served() -> None:
    """A rolling restart under a real client lost a request here: its directory watch was quicker than our fsync."""

    class Slow(MemoryDiscovery):
        async def serve_records(self, records: Any, *, task_status: Any = None, **options: Any) -> None:
            seen.set()
            await go_on.wait()
            await super().serve_records(records, task_status=task_status)

    seen, go_on = trio.Event(), trio.Event()
    network = MemoryNetwork()
    worker = make_worker(named_a, network=network, discovery=Slow(), linger=0.0)
    async with open_raw_caller(network) as caller, trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve)
        await seen.wait()
        assert worker.phase is Phase.STARTING
        response = await caller.call(await caller.connect(worker))
        assert (await response.read_to_sentinel()).is_whole
        await response.aclose()
        go_on.set()
        worker.drain()


# -- slots -----------------------------------------------------------------------------------------------------------


async def test_l05_overflow_is_refused_at_once_and_what_was_accepted_completes(
    autojump_clock: MockClock,
) -> None:
    started: list[int] = []

    async def engine(request: int) -> AsyncIterator[Any]:
        started.append(request)
        await trio.sleep(1)
        yield request

    async with open_stage(engine, engine_request_limit=10, request_queue_limit=10) as stage:
        for i in range(200):
            await stage.connection.send(stage.caller.payload(i))
        acks = await stage.connection.read_acks(200)
        assert trio.current_time() == 0
        assert acks == [""] * 20 + ["Server overloaded: worker at capacity"] * 180
        answers = [(await (await stage.caller.accept()).read_to_sentinel()).items[0] for _ in range(20)]
        await wait_all_tasks_blocked()
        assert sorted(answers[:10]) == sorted(started[:10]) == list(range(10))
        assert sorted(answers[10:]) == sorted(started[10:]) == list(range(10, 20))
        assert trio.current_time() == pytest.approx(2)
        assert stage.counted_ends() == {}
        assert stage.sample("requests_total") == 20  # a refusal is no request of the handler's
        assert stage.sample("dynamo_rejection_request_total") == 180
        stage.assert_nothing_left()


async def test_l06_a_queued_request_whose_caller_has_gone_is_dropped_when_its_turn_comes(
    autojump_clock: MockClock,
) -> None:
    started: list[float] = []

    async def engine(request: float) -> AsyncIterator[Any]:
        started.append(request)
        await trio.sleep(request)
        yield request

    async with open_stage(engine, engine_request_limit=1, request_queue_limit=5) as stage:
        await stage.call(5)
        async with open_raw_caller(stage.caller.network) as leaving:
            assert await stage.ask(leaving.payload(1)) == ""
        assert await stage.ask(stage.caller.payload(2)) == ""
        assert (await (await stage.caller.accept()).read_to_sentinel()).items == [2]
        assert started == [5, 2]
        assert stage.counted_ends() == {"response_stream": 1}


# -- the orderly end -------------------------------------------------------------------------------------------------


class RecordedDiscovery(MemoryDiscovery):
    """Notes when its records come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.withdrawn_at: float | None = None

    async def serve_records(self, records: Any, **options: Any) -> None:
        try:
            await super().serve_records(records, **options)
        finally:
            self.withdrawn_at = trio.current_time()


async def test_r01_a_draining_worker_withdraws_lingers_refuses_and_finishes(autojump_clock: MockClock) -> None:
    discovery = RecordedDiscovery()
    async with open_stage(wait, discovery=discovery, linger=2, drain_budget=25) as stage:
        running = await stage.call(10)
        stage.worker.drain()
        stage.worker.drain()  # idempotent
        await trio.sleep(1)
        # Lingering: not found any more, still served, also on new connections.
        assert discovery.withdrawn_at == 0
        assert stage.worker.phase is Phase.LINGERING
        assert (await (await stage.call(0)).read_to_sentinel()).is_whole
        fresh = await stage.caller.connect(stage.worker)
        assert (await (await stage.caller.call(fresh, 0)).read_to_sentinel()).is_whole
        await trio.sleep(1.5)
        # Refusing, on old and new connections.
        for connection in (stage.connection, fresh, await stage.caller.connect(stage.worker)):
            ack = await connection.ask(stage.caller.payload(0))
            assert ack == f"Server unavailable: unknown endpoint {connection.path}"
        # Finishing.
        assert (await running.read_to_sentinel()).is_whole
        assert trio.current_time() == pytest.approx(10)
        await running.aclose()
    assert stage.worker.phase.value == "stopped"
    assert stage.worker.cancelled_by_drain == 0
    assert trio.current_time() < 11.5


async def test_r02_an_idle_worker_ends_after_its_linger(autojump_clock: MockClock) -> None:
    async with open_stage(wait, linger=2, drain_budget=25):
        pass
    assert trio.current_time() == pytest.approx(2, abs=0.1)


async def test_draining_with_requests_that_end_just_then_loses_no_wake_up(autojump_clock: MockClock) -> None:
    for delay in (0.0, 0.999, 1.0, 1.001):
        async with open_stage(wait, linger=1, drain_budget=25) as stage:
            started = trio.current_time()
            response = await stage.call(delay)
            stage.worker.drain()
            assert (await response.read_to_sentinel()).is_whole
            await response.aclose()
        assert trio.current_time() - started < 2.2


async def test_a_worker_that_waits_for_a_callers_fin_does_not_wait_ten_seconds_to_end(
    autojump_clock: MockClock,
) -> None:
    stages: list[Stage] = []
    async with open_stage(wait) as stage:
        stages.append(stage)
        response = await stage.call(0)
        await response.read_to_sentinel()
        stage.worker.drain()
        assert (await response.read_to_end()).end == "fin"
        assert trio.current_time() < 2


async def test_no_push_is_accepted_and_lost_however_it_meets_the_drain(autojump_clock: MockClock) -> None:
    """R01: acked means answered, and everything else is refused."""
    outcomes: dict[str, int] = {"answered": 0, "refused": 0}

    async def caller(stage: Stage, delay: float) -> None:
        await trio.sleep(delay)
        connection = await stage.caller.connect(stage.worker)
        async with open_raw_caller(stage.caller.network) as own:
            ack = await connection.ask(own.payload(0.3))
            if ack:
                assert ack.startswith("Server unavailable: ")
                outcomes["refused"] += 1
                return
            response = await own.accept()
            assert (await response.read_to_sentinel()).is_whole
            await response.aclose()
            outcomes["answered"] += 1

    async with open_stage(wait, linger=1, drain_budget=5) as stage, trio.open_nursery() as nursery:
        blocker = await stage.call(4)
        for i in range(60):
            nursery.start_soon(caller, stage, i * 0.05)
        await trio.sleep(1)
        stage.worker.drain()
        await blocker.read_to_sentinel()
        await blocker.aclose()
    assert outcomes["answered"] + outcomes["refused"] == 60
    assert 38 <= outcomes["answered"] <= 42


async def test_r01_a_request_is_open_from_the_moment_of_its_ack() -> None:
    async with open_stage(wait) as stage:
        receive = stage.worker._switchboard.receive
        (path,) = stage.worker._switchboard.by_path
        assert receive(Push(path, stage.caller.payload(0), {}, "127.0.0.1")) == ""
        assert len(stage.worker.open_requests) == 1  # a drain that begins in this pass waits for it
        response = await stage.caller.accept()
        await response.read_to_sentinel()
        await response.aclose()


async def test_an_exception_in_the_block_ends_the_worker_at_once(autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_stage(wait, linger=10, drain_budget=10) as stage:
            await stage.call(100)
            raise ZeroDivisionError
    assert trio.current_time() < 1


async def test_a_worker_tells_its_endpoints_and_engines() -> None:
    async with open_stage({"demo.backend.a": named_a}) as stage:
        worker: Worker = stage.worker
        assert list(worker.endpoints) == [EndpointId("demo", "backend", "a")]
        assert "named_a" in repr(worker.engines[EndpointId("demo", "backend", "a")])
        assert worker.is_draining is False
        assert worker.phase is Phase.SERVING
