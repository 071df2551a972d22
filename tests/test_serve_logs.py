"""The log of ``ingress serve`` as an operator reads it, and its spans as a collector gets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from attrs import frozen

from ingress import open_client
from ingress._network import TcpNetwork
from ingress.discovery import FileDiscovery
from ingress.errors import RemoteError
from ingress.wire.records import EndpointId

from .otlp_sink import open_sink
from .raw_caller import RawConnection

PATIENCE = 20.0
INGRESS = (sys.executable, "-m", "ingress")
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (TRACE|DEBUG| INFO| WARN|ERROR) ([\w.]+): (.*)")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")

ENGINE = """
import attrs, threading, trio, warnings

def fail(text):
    raise RuntimeError(text)

class Finalized:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise RuntimeError(self.text)

@attrs.frozen
class Request:
    count: int
    note: str = ""

async def generate(request: Request):
    for number in range(request.count):
        yield number
    if request.note == "raise":
        raise ValueError("the engine's own words")
    if request.note.startswith("stray "):
        warnings.warn(request.note)
        thread = threading.Thread(target=fail, args=(request.note,), name=request.note)
        thread.start()
        thread.join()
        Finalized(request.note)
    if request.note == "wait":
        await trio.sleep_forever()
"""


def environment(**extra: str) -> dict[str, str]:
    ours = ("DYN_", "INGRESS_", "OTEL_", "NO_COLOR")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, **extra}


@frozen
class Served:
    """An ``ingress serve`` whose standard error goes to a file."""

    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def text(self) -> str:
        return (self.directory / "log").read_text(errors="surrogateescape")

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def wait_for(self, is_enough: Callable[[str], object]) -> str:
        deadline = time.monotonic() + PATIENCE
        while not is_enough(text := self.text):
            assert time.monotonic() < deadline and self.process.poll() is None, text
            time.sleep(0.02)
        return text

    def call(self, request: object, request_id: str = "r-1", *, take: int | None = None, **options: Any) -> list[Any]:
        """Call with our client; leave after ``take`` items."""
        items: list[Any] = []

        async def run() -> None:
            with trio.fail_after(PATIENCE):
                async with open_client(discovery=self.discovery) as client:
                    await client.wait_for_instances("demo.backend.generate")
                    async with client.stream(
                        "demo.backend.generate", request, request_id=request_id, **options
                    ) as responses:
                        async for item in responses:
                            items.append(item)
                            if len(items) == take:
                                break

        trio.run(run)
        return items

    @property
    def discovery(self) -> FileDiscovery:
        return FileDiscovery(self.directory / "kv")

    def push_junk(self, count: int) -> None:
        """Push what no shape accepts, and nothing after it."""

        async def run() -> None:
            with trio.fail_after(PATIENCE):
                async with self.discovery.open_view() as view:
                    while not (found := view.instances(EndpointId("demo", "backend", "generate"))):
                        await view.wait_changed()
                address, path = found[0].tcp_target
                host, _, port = address.rpartition(":")
                async with await TcpNetwork().connect(host, int(port)) as stream:
                    connection = RawConnection(stream, path)
                    for _ in range(count):
                        assert await connection.ask(b"junk") != ""

        trio.run(run)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(directory: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    (directory / "hello.py").write_text(ENGINE)
    command = [*INGRESS, "serve", "hello.py", "--file-kv", str(directory / "kv"), "--grace", "0", *arguments]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, cwd=directory, env=environment(**variables))
    try:
        served = Served(process, directory)
        served.wait_for(lambda text: "serving demo." in text or " call " in text)
        yield served
    finally:
        process.kill()
        process.wait()


def requests_of(served: Served, request_id: str) -> list[tuple[str, str, Any]]:
    return [
        (record["level"], record["message"], record.get("status"))
        for record in served.records
        if record.get("request_id") == request_id and record["target"] == "ingress.request"
    ]


def is_complete(request_id: str) -> Callable[[str], object]:
    return lambda text: any("request completed" in line and request_id in line for line in text.splitlines())


# -- lines -----------------------------------------------------------------------------------------------------------


def test_as_json_every_line_is_an_object_and_each_request_has_two(tmp_path: Path) -> None:
    with serving(tmp_path, DYN_LOGGING_JSONL="true") as served:
        assert served.call({"count": 3}, "fine", headers={"traceparent": PARENT}) == [0, 1, 2]
        served.wait_for(is_complete("fine"))
        served.call({"count": 1, "note": "wait"}, "left", take=1)
        served.wait_for(is_complete("left"))
        with pytest.raises(RemoteError):
            served.call({"count": 1, "note": "raise"}, "failed")
        served.wait_for(is_complete("failed"))
        assert served.stop() == 0
        received = ("INFO", "request received", None)
        assert requests_of(served, "fine") == [received, ("INFO", "request completed", "completed")]
        assert requests_of(served, "left") == [received, ("INFO", "request completed", "cancelled")]
        assert requests_of(served, "failed") == [received, ("INFO", "request completed", "failed")]
        loud = [record for record in served.records if record["level"] not in ("INFO", "DEBUG")]
        assert [(record["level"], record["target"], record["request_id"]) for record in loud] == [
            ("WARN", "ingress.handler", "failed")
        ], "a caller that leaves is no error, an engine that fails is one line"
        of_trace = [record for record in served.records if record.get("trace_id") == TRACE]
        assert {(record["request_id"], record["span_id"]) for record in of_trace} == {("fine", SPAN)}
        assert len(of_trace) == 2


def test_as_text_lines_are_for_people_and_name_the_trace(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.call({"count": 1}, headers={"traceparent": PARENT})
        served.wait_for(is_complete("r-1"))
        assert served.stop() == 0
        lines = [match for line in served.text.splitlines() if (match := TEXT_LINE.fullmatch(line))]
        of_requests = [match for match in lines if match[2] == "ingress.request"]
        assert [match[1] for match in of_requests] == [" INFO", " INFO"]
        assert all(match[3].endswith(f" trace_id={TRACE}") for match in of_requests)
        assert "\x1b" not in served.text


@pytest.mark.parametrize(
    ("filters", "seen"),
    [
        ("error", set()),
        ("warn", {" WARN"}),
        ("off,ingress.request=info", {" INFO"}),
        ("info,ingress.request=error", {" INFO", " WARN"}),
        ("debug", {"DEBUG", " INFO", " WARN"}),
    ],
)
def test_dyn_log_says_which_lines_there_are(filters: str, seen: set[str], tmp_path: Path) -> None:
    with serving(tmp_path, DYN_LOG=filters) as served:
        with pytest.raises(RemoteError):
            served.call({"count": 1, "note": "raise"})
        assert served.stop() == 0
        levels = {match[1] for line in served.text.splitlines() if (match := TEXT_LINE.fullmatch(line))}
        assert levels == seen


def test_o01_what_a_caller_controls_is_escaped_and_cut(tmp_path: Path) -> None:
    hostile = {"traceparent": "x\n2026 ERROR forged\x1b[31m", "x-request-id": "\x1b[31m" * 2000}
    with serving(tmp_path, DYN_LOG="trace") as served:
        served.call({"count": 1}, headers=hostile, metadata={"\x1b": "\n" * 5000})
        served.push_junk(3)
        assert served.stop() == 0
        text = served.text
    assert "\x1b" not in text and "forged" not in text
    assert all(len(line) <= 1024 for line in text.splitlines())


@pytest.mark.parametrize("variables", [{}, {"DYN_LOGGING_JSONL": "1"}])
def test_o01_what_python_prints_itself_is_a_log_line_too(variables: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path, **variables) as served:
        served.call({"count": 1, "note": "stray \n2026 forged \x1b[31m"})
        served.wait_for(lambda text: text.count("forged") >= 3 and "Finalized" in text)
        assert served.stop() == 0
    lines = served.text.splitlines()
    assert not [line for line in lines if line.startswith("2026 forged") or "\x1b" in line]
    if variables:
        assert {"py.warnings", "ingress.python"} <= {record["target"] for record in served.records}


@pytest.mark.parametrize("level", ["info", "debug"])
def test_o02_payloads_are_not_in_the_log(level: str, tmp_path: Path) -> None:
    with serving(tmp_path, DYN_LOG=level) as served:
        served.call({"count": 1, "note": "a secret prompt"}, "fine")
        with pytest.raises(RemoteError):
            served.call({"count": "a secret number"}, "wrong-type")
        with pytest.raises(RemoteError):
            served.call("a secret text", "wrong-shape")
        served.wait_for(is_complete("wrong-shape"))
        assert served.stop() == 0
        assert "secret" not in served.text


def test_repeated_warnings_are_counted_also_when_nothing_follows(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.push_junk(200)
        served.wait_for(lambda text: _told(text) == 200)
        assert len(served.text.splitlines()) < 100


def _told(text: str) -> int:
    shown = len(re.findall("push to demo.backend.generate refused", text))
    return shown + sum(map(int, re.findall(r"InvalidMessage: (\d+) more", text)))


def test_on_a_terminal_levels_are_coloured(tmp_path: Path) -> None:
    import pty

    (tmp_path / "hello.py").write_text(ENGINE)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*INGRESS, "serve", "hello.py", "--file-kv", str(tmp_path / "kv"), "--grace", "0"],
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(TERM="xterm"),
    )
    os.close(theirs)
    try:
        seen = b""
        while b" call " not in seen:
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGTERM)
        while b"every request was answered" not in seen:
            seen += os.read(ours, 65536)
        assert b"\x1b[32mINFO\x1b[0m" in seen
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_r08_lines_that_nobody_takes_are_counted_in_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(ENGINE)
    command = [*INGRESS, "serve", "hello.py", "--file-kv", str(tmp_path / "kv"), "--status-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=environment(DYN_LOGGING_JSONL="true"))
    try:
        assert process.stderr is not None
        (url,) = re.findall(r"status on (http://[\d.:]+)", process.stderr.readline().decode())

        def dropped() -> float:
            (value,) = re.findall(r"^ingress_log_lines_dropped_total (\S+)$", httpx2.get(f"{url}/metrics").text, re.M)
            return float(value)

        assert dropped() == 0
        process.stderr.close()  # whoever collected the lines has gone
        Served(process, tmp_path).call({"count": 1})
        deadline = time.monotonic() + PATIENCE
        while dropped() < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


# -- spans -----------------------------------------------------------------------------------------------------------


def test_spans_are_exported_when_asked_for_and_flushed_at_the_end(tmp_path: Path) -> None:
    with open_sink() as sink:
        variables = {"OTEL_EXPORT_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_SERVICE_NAME": "w"}
        # The batch would leave after a minute, were it not for the end.
        with serving(tmp_path, OTEL_BSP_SCHEDULE_DELAY="60000", **variables) as served:
            called = subprocess.run(
                [*INGRESS, "call", "demo.backend.generate", "-d", '{"count": 2}', "--header", f"traceparent={PARENT}",
                 "--header", "tracestate=a=1", "--file-kv", str(tmp_path / "kv")],
                capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=PATIENCE,
            )  # fmt: skip
            assert (called.returncode, called.stdout) == (0, "0\n1\n"), called.stderr
            served.wait_for(lambda text: "request completed" in text)
            assert not sink.spans
            assert served.stop() == 0
        (received,) = sink.wait(1)
        assert (received.span.trace_id.hex(), received.span.parent_span_id.hex()) == (TRACE, SPAN)
        assert (received.span.trace_state, received.resource["service.name"]) == ("a=1", "w")
        assert received.attributes["ingress.chunks"] == 2


def test_a_collector_that_is_away_is_told_once_and_delays_neither_calls_nor_the_end(tmp_path: Path) -> None:
    variables = {"OTEL_EXPORT_ENABLED": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with serving(tmp_path, OTEL_BSP_SCHEDULE_DELAY="50", **variables) as served:
        assert served.call({"count": 2}) == [0, 1]
        served.wait_for(lambda text: "exporting spans" in text)
        assert served.call({"count": 2}) == [0, 1]
        assert served.stop() == 0
        assert len(re.findall("Transient error", served.text)) == 1


@pytest.mark.parametrize("variable", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_the_standard_switches_turn_the_export_off(variable: dict[str, str], tmp_path: Path) -> None:
    with open_sink() as sink:
        variables = {"OTEL_EXPORT_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, **variable}
        with serving(tmp_path, **variables) as served:
            served.call({"count": 1})
            assert served.stop() == 0
        assert not sink.paths


def test_a_protocol_that_is_not_spoken_is_a_startup_error(tmp_path: Path) -> None:
    finished = subprocess.run(
        [*INGRESS, "serve", "echo", "--discovery", "mem", "--export-traces"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(OTEL_EXPORTER_OTLP_PROTOCOL="grpc"),
        timeout=PATIENCE,
    )
    assert finished.returncode == 3
    what, why, remedy = finished.stderr.splitlines()
    assert what == "error: cannot export traces"
    assert "asks for grpc" in why
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in remedy
