"""What a terminal and a log show of a drain."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ingress import MemoryDiscovery, make_worker
from ingress._log_writer import LineWriter
from ingress._serve import serve_until_signalled
from ingress.cli._drain import drain_line, show_drain
from ingress.cli._screen import make_console
from ingress.testing import MemoryNetwork

from .raw_caller import open_stage
from .test_cli_processes import PATIENCE, start_call, terminal


async def sleep_for(request: float) -> AsyncIterator[Any]:
    await trio.sleep(request)
    yield request


async def test_the_line_names_the_phase_what_is_open_and_the_seconds_that_are_left(autojump_clock: MockClock) -> None:
    async with open_stage(sleep_for, linger=2, drain_budget=25) as stage:
        response = await stage.call(1000)
        stage.worker.drain()
        await trio.sleep(0.5)
        assert drain_line(stage.worker) == "draining: lingering, 1 open, 2 s until new requests are refused"
        await trio.sleep(4)
        assert drain_line(stage.worker) == "draining: refusing, 1 open, 23 s left to finish"
        assert (await response.read_to_sentinel()).errors[0].kind == "EngineShutdown"
        await trio.sleep(0.5)
        assert drain_line(stage.worker) == "draining: closing, 0 open, 1 s left to close"


async def test_without_a_terminal_a_log_line_comes_every_five_seconds(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ingress")
    async with trio.open_nursery() as nursery:
        async with open_stage(sleep_for, linger=2, drain_budget=12) as stage:
            nursery.start_soon(show_drain, stage.worker, None, LineWriter(None))
            response = await stage.call(13)
            stage.worker.drain()
            await response.read_to_sentinel()
        nursery.cancel_scope.cancel()
    lines = [record.getMessage() for record in caplog.records if record.name in ("ingress.cli", "ingress.worker")]
    assert lines == [
        "draining: withdrawn, accepting for 2 s more",
        "draining: 1 open, budget 12 s",
        "draining: refusing, 1 open, 9 s left to finish",
        "draining: refusing, 1 open, 4 s left to finish",
    ]


class Waiting(LineWriter):
    """Keeps what it is given, and nobody takes it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.texts: list[str] = []

    @property
    def waiting(self) -> int:
        return len(self.texts)

    def write_line(self, line: str, end: str = "\n") -> None:
        self.texts.append(line + end)


async def test_r08_a_terminal_that_takes_nothing_is_not_filled_with_countdowns(autojump_clock: MockClock) -> None:
    writer = Waiting()
    async with trio.open_nursery() as nursery:
        async with open_stage(sleep_for, linger=2, drain_budget=100) as stage:
            nursery.start_soon(show_drain, stage.worker, make_console(io.StringIO(), "always"), writer)
            response = await stage.call(90)
            stage.worker.drain()
            await response.read_to_sentinel()
        nursery.cancel_scope.cancel()
    assert "draining: lingering, 1 open, 2 s until new requests are refused" in writer.texts[1]
    assert len(writer.texts) == 101
    assert writer.texts[-1] == "\r\x1b[2K"


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")
def test_ingress_serve_shows_its_drain(tmp_path: Path) -> None:
    arguments = ("serve", "echo", "--grace", "0.6", "--drain-budget", "20", "--file-kv", str(tmp_path))
    with terminal(*arguments, cwd=tmp_path) as (process, read_until):
        read_until(" call ")
        with start_call(tmp_path, n=45, delay=0.05):
            process.send_signal(signal.SIGTERM)
            drawn = read_until("stopped: drained, every request was answered")
            assert process.wait(PATIENCE) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
    shown = list(dict.fromkeys(re.findall(r"draining: \w+ing, [^\r\n]*", plain)))
    start = shown.index("draining: lingering, 1 open, 1 s until new requests are refused")
    assert shown[start + 1 : start + 3] == [
        "draining: refusing, 1 open, 20 s left to finish",
        "draining: refusing, 1 open, 19 s left to finish",
    ]
    assert re.search(r"\r\x1b\[2K[^\r]*stopped: ", plain.replace("\r\n", "\n")), "the line is gone at the end"


def test_the_look_of_a_drain_never_costs_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def beside(worker: Any) -> None:
        await worker.wait_draining()
        raise ZeroDivisionError

    async def scenario() -> int:
        worker = make_worker(sleep_for, network=MemoryNetwork(), discovery=MemoryDiscovery(), linger=0)
        return await serve_until_signalled(worker, lambda worker: worker.drain(), beside=beside)

    assert trio.run(scenario) == 0
    assert "internal error beside the worker" in caplog.text
