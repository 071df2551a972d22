"""The start of `ingress serve`, and its end before it serves: signals, descriptors, engines that refuse to load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingress.cli import main

from .test_cli_processes import INGRESS, PATIENCE, environment, run, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors as POSIX has them")

# What an engine does until a file is there; the test knows by another that it has begun to.
WAIT = """
import os
import time
from pathlib import Path

def wait():
    Path("loading" + os.environ.get("INGRESS_PROCESS", "0")).touch()
    while not Path("loaded").exists():
        time.sleep(0.01)
"""

IMPORTED = f"""{WAIT}
wait()

async def generate(request):
    yield request
"""

ENTERED = f"""{WAIT}
import contextlib
import trio
import ingress

class Generate(ingress.Engine):
    async def generate(self, request, context):
        yield request

    @contextlib.asynccontextmanager
    async def lifespan(self):
        %s
        yield

generate = Generate()
"""

LOADING = {
    "import": IMPORTED,
    "lifespan": ENTERED % "await trio.to_thread.run_sync(wait)",
    "lifespan that blocks the loop": ENTERED % "wait()",
}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} has not come"
        time.sleep(0.01)


@contextmanager
def loading(
    source: str, cwd: Path, *, processes: int = 1, before: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Enter when the engine loads, in each process; it does until the file ``loaded`` is there."""
    (cwd / "slow.py").write_text(source)
    process = subprocess.Popen(
        [*before, *INGRESS, "serve", "slow.py", "--grace", "0", "--file-kv", "kv", "--processes", str(processes)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
    )
    try:
        for number in range(processes):
            wait_for(cwd / f"loading{number}")
        yield process
    finally:
        process.kill()
        process.communicate()


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", LOADING.values(), ids=LOADING)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_r03_a_signal_ends_a_worker_that_loads(source: str, number: int, code: int, tmp_path: Path) -> None:
    """There is nobody to drain for. A handler does it: the first process of a container has no default action."""
    with loading(source, tmp_path) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("source", LOADING.values(), ids=LOADING)
def test_r08_a_hangup_harms_no_worker_that_loads(source: str, tmp_path: Path) -> None:
    with loading(source, tmp_path) as process:
        process.send_signal(signal.SIGHUP)
        (tmp_path / "loaded").touch()
        assert process.stderr is not None
        for line in process.stderr:
            if " call " in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("source", LOADING.values(), ids=LOADING)
def test_processes_that_load_end_with_their_parent(source: str, tmp_path: Path) -> None:
    with loading(source, tmp_path, processes=2) as parent:
        parent.send_signal(signal.SIGHUP)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(PATIENCE) == 143


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
def test_a_signal_to_every_process_of_a_unit_is_no_failure_to_start(tmp_path: Path) -> None:
    with loading(IMPORTED, tmp_path, processes=2) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        before = children.read_text().split()
        for child in before:
            os.kill(int(child), signal.SIGTERM)
        time.sleep(0.2)
        assert children.read_text().split() == before, "its processes have not failed"
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(PATIENCE) == 143


@pytest.fixture
def first_process() -> tuple[str, ...]:
    """What makes a command the first process of a container."""
    before = ("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
    try:
        probe = subprocess.run([*before, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode:
        pytest.skip(f"no process namespace can be made here: {probe.stderr.strip()}")
    return before


def test_the_first_process_of_a_container_hears_sigterm_while_it_loads(
    first_process: tuple[str, ...], tmp_path: Path
) -> None:
    with loading(IMPORTED, tmp_path, before=first_process) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


def test_handlers_are_those_of_before_when_the_command_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["serve", "--help"]) == 0
    assert [signal.getsignal(number) for number in numbers] == before


# -- engines that do not load ----------------------------------------------------------------------------------------

LEAVING = {"import": "raise SystemExit({text!r})", "lifespan": ENTERED % "raise SystemExit({text!r})"}


@pytest.mark.parametrize("source", LEAVING.values(), ids=LEAVING)
def test_an_engine_that_leaves_while_it_loads_is_a_start_that_failed(source: str, tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(source.format(text="bye\x1b[31m\nerror: forged " + "x" * 10_000))
    ended = run("serve", "leaving.py", "--file-kv", str(tmp_path / "kv"), cwd=tmp_path)
    lines = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout, len(lines)) == (3, "", 3), ended.stderr[:2000]
    assert lines[0].startswith("error: ") and lines[2].startswith("  try: ")
    assert lines[1].startswith("  why: SystemExit") and "bye\\x1b[31m" in lines[1]
    assert len(lines[1]) < 300 and "\x1b" not in ended.stderr


@pytest.mark.parametrize(
    "source",
    [
        "raise BaseExceptionGroup('several', [SystemExit('one'), KeyboardInterrupt()])",
        "raise KeyboardInterrupt  # which nobody has pressed",
        "raise GeneratorExit",
    ],
)
@pytest.mark.parametrize("target", ["leaving.py", "leaving:generate"])
def test_whatever_a_module_raises_is_a_start_that_failed(source: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(source)
    ended = run("serve", target, "--file-kv", str(tmp_path / "kv"), cwd=tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (3, 3), ended.stderr
    assert "Traceback" not in ended.stderr


# -- surroundings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variables", [{}, {"DYN_FILE_KV": "kv"}], ids=["", "relative"])
@pytest.mark.parametrize("flags", [(), ("--processes", "2")], ids=["one", "several"])
def test_a_working_directory_that_is_gone_is_told(
    flags: tuple[str, ...], variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    script = f'rmdir {tmp_path / "gone"}; exec "$@"'
    ended = subprocess.run(
        ["sh", "-c", script, "sh", *INGRESS, "serve", "echo", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path / "gone",
        env=environment(**variables),
        timeout=PATIENCE,
    )
    assert ended.returncode == 3
    assert ended.stderr.splitlines() == [
        "error: there is no working directory",
        "  why: it has been removed, or may not be read: No such file or directory",
        "  try: cd to a directory that exists",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are looked at in /proc")
def test_standard_descriptors_that_are_closed_are_nobody_elses(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *INGRESS, "serve", "echo", "--file-kv", str(tmp_path / "kv")],
        cwd=tmp_path,
        env=environment(),
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not any(path.is_file() for path in (tmp_path / "kv").rglob("*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        for descriptor in (0, 1, 2):
            assert Path(f"/proc/{process.pid}/fd/{descriptor}").readlink() == Path("/dev/null")
        called = run("call", "generate", "-d", '"hello"', "--file-kv", str(tmp_path / "kv"), cwd=tmp_path)
        assert (called.returncode, called.stdout) == (0, '"hello"\n')
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


LEAVES_A_THREAD = """
import threading
import time

async def generate(request):
    threading.Thread(target=time.sleep, args=(600,), name="left behind").start()
    yield request
"""


def test_r02_threads_that_an_engine_has_left_behind_hold_up_no_end(tmp_path: Path) -> None:
    """It had said that it was stopped, and stayed for as long as they did."""
    (tmp_path / "leaves.py").write_text(LEAVES_A_THREAD)
    store = ("--file-kv", str(tmp_path / "kv"))
    with serving("leaves.py", "--grace", "0", *store, cwd=tmp_path) as served:
        assert run("call", "generate", "-d", "1", *store, cwd=tmp_path).returncode == 0
        served.process.terminate()
        _, said = served.process.communicate(timeout=PATIENCE)
    assert served.process.returncode == 0
    assert said.splitlines()[-1].endswith("leaving without threads that engines have left behind: ['left behind']")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_r08_signals_that_a_worker_lives_by_harm_nothing_while_it_ends(number: int, tmp_path: Path) -> None:
    """They had ended it in its last moments, and the last lines of its log had been lost."""
    with serving("echo", "--grace", "0", "--file-kv", str(tmp_path / "kv"), cwd=tmp_path) as served:
        served.process.terminate()
        while served.process.poll() is None:
            served.process.send_signal(number)
            time.sleep(0.005)
        assert served.process.stderr is not None
        assert "stopped: drained, every request was answered" in served.process.stderr.read()
    assert served.process.returncode == 0


# -- a loop that is stuck --------------------------------------------------------------------------------------------

STUCK = """
import time

async def generate(request):
    yield "begun"
    time.sleep(600)
"""


@contextmanager
def stuck(cwd: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Enter when the engine blocks the loop of a worker, or of one of several processes."""
    (cwd / "stuck.py").write_text(STUCK)
    store = ("--file-kv", str(cwd / "kv"))
    with serving("stuck.py", "--grace", "0", *store, *flags, cwd=cwd) as served:
        call = [*INGRESS, "call", "demo.backend.generate", "-d", "1", *store]
        caller = subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment())
        try:
            assert served.process.stderr is not None
            for line in served.process.stderr:
                if "event loop blocked" in line:
                    break
            yield served.process
        finally:
            caller.kill()
            caller.communicate()


@pytest.mark.parametrize("flags", [(), ("--processes", "2")], ids=["one", "several"])
def test_r03_a_second_signal_ends_a_worker_whose_loop_is_stuck(flags: tuple[str, ...], tmp_path: Path) -> None:
    with stuck(tmp_path, *flags) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # two signals at once are one to a process
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize("flags", [(), ("--processes", "2")], ids=["one", "several"])
def test_r04_a_drain_ends_within_its_bounds_where_the_loop_is_stuck(flags: tuple[str, ...], tmp_path: Path) -> None:
    with stuck(tmp_path, "--drain-budget", "0.1", *flags) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 4
        assert process.stderr is not None
        said = process.stderr.read()
        line = STUCK.splitlines().index("    time.sleep(600)") + 1
        assert f"event loop stuck, leaving without it: stuck.py:{line} generate < " in said
