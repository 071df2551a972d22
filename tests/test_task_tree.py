"""The dump of the task tree: names, requests and places, and how long it may get."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ingress import _task_tree
from ingress._logging import request_scope
from ingress._task_tree import MAX_ALIKE, MAX_LINES, describe_tasks, dump_tasks_on_signal

from .raw_caller import open_stage

needs_sigusr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")


async def a_place_to_wait_at() -> None:
    await trio.sleep_forever()


async def waits_behind_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a_place_to_wait_at)


async def test_children_stand_below_their_parents_with_file_and_line() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_behind_a_nursery)
        await wait_all_tasks_blocked()
        lines = describe_tasks()
        nursery.cancel_scope.cancel()
    (parent,) = [line for line in lines if "waits_behind_a_nursery  at" in line]
    (child,) = [line for line in lines if "a_place_to_wait_at  at" in line]
    here = a_place_to_wait_at.__code__.co_firstlineno
    assert f"at test_task_tree.py:{here + 1} a_place_to_wait_at" in child
    assert lines.index(child) == lines.index(parent) + 1
    assert len(child) - len(child.lstrip()) == len(parent) - len(parent.lstrip()) + 2
    assert lines[0].startswith("tasks: ")


async def test_a_request_is_shown_with_its_id_where_its_engine_waits() -> None:
    """Also through the pump, which steps engines by hand."""

    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        await a_place_to_wait_at()

    async with open_stage(engine) as stage:
        response = await stage.call("x", request_id="r-17")
        await response.read_items(1)
        await wait_all_tasks_blocked()
        (line,) = [line for line in describe_tasks() if "a_place_to_wait_at < " in line]
        assert "handle_payload [r-17]  at test_task_tree.py:" in line
        assert " engine < " in line


async def test_ids_are_escaped_and_cut() -> None:
    async with trio.open_nursery() as nursery:
        with request_scope("r\n" + "x" * 5000, None):
            nursery.start_soon(a_place_to_wait_at)
        await wait_all_tasks_blocked()
        lines = describe_tasks()
        nursery.cancel_scope.cancel()
    (line,) = [line for line in lines if "a_place_to_wait_at [" in line]
    assert "[r\\nxxx" in line
    assert len(line) < 300
    assert "of 1 request" in lines[0]


async def test_what_waits_alike_is_shown_a_few_times_and_counted() -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(waits_behind_a_nursery)
        await wait_all_tasks_blocked()
        lines = describe_tasks()
        nursery.cancel_scope.cancel()
    assert len([line for line in lines if "waits_behind_a_nursery  at" in line and "…" not in line]) == MAX_ALIKE
    assert any(f"… and {1000 - MAX_ALIKE} more like" in line for line in lines)
    assert int(lines[0].split()[1]) >= 2000


async def test_a_dump_is_bounded_whatever_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(2 * MAX_LINES):
            nursery.start_soon(a_place_to_wait_at, name=f"task {number}")
        await wait_all_tasks_blocked()
        lines = describe_tasks()
        monkeypatch.setattr(_task_tree, "MAX_TASKS", 100)
        few = describe_tasks()
        nursery.cancel_scope.cancel()
    assert len(lines) == MAX_LINES + 2
    assert "more do not fit" in lines[-1]
    assert few[0].startswith("tasks: 100 or more in all")


async def test_a_deep_tree_is_counted_to_its_bottom() -> None:
    async def dive(depth: int) -> None:
        async with trio.open_nursery() as nursery:
            if depth:
                nursery.start_soon(dive, depth - 1)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dive, 100)
        await wait_all_tasks_blocked()
        lines = describe_tasks()
        nursery.cancel_scope.cancel()
    assert int(lines[0].split()[1]) > 100
    assert len(lines) < 60


@needs_sigusr1
async def test_sigusr1_dumps_to_the_log_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(dump_tasks_on_signal)
        os.kill(os.getpid(), signal.SIGUSR1)
        with trio.fail_after(10):
            while not caplog.records:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert caplog.records[0].getMessage().startswith("tasks: ")
    assert {(record.name, record.levelno) for record in caplog.records} == {("ingress.tasks", logging.WARNING)}
    assert any("dump_tasks_on_signal" in record.getMessage() for record in caplog.records)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@needs_sigusr1
async def test_a_program_that_uses_the_signal_keeps_it() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        await dump_tasks_on_signal()  # returns at once
        os.kill(os.getpid(), signal.SIGUSR1)
        with trio.fail_after(10):
            while not got:
                await trio.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_without_the_signal_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGUSR1", raising=False)
    await dump_tasks_on_signal()
