"""`ingress bench`: its screens, its document, and a load on a served worker."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio

from ingress.cli import main
from ingress.cli._bench_report import Report, bench_document, histogram_lines, print_report, size_text, time_text
from ingress.cli._bench_screen import progress_line, share_done
from ingress.cli._histogram import Span
from ingress.cli._load import Bounds, Load, Measured
from ingress.cli._machine import machine_facts, machine_line
from ingress.cli._screen import make_console

from .test_cli_processes import INGRESS, PATIENCE, Served, environment, run, serving, terminal

ENDPOINT = "demo.backend.generate"


def measured(*seconds: float) -> Measured:
    found = Measured(began=10.0, ended=12.0, sent=len(seconds), answered=len(seconds), chunks=5, bytes=1500)
    for value in seconds:
        found.first.record(value / 2)
        found.whole.record(value)
    return found


def report(found: Measured, **changes: Any) -> Report:
    facts = {"cpu": "Some CPU", "cores": 2, "system": "Linux 6.1", "python": "3.11.7", "packages": {"trio": "0.35.0"}}
    fields: dict[str, Any] = {
        "endpoint": ENDPOINT,
        "instances": 1,
        "codecs": ("msgpack",),
        "rate": None,
        "spacing": "constant",
        "seed": 0,
        "concurrency": 8,
        "bounds": Bounds(1.0, None, 2.0),
        "timeout": 60.0,
        "machine": facts,
        "measured": found,
        "most_open": 8,
        "open_limit": 1000,
        "generator_share": 0.2,
    }
    return Report(**{**fields, **changes})


def shown(found: Report) -> str:
    file = StringIO()
    print_report(found, make_console(file))
    return file.getvalue()


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_the_screen_has_the_load_the_machine_the_rates_and_the_latencies() -> None:
    screen = shown(report(measured(0.010, 0.020, 0.030, 0.040)))
    assert screen.startswith(
        "demo.backend.generate · 1 instance · msgpack\n"
        "closed loop: 8 callers, 2 s after 1 s of warm-up\n"
        "Some CPU, 2 cores · Linux 6.1 · python 3.11.7 · trio 0.35.0\n"
    )
    assert re.search(r"requests +4 answered, 0 failed in 2.0 s +2.0 /s", screen)
    assert re.search(r"bytes +1.5 kB +750 B/s", screen)
    assert re.search(r"whole answer +10.0 ms +25.0 ms +20.\d ms +40.0 ms +40.0 ms +40.0 ms +40.0 ms", screen)
    assert re.search(r"between chunks( +–){7}", screen)
    assert "late send" not in screen
    assert "Latencies are service times" in screen


def test_the_screen_of_an_open_loop_says_from_when_latencies_count() -> None:
    screen = shown(report(measured(0.5), rate=100.0, spacing="poisson", seed=7, bounds=Bounds(0.0, 1000, None)))
    assert "open loop: 100 requests/s, poisson arrivals of seed 7, 1,000 requests\n" in screen
    assert "late send" in screen
    assert screen.endswith("Latencies count from the time a request was due, however late it was sent.\n")


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"generator_share": 0.95}, "The generator was busy for 95% of the time"),
        ({"is_interrupted": True}, "Interrupted: the figures so far"),
        ({"rate": 5.0, "most_open": 1000}, "1,000 requests were open, as many as can be"),
    ],
)
def test_what_makes_figures_doubtful_is_said(changes: dict[str, Any], remark: str) -> None:
    assert remark in shown(report(measured(0.1), **changes))
    assert remark not in shown(report(measured(0.1)))


def test_failures_are_told_by_kind() -> None:
    found = measured(0.1)
    found.sent = 4
    found.failures["Overloaded"] = 2
    found.examples["Overloaded"] = "no room"
    screen = shown(report(found))
    assert "1 answered, 2 failed, 1 unfinished in 2.0 s" in screen
    assert "failed 2: Overloaded: no room" in screen


def test_a_bar_is_as_long_as_its_count_and_no_count_is_hidden() -> None:
    lines = histogram_lines([Span(0.001, 0.01, 4000), Span(0.01, 0.1, 2000), Span(0.1, 1.0, 0), Span(1.0, 10.0, 1)])
    assert [line.count("█") for line in lines] == [40, 20, 0, 0]
    assert lines[2].endswith("1.00 s") and lines[3].endswith("▏ 1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0"), (1e-9, "0.00 µs"), (9.994e-6, "9.99 µs"), (9.996e-6, "10.0 µs"), (999e-6, "999 µs")],
        *[(0.001, "1.00 ms"), (0.0999, "99.9 ms"), (0.5, "500 ms"), (1.0, "1.00 s"), (1234.5, "1,234 s")],
    ],
)
def test_times_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_sizes_have_decimal_units() -> None:
    assert [size_text(size) for size in (999, 1000, 2.5e6, 3e9)] == ["999 B", "1.0 kB", "2.5 MB", "3.0 GB"]


def test_the_document_is_versioned_and_in_seconds_and_bytes() -> None:
    document = bench_document(report(measured(0.25), rate=10.0))
    assert document["schema"] == "ingress.bench/1"
    assert document["load"]["loop"] == "open" and document["load"]["rate"] == 10.0
    assert document["latencies_from"] == "due time"
    assert document["latencies"]["whole_answer"]["p99"] == 0.25
    assert document["latencies"]["late_send"]["count"] == 0
    assert document["bytes_per_second"] == 750.0
    assert "late_send" not in bench_document(report(measured(0.25)))["latencies"]


def test_the_machine_is_told_in_one_line() -> None:
    line = machine_line(machine_facts())
    assert "\n" not in line
    assert re.search(r", \d+ cores? · \w+ .* · python 3\.\d+\.\d+ · ingress-dispatch \d", line)


async def test_the_bar_shows_the_warm_up_then_what_is_known(autojump_clock: trio.testing.MockClock) -> None:
    async def call(seen: Any) -> float:
        await trio.sleep(0.125)
        return trio.current_time()

    bounds = Bounds(warm_up=1.0, seconds=2.0)
    load = Load(call, bounds, timeout=1.0, most_open=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load.run_closed, 2)
        await trio.sleep(0.55)
        assert (progress_line(load), share_done(load, bounds)) == ("warming up · 2 open", 0.0)
        await trio.sleep(1.5)
        assert re.fullmatch(r"16 answered · 15/s · 2 open · p99 125 ms", progress_line(load))
        assert share_done(load, bounds) == pytest.approx(0.525)


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_nobody_to_put_under_load_ends_with_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", ENDPOINT, "--file-kv", str(tmp_path / "kv")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "error: nobody serves demo.backend.generate"


# -- a served worker --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv")


@pytest.fixture(scope="module")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    arguments = ("markov", "echo", "--endpoint", "generate", "--endpoint", "echo", "--grace", "0")
    with serving(*arguments, "--file-kv", str(store), cwd=tmp_path_factory.mktemp("served")) as worker:
        yield worker


def bench(store: Path, cwd: Path, *arguments: str) -> tuple[int, Any, str]:
    finished = run("bench", *arguments, "--warmup", "0", "--json", "--file-kv", str(store), cwd=cwd)
    return finished.returncode, json.loads(finished.stdout or "null"), finished.stderr


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_closed_loop_counts_every_request_and_chunk(served: Served, store: Path, tmp_path: Path, codec: str) -> None:
    code, document, said = bench(store, tmp_path, "echo", "-d", '{"n": 7}', "-n", "40", "-c", "4", "--codec", codec)
    assert (code, said) == (0, "")
    assert document["requests"] == {"sent": 40, "answered": 40, "failed": 0, "unfinished": 0}
    assert document["chunks"] == 7 * 40
    assert document["bytes"] > 7 * 40 * 20
    assert document["latencies"]["whole_answer"]["count"] == 40
    assert document["generator"]["most_open"] == 4
    assert document["machine"]["python"]


def test_an_open_loop_sends_every_request(served: Served, store: Path, tmp_path: Path) -> None:
    arguments = ("--rate", "100", "--arrivals", "poisson", "--seed", "5", "--duration", "0.5")
    code, document, _ = bench(store, tmp_path, "echo", "-d", "1", *arguments)
    assert code == 0
    assert document["requests"]["sent"] == document["latencies"]["late_send"]["count"] == document["chunks"] > 20
    assert document["load"]["seed"] == 5


def test_failed_requests_end_it_with_1(served: Served, store: Path, tmp_path: Path) -> None:
    code, document, _ = bench(store, tmp_path, "generate", "-d", "3", "-n", "4")
    assert code == 1
    (failure,) = document["failures"]
    assert (failure["kind"], failure["count"]) == ("RemoteError InvalidArgument", 4)
    assert "expected a prompt" in failure["example"]


def test_ctrl_c_ends_it_with_the_figures_so_far(served: Served, store: Path, tmp_path: Path) -> None:
    command = [*INGRESS, "bench", "echo", "-d", '{"n": 2, "delay": 0.01}', "--warmup", "0", "--duration", "600"]
    with terminal(*command[3:], "--file-kv", str(store), cwd=tmp_path) as (process, read_until):
        while not re.search(r"[1-9] answered", read_until(" answered")):
            pass
        process.send_signal(signal.SIGINT)
        screen = read_until("service times")
        assert process.wait(PATIENCE) == 130
    assert re.search(r"requests +[1-9][\d,]* answered, 0 failed", screen)
    assert "Interrupted: the figures so far" in screen


def test_without_a_terminal_no_bar_is_drawn(served: Served, store: Path, tmp_path: Path) -> None:
    finished = subprocess.run(
        [*INGRESS, "bench", "echo", "-d", "1", "-n", "5", "--warmup", "0", "--file-kv", str(store)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=PATIENCE,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "5 answered, 0 failed" in finished.stdout and "█" in finished.stdout
