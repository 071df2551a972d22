"""The supervision of worker processes in time: delays, their end, bounds. Processes are played, the clock is a mock."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress.cli._child import Child
from ingress.cli._errors import CommandError
from ingress.cli._started import StartedWorker
from ingress.cli._supervisor import FIRST_DELAY, LIFE_THAT_FORGIVES, MAX_DELAY, Supervisor

WORKER = StartedWorker(
    instance="1",
    address="127.0.0.1:1",
    plane="tcp",
    tls="",
    codec="json",
    engines={},
    models={},
    status=None,
    asking=[],
)
DRAIN_TIME = 40.0


class Played:
    """A process as the supervisor sees it."""

    def __init__(self, number: int, *, starts: bool = True, ends_when_told: int | None = 0) -> None:
        self.number = number
        self.pid = 100 + number
        self.started: StartedWorker | None = None
        self.exit_code: int | None = None
        self.told: list[str] = []
        self.opened_at = trio.current_time()
        self._starts = starts
        self._ends_when_told = ends_when_told
        self._ended = trio.Event()

    async def run(self, on_started: Callable[[StartedWorker], None]) -> None:
        if self._starts:
            self.started = WORKER
            on_started(WORKER)
        try:
            await self._ended.wait()
        finally:
            if self.exit_code is None:
                self.exit_code = -9

    def end(self, code: int) -> None:
        self.exit_code = code
        self._ended.set()

    def drain(self) -> None:
        self.told.append("drain")
        if self._ends_when_told is not None:
            self.end(self._ends_when_told)

    def force(self, number: int) -> None:
        self.told.append(f"force {number}")
        self.end(128 + number)

    def pass_on(self, number: int) -> None:
        self.told.append(signal.Signals(number).name)

    def kill(self) -> None:
        self.end(-9)

    def ending(self) -> str:
        return f"exited with {self.exit_code}"

    def error(self) -> CommandError:
        return CommandError(self.ending(), exit_code=1 if self.started else 3)


class Stage:
    """A supervisor of played processes."""

    def __init__(self, *cast_of: dict[str, Any]) -> None:
        self.opened: list[Played] = []
        self.code: int | None = None
        self.failure: CommandError | None = None
        self.announced = 0
        self._cast = list(cast_of)
        self.supervisor = Supervisor(
            max(1, len(cast_of)), self._open, drain_time=DRAIN_TIME, passed_on=[signal.SIGUSR1]
        )

    def first(self, number: int) -> Played:
        """The first process of that number; trio starts tasks in any order."""
        return next(process for process in self.opened if process.number == number)

    async def _open(self, number: int) -> Child:
        kind = self._cast[number] if number < len(self._cast) else {}
        self.opened.append(Played(number, **kind))
        return cast(Child, self.opened[-1])

    async def run(self) -> None:
        try:
            self.code = await self.supervisor.serve(self._announce)
        except CommandError as exc:
            self.failure = exc

    def _announce(self) -> None:
        self.announced += 1


@asynccontextmanager
async def open_stage(*cast_of: dict[str, Any]) -> AsyncIterator[Stage]:
    """Enter with all processes opened; leave when the supervisor has ended, which takes a signal."""
    stage = Stage(*cast_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.run)
        await wait_all_tasks_blocked()
        yield stage


async def test_a_process_that_crashes_again_and_again_is_started_ever_later(autojump_clock: MockClock) -> None:
    delays = []
    async with open_stage() as stage:
        for _ in range(9):
            stage.opened[-1].end(1)
            crashed_at, count = trio.current_time(), len(stage.opened)
            while len(stage.opened) == count:
                await trio.sleep(FIRST_DELAY / 10)
            delays.append(stage.opened[-1].opened_at - crashed_at)
        signal.raise_signal(signal.SIGTERM)
    assert delays == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30], abs=1e-6)
    assert delays[0] == pytest.approx(FIRST_DELAY) and delays[-1] == pytest.approx(MAX_DELAY)
    assert stage.supervisor.slots[0].restarts == 9
    assert stage.announced == 1, "only the first start is announced"
    assert stage.code == 0, "whoever crashed before is no part of the end"


async def test_a_process_that_has_served_for_a_while_is_forgiven(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        for _ in range(3):
            stage.opened[-1].end(1)
            await trio.sleep(MAX_DELAY)
        await trio.sleep(LIFE_THAT_FORGIVES)
        stage.opened[-1].end(1)
        crashed_at = trio.current_time()
        await trio.sleep(MAX_DELAY)
        assert stage.opened[-1].opened_at - crashed_at == pytest.approx(FIRST_DELAY)
        signal.raise_signal(signal.SIGTERM)


async def test_a_later_start_that_fails_is_tried_again(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        stage._cast = [{"starts": False}]
        stage.opened[-1].end(1)
        await trio.sleep(FIRST_DELAY * 1.5)
        stage.opened[-1].end(3)
        await trio.sleep(FIRST_DELAY * 3)
        assert len(stage.opened) == 3
        signal.raise_signal(signal.SIGTERM)
    assert (stage.failure, stage.code) == (None, 0)


async def test_a_first_start_that_fails_ends_all_the_others(autojump_clock: MockClock) -> None:
    async with open_stage({}, {"starts": False, "ends_when_told": None}, {"starts": False}) as stage:
        stage.first(2).end(3)
    started, loading = stage.first(0), stage.first(1)
    assert stage.failure is not None and stage.failure.exit_code == 3
    assert started.told == ["drain"]
    assert loading.exit_code == -9
    assert trio.current_time() < DRAIN_TIME


async def test_no_process_is_started_once_a_drain_has_begun(autojump_clock: MockClock) -> None:
    async with open_stage({}, {"ends_when_told": None}) as stage:
        stage.first(0).end(1)  # and waits to be started again
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep(MAX_DELAY)
        stage.first(1).end(0)
    assert len(stage.opened) == 2
    assert stage.code == 0


@pytest.mark.parametrize(
    ("codes", "worst"), [((0, 0), 0), ((0, 4), 4), ((4, 1), 1), ((0, -11), 1)], ids=["clean", "cut", "failed", "crash"]
)
async def test_the_worst_exit_code_is_the_parents(
    codes: tuple[int, int], worst: int, autojump_clock: MockClock
) -> None:
    async with open_stage(*({"ends_when_told": code} for code in codes)) as stage:
        signal.raise_signal(signal.SIGTERM)
    assert stage.code == worst


async def test_a_process_that_does_not_end_in_time_is_killed(autojump_clock: MockClock) -> None:
    async with open_stage({}, {"ends_when_told": None}) as stage:
        signal.raise_signal(signal.SIGTERM)
    assert stage.first(1).exit_code == -9
    assert trio.current_time() == pytest.approx(DRAIN_TIME)
    assert stage.code == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_second_signal_is_passed_on(number: int, code: int, autojump_clock: MockClock) -> None:
    async with open_stage({"ends_when_told": None}, {}) as stage:
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep(1)
        signal.raise_signal(number)
    assert stage.first(0).told == ["drain", f"force {number}"]
    assert stage.code == code


async def test_other_signals_go_to_every_process(autojump_clock: MockClock) -> None:
    async with open_stage({}, {}) as stage:
        signal.raise_signal(signal.SIGUSR1)
        await wait_all_tasks_blocked()
        assert [process.told for process in stage.opened] == [["SIGUSR1"], ["SIGUSR1"]]
        signal.raise_signal(signal.SIGTERM)
