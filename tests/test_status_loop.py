"""The watch over the event loop: lag, blockages, and the stack that is to blame (E05)."""

from __future__ import annotations

import logging
import sys
import threading
import time

import pytest
import trio

from ingress.metrics import WorkerMetrics
from ingress.status import watch_loop
from ingress.status._loop import describe_stack


def value(metrics: WorkerMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


def a_guilty_function(seconds: float) -> None:
    time.sleep(seconds)


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ingress.loop"]


async def wait_for_reports(caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Wait as long as a busy machine keeps the watching thread from its turn, and a little for what should not come."""
    with trio.fail_after(30):
        while len(reports(caplog)) < count:
            await trio.sleep(0.05)
    await trio.sleep(0.3)


async def test_e05_what_blocks_the_loop_is_named_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics = WorkerMetrics(1)
    with watch_loop(metrics, stall_limit=0.3):
        await trio.sleep(0.2)
        a_guilty_function(1.5)
        await wait_for_reports(caplog, 2)
    first, second = reports(caplog)
    assert "a_guilty_function < " in first
    assert "test_status_loop.py:" in first
    assert "/trio/" not in first
    assert "runs again after 1." in second
    assert value(metrics, "ingress_loop_stalls_total") == 1
    assert value(metrics, "ingress_loop_lag_seconds_sum") > 0.9


async def test_e05_what_lets_no_other_thread_run_is_counted_by_the_loop_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = WorkerMetrics(1)
    with watch_loop(metrics, stall_limit=0.3):
        await trio.sleep(0.2)
        sum(range(10**8))  # one call, a second or two
        await wait_for_reports(caplog, 1)
    [only] = reports(caplog)
    assert only.endswith(" s by a call that let no other thread run")
    assert value(metrics, "ingress_loop_stalls_total") == 1
    assert value(metrics, "ingress_loop_lag_seconds_sum") > 0.3


async def test_a_loop_that_runs_is_sampled_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    metrics = WorkerMetrics(1)
    with watch_loop(metrics, stall_limit=5):
        with trio.fail_after(30):
            while value(metrics, "ingress_loop_lag_seconds_count") < 3:
                await trio.sleep(0.05)
    assert value(metrics, "ingress_loop_stalls_total") == 0
    assert not caplog.records


async def test_the_watch_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    for _ in range(3):
        with watch_loop(WorkerMetrics(1)):
            await trio.lowlevel.checkpoint()
    assert threading.active_count() == before


async def test_the_watch_ends_also_while_it_waits_for_an_answer() -> None:
    with watch_loop(WorkerMetrics(1), stall_limit=0.2):
        await trio.sleep(0.15)
        time.sleep(0.5)


async def test_a_process_that_was_held_is_not_blamed_on_its_code(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that wakes far too late itself was stopped together with the loop."""
    metrics = WorkerMetrics(1)
    real = time.monotonic
    jumps = iter([0.0, 0.0] + [20.0 * n for n in range(1, 200)])
    with watch_loop(metrics, stall_limit=0.4):
        await trio.sleep(0.2)
        monkeypatch.setattr("ingress.status._loop.time.monotonic", lambda: real() + next(jumps))
        a_guilty_function(0.8)
        monkeypatch.undo()
        await trio.sleep(0.2)
    assert value(metrics, "ingress_loop_stalls_total") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_stack_fits_on_one_line() -> None:
    def dive(depth: int) -> str:
        return dive(depth - 1) if depth else describe_stack(sys._getframe())

    text = dive(100)
    assert text.startswith("test_status_loop.py:")
    assert text.count(" < ") == 11
    assert len(text) < 900
    assert describe_stack(None) == "(no Python code)"
