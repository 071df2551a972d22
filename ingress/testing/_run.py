"""The event loop of a check: time that jumps, a bound for every wait, and the same schedule for the same seed."""

from __future__ import annotations

import importlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
import trio.testing

from .._threads import _limiter as limiter_of_blocking_engines
from ..handover import tasks_waiting
from ._outcome import fail

# How often threads and sockets that are being waited for are looked at, in real seconds.
_PATIENCE = 0.01


def run_check(main: Callable[[], Awaitable[None]], seed: int) -> None:
    """Run a check in an event loop of its own.

    Time stands still while a task runs, and jumps to the next deadline when every task waits for time alone: an engine
    that sleeps an hour between chunks is checked in milliseconds. While one waits for a thread or a socket, time passes
    as it does outside.

    Raises:
        RuntimeError: called inside a running event loop.
    """
    try:
        trio.lowlevel.current_root_task()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("a check runs an event loop of its own: call it from a plain function, not an async one")
    clock = trio.testing.MockClock()
    with _repeatable_scheduling(seed):
        failure = trio.run(_run, main, clock, clock=clock)
    if failure is not None:
        raise failure


async def _run(main: Callable[[], Awaitable[None]], clock: trio.testing.MockClock) -> Exception | None:
    """Return what ``main`` raised: out of here a nursery would wrap it in a group."""
    failure = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_jump_when_idle, clock)
        try:
            await main()
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    return failure


async def _jump_when_idle(clock: trio.testing.MockClock) -> None:
    at_rest = _waiting_for_io()  # the loop itself waits for its wake-up socket
    others = _OtherSteps(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(others)
    while True:
        await trio.testing.wait_all_tasks_blocked()
        # A check that waits for the same thing wakes at the same moment, and goes first.
        before = others.steps
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        if others.steps != before:
            continue
        if _waiting_for_io() > at_rest or _threads_at_work():
            started = time.perf_counter()
            await trio.testing.wait_all_tasks_blocked(_PATIENCE)
            clock.jump(time.perf_counter() - started)
        elif math.isinf(seconds := trio.lowlevel.current_statistics().seconds_to_next_deadline):
            await trio.testing.wait_all_tasks_blocked(_PATIENCE)
        else:
            clock.jump(max(seconds, 0.0))


class _OtherSteps(trio.abc.Instrument):
    """Counts the steps of all tasks but one."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.steps = 0
        self._task = task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += task is not self._task


def _threads_at_work() -> int:
    limiters = (limiter_of_blocking_engines(), trio.to_thread.current_default_thread_limiter())
    return sum(limiter.borrowed_tokens for limiter in limiters) + tasks_waiting()


def _waiting_for_io() -> int:
    io: Any = trio.lowlevel.current_statistics().io_statistics
    fields = ("tasks_waiting_read", "tasks_waiting_write", "tasks_waiting")  # by platform
    return sum(getattr(io, field, 0) for field in fields)


@contextmanager
def _repeatable_scheduling(seed: int) -> Iterator[None]:
    # trio shuffles tasks that are ready together. Its own plug-ins for pytest and hypothesis reach for the same two
    # names; without them a check works as well, only a failure may need a few more tries to come again.
    core: Any = importlib.import_module("trio._core._run")
    shuffler = getattr(core, "_r", None)
    if not isinstance(shuffler, random.Random) or not hasattr(core, "_ALLOW_DETERMINISTIC_SCHEDULING"):
        yield
        return
    before, was_allowed = shuffler.getstate(), core._ALLOW_DETERMINISTIC_SCHEDULING
    shuffler.seed(seed)
    core._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        shuffler.setstate(before)
        core._ALLOW_DETERMINISTIC_SCHEDULING = was_allowed


@contextmanager
def within(seconds: float, expected: str, got: str = "nothing") -> Iterator[None]:
    """Bound a wait: at its end the property has failed, with what was expected and what came instead."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        fail(f"{expected} within {seconds:g} s", got)
