"""Processes that are held, killed, forked, starved and signalled, and clocks that jump."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

import ingress
from ingress._forks import EXIT_FORKED
from ingress.wire.messages import ControlWord

from .raw_caller import RawCaller, RawResponse
from .reliability.served import PATIENCE, TARGETS, Watch, Worker, environment, open_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched in /proc")

MIB = 1 << 20
ENDPOINT = "demo.backend.generate"

CALLER = """
import sys, trio, ingress
from pathlib import Path

async def take(client, number):
    async with client.stream("demo.backend.generate", {"do": "count", "n": int(sys.argv[2]), "pause": 0.02}) as items:
        count = 0
        async for item in items:
            count += 1
            if count == 1:
                print("begun", flush=True)
        print("took", count, flush=True)

async def main():
    async with ingress.open_client(discovery=ingress.FileDiscovery(Path(sys.argv[1]))) as client:
        await client.wait_for_instances("demo.backend.generate")
        async with trio.open_nursery() as nursery:
            for number in range(int(sys.argv[3])):
                nursery.start_soon(take, client, number)

trio.run(main)
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with open_worker() as running:
        yield running


@contextlib.asynccontextmanager
async def open_caller_process(worker: Worker, items: int, streams: int) -> AsyncIterator[trio.Process]:
    """Run a caller of our own as a process; entered when every stream has begun."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", CALLER, str(worker.directory / "kv"), str(items), str(streams)],
        stdout=subprocess.PIPE,
        env=environment(worker.directory),
    )
    try:
        with trio.fail_after(PATIENCE):
            await read_until(process, "begun", streams)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def read_until(process: trio.Process, word: str, count: int) -> list[str]:
    """Read until so many whole lines begin with the word."""
    assert process.stdout is not None
    data = b""
    while sum(line.startswith(word.encode()) for line in data.split(b"\n")[:-1]) < count:
        more = await process.stdout.receive_some()
        assert more, data
        data += more
    return data.decode().splitlines()


# -- callers ---------------------------------------------------------------------------------------------------------


async def test_d12_the_streams_of_a_caller_that_is_killed_end_and_are_counted(worker: Worker) -> None:
    watch, before = Watch(worker), await worker.sample("dynamo_component_cancellation_total")
    async with open_caller_process(worker, 10**6, 50) as caller:
        assert await worker.in_flight() == 50
        caller.kill()
    await watch.assert_back()
    assert await worker.sample("dynamo_component_cancellation_total") == before + 50


async def test_d14_the_streams_of_a_caller_that_is_held_go_on_when_it_does(worker: Worker) -> None:
    async with open_caller_process(worker, 100, 10) as caller:
        caller.send_signal(signal.SIGSTOP)
        await trio.sleep(3)
        caller.send_signal(signal.SIGCONT)
        with trio.fail_after(PATIENCE):
            lines = await read_until(caller, "took", 10)
            assert await caller.wait() == 0
    assert [line for line in lines if line.startswith("took")] == ["took 100"] * 10


async def test_d15_t02_a_worker_that_is_held_loses_nothing_when_it_goes_on(worker: Worker) -> None:
    async with open_caller_process(worker, 100, 10) as caller:
        worker.process.send_signal(signal.SIGSTOP)
        await trio.sleep(3)
        worker.process.send_signal(signal.SIGCONT)
        with trio.fail_after(PATIENCE):
            lines = await read_until(caller, "took", 10)
    assert [line for line in lines if line.startswith("took")] == ["took 100"] * 10
    await worker.assert_alive()


# -- descriptors and memory ------------------------------------------------------------------------------------------


async def test_l03_a_worker_without_descriptors_neither_spins_nor_ends_and_comes_back() -> None:
    with open_worker(descriptors=90) as worker:
        async with worker.open_caller() as caller:
            connection = await caller.connect(worker)
            running = await caller.call(connection, {"do": "count", "n": 100, "pause": 0.02})
            await running.read_items(1)
            lines, used = len(worker.log().splitlines()), worker.cpu_seconds()
            crowd = [await worker.connect() for _ in range(200)]
            with trio.fail_after(PATIENCE):
                assert len((await running.read_to_sentinel()).items) == 100
            assert worker.cpu_seconds() - used < 2  # of the two seconds; a loop that spins takes them all, or more
            assert len(worker.log().splitlines()) - lines < 30
            for stream in crowd:
                stream.close_nowait()
        await worker.assert_alive()
        assert "Traceback" not in worker.log()


async def test_f15_l03_l04_connections_and_streams_leave_each_other_their_descriptors() -> None:
    """Every connection and then every stream that can be had is taken; whoever was acked is answered all the same."""
    with open_worker(descriptors=256) as worker:
        async with worker.open_caller() as caller:
            good = await caller.connect(worker)
            crowd = [await worker.connect() for _ in range(300)]
            streams: list[RawResponse] = []
            refused = 0
            while refused < 50:
                ack = await good.ask(caller.payload({"do": "wait"}))
                if ack == "":
                    with trio.fail_after(PATIENCE):
                        streams.append(await caller.accept())
                else:
                    assert ack == "Server overloaded: worker is short of descriptors"
                    refused += 1
            assert 60 < len(streams) < 256 // 2
            assert worker.descriptors() < 256 - 20
            assert await worker.sample("ingress_connections_open") < 256 // 2
            assert await worker.sample("ingress_missed_renewals") == 0
            await streams.pop().aclose()  # one that leaves makes room for one
            await trio.sleep(0.5)
            assert (await (await caller.call(good, "hello?")).read_to_sentinel()).items == ["hello?"]
            for stream in crowd:
                stream.close_nowait()
            for response in streams:
                await response.aclose()
        await worker.assert_alive()
        assert "Too many open files" not in worker.log()


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group with a memory limit, below our own; skips where none can be made."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    paths = {line.split(":")[1]: line.split(":", 2)[2].lstrip("/") for line in own}
    if "memory" in paths:
        base, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        parent = base / paths["memory"] if (base / paths["memory"]).is_dir() else base
    else:
        parent, name = Path("/sys/fs/cgroup") / paths.get("", ""), "memory.max"
    group = parent / f"ingress-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as exc:
        pytest.skip(f"no control group can be made here: {exc}")
    try:
        try:
            (group / name).write_text(str(limit))
        except OSError as exc:
            pytest.skip(f"no memory limit can be set here: {exc}")
        yield group
    finally:
        group.rmdir()


@pytest.fixture
def group() -> Iterator[Path]:
    with memory_group(256 * MIB) as made:
        yield made


async def test_l08_under_a_memory_limit_requests_are_refused_before_the_kernel_ends_the_worker(group: Path) -> None:
    join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    with open_worker(before=join) as worker:
        refusals = 0
        async with worker.open_caller() as caller:
            connection = await caller.connect(worker)
            running = await caller.call(connection, {"do": "count", "n": 400, "pause": 0.01})
            for _ in range(200):
                ack = await connection.ask(caller.payload({"do": "wait", "text": "x" * 2 * MIB}))
                if ack == "":
                    await caller.accept()
                else:  # refused whole, or before it was and then the connection is closed
                    assert ack == "Server overloaded: worker is short of memory"
                    refusals += 1
                    connection = await caller.connect(worker)
                await trio.sleep(0.005)
            assert refusals > 0
            assert len((await running.read_to_sentinel()).items) == 400
            assert worker.process.poll() is None
        with trio.fail_after(PATIENCE):  # what the callers have left is given back
            while True:
                with contextlib.suppress(AssertionError):
                    await worker.assert_alive()
                    break
                await trio.sleep(0.5)


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_r01_fifty_streams_are_finished_after_sigterm_and_the_record_is_gone_first() -> None:
    with open_worker(grace=0.5) as worker:
        async with worker.open_caller() as caller:
            connection = await caller.connect(worker)
            running = [await caller.call(connection, {"do": "wait", "seconds": 2}) for _ in range(50)]
            worker.process.send_signal(signal.SIGTERM)
            with trio.fail_after(1):
                while any(path.is_file() for path in (worker.directory / "kv").rglob("*")):
                    await trio.sleep(0.02)
            assert (await (await caller.call(connection, "late")).read_to_sentinel()).items == ["late"]
            await trio.sleep(0.8)
            for late in (connection, await caller.connect(worker)):
                assert (await late.ask(caller.payload("too late"))).startswith("Server unavailable: ")
            for response in running:
                assert (await response.read_to_sentinel()).items == ["begun", "done"]
                await response.aclose()
        assert worker.process.wait(PATIENCE) == 0


def test_r02_an_idle_worker_ends_with_0_and_leaves_no_record() -> None:
    with open_worker() as worker:
        assert worker.stop() == 0
        assert not any(path.is_file() for path in (worker.directory / "kv").rglob("*"))


async def test_r06_only_the_streams_of_a_worker_that_is_killed_fail_and_later_calls_go_elsewhere(
    tmp_path: Path,
) -> None:
    with open_worker(file_kv=tmp_path) as first, open_worker(file_kv=tmp_path) as second:
        await check_failover(first, second, tmp_path)


async def check_failover(first: Worker, second: Worker, file_kv: Path) -> None:
    whole, failed = 0, 0
    async with ingress.open_client(discovery=ingress.FileDiscovery(file_kv)) as client:
        await client.wait_for_instances(ENDPOINT, 2)

        async def call() -> None:
            nonlocal whole, failed
            try:
                async with client.stream(ENDPOINT, {"do": "wait", "seconds": 1}) as responses:
                    assert [item async for item in responses] == ["begun", "done"]
                whole += 1
            except ingress.IngressError:
                failed += 1

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(call)
                await trio.sleep(0.5)
                on_first = await first.in_flight()
                first.process.kill()
            assert (whole, failed) == (16 - on_first, on_first)
            for _ in range(4):
                async with client.stream(ENDPOINT, "after") as responses:
                    assert [item async for item in responses] == ["after"]
    await second.assert_alive()


async def test_r08_signals_that_are_not_ours_change_nothing(worker: Worker) -> None:
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG):
        worker.process.send_signal(number)
        await worker.assert_alive()


def test_r09_a_second_worker_on_a_port_ends_at_once_and_names_it(worker: Worker, tmp_path: Path) -> None:
    host, port = worker.address
    ended = subprocess.run(
        [sys.executable, "-m", "ingress", "serve", "echo", "--port", str(port)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(tmp_path),
    )
    assert ended.returncode != 0
    assert f"{host}:{port}" in ended.stderr


# -- children --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fork", "spawn"])
async def test_r10_the_end_of_an_engines_child_harms_nothing_and_what_is_spawned_has_no_socket(
    how: str, worker: Worker
) -> None:
    async with worker.open_caller() as caller:
        connection = await caller.connect(worker)
        other = await caller.call(connection, {"do": "wait", "seconds": 0.5})
        said = await worker.tell(caller, {"do": how})
        if how == "spawn":
            assert said.items == [[]]
        assert said.is_whole
        assert (await other.read_to_sentinel()).items == ["begun", "done"]
    await worker.assert_alive()


KINDS = {name: f"tests.reliability.forking_engine:{name}" for name in ("on_trio", "on_asyncio", "blocking")}


def open_forking_worker(kind: str, *flags: str) -> contextlib.AbstractContextManager[Worker]:
    """The usual engine, and beside it one of those that fork, as the second endpoint."""
    return open_worker(*flags, targets={ENDPOINT: TARGETS[ENDPOINT], "demo.backend.fork": KINDS[kind]})


async def fork(worker: Worker, caller: RawCaller, how: str) -> Any:
    """Have the engine fork, and return what it says of the child."""
    connection = await caller.connect(worker)
    connection.path = connection.path.replace("generate", "fork")
    response = await caller.call(connection, {"child": how})
    said = await response.read_to_sentinel()
    assert said.is_whole and len(said.items) == 1, said
    await response.aclose()
    return said.items[0]


def can_listen(address: tuple[str, int]) -> bool:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(address)
            other.listen()
        except OSError:
            return False
    return True


@pytest.mark.parametrize("how", ["stays", "target"])
@pytest.mark.parametrize("kind", KINDS)
async def test_r10_a_forked_child_keeps_no_stream_and_no_port_open(kind: str, how: str) -> None:
    with open_forking_worker(kind) as worker:
        status = worker.status_url.rpartition(":")[2]
        async with worker.open_caller() as caller:
            connection = await caller.connect(worker)
            bystanders = [await caller.call(connection, {"do": "wait"}) for _ in range(3)]
            async with httpx2.AsyncClient() as http:  # its connection to the status server stays open
                await http.get(f"{worker.status_url}/health")
                child, sockets = await fork(worker, caller, how)
            try:
                assert sockets == []
                with trio.fail_after(5):
                    for bystander in bystanders:
                        await bystander.send_word(ControlWord("stop"))
                        assert (await bystander.read_to_end()).end == "fin"
                await worker.assert_alive()
                assert await trio.to_thread.run_sync(worker.stop) == 0
                os.kill(child, 0)
                assert can_listen(worker.address) and can_listen(("127.0.0.1", int(status)))
            finally:
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("how", ["returns", "raises", "exits", "yields", "waits"])
@pytest.mark.parametrize("kind", KINDS)
async def test_r10_a_forked_child_that_comes_back_ends_and_no_caller_loses_anything(kind: str, how: str) -> None:
    with open_forking_worker(kind) as worker:
        async with worker.open_caller() as caller:
            connection = await caller.connect(worker)
            running = [await caller.call(connection, {"do": "count", "n": 300, "pause": 0.01}) for _ in range(5)]
            for _ in range(5):
                assert await fork(worker, caller, how) == EXIT_FORKED
                await worker.assert_alive()
            for response in running:
                said = await response.read_to_sentinel()
                assert said.is_whole and [number for number, _ in said.items] == list(range(300))
        lines = [line for line in worker.log().splitlines() if "came back from the engine" in line]
        assert len(lines) == 5
        assert worker.stop() == 0
        assert not any(path.is_file() for path in (worker.directory / "kv").rglob("*"))


async def test_r10_the_child_of_one_of_several_processes_that_comes_back_ends() -> None:
    with open_forking_worker("on_trio", "--processes", "2") as worker:
        async with worker.open_caller() as caller:
            assert await fork(worker, caller, "returns") == EXIT_FORKED
            child, sockets = await fork(worker, caller, "stays")
            assert sockets == []
        try:
            assert await trio.to_thread.run_sync(worker.stop) == 0
        finally:
            os.kill(child, signal.SIGKILL)


# -- clocks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faketime() -> Path:
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    return library


async def test_t01_no_timeout_moves_with_the_wall_clock(faketime: Path, tmp_path: Path) -> None:
    stamp = tmp_path / "clock"
    stamp.write_text("+0")
    fake = {"LD_PRELOAD": str(faketime), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1"}
    fake["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
    with open_worker(variables=fake) as worker:
        async with worker.open_caller() as caller:
            connection = await caller.connect(worker)
            running = await caller.call(connection, {"do": "count", "n": 300, "pause": 0.01})
            for offset in ("+3600", "-3600", "+3650d", "+0"):
                stamp.write_text(offset)
                assert (await worker.tell(caller, frontend_send_ts_ns=1)).is_whole
                await trio.sleep(0.3)
            assert len((await running.read_to_sentinel()).items) == 300
        assert any(path.is_file() for path in (worker.directory / "kv").rglob("*"))


@pytest.fixture
def time_namespace() -> list[str]:
    before = ["unshare", "--time", "--monotonic", "1000000", "--fork", "--kill-child"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    probe = subprocess.run([*before, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no time namespace can be made here: {probe.stderr.strip()}")
    return before


async def test_t02_a_worker_in_another_monotonic_time_is_found_and_serves(time_namespace: list[str]) -> None:
    with open_worker(before=time_namespace) as worker:
        async with ingress.open_client(discovery=ingress.FileDiscovery(worker.directory / "kv")) as client:
            await client.wait_for_instances(ENDPOINT)
            async with client.stream(ENDPOINT, 5) as responses:
                assert [item async for item in responses] == [5]
