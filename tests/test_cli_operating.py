"""Seeing what a worker does, as its operator sees it: `ingress top`, the task tree, the report of a blocked loop."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from .test_cli_processes import INGRESS, PATIENCE, Served, environment, run, serving, terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals as POSIX has them")

ENGINE = """
import time
import trio

async def generate(request):
    yield "first"
    if request == "block":
        nap()
    if request == "wait":
        await wait_here()
    yield "last"

def nap():
    time.sleep(2.5)

async def wait_here():
    await trio.sleep_forever()
"""


class Log:
    """The lines of a worker's log, each read once."""

    def __init__(self, served: Served) -> None:
        assert served.process.stderr is not None
        self._lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, args=(served.process.stderr,), daemon=True).start()

    def _read(self, stream: object) -> None:
        try:
            for line in stream:  # type: ignore[attr-defined]  # a text stream
                self._lines.put(line.rstrip("\n"))
        except ValueError:
            pass  # closed at the end of the test

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first line from here on in which the pattern is found."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{pattern!r} did not come after {self.seen}") from None
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found


@contextmanager
def calling(request: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*INGRESS, "call", "demo.backend.generate", "-d", json.dumps(request), "--file-kv", str(cwd / "kv")]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment())
    try:
        yield caller
    finally:
        caller.kill()
        caller.communicate()


def answer_to(request: str, cwd: Path) -> list[str]:
    with calling(request, cwd) as caller:
        return caller.communicate(timeout=PATIENCE)[0].splitlines()


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "operated.py").write_text(ENGINE)
    return ("operated.py", "--file-kv", str(tmp_path / "kv"), "--status-port", "0", "--grace", "0")


def status_url(served: Served) -> str:
    (url,) = re.findall(r"status +(http://127\.0\.0\.1:\d+)/health", "\n".join(served.card))
    return str(url)


def test_an_engine_that_blocks_the_loop_is_named_without_any_flag(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with serving(*arguments, cwd=tmp_path) as served, calling("block", tmp_path) as caller:
        log = Log(served)
        found = log.wait_for(r"event loop blocked for ([\d.]+) s in: (.*)")
        assert float(found[1]) >= 1.0, "the default"
        line = ENGINE.splitlines().index("    time.sleep(2.5)") + 1
        assert found[2].startswith(f"operated.py:{line} nap < operated.py:{line - 6} generate < ")
        log.wait_for(r"event loop runs again after [\d.]+ s")
        assert caller.communicate(timeout=PATIENCE)[0].splitlines() == ['"first"', '"last"']
        metrics = httpx2.get(f"{status_url(served)}/metrics").text
        assert "ingress_loop_stalls_total 1\n" in metrics


def test_the_watch_over_the_loop_can_be_turned_off(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with serving(*arguments, "--loop-stall-limit", "0", cwd=tmp_path) as served:
        log = Log(served)
        assert answer_to("block", tmp_path) == ['"first"', '"last"']
        served.process.send_signal(signal.SIGTERM)
        log.wait_for("stopped: drained")
        assert not [line for line in log.seen if "event loop" in line]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_sigusr1_tells_where_every_request_waits_and_ends_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with serving(*arguments, cwd=tmp_path) as served, calling("wait", tmp_path) as caller:
        log = Log(served)
        request_id = log.wait_for(r"request received .*request_id=([\w-]+)")[1]
        # The line comes before the engine has run; its first chunk has left once it is here.
        assert caller.stdout is not None
        assert caller.stdout.readline() == '"first"\n'
        served.process.send_signal(signal.SIGUSR1)
        log.wait_for(r"WARN ingress\.tasks: tasks: \d+ in all, of 1 request")
        line = ENGINE.splitlines().index("    await trio.sleep_forever()") + 1
        found = log.wait_for(r"handle_payload \[(.*?)\] +at (.*)")
        assert found[1] == request_id
        assert found[2].startswith(f"operated.py:{line} wait_here < operated.py:{line - 7} generate < ")
        assert answer_to("pass", tmp_path) == ['"first"', '"last"']
        caller.kill()
        assert served.signal_and_wait(signal.SIGTERM) == 0


def test_top_once_prints_one_table_and_json_one_document(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with serving(*arguments, cwd=tmp_path) as served:
        url = status_url(served)
        assert answer_to("pass", tmp_path)
        plain = run("top", url, "--once", "--interval", "0.1", cwd=tmp_path)
        assert (plain.returncode, plain.stderr) == (0, "")
        heading, row = (line.split() for line in plain.stdout.splitlines())
        shown = dict(zip(heading, row, strict=True))
        assert (shown["phase"], shown["endpoint"]) == ("serving", "demo.backend.generate")
        assert (shown["streams"], shown["cancels"], shown["queue"]) == ("0", "0", "0")
        port = url.rpartition(":")[2]
        document = run("top", "--json", "--interval", "0.1", cwd=tmp_path, DYN_SYSTEM_PORT=port)
        (worker,) = json.loads(document.stdout)["workers"]
        (endpoint,) = worker["endpoints"]
        assert (worker["phase"], worker["progress"]) == ("serving", "idle")
        assert (endpoint["requests"], endpoint["chunks"], endpoint["cancelled"]) == (1, 2, 0)
        assert endpoint["request_seconds"]["p50"] > 0
    gone = run("top", url, "--once", cwd=tmp_path)
    assert gone.returncode == 1
    assert gone.stdout.splitlines()[1].split()[2] == "gone"
    assert gone.stderr == f"{url.removeprefix('http://')}: Connection refused\n"


def test_top_in_a_terminal_lives_on_when_its_worker_goes_and_ends_with_0(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    with serving(*arguments, cwd=tmp_path) as served:
        screen = terminal("top", status_url(served), "--interval", "0.1", cwd=tmp_path, TERM="xterm")
        with screen as (top, read_until):
            assert "1 of 1 worker" in read_until("lag99")
            read_until("serving")
            served.process.kill()
            read_until("Connection refused")
            assert "0 of 1 worker" in read_until("0 of 1 worker")
            os.kill(top.pid, signal.SIGINT)
            read_until("\x1b[?1049l")  # the screen that was there before
            assert top.wait(PATIENCE) == 0


def test_top_gives_the_terminal_back_when_it_is_terminated(tmp_path: Path) -> None:
    with terminal("top", "1", "--interval", "0.1", cwd=tmp_path, TERM="xterm") as (top, read_until):
        read_until("gone")
        top.terminate()
        read_until("\x1b[?1049l")
        assert top.wait(PATIENCE) == 143


def test_top_into_a_pipe_prints_on_until_nobody_reads(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*INGRESS, "top", "1", "--interval", "0.1"], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment()
    )
    try:
        assert process.stdout is not None
        headings = 0
        for line in process.stdout:
            headings += line.startswith("worker ")
            if headings == 3:
                break
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_without_an_address_top_says_how_to_get_one(tmp_path: Path) -> None:
    finished = run("top", cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "error: no worker to look at",
        "  why: no address is given and DYN_SYSTEM_PORT is not set",
        "  try: ingress serve … --status-port 9090, then ingress top 9090",
    ]
