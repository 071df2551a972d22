"""The command as users run it: processes, signals, terminals, exit codes."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import trio

import ingress
from ingress import __version__
from ingress.cli import main
from ingress.discovery import FileDiscovery

from .tiny_model import write_tiny_model

INGRESS = (sys.executable, "-m", "ingress")
PATIENCE = 20.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals as POSIX has them")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Some calls are made in this process, for speed; the command sets up logging for good."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("ingress").level
    yield
    root.handlers[:], level, ours = before
    root.setLevel(level)
    logging.getLogger("ingress").setLevel(ours)


def environment(**extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "INGRESS_"))}
    return {**inherited, **extra}


def run(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*INGRESS, *arguments], capture_output=True, text=True, cwd=cwd, env=environment(**extra), timeout=PATIENCE
    )


class Served:
    """An ``ingress serve`` that has started, and what it printed until then."""

    def __init__(self, process: subprocess.Popen[str], card: list[str]) -> None:
        self.process = process
        self.card = card

    @property
    def port(self) -> int:
        (found,) = re.findall(r"tcp 127\.0\.0\.1:(\d+)", "\n".join(self.card))
        return int(found)

    def next_line(self) -> str:
        """Wait for the next line that it logs."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def signal_and_wait(self, *numbers: int) -> int:
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.2)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(*arguments: str, cwd: Path, **extra: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [*INGRESS, "serve", *arguments], stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment(**extra)
    )
    try:
        assert process.stderr is not None
        card: list[str] = []
        for line in process.stderr:
            card.append(line.rstrip("\n"))
            if " call " in line:
                break
        else:
            raise AssertionError(f"serve ended: {card}")
        yield Served(process, card)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv")


@pytest.fixture(scope="module")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A worker for all the calls of this module; at the end it drains and exits with 0."""
    arguments = ("markov", "echo", "--endpoint", "generate", "--endpoint", "echo")
    with serving(*arguments, "--grace", "0", "--file-kv", str(store), cwd=tmp_path_factory.mktemp("served")) as worker:
        yield worker
        assert worker.signal_and_wait(signal.SIGTERM) == 0


# -- models ----------------------------------------------------------------------------------------------------------


def test_a_model_is_announced_beside_its_instance_and_answers_in_openai_chunks(tmp_path: Path) -> None:
    store = tmp_path / "kv"
    directory = write_tiny_model(tmp_path / "tiny")
    targets = ("markov", "echo", "--endpoint", "markov", "--endpoint", "echo")
    models = ("--model", "demo/Markov", "--model", "other", "--context-length", "99", "--file-kv", str(store))
    with serving(*targets, *models, "--grace", "0", cwd=tmp_path) as served:
        assert any(re.search(r"model +demo/Markov +input +text", line) for line in served.card)
        cards = {path.name: json.loads(path.read_text())["card_json"] for path in (store / "v1" / "mdc").iterdir()}
        assert {path.name for path in (store / "v1" / "instances").iterdir()} == cards.keys()
        assert {card["display_name"]: card["slug"] for card in cards.values()} == {
            "demo/Markov": "demo_markov",
            "other": "other",
        }
        assert {card["context_length"] for card in cards.values()} == {99}
        request = '{"messages":[{"role":"user","content":"why is the sky"}],"max_tokens":3}'
        called = run("call", "demo.backend.markov", "-d", request, "--file-kv", str(store), cwd=tmp_path)
        assert called.returncode == 0, called.stderr
        chunks = [json.loads(line) for line in called.stdout.splitlines()]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "The sky is "
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert {chunk["model"] for chunk in chunks} == {"demo/Markov"}
        assert served.signal_and_wait(signal.SIGTERM) == 0
        assert list((store / "v1" / "mdc").iterdir()) == []
    tokens = ("echo", "--model", "m", "--model-path", str(directory), "--file-kv", str(store), "--grace", "0")
    with serving(*tokens, cwd=tmp_path) as served:
        assert any(re.search(r"model +m +input +token ids", line) for line in served.card)
        (path,) = (store / "v1" / "mdc").iterdir()
        card = json.loads(path.read_text())["card_json"]
        assert card["model_input"] == "Tokens"
        assert card["tokenizer"]["hf_tokenizer_json"]["path"] == str(directory / "tokenizer.json")
        assert served.signal_and_wait(signal.SIGTERM) == 0


# -- what a worker tells of itself -----------------------------------------------------------------------------------


def test_status_pages_are_served_where_the_card_says(tmp_path: Path) -> None:
    canary = 'echo={"from": "canary"}'
    arguments = ("echo", "markov", "--endpoint", "echo", "--endpoint", "markov", "--file-kv", str(tmp_path / "kv"))
    variables = {"DYN_SYSTEM_PORT": "0", "DYN_HEALTH_CHECK_ENABLED": "true", "DYN_CANARY_WAIT_TIME": "0.1"}
    with serving(*arguments, "--grace", "0", "--canary", canary, cwd=tmp_path, **variables) as served:
        (url,) = re.findall(r"status +(http://127\.0\.0\.1:\d+)/health", "\n".join(served.card))
        deadline = time.monotonic() + PATIENCE
        while (answer := httpx2.get(f"{url}/health")).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)
        assert answer.json()["endpoints"] == {"echo": "ready", "markov": "ready"}
        assert 'ingress_drain_phase{phase="serving"} 1' in httpx2.get(f"{url}/metrics").text
        assert httpx2.get(f"{url}/live").status_code == 200


def test_a_variable_holds_one_canary_with_its_white_space(tmp_path: Path) -> None:
    finished = run("serve", "echo", "--discovery", "mem", cwd=tmp_path, DYN_HEALTH_CHECK_PAYLOAD='{"a": 1, b}')
    assert (finished.returncode, finished.stderr.splitlines()[0]) == (2, "error: --canary is not JSON")


def test_a_canary_for_a_strange_endpoint_is_a_usage_error(tmp_path: Path) -> None:
    finished = run("serve", "echo", "--discovery", "mem", "--canary", "other={}", cwd=tmp_path)
    assert finished.returncode == 2
    assert "it serves demo.backend.generate" in finished.stderr


def test_a_file_of_variables_stands_between_flags_and_defaults(tmp_path: Path) -> None:
    (tmp_path / "worker.env").write_text(
        "# of the team\nexport DYN_NAMESPACE='from-file'\n"
        "DYN_ENGINE_REQUEST_LIMIT=7\nDYN_DYNAMO_REQUEST_QUEUE_LIMIT=5\n"
    )
    arguments = ("echo", "--env-file", "worker.env", "--request-queue-limit", "6", "--file-kv", str(tmp_path / "kv"))
    with serving(*arguments, cwd=tmp_path, DYN_ENGINE_REQUEST_LIMIT="8") as served:
        card = "\n".join(served.card)
        assert "from-file.backend.generate" in card
        assert "8 at once + 6 in line" in card


def test_a_file_of_variables_that_is_missing_is_a_usage_error(tmp_path: Path) -> None:
    finished = run("ls", "--env-file", "none.env", cwd=tmp_path)
    assert (finished.returncode, finished.stderr.splitlines()[0]) == (2, "error: --env-file none.env cannot be read")


# -- the first second -------------------------------------------------------------------------------------------------


def test_version_imports_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ingress", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert finished.stdout == f"ingress {__version__}\n"
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in finished.stderr.splitlines()}
    assert "ingress" in imported
    assert imported.isdisjoint(
        {"trio", "rich", "cyclopts", "attrs", "attr", "msgspec", "prometheus_client", "hypercorn"}
    )


def test_the_demo_shows_a_stream_its_figures_and_what_to_type_next(tmp_path: Path) -> None:
    finished = run("demo", cwd=tmp_path, HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    shown = finished.stdout
    assert f"ingress {__version__}" in shown
    assert "> why is the sky\n  The sky is " in shown
    assert re.search(
        r"\n  \d+ chunks · first \d+\.\d ms · [\d,]+ chunks/s unpaced · 1 cancelled in \d+\.\d ms\n", shown
    )
    assert "Try next" in shown
    assert "discovery  file ~/.cache/ingress/demo" in shown
    assert max(map(len, shown[: shown.index("Try next")].splitlines())) <= 80
    assert not any((tmp_path / ".cache/ingress/demo/v1/instances").iterdir()), "its record is withdrawn"


def test_on_a_terminal_the_demo_stays_up_and_ends_with_0_after_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal("demo", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path)) as (process, read_until):
        shown = read_until("twice quits.")
        commands = shown[shown.index("another terminal:") :].replace("\r", "")
        directory = tmp_path / "ingress" / "demo"
        assert f"--file-kv {shlex.quote(str(directory))}" in commands
        assert main(["call", "demo.backend.generate", "-d", '"hello"', "--file-kv", str(directory)]) == 0
        read_until("answered with")
        process.send_signal(signal.SIGINT)
        read_until("drained")
        assert process.wait(PATIENCE) == 0


@contextmanager
def terminal(
    *arguments: str, cwd: Path, **extra: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str]]]:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*INGRESS, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=environment(NO_COLOR="1", COLUMNS="80", **extra),
    )
    os.close(theirs)

    def read_until(wanted: str) -> str:
        seen = b""
        deadline = time.monotonic() + PATIENCE
        while wanted.encode() not in seen:
            ready, _, _ = select.select([ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{wanted!r} did not come in {seen.decode()}"
            seen += os.read(ours, 65536)
        return seen.decode()

    try:
        yield process, read_until
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@contextmanager
def start_call(store: Path, **request: float) -> Iterator[subprocess.Popen[bytes]]:
    """Start an ``ingress call`` of the default endpoint, and wait for its first item."""
    process = subprocess.Popen(
        [*INGRESS, "call", "generate", "-d", json.dumps(request), "--file-kv", str(store)],
        stdout=subprocess.PIPE,
        cwd=store,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


# -- serve and call ---------------------------------------------------------------------------------------------------


def test_the_card_ends_in_a_command_that_works(served: Served, tmp_path: Path) -> None:
    command = served.card[-1].strip()
    finished = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=PATIENCE
    )
    assert finished.returncode == 0, finished.stderr
    chunks = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [chunk["index"] for chunk in chunks] == list(range(len(chunks)))
    assert finished.stderr == "", "a summary is for terminals and for -v"


def test_call_streams_items_as_lines_as_they_come(served: Served, store: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*INGRESS, "call", "echo", "-d", '{"n": 3, "delay": 0.3}', "--file-kv", str(store)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    times = [time.monotonic() for _ in process.stdout]
    assert process.wait(PATIENCE) == 0
    assert times[1] - times[0] > 0.1
    assert times[2] - times[1] > 0.1
    process.stdout.close()


def test_text_joins_the_words_and_a_summary_comes_with_v(
    served: Served, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = '{"prompt": "why is the sky", "seed": 2, "max_words": 5}'
    assert main(["call", "generate", "-d", request, "--text", "-v", "--file-kv", str(store)]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(r"The sky is \w+ \w+ \n", captured.out)
    assert re.search(r"5 chunks · first \d+\.\d ms · .* · instance [0-9a-f]+\n$", captured.err)


# What a terminal would obey: colours, a title, a return, an 8-bit CSI, a line of its own, and the other direction.
HOSTILE = "x\x1b[31m\x1b]0;pwn\x07\r\x9b31m\u2028\u202e"


@pytest.mark.parametrize("flags", [(), ("--text",)])
def test_a_terminal_is_given_nothing_to_obey_by_items(
    flags: tuple[str, ...], served: Served, store: Path, tmp_path: Path
) -> None:
    arguments = ("call", "echo", "-d", json.dumps(f"{HOSTILE}end"), *flags, "--file-kv", str(store))
    with terminal(*arguments, cwd=tmp_path) as (_, read_until):
        shown = read_until("end").partition("end")[0].replace("\r\n", "")
        assert shown.isprintable()
        assert "x\\x1b[31m" in shown or "x\\u001b[31m" in shown


def test_text_into_a_pipe_is_as_it_came(served: Served, store: Path, tmp_path: Path) -> None:
    command = [*INGRESS, "call", "echo", "-d", json.dumps(HOSTILE), "--text", "--file-kv", str(store)]
    finished = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment(), timeout=PATIENCE)
    assert finished.stdout == f"{HOSTILE}\n".encode()


def test_a_request_comes_from_standard_input(served: Served, store: Path, tmp_path: Path) -> None:
    finished = subprocess.run(
        [*INGRESS, "call", "demo.backend.echo", "-d", "-", "--file-kv", str(store)],
        input=b'{"a": [1, "\xc3\xa4"]}',
        capture_output=True,
        cwd=tmp_path,
        env=environment(),
        timeout=PATIENCE,
    )
    assert finished.stdout == '{"a":[1,"ä"]}\n'.encode()


def test_stop_after_prints_exactly_that_many(served: Served, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = '{"prompt": "x", "max_words": 90000}'
    assert main(["call", "generate", "-d", request, "--stop-after", "3", "--file-kv", str(store)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_reader_that_has_enough_ends_the_call_quietly(served: Served, store: Path, tmp_path: Path) -> None:
    request = shlex.quote('{"prompt": "x", "max_words": 90000}')
    command = f"{shlex.join(INGRESS)} call generate -d {request} --file-kv {shlex.quote(str(store))} | head -n 1"
    finished = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=PATIENCE
    )
    assert len(finished.stdout.splitlines()) == 1
    assert finished.stderr == ""


def test_an_error_of_the_worker_ends_the_call_with_1(
    served: Served, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["call", "generate", "-d", "3", "--file-kv", str(store)]) == 1
    assert capsys.readouterr().err.splitlines()[:2] == [
        "error: the worker answered with an error, before the first item",
        "  why: InvalidRequest: expected a prompt or an object with a prompt, got int",
    ]


def test_ctrl_c_leaves_the_stream_and_ends_with_130(served: Served, store: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*INGRESS, "call", "echo", "-d", '{"n": 1000, "delay": 0.05}', "--file-kv", str(store)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_signals_that_come_together_end_a_call_like_one(served: Served, store: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*INGRESS, "call", "echo", "-d", '{"n": 1000, "delay": 0.05}', "--file-kv", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)  # so that it finds both when it goes on; two of one kind would be one
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert said == ""
    assert process.returncode in (130, 143)


def test_a_call_that_takes_too_long_ends_with_1(
    served: Served, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = '{"n": 1000, "delay": 0.05}'
    assert main(["call", "echo", "-d", request, "--timeout", "0.2", "--file-kv", str(store)]) == 1
    assert capsys.readouterr().err.startswith("error: no whole answer within 0.2 s\n")


def test_an_instance_can_be_called_directly(served: Served, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "echo", "--json", "--file-kv", str(store)]) == 0
    (instance,) = [each["instance"] for each in json.loads(capsys.readouterr().out)["instances"]]
    assert main(["call", "echo", "-d", "1", "--direct", instance, "--file-kv", str(store)]) == 0
    assert capsys.readouterr().out == "1\n"
    assert main(["call", "echo", "-d", "1", "--direct", "0", "--file-kv", str(store)]) == 1


def test_metadata_and_waiting_are_taken(served: Served, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-d", "[]", "-H", "user=me", "-H", "a=b=c", "--wait", "5", "--file-kv", str(store)]
    assert main(["call", "echo", *arguments]) == 0
    assert capsys.readouterr().out == "[]\n"


# -- starting and ending ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (("mrkov",), "error: no engine is named 'mrkov'\n"),
        (("hello.py",), "error: hello.py:1 generate(a, b, c) cannot be an engine\n  why: needs 1 or 2 arguments"),
        (("hello.py:Failing",), "error: the worker could not start\n  why: OSError: no such model\n"),
        (("echo", "--port", "{port}"), "error: cannot listen on 127.0.0.1:{port}\n  why: Address already in use\n"),
    ],
    ids=["unknown engine", "wrong signature", "failing engine", "taken port"],
)
def test_what_keeps_a_worker_from_starting_is_told_with_exit_code_3(
    arguments: Sequence[str],
    beginning: str,
    served: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "hello", raising=False)
    (tmp_path / "hello.py").write_text(
        "async def generate(a, b, c):\n    yield 1\n\n"
        "import contextlib, ingress\n\n"
        "class Failing(ingress.Engine):\n    def generate(self, request, context): ...\n"
        "    @contextlib.asynccontextmanager\n    async def lifespan(self):\n"
        "        raise OSError('no such model')\n        yield\n"
    )
    filled = [argument.format(port=served.port) for argument in arguments]
    assert main(["serve", *filled, "--file-kv", str(tmp_path / "kv")]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith(beginning.format(port=served.port))
    assert len(captured.err.splitlines()) == 3
    assert captured.out == ""


@pytest.mark.parametrize(
    ("numbers", "budget", "code"),
    [
        ((signal.SIGTERM,), "0.1", 4),
        ((signal.SIGINT, signal.SIGINT), "30", 130),
        ((signal.SIGINT, signal.SIGTERM), "30", 143),
    ],
    ids=["budget over", "forced by SIGINT", "forced by SIGTERM"],
)
def test_how_a_worker_with_a_running_request_ends(
    numbers: tuple[int, ...], budget: str, code: int, tmp_path: Path
) -> None:
    arguments = ("echo", "--grace", "0", "--drain-budget", budget)
    with serving(*arguments, cwd=tmp_path, DYN_FILE_KV=str(tmp_path / "kv")) as worker:
        call = subprocess.Popen(
            [*INGRESS, "call", "generate", "-d", '{"n": 1000, "delay": 0.05}'],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environment(DYN_FILE_KV=str(tmp_path / "kv")),
        )
        assert call.stdout is not None
        call.stdout.readline()
        assert worker.signal_and_wait(*numbers) == code
        call.communicate(timeout=PATIENCE)
        assert call.returncode == 1


def test_json_logs_are_all_there_is_on_stderr(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*INGRESS, "serve", "echo", "--grace", "0", "--file-kv", str(tmp_path / "kv")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(DYN_LOGGING_JSONL="true"),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=PATIENCE)
    records = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert records[0]["message"].startswith("serving demo.backend.generate on 127.0.0.1:")
    assert records[-1]["message"] == "stopped: drained, every request was answered"
    assert process.returncode == 0


async def test_log_lines_that_nobody_reads_are_dropped_and_counted_and_hold_nothing_up(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    with serving("echo", "-v", "--grace", "0", "--status-port", "0", "--file-kv", str(kv), cwd=tmp_path) as worker:
        (url,) = re.findall(r"status +(http://[\d.:]+)/health", "\n".join(worker.card))
        dropped = re.compile(r"^ingress_log_lines_dropped_total (\d+)$", re.MULTILINE)
        async with httpx2.AsyncClient() as http, ingress.open_client(discovery=FileDiscovery(kv)) as client:
            await client.wait_for_instances("demo.backend.generate")
            with trio.fail_after(PATIENCE):
                while dropped.findall((await http.get(f"{url}/metrics")).text) in ([], ["0"]):
                    for _ in range(100):
                        async with client.stream("demo.backend.generate", "x") as responses:
                            assert [item async for item in responses] == ["x"]


@pytest.mark.parametrize("arguments", [("demo",), ("decode", "capture"), ("--help",)], ids=lambda value: value[0])
def test_output_that_nobody_reads_ends_the_command_quietly(arguments: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "capture").write_bytes(bytes(24 * 200))
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as closed:
        finished = subprocess.run(
            [*INGRESS, *arguments],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment(XDG_CACHE_HOME=str(tmp_path)),
            timeout=PATIENCE,
        )
    assert (finished.returncode, finished.stderr) == (0, "")
