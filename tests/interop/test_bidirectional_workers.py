"""Our client calls the bidirectional endpoints of real Dynamo workers, and real bytes are spoken to ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress
from ingress.errors import InputClosed, NoDialBack, StreamIncomplete

from . import peers
from .conftest import Observe
from .peer_process import PeerProcess, open_worker_process
from .peers import raw_client

pytestmark = pytest.mark.interop

BIDI = "demo.backend.bidi"
GENERATE = "demo.backend.generate"

VERSIONS = ("1.3.1", "1.4.2", "1.6.1")
"""The first release with bidirectional endpoints, and those of the captures."""

PATIENCE = 60.0


@pytest.fixture(
    params=[pytest.param(v, marks=[pytest.mark.smoke] if v == max(VERSIONS) else []) for v in VERSIONS],
)
def bidirectional_version(request: pytest.FixtureRequest) -> str:
    version = str(request.param)
    if not peers.is_installed(version):
        pytest.skip(f"ai-dynamo-runtime {version} is not installed; `make interop` installs it")
    if peers.is_namespaced():
        pytest.skip(f"{version} runs in the other half of `make interop`")
    return version


@pytest.fixture(params=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def open_pair(version: str, file_kv: Path, codec: Any = "json") -> AsyncIterator[tuple[PeerProcess, Any]]:
    """A real worker, and a client of ours that speaks this codec: 1.3.1 reads both and names neither in its record."""
    with trio.fail_after(PATIENCE):
        async with (
            open_worker_process(version, file_kv, DYN_REQUEST_PLANE_CODEC=codec) as worker,
            ingress.open_client(discovery=ingress.FileDiscovery(file_kv), codec=codec) as client,
        ):
            await client.wait_for_instances(BIDI, timeout=10)
            yield worker, client


async def fate(worker: PeerProcess, *states: str) -> dict[str, Any]:
    return await worker.wait_for(lambda event: event["event"] == "engine" and event["state"] in states)


async def test_our_client_and_a_real_worker_take_turns(
    bidirectional_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    async with open_pair(bidirectional_version, file_kv, codec) as (worker, client):
        async with client.open_bidirectional(BIDI) as call:
            values = [{"a": 1}, "té", 7, None, True, [1.5, {"deep": [[]]}], "x" * 100_000]
            for value in values:
                await call.send(value)
                assert await anext(call) == {"echo": value}
            await call.close_input()
            assert [response async for response in call] == [{"bye": len(values)}]
        assert not (await fate(worker, "finished"))["stopped"]
    observed("7 values back and forth, unaltered")


async def test_ten_thousand_frames_go_each_way(
    bidirectional_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    async with open_pair(bidirectional_version, file_kv, codec) as (_, client):
        async with client.open_bidirectional(BIDI) as call, trio.open_nursery() as nursery:

            async def send() -> None:
                for i in range(10_000):
                    await call.send({"i": i, "t": f"tök{i}"})
                await call.close_input()

            nursery.start_soon(send)
            *echoes, bye = [response async for response in call]
        assert echoes == [{"echo": {"i": i, "t": f"tök{i}"}} for i in range(10_000)]
        assert bye == {"bye": 10_000}
    observed("10,000 frames each way, in order, unaltered")


async def test_our_stop_ends_both_directions_of_a_real_worker(
    bidirectional_version: str, file_kv: Path, observed: Observe
) -> None:
    async with open_pair(bidirectional_version, file_kv) as (worker, client):
        async with client.open_bidirectional(BIDI) as call:
            await call.send(1)
            assert await anext(call) == {"echo": 1}
            await call.stop()
            assert [response async for response in call] == []
            with pytest.raises(InputClosed):
                await call.send(2)
        assert not (await fate(worker, "stopped"))["killed"]
        async with client.open_bidirectional(BIDI) as call:  # the instance stays in rotation
            await call.close_input()
            assert [response async for response in call] == [{"bye": 0}]
    observed("both streams closed, engine stopped, the instance stays in rotation")


@pytest.mark.parametrize("is_input_closed", [False, True])
async def test_leaving_kills_a_real_worker_s_engine_or_finds_it_finished(
    bidirectional_version: str, is_input_closed: bool, file_kv: Path, observed: Observe
) -> None:
    async with open_pair(bidirectional_version, file_kv) as (worker, client):
        async with client.open_bidirectional(BIDI) as call:
            await call.send(1)
            assert await anext(call) == {"echo": 1}
            if is_input_closed:
                await call.close_input()
        seen = await fate(worker, "stopped", "finished")
        if seen["state"] == "stopped":
            assert seen["killed"]
        else:  # an engine whose input the kill has ended may be done before the kill is reported
            assert is_input_closed or seen["stopped"]
    observed("input closed: killed or finished" if is_input_closed else "input open: killed")


async def test_a_cancelled_send_leaves_a_real_worker_fit_for_the_next_call(
    bidirectional_version: str, file_kv: Path, observed: Observe
) -> None:
    """A worker stuck in its own writing hears no kill: it learns from the reset, and 1.3.1 tells its engine nothing."""
    async with open_pair(bidirectional_version, file_kv) as (_, client):
        async with client.open_bidirectional(BIDI) as call:
            with trio.move_on_after(2) as scope:
                while True:  # nobody reads the echoes, so in the end the worker takes no more
                    await call.send("x" * 100_000)
            assert scope.cancelled_caught
            with pytest.raises(StreamIncomplete):
                await anext(call)
        async with client.open_bidirectional(BIDI) as call:
            await call.send("next")
            assert await anext(call) == {"echo": "next"}
    observed("StreamIncomplete, the next call is answered")


async def test_back_pressure_of_a_real_worker_holds_our_sender_and_loses_nothing(
    bidirectional_version: str, file_kv: Path, observed: Observe
) -> None:
    async with open_pair(bidirectional_version, file_kv) as (_, client):
        async with client.open_bidirectional(BIDI) as call, trio.open_nursery() as nursery:
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(400):
                    await call.send("x" * 100_000)
                    sent += 1
                await call.close_input()

            nursery.start_soon(send)
            held_at = -1
            while held_at != sent:
                held_at = sent
                await trio.sleep(0.5)
            count = sum([1 async for _ in call])
        assert (sent, count) == (400, 401)
        assert held_at < 400, "40 MB cannot be on their way"
    observed("40 MB echoed, the sender held until they are read")


async def test_a_unary_endpoint_of_a_real_worker_falls_silent_and_we_do_not_wait_for_ever(
    bidirectional_version: str, file_kv: Path, observed: Observe
) -> None:
    async with (
        open_worker_process(bidirectional_version, file_kv),
        ingress.open_client(discovery=ingress.FileDiscovery(file_kv), dial_back_timeout=1.0) as client,
    ):
        await client.wait_for_instances(GENERATE, timeout=10)
        with pytest.raises(NoDialBack):
            async with client.open_bidirectional(GENERATE):
                pass
    observed("NoDialBack")


# -- the raw exchange, theirs and ours --------------------------------------------------------------------------------


@ingress.bidirectional
async def echo_inputs(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """What the real worker's endpoint does, in tests/interop/peers/dynamo_engines.py."""
    count = 0
    async for request in requests:
        count += 1
        yield {"echo": request}
    yield {"bye": count}


def conversation(target: str, request: raw_client.Request) -> list[tuple[str, bytes]]:
    """Every frame of one raw exchange, without times and subjects."""
    frames: Iterator[raw_client.Frame] = raw_client.call(target, request)
    return [(each.kind, each.payload.replace(request.id.encode(), b"ID")) for each in frames if each.kind != "sent"]


INPUTS = [{"x": 1}, "té", 7, None, [1.5, True], {"deep": {"er": []}}]


async def test_ours_and_theirs_say_the_same_bytes_to_a_raw_caller(
    bidirectional_version: str, codec: str, file_kv: Path, observed: Observe
) -> None:
    said: list[list[tuple[str, bytes]]] = []
    requests = [
        partial(raw_client.Request, inputs=INPUTS, codec=codec),
        partial(raw_client.Request, inputs=[], codec=codec),
    ]

    async def converse(store: Path) -> None:
        target = raw_client.find_target(str(store), BIDI)
        said.append(
            [
                frame
                for make in requests
                for frame in await trio.to_thread.run_sync(conversation, target, make(), abandon_on_cancel=True)
            ]
        )

    with trio.fail_after(PATIENCE):
        async with open_worker_process(bidirectional_version, file_kv):
            await converse(file_kv)
        ours = file_kv.with_name("ours")
        async with ingress.serving(
            echo_inputs, endpoint=BIDI, discovery=ingress.FileDiscovery(ours), linger=0.0, drain_budget=0.0
        ):
            await converse(ours)
    theirs, own = said
    assert [kind for kind, _ in theirs].count("data") == len(INPUTS) + 1 + 1 + 1 + 1
    assert own == theirs
    observed("the same bytes")
