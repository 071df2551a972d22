"""Our client calls real Dynamo workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress
from ingress.errors import NoInstances, Overloaded, RemoteError, StreamIncomplete, Unavailable

from .conftest import Observe
from .peer_process import PeerProcess, open_worker_process

pytestmark = pytest.mark.interop

ENDPOINT = "demo.backend.generate"


def client_of(file_kv: Path) -> Any:
    return ingress.open_client(discovery=ingress.FileDiscovery(file_kv))


async def collect(client: ingress.Client, request: Any, **options: Any) -> list[Any]:
    async with client.stream(ENDPOINT, request, **options) as responses:
        return [item async for item in responses]


def expected(count: int) -> list[dict[str, Any]]:
    return [{"i": i, "t": f"tök{i}"} for i in range(count)]


@pytest.fixture(params=["json", "msgpack"])
def codec(request: pytest.FixtureRequest, worker_version: str) -> str:
    if request.param == "msgpack" and worker_version < "1.4":
        pytest.skip(f"{worker_version} workers read JSON only")
    return str(request.param)


async def engine_state(worker: PeerProcess, *states: str) -> dict[str, Any]:
    return await worker.wait_for(lambda event: event["event"] == "engine" and event["state"] in states)


async def test_our_client_gets_a_whole_answer(
    worker_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    async with (
        open_worker_process(worker_version, file_kv, DYN_REQUEST_PLANE_CODEC=codec),
        client_of(file_kv) as client,
    ):
        await client.wait_for_instances(ENDPOINT, timeout=10)
        assert await collect(client, {"n": 3}) == expected(3)
    observed("3 items, end")


async def test_our_client_reads_ten_thousand_chunks(
    worker_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    async with (
        open_worker_process(worker_version, file_kv, DYN_REQUEST_PLANE_CODEC=codec),
        client_of(file_kv) as client,
    ):
        await client.wait_for_instances(ENDPOINT, timeout=10)
        assert await collect(client, {"n": 10_000}) == expected(10_000)
    observed("10,000 items, in order, unaltered")


@pytest.mark.parametrize("count", [0, 2])
async def test_our_client_and_an_engine_that_raises(
    worker_version: str, count: int, file_kv: Path, observed: Observe
) -> None:
    async with open_worker_process(worker_version, file_kv), client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        received: list[Any] = []
        request = {"n": 5, "raise_before": True} if count == 0 else {"n": 5, "raise_after": count}
        with pytest.raises(RemoteError) as caught:
            async with client.stream(ENDPOINT, {**request, "exc": "ValueError", "message": "boom"}) as responses:
                async for item in responses:
                    received.append(item)
        assert received == expected(count)
        assert caught.value.kind == "InvalidArgument" and "boom" in caught.value.message
        assert await collect(client, {"n": 1}) == expected(1), "the instance stays in rotation"
    observed(f"{'before the first' if count == 0 else f'after {count}'}: RemoteError {str(caught.value)!r}")


async def test_our_stop_ends_the_stream(worker_version: str, file_kv: Path, observed: Observe) -> None:
    async with open_worker_process(worker_version, file_kv) as worker, client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        received = 0
        with trio.fail_after(8):
            async with client.stream(ENDPOINT, {"n": 1000, "delay": 0.02}) as responses:
                async for _ in responses:
                    received += 1
                    if received == 3:
                        await responses.stop()
        assert 3 <= received < 100
        assert not (await engine_state(worker, "stopped"))["killed"]
    observed("silent end, context stopped")


async def test_leaving_our_block_early_kills(worker_version: str, file_kv: Path, observed: Observe) -> None:
    async with open_worker_process(worker_version, file_kv) as worker, client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        async with client.stream(ENDPOINT, {"n": 1000, "delay": 0.02}) as responses:
            async for _ in responses:
                break
        assert (await engine_state(worker, "stopped"))["killed"]
    observed("context killed")


async def test_our_client_and_an_unknown_endpoint(worker_version: str, file_kv: Path, observed: Observe) -> None:
    async with open_worker_process(worker_version, file_kv), client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        with pytest.raises(NoInstances):
            await collect_from(client, "demo.backend.nothing")
    observed("NoInstances")


async def collect_from(client: ingress.Client, endpoint: str) -> None:
    async with client.stream(endpoint, {}) as responses:
        async for _ in responses:
            pass


async def test_our_client_takes_turns(worker_version: str, file_kv: Path, observed: Observe) -> None:
    async with (
        open_worker_process(worker_version, file_kv) as first,
        open_worker_process(worker_version, file_kv) as second,
        client_of(file_kv) as client,
    ):
        await client.wait_for_instances(ENDPOINT, count=2, timeout=10)
        for _ in range(10):
            await collect(client, {"n": 1})
        for worker in (first, second):
            await worker.wait_for(lambda _, w=worker: started(w) == 5)  # type: ignore[misc]  # bound per loop
    observed("5 and 5 of 10")


def started(worker: PeerProcess) -> int:
    return sum(event["event"] == "engine" and event["state"] == "started" for event in worker.events)


async def test_a_real_worker_that_shuts_down_in_mid_stream(
    worker_version: str, file_kv: Path, observed: Observe
) -> None:
    async with open_worker_process(worker_version, file_kv) as worker, client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        received: list[Any] = []
        async with client.stream(ENDPOINT, {"n": 20, "delay": 0.05}) as responses:
            async for item in responses:
                received.append(item)
                if len(received) == 3:
                    worker.process.terminate()
        assert received == expected(20)
        with pytest.raises(Unavailable):
            await collect(client, {"n": 1}, routing="round_robin")
    observed("the running stream ends well, later calls find no instance")


async def test_a_real_worker_that_is_killed_in_mid_stream(
    worker_version: str, file_kv: Path, observed: Observe
) -> None:
    async with open_worker_process(worker_version, file_kv) as worker, client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        received: list[Any] = []
        with pytest.raises(StreamIncomplete):
            async with client.stream(ENDPOINT, {"n": 1000, "delay": 0.02}) as responses:
                async for item in responses:
                    received.append(item)
                    if len(received) == 3:
                        worker.process.kill()
        with pytest.raises(NoInstances):
            await collect(client, {"n": 1})
    observed("StreamIncomplete, then the instance is set aside")


async def test_our_client_and_an_overloaded_worker(worker_version: str, file_kv: Path, observed: Observe) -> None:
    """One runs, one is queued, one is held by the dispatcher: the fourth finds no room."""
    limits = {"DYN_TCP_WORKER_POOL_SIZE": "1", "DYN_TCP_WORK_QUEUE_SIZE": "1"}
    async with open_worker_process(worker_version, file_kv, **limits), client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        answers: list[list[Any]] = []

        async def call_accepted() -> None:
            answers.append(await collect(client, {"n": 4, "delay": 1.5}))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call_accepted)
                await trio.sleep(0.3)
            with pytest.raises((Overloaded, Unavailable)) as caught:
                await collect(client, {"n": 1})
        assert answers == [expected(4)] * 3
    assert type(caught.value) is (Unavailable if worker_version == "1.2.1" else Overloaded)
    observed(f"{type(caught.value).__name__}; the accepted three end well")


async def test_our_caller_process_is_killed(worker_version: str, file_kv: Path, observed: Observe) -> None:
    async with open_worker_process(worker_version, file_kv) as worker, client_of(file_kv) as client:
        await client.wait_for_instances(ENDPOINT, timeout=10)
        command = [sys.executable, "-m", "ingress", "call", ENDPOINT, "-d", '{"n":1000,"delay":0.02}']
        process = await trio.lowlevel.open_process(
            command, env={**os.environ, "DYN_FILE_KV": str(file_kv)}, stdout=subprocess.DEVNULL
        )
        await engine_state(worker, "started")
        process.kill()
        await process.wait()
        await engine_state(worker, "stopped")
    observed("engine told")  # killed or only stopped: a race between reset and end of stream, in the real worker
