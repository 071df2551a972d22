"""What the command does where nobody takes what it writes: full pipes, full disks, terminals that are gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest

from .test_cli_processes import INGRESS, PATIENCE, environment, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals as POSIX has them")

FULL = Path("/dev/full")
has_full = pytest.mark.skipif(not FULL.exists(), reason="no device that is full")

# A shutdown gives a blocked reader some seconds to take the last lines.
LAST_WORDS = 8.0


@contextmanager
def full_pipe() -> Iterator[int]:
    """Enter with the writing end of a pipe that blocks and takes nothing."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write_end, True)
    try:
        yield write_end
    finally:
        os.close(read_end)
        os.close(write_end)


@contextmanager
def full_device() -> Iterator[int]:
    with FULL.open("wb") as device:
        yield device.fileno()


@contextmanager
def dead_terminal() -> Iterator[int]:
    ours, theirs = os.openpty()
    os.close(ours)
    try:
        yield theirs
    finally:
        os.close(theirs)


BAD_OUTPUTS = [
    pytest.param(full_pipe, id="full pipe"),
    pytest.param(full_device, id="full device", marks=has_full),
    pytest.param(dead_terminal, id="dead terminal"),
]


def wait_until(is_so: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def serving_into(
    output: int, directory: Path, *arguments: str, target: str = "echo"
) -> Iterator[subprocess.Popen[bytes]]:
    """Enter when the worker, or every one of several, has been announced."""
    kv = directory / "kv"
    count = int(arguments[arguments.index("--processes") + 1]) if "--processes" in arguments else 1
    command = [*INGRESS, "serve", target, "--grace", "0", "--file-kv", str(kv), *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=directory,
        env=environment(PYTHONUNBUFFERED=""),
    )
    try:
        wait_until(lambda: len(records(kv)) == count, process)
        yield process
    finally:
        process.kill()
        process.wait()


def records(kv: Path) -> list[Path]:
    return [path for path in kv.rglob("v1/instances/*") if path.is_file()]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def is_ready(port: str) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx2.TransportError:
        return False


def children_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Those of every thread: processes are started by one that is not the first."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return {int(pid) for thread in threads for pid in (thread / "children").read_text().split()}


def call(directory: Path) -> object:
    called = run("call", "demo.backend.generate", "-d", '"hi"', "--file-kv", str(directory / "kv"), cwd=directory)
    assert called.returncode == 0, called.stderr
    return json.loads(called.stdout)


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(LAST_WORDS)


@pytest.mark.parametrize("output", BAD_OUTPUTS)
def test_r08_a_worker_whose_screen_takes_nothing_serves_and_drains(
    output: Callable[[], AbstractContextManager[int]], tmp_path: Path
) -> None:
    with output() as stderr, serving_into(stderr, tmp_path) as process:
        assert call(tmp_path) == "hi"
        assert end(process) == 0
        assert records(tmp_path / "kv") == []


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
@pytest.mark.parametrize("output", BAD_OUTPUTS)
def test_r08_processes_are_started_again_where_their_screen_takes_nothing(
    output: Callable[[], AbstractContextManager[int]], tmp_path: Path
) -> None:
    port = free_port()
    with output() as stderr, serving_into(stderr, tmp_path, "--processes", "2", "--status-port", port) as process:
        wait_until(lambda: is_ready(port), process)
        before, first = children_of(process), records(tmp_path / "kv")
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(set(records(tmp_path / "kv")) - set(first)) == 2, process)
        assert children_of(process).isdisjoint(before)
        assert end(process) == 0


@pytest.mark.parametrize("output", BAD_OUTPUTS)
def test_r08_a_service_that_fails_does_not_wait_for_somebody_to_read_why(
    output: Callable[[], AbstractContextManager[int]], tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text("raise RuntimeError('no model')")
    command = [*INGRESS, "serve", "failing.py", "--file-kv", "kv"]
    with output() as stderr:
        process = subprocess.Popen(command, stderr=stderr, cwd=tmp_path, env=environment())
        try:
            assert process.wait(PATIENCE) == 3
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("output", BAD_OUTPUTS)
def test_r08_what_an_engine_has_printed_does_not_hold_up_the_end(
    output: Callable[[], AbstractContextManager[int]], tmp_path: Path
) -> None:
    (tmp_path / "printing.py").write_text("print('loaded')\nasync def generate(request):\n    yield request\n")
    with output() as stdout, serving_into(stdout, tmp_path, target="printing.py") as process:
        assert call(tmp_path) == "hi"
        assert end(process) == 0


# -- output that is the result ---------------------------------------------------------------------------------------


VERBS = [
    ("--version",),
    ("--help",),
    ("serve", "--help"),
    ("new", "engine", "--help"),
    ("settings",),
    ("settings", "--json"),
    ("plugins",),
    ("decode", "captured"),
    ("ls", "--json", "--file-kv", "kv"),
    ("check", "echo"),
    ("demo", "--once"),
]


@has_full
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("is_buffered", [True, False], ids=["buffered", "unbuffered"])
def test_output_that_cannot_be_written_is_told_without_a_traceback(
    verb: tuple[str, ...], is_buffered: bool, tmp_path: Path
) -> None:
    (tmp_path / "captured").write_bytes(b"\0\0")
    variables = environment(PYTHONUNBUFFERED="" if is_buffered else "1")
    with full_device() as stdout:
        ended = subprocess.run(
            [*INGRESS, *verb], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=variables
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-3:] == [
        "error: the output cannot be written",
        "  why: No space left on device",
        "  try: standard output to a place that takes it",
    ]
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr


@has_full
def test_answers_that_cannot_be_written_are_told_too(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, serving_into(log.fileno(), tmp_path), full_device() as stdout:
        command = [*INGRESS, "call", "demo.backend.generate", "-d", '"hi"', "--file-kv", "kv"]
        ended = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the output cannot be written\n")


@has_full
def test_where_not_even_that_can_be_told_the_exit_code_does(tmp_path: Path) -> None:
    with full_device() as nowhere:
        for verb, code in ((("settings",), 1), (("unknown",), 2), (("serve", "--unknown"), 2)):
            command = [*INGRESS, *verb]
            ended = subprocess.run(command, stdout=nowhere, stderr=nowhere, cwd=tmp_path, env=environment())
            assert ended.returncode == code, verb


@pytest.mark.parametrize("verb", [*(verb for verb in VERBS if verb[0] != "serve"), ("--version",)], ids=" ".join)
def test_output_to_a_closed_descriptor_is_told_as_well(verb: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "captured").write_bytes(b"\0\0")
    ended = closed(">&-", verb, tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-3:-1] == ["error: the output cannot be written", "  why: Bad file descriptor"]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("verb", [("settings",), ("check", "echo")], ids=" ".join)
def test_a_closed_standard_error_costs_nothing(verb: tuple[str, ...], tmp_path: Path) -> None:
    ended = closed("2>&-", verb, tmp_path)
    assert ended.returncode == 0
    assert ended.stdout


def test_a_call_answers_with_standard_error_closed_and_tells_of_a_closed_output(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, serving_into(log.fileno(), tmp_path):
        verb = ("call", "demo.backend.generate", "-d", '"hi"', "--file-kv", "kv")
        answered = closed("2>&-", verb, tmp_path)
        assert answered.returncode == 0
        assert answered.stdout
        ended = closed(">&-", verb, tmp_path)
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: the output cannot be written\n")


def closed(redirection: str, verb: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *INGRESS, *verb],
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment(),
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("arguments", [("call", "generate", "-d", "-"), ("decode", "-")])
def test_standard_input_that_is_closed_is_an_error_in_three_lines(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = closed("<&-", arguments, tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    what, why, hint = ended.stderr.splitlines()
    assert what.endswith("cannot be read") and why == "  why: it is closed" and hint.startswith("  try: ")
