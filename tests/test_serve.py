"""The ways in: a block in a trio program, and a whole process that ends on a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import ingress
from ingress import Worker, make_worker, run, serving
from ingress._serve import serve_until_signalled
from ingress.discovery import MemoryDiscovery
from ingress.errors import StartupError
from ingress.testing import MemoryNetwork, memory_worker
from ingress.wire.records import EndpointId

from .raw_caller import Transcript, open_raw_caller


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


def worker_on(network: MemoryNetwork, engine: Any = echo, **options: Any) -> Worker:
    return make_worker(engine, network=network, discovery=MemoryDiscovery(), **{"linger": 0.0, **options})


async def test_callers_find_the_endpoint_inside_the_block_and_not_after_it() -> None:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    async with discovery.open_view() as view:
        async with serving(echo, endpoint="ns.comp.ep", network=network, discovery=discovery, linger=0) as worker:
            (record,) = view.instances(EndpointId("ns", "comp", "ep"))
            assert record.instance_id == worker.instance_id
        assert list(view.instances()) == []
    assert network.listeners == {}


async def test_a_worker_may_be_started_in_a_nursery_and_drained() -> None:
    worker = worker_on(MemoryNetwork())
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.serve)
        assert worker.phase.value == "serving"
        worker.drain()
    assert worker.phase.value == "stopped"


async def test_a_worker_that_is_told_to_drain_before_it_serves_ends_in_order() -> None:
    worker = worker_on(MemoryNetwork())
    worker.drain()
    await worker.serve()
    assert worker.phase.value == "stopped"


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serving(echo, network=MemoryNetwork(), discovery=MemoryDiscovery()):
            raise KeyError("mine")


async def test_several_failures_at_once_come_out_as_a_group() -> None:
    async def fail() -> None:
        raise ValueError("second")

    with pytest.raises(ExceptionGroup) as caught:
        async with (
            serving(echo, network=MemoryNetwork(), discovery=MemoryDiscovery()),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(fail)
            raise KeyError("first")
    assert {type(exc) for exc in caught.value.exceptions} == {KeyError, ValueError}


async def test_a_memory_worker_is_a_worker_with_its_client() -> None:
    async with memory_worker(echo) as client, client.stream("demo.backend.generate", {"a": 1}) as responses:
        assert [item async for item in responses] == [{"a": 1}]


# -- signals ---------------------------------------------------------------------------------------------------------


async def stream(request: float) -> AsyncIterator[Any]:
    yield "started"
    await trio.sleep(request)
    yield "done"


async def signalled(budget: float, needed: float, signals: list[tuple[float, int]]) -> tuple[int, Transcript, float]:
    """Serve a request of ``needed`` seconds and send the signals; return the exit code, what was said, and the end."""
    network = MemoryNetwork()
    worker = worker_on(network, stream, drain_budget=budget)
    codes: list[int] = []
    started = trio.Event()

    async def serve() -> None:
        codes.append(await serve_until_signalled(worker, lambda worker: started.set()))

    async with open_raw_caller(network) as caller, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await started.wait()
        response = await caller.call(await caller.connect(worker), needed)
        await response.read_items(1)
        for at, number in signals:
            await trio.sleep(at - trio.current_time())
            signal.raise_signal(number)
        said = await response.read_to_end()
        await response.aclose()
    return codes[0], said, trio.current_time()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_r01_a_signal_drains_and_exits_cleanly(number: int, autojump_clock: MockClock) -> None:
    code, said, _ = await signalled(25, 3, [(1, number)])
    assert code == 0
    assert said.is_whole and said.items == ["started", "done"]


async def test_r04_a_drain_that_cuts_requests_short_exits_with_4(autojump_clock: MockClock) -> None:
    code, said, ended_at = await signalled(5, 100, [(1, signal.SIGTERM)])
    assert code == 4
    assert said.errors[0].kind == "EngineShutdown"
    assert ended_at < 1 + 5 + 3


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_r03_a_second_signal_ends_at_once(number: int, expected: int, autojump_clock: MockClock) -> None:
    code, said, ended_at = await signalled(25, 100, [(1, signal.SIGTERM), (2, number)])
    assert code == expected
    assert not said.has_final
    assert ended_at < 3


async def test_a_worker_that_cannot_start_raises_its_own_error() -> None:
    class Taken(MemoryNetwork):
        async def open_listener(self, host: str, port: int) -> Any:
            raise StartupError("cannot listen on 127.0.0.1:1: Address already in use")

    with pytest.raises(StartupError, match="Address already in use"):
        await serve_until_signalled(worker_on(Taken()))


def test_run_serves_until_a_signal_and_returns() -> None:
    phases: list[str] = []

    def on_started(worker: Worker) -> None:
        phases.append(worker.phase.value)
        signal.raise_signal(signal.SIGTERM)

    run(echo, network=MemoryNetwork(), discovery=MemoryDiscovery(), linger=0, on_started=on_started)
    assert phases == ["serving"]


def test_run_leaves_by_system_exit_when_the_drain_cut_requests_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_started(worker: Worker) -> None:
        worker._life.cancelled_by_drain = 1
        worker.drain()

    with pytest.raises(SystemExit) as caught:
        run(echo, network=MemoryNetwork(), discovery=MemoryDiscovery(), linger=0, on_started=on_started)
    assert caught.value.code == 4


PROGRAM = """
import ingress

async def generate(request, context):
    for i in range(request):
        yield i

def on_started(worker):
    print(worker.address, flush=True)

ingress.run(generate, endpoint="demo.backend.generate", linger=0, on_started=on_started)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
async def test_a_program_of_a_few_lines_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    """What a newcomer writes, as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"DYN_FILE_KV": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    try:
        assert process.stdout is not None
        line = await trio.to_thread.run_sync(process.stdout.readline)
        assert line.startswith("127.0.0.1:")
        records = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(records) == 1
        process.send_signal(signal.SIGTERM)
        _, errors = await trio.to_thread.run_sync(lambda: process.communicate(timeout=20))
        assert (process.returncode, errors) == (0, "")
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    finally:
        process.kill()
        process.wait()


STUBBORN = """
import sys, trio, ingress

async def stubborn(request):
    print("started", flush=True)
    while True:
        try:
            await trio.sleep(3600)
        except trio.Cancelled:
            pass
    yield

ingress.run(stubborn, linger=0.0, drain_budget=0.1)
"""


@pytest.mark.parametrize(("signals", "exit_code"), [(1, 4), (2, 143)])
async def test_r03_r04_an_engine_that_swallows_its_cancellation_does_not_hold_the_process(
    signals: int, exit_code: int, tmp_path: Path
) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", STUBBORN],
        env={**os.environ, "DYN_FILE_KV": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with ingress.open_client(discovery=ingress.FileDiscovery(tmp_path)) as client:
            await client.wait_for_instances("demo.backend.generate", timeout=20)
            async with client.stream("demo.backend.generate", None):
                assert process.stdout is not None
                assert await process.stdout.receive_some() == b"started\n"
                for _ in range(signals):
                    process.terminate()
                    await trio.sleep(0.5)  # two signals at once are one to a process
                with trio.fail_after(20):
                    assert await process.wait() == exit_code
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


SLOW_TO_RELEASE = """
import contextlib, trio, ingress

class Slow(ingress.Engine):
    async def generate(self, request, context):
        yield request

    @contextlib.asynccontextmanager
    async def lifespan(self):
        yield
        print("releasing", flush=True)
        with trio.CancelScope(shield=True):
            await trio.sleep(%s)
        print("released", flush=True)

ingress.run(Slow(), linger=0.0, drain_budget=%s, on_started=lambda worker: worker.drain())
"""


@pytest.mark.parametrize(
    ("seconds", "budget", "exit_code", "said"),
    [
        pytest.param(2.5, 30, 0, "releasing\nreleased\n", id="within the time of the drain"),
        pytest.param(3600, 0.1, 4, "releasing\n", id="for ever"),
    ],
)
async def test_r04_engines_release_what_they_hold_in_what_is_left_of_the_time_of_the_drain(
    seconds: float, budget: float, exit_code: int, said: str, tmp_path: Path
) -> None:
    """Whatever it was, they had been cut after 1.5 s."""
    with trio.fail_after(30):
        ended = await trio.run_process(
            [sys.executable, "-c", SLOW_TO_RELEASE % (seconds, budget)],
            env={**os.environ, "DYN_FILE_KV": str(tmp_path)},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert (ended.returncode, ended.stdout.decode()) == (exit_code, said)
    assert (b"engines have not released what they hold" in ended.stderr) == (exit_code == 4)
