"""Canaries and pages of a worker that has callers: neither is in the other's way."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import trio
from trio.testing import MockClock

from ingress import Context
from ingress.discovery import MemoryDiscovery
from ingress.status import StatusOptions
from ingress.testing import MemoryNetwork

from .raw_caller import Stage, open_stage

CANARY = {"from": "canary"}
PROBED = StatusOptions(
    canaries=True, canary_wait=2.0, canary_timeout=1.0, health_check_payloads={"demo.backend.generate": CANARY}
)


class Probed:
    """An engine that can be told to fail or hang, and notes when it was asked by whom."""

    def __init__(self) -> None:
        self.canaries_at: list[float] = []
        self.ended: list[str] = []
        self.does = "well"

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if request == CANARY:
            self.canaries_at.append(trio.current_time())
        try:
            if self.does == "fail":
                raise ValueError("no backend")
            if self.does == "hang" and request == CANARY:
                await trio.sleep_forever()
            yield request
        finally:
            self.ended.append("killed" if context.is_killed else "ended")


def is_ready(stage: Stage) -> bool:
    return bool(stage.worker.status.health.is_ready)


async def test_good_requests_prove_health_and_hold_canaries_off(autojump_clock: MockClock) -> None:
    engine = Probed()
    async with open_stage(engine, status=PROBED) as stage:
        assert not is_ready(stage), "nothing is proved yet"
        for _ in range(20):
            await stage.tell("good")
            assert is_ready(stage)
            await trio.sleep(0.5)
        assert engine.canaries_at == []
        last = trio.current_time()
        await trio.sleep(4.2)
        # Two seconds after the last request, which was half a second before, and two after that.
        assert [round(at - last, 1) for at in engine.canaries_at] == [1.5, 3.5]


async def test_failing_requests_hold_no_canary_off_and_the_worker_stays_announced(autojump_clock: MockClock) -> None:
    engine = Probed()
    engine.does = "fail"
    discovery = MemoryDiscovery()
    async with discovery.open_view() as view, open_stage(engine, status=PROBED, discovery=discovery) as stage:
        began = trio.current_time()
        for _ in range(13):
            await stage.tell("bad")
            await trio.sleep(0.5)
        assert [round(at - began) for at in engine.canaries_at] == [2, 4, 6]
        assert not is_ready(stage)
        assert [record.instance_id for record in view.instances()] == [stage.worker.instance_id]
        # Callers are served while the probes say notready, and one good answer ends that.
        engine.does = "well"
        assert (await stage.tell("good")).items == ["good"]
        assert is_ready(stage)


async def test_a_late_canary_is_cancelled_in_the_engine_and_takes_no_slot(autojump_clock: MockClock) -> None:
    engine = Probed()
    engine.does = "hang"
    async with open_stage(engine, status=PROBED, engine_request_limit=1, request_queue_limit=0) as stage:
        await trio.sleep(2.5)
        assert len(engine.canaries_at) == 1 and engine.ended == []
        assert (await stage.tell("served meanwhile")).is_whole, "the one slot is free for callers"
        await trio.sleep(3)
        assert engine.ended[:2] == ["ended", "killed"]
        assert stage.sample("requests_total") == 1
        assert stage.errors() == {}


async def test_no_canary_is_sent_when_requests_are_refused(autojump_clock: MockClock) -> None:
    engine = Probed()
    async with open_stage(engine, status=PROBED, drain_budget=60.0) as stage:
        response = await stage.call("last")
        await response.read_items(1)
        stage.worker.drain()
        before = len(engine.canaries_at)
        await trio.sleep(10)
        assert len(engine.canaries_at) == before
        assert not is_ready(stage)


async def test_r04_an_engine_that_holds_on_to_its_canary_holds_up_no_drain(autojump_clock: MockClock) -> None:
    """It had stopped the drain before its first phase, for ever."""
    let_go = trio.Event()

    async def generate(request: Any) -> AsyncIterator[Any]:
        if request == CANARY:
            with trio.CancelScope(shield=True):
                await let_go.wait()
        yield request

    async with open_stage(generate, status=PROBED, linger=2.0, drain_budget=60.0) as stage:
        await trio.sleep(3)
        assert not is_ready(stage)
        assert (await stage.tell("good")).is_whole
        began = trio.current_time()
        stage.worker.drain()
        with trio.fail_after(10):
            await stage.worker.closing.wait()
        assert trio.current_time() - began == 2.0
        assert not stage.worker.releasing.is_set(), "the engine is at work"
        let_go.set()
        await stage.worker.releasing.wait()


async def test_o03_hostile_clients_of_the_pages_delay_no_chunk() -> None:
    """One engine streams in lockstep with its caller while a hundred connections do their worst beside it."""

    async def engine(request: Any) -> AsyncIterator[Any]:
        number = 0
        while True:
            yield number
            number += 1
            await trio.sleep(0)

    async with open_stage(engine, network=MemoryNetwork(), status=StatusOptions(port=0)) as stage:
        address = stage.worker.status.address
        assert address is not None
        silent, half, unread = [], [], []
        for number in range(100):
            stream = await trio.open_tcp_stream(*address)
            if number % 3 == 0:
                silent.append(stream)
            elif number % 3 == 1:
                await stream.send_all(b"POST /engine/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n{")
                half.append(stream)
            else:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                with trio.move_on_after(0.01):
                    await stream.send_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
                unread.append(stream)
        response = await stage.call()
        with trio.fail_after(30):
            await response.read_items(2000)
            async with httpx2.AsyncClient() as client:
                assert (await client.get(f"{stage.worker.status.url}/live")).status_code == 200
            await response.read_items(len(response.transcript.items) + 100)
        await response.aclose()
        for stream in (*silent, *half, *unread):
            await trio.aclose_forcefully(stream)
