"""``ingress serve --processes 2`` as an operator has it: found, watched, killed, drained, and never left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ingress.cli import main
from ingress.errors import IngressError
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.two_part import encode_two_part

from .fleet import ECHO, ENDPOINT, PATIENCE, Fleet, environment, is_alive, open_fleet, until, until_async

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched in /proc")

BRIEF = {"n": 5}
LONG = {"n": 40, "delay": 0.05}


async def test_each_process_is_an_instance_that_is_called_and_one_page_shows_all(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        first, second = sorted(fleet.instances())
        assert [await fleet.take(instance, BRIEF) for instance in (first, first, second)] == [5, 5, 5]
        card = fleet.said()
        assert re.search(r"processes +2 ", card)
        assert len(set(re.findall(r"process \d +tcp 127\.0\.0\.1:(\d+) +instance +[0-9a-f]+", card))) == 2
        # The page: series of an instance stand apart, others are summed, gauges bear the number of the process.
        text = (await fleet.page("/metrics")).text
        requests = dict(re.findall(r'^dynamo_component_requests_total{.*worker_id="(\w+)"} (\d+)$', text, re.MULTILINE))
        assert requests == {f"{first:x}": "2", f"{second:x}": "1"}
        assert await fleet.total("dynamo_work_handler_time_to_first_response_seconds_count") == 3
        assert re.findall(r'^ingress_process_up{process="(\d)"} (\d)$', text, re.MULTILINE) == [("0", "1"), ("1", "1")]
        assert text.count("# TYPE dynamo_component_requests_total ") == 1
        health = (await fleet.page("/health?verbose")).json()
        assert (health["status"], health["endpoints"], health["reasons"]) == ("ready", {"generate": "ready"}, {})
        assert {process["instance"] for process in health["processes"]} == {f"{first:x}", f"{second:x}"}
        assert (await fleet.page("/live")).status_code == 200
        assert (await fleet.page("/progress")).json()["status"] == "idle"
        top = await trio.run_process(
            [sys.executable, "-m", "ingress", "top", fleet.url, "--once", "--interval", "0.1"],
            capture_stdout=True,
            env=environment(),
        )
        assert re.search(r"2_processes +serving +demo\.backend\.generate", top.stdout.decode())
        assert {"0", "1"} <= set(re.findall(r"process=(\d) request completed", fleet.said()))
        # A signal that asks for a task tree asks all of them.
        fleet.process.send_signal(signal.SIGUSR1)
        for number in (0, 1):
            await fleet.wait_for_line(rf"process={number} .*task")
        # And the end of all of it.
        pids = await fleet.pids()
        assert await fleet.end(signal.SIGTERM) == 0
        assert not any(is_alive(pid) for pid in pids)
        assert not any(path.is_file() for path in (tmp_path / "kv" / "v1" / "instances").iterdir())


async def test_a_killed_process_is_started_again_and_the_others_streams_are_whole(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        before = fleet.instances()
        by_instance = {int(process["instance"], 16): process for process in await fleet.processes()}
        killed, kept = sorted(before)
        await fleet.take(killed, BRIEF)
        assert await fleet.total("dynamo_work_handler_time_to_first_response_seconds_count") == 1
        taken: list[int] = []

        async def take() -> None:
            taken.append(await fleet.take(kept, LONG))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.sleep(0.5)
            os.kill(by_instance[killed]["pid"], signal.SIGKILL)
            number = by_instance[killed]["process"]
            await fleet.wait_for_line(rf"process {number}: .* was ended by SIGKILL; starting it again in 0\.5 s")
            assert (await fleet.page("/health")).status_code == 503
            assert (await fleet.page("/live")).status_code == 200
            await until(lambda: kept in fleet.instances() and len(fleet.instances() - before) == 1)
        assert taken == [LONG["n"]]
        (successor,) = fleet.instances() - before
        assert await fleet.take(successor, BRIEF) == 5

        async def is_ready() -> bool:
            return (await fleet.page("/health")).status_code == 200

        await until_async(is_ready)
        text = (await fleet.page("/metrics")).text
        assert f'ingress_process_restarts_total{{process="{number}"}} 1' in text
        assert f'worker_id="{killed:x}"' not in text, "an instance's own series end with it"
        assert await fleet.total("dynamo_work_handler_time_to_first_response_seconds_count") == 3, "sums never fall"
        assert await fleet.end(signal.SIGTERM) == 0


REFUSED = "Server unavailable: dial-back address refused"


async def ask_to_dial(record: InstanceRecord, host: str, port: int) -> str:
    """Send one request whose answer is to go to that address, and return its ack."""
    where, path = record.tcp_target
    info = ConnectionInfo(f"{host}:{port}", "s", "r", "response").to_address()
    control = RequestControlMessage("r", "single_in", "many_out", info, payload_codec="json")
    name, _, number = where.rpartition(":")
    async with await trio.open_tcp_stream(name, int(number)) as stream:
        await stream.send_all(encode_request_frame(path, {}, encode_two_part(control.encode(), b"1")))
        acks = AckDecoder()
        for _ in range(100):
            acks.receive_data(await stream.receive_some())
            for text in acks:
                return text
    raise AssertionError("no ack")


async def test_d03_no_process_dials_its_parent_or_another_process(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:

        async def check(known: set[int]) -> None:
            records = [record for record in fleet.client.instances(ENDPOINT) if record.instance_id in known]
            ports = {int(record.tcp_target[0].rpartition(":")[2]) for record in records}
            assert len(ports) == 2
            ports.add(int(fleet.url.rpartition(":")[2]))
            ports.update(loopback_ports(await fleet.pids()))
            assert len(ports) == 5, "of requests and of status: two each, and the parent's"
            for record in records:
                assert {port: await ask_to_dial(record, "127.0.0.1", port) for port in ports} == dict.fromkeys(
                    ports, REFUSED
                )
            with socket.create_server(("127.0.0.1", 0)) as caller:
                assert await ask_to_dial(records[0], *caller.getsockname()) == ""

        before = fleet.instances()
        await check(before)
        os.kill((await fleet.pids())[0], signal.SIGKILL)
        await until(lambda: len(fleet.instances()) == 2 and fleet.instances() != before)
        await until(lambda: "serves again" in fleet.said())
        await check(fleet.instances())
        assert await fleet.end(signal.SIGTERM) == 0


def loopback_ports(pids: list[int]) -> set[int]:
    """The ports that processes listen on, as the kernel knows them."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.parametrize("reaches_all", [False, True], ids=["the parent", "the whole group, as systemd does"])
async def test_a_signal_drains_all_and_running_streams_finish(tmp_path: Path, reaches_all: bool) -> None:
    async with open_fleet(tmp_path) as fleet:
        pids = await fleet.pids()
        taken: list[int] = []

        async def take(instance: int) -> None:
            taken.append(await fleet.take(instance, LONG))

        async with trio.open_nursery() as nursery:
            for instance in fleet.instances():
                nursery.start_soon(take, instance)
            await until_async(lambda: _are_running(fleet, 2))
            for pid in pids if reaches_all else ():
                os.kill(pid, signal.SIGTERM)
            assert await fleet.end(signal.SIGTERM) == 0
        assert taken == [LONG["n"]] * 2
        assert not any(is_alive(pid) for pid in pids)


async def _are_running(fleet: Fleet, count: int) -> bool:
    return bool((await fleet.page("/progress")).json()["running"] == count)


@pytest.mark.parametrize(
    ("signals", "budget", "code"),
    [
        ((signal.SIGTERM,), "0.2", 4),
        ((signal.SIGTERM, signal.SIGTERM), "60", 143),
    ],
    ids=["over the budget", "second signal"],
)
async def test_the_exit_code_is_the_worst_of_the_processes(
    tmp_path: Path, signals: tuple[int, ...], budget: str, code: int
) -> None:
    async with open_fleet(tmp_path, "--drain-budget", budget) as fleet:
        pids = await fleet.pids()

        async def be_cut_off() -> None:
            with pytest.raises(IngressError):
                await fleet.take(min(fleet.instances()), {"n": 10_000, "delay": 0.05})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_cut_off)
            await until_async(lambda: _are_running(fleet, 1))
            assert await fleet.end(*signals) == code
        assert not any(is_alive(pid) for pid in pids)


async def test_processes_drain_and_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as fleet:
        pids = await fleet.pids()
        taken: list[int] = []

        async def take() -> None:
            taken.append(await fleet.take(min(fleet.instances()), LONG))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await until_async(lambda: _are_running(fleet, 1))
            fleet.process.kill()
        assert taken == [LONG["n"]], "what runs may finish"
        await until(lambda: not any(is_alive(pid) for pid in pids))
        assert len(re.findall(r"process=\d draining: the parent process is gone", fleet.said())) == 2


async def test_a_process_that_does_not_answer_is_told_of_and_holds_up_no_page(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, "--drain-budget", "1") as fleet:
        stuck, _ = await fleet.pids()
        await fleet.take(min(fleet.instances()), BRIEF)
        total = await fleet.total("dynamo_component_requests_total")
        os.kill(stuck, signal.SIGSTOP)
        try:
            assert (await fleet.page("/live")).status_code == 503
            assert (await fleet.page("/progress")).json()["status"] == "stalled"
            assert (await fleet.page("/health?verbose")).json()["reasons"]["process 0"].startswith("does not answer")
            assert await fleet.total("dynamo_component_requests_total") == total, "its counts stay in the sums"
            assert await fleet.total("ingress_build_info") == 1, "its gauges are not known"
        finally:
            os.kill(stuck, signal.SIGCONT)
        assert await fleet.end(signal.SIGTERM) == 0


# -- starts that fail --------------------------------------------------------------------------------------------------


def run_serve(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ingress", "serve", *arguments, "--file-kv", str(tmp_path / "kv"), "--grace", "0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("program", "code", "complaint"),
    [
        ("raise RuntimeError('no weights')", 3, r"error: .*\n  why: .*no weights"),
        (
            "import os\nos.abort()",
            3,
            r"error: worker process \d+ was ended by SIGABRT\n  why: it had not started to serve",
        ),
    ],
    ids=["raises", "crashes"],
)
def test_a_first_start_that_fails_ends_everything_with_its_message(
    tmp_path: Path, program: str, code: int, complaint: str
) -> None:
    (tmp_path / "broken.py").write_text(f"{program}\nasync def generate(request):\n    yield request\n")
    finished = run_serve(tmp_path, "broken.py", "--processes", "3")
    assert finished.returncode == code, finished.stderr
    assert re.search(complaint, finished.stderr), finished.stderr
    assert finished.stderr.count("error: ") == 1, "three processes have one message"


def test_a_port_that_one_process_cannot_have_ends_those_that_could_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] - 1
        finished = run_serve(tmp_path, *ECHO, "--processes", "2", "--port", str(port))
    assert finished.returncode == 3, finished.stderr
    assert f"cannot listen on 127.0.0.1:{port + 1}" in finished.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--port", "65535"), "--port 65535 leaves no room for 2 processes"),
        (("--advertise", "worker.example:9000"), "--advertise worker.example:9000 cannot be used"),
        (("--discovery", "mem"), "mem discovery cannot find other processes"),
    ],
)
def test_options_that_do_not_go_with_several_processes_are_usage_errors(
    options: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "echo", "--processes", "2", *options]) == 2
    assert complaint in capsys.readouterr().err
