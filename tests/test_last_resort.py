"""The thread that ends a process: when it does, and that it leaves a loop that runs alone."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from ingress import _last_resort, make_worker
from ingress._last_resort import LastResort
from ingress.discovery import MemoryDiscovery
from ingress.testing import MemoryNetwork


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


class Exits:
    """What the process would have ended with."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.came = threading.Event()

    def leave_now(self, exit_code: int, last_words: Callable[[], None]) -> None:
        self.codes.append(exit_code)
        last_words()
        self.came.set()
        threading.Event().wait()  # as this does not return


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Exits:
    made = Exits()
    monkeypatch.setattr(_last_resort, "leave_now", made.leave_now)
    for name in ("GOODBYE_TIMEOUT", "CLOSING_TIME"):
        monkeypatch.setattr(_last_resort, name, 0.0)
    monkeypatch.setattr(_last_resort, "FORCED_EXIT_TIME", _last_resort._ANSWER_TIME)
    monkeypatch.setattr(_last_resort, "_LOOK_AGAIN", 0.01)
    return made


def last_resort(drain_budget: float = 0.0) -> LastResort:
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    return LastResort(make_worker(echo, network=network, discovery=discovery, linger=0.0, drain_budget=drain_budget))


async def test_a_loop_that_runs_is_left_to_its_own_bounds(exits: Exits, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCED_EXIT_TIME", "_ANSWER_TIME"):
        monkeypatch.setattr(_last_resort, name, 5.0)  # it is asked at once, and may be slow on a busy machine
    with last_resort() as resort:
        resort.expect_drained()
        await trio.sleep(0.2)
    assert exits.codes == []


async def test_a_loop_that_gets_stuck_later_is_noticed_all_the_same(exits: Exits) -> None:
    with last_resort() as resort:
        resort.expect_drained()
        await trio.sleep(0.1)
        assert exits.came.wait(20)
    assert exits.codes == [4]


async def test_a_second_signal_after_a_drain_ends_whatever_the_loop_does(exits: Exits) -> None:
    with last_resort(drain_budget=1000.0) as resort:
        resort.expect_drained()
        resort.expect_forced(15)
        resort.expect_forced(2)
        await trio.to_thread.run_sync(exits.came.wait, 20)
    assert exits.codes == [143]


async def test_who_has_left_in_time_is_let_go(exits: Exits) -> None:
    with last_resort() as resort:
        resort.expect_forced(15)
    time.sleep(0.3)
    assert exits.codes == []
