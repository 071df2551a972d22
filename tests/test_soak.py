"""The soak, small: nothing good is lost beside a villain, and the load client tells whole streams from others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from .reliability.served import Watch, Worker, open_worker
from .soak.__main__ import table
from .soak.engine import LEDGER, Runs, read_ledger
from .soak.history import Ending, Outcome, breaches
from .soak.load import MIB, Figure, many_streams, pipelined
from .soak.plain_client import take
from .soak.villainy import run_villainy, slope

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read in /proc")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with open_worker() as running:
        yield running


def values(figures: list[Figure]) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


async def test_l09_no_good_request_is_lost_beside_a_villain() -> None:
    found = values(await run_villainy(4, seed=1))
    assert found["good requests lost beside a villain"] == 0
    assert found["good requests refused beside a villain"] == 0
    assert found["breaches in the history of good requests"] == 0
    assert found["good requests beside a villain"] > 20
    assert found["attacks of the villain"] > 10
    assert found["descriptors left behind"] <= 3
    assert found["requests in flight left behind"] == 0


def test_a_history_in_which_each_request_ends_once_has_no_breach() -> None:
    endings = [
        Ending("good-1", "count", Outcome.COMPLETE),
        Ending("good-2", "fail", Outcome.TOLD),
        Ending("good-3", "count", Outcome.REFUSED),
        Ending("good-4", "leave", Outcome.CANCELLED),
        Ending("good-5", "cancel", Outcome.CANCELLED),
    ]
    assert list(breaches(endings, dict.fromkeys(("good-1", "good-2", "good-4"), Runs(1, 1)))) == []


@pytest.mark.parametrize(
    ("outcome", "runs", "breach"),
    [
        (Outcome.LOST, Runs(1, 1), "good-1 (count, lost): no answer"),
        (Outcome.COMPLETE, Runs(2, 2), "good-1 (count, complete): run 2 times"),
        (Outcome.COMPLETE, Runs(), "good-1 (count, complete): run 0 times"),
        (Outcome.REFUSED, Runs(1, 1), "good-1 (count, refused): run 1 times"),
        (Outcome.CANCELLED, Runs(2, 2), "good-1 (count, cancelled): run 2 times"),
        (Outcome.CANCELLED, Runs(1, 0), "good-1 (count, cancelled): begun 1 times, ended 0 times"),
    ],
)
def test_a_request_that_is_lost_or_run_twice_or_left_open_is_a_breach(
    outcome: Outcome, runs: Runs, breach: str
) -> None:
    assert list(breaches([Ending("good-1", "count", outcome, "no answer")], {"good-1": runs})) == [breach]


def test_two_endings_of_a_request_and_an_unknown_one_are_breaches() -> None:
    twice = [Ending("good-1", "count", Outcome.COMPLETE)] * 2
    assert list(breaches(twice, {"good-1": Runs(1, 1), "good-2": Runs(1, 1)})) == [
        "good-1: ended 2 times",
        "good-2: run, and no ending of it is known",
    ]


def test_a_ledger_says_how_often_each_request_was_run(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == {}
    (tmp_path / LEDGER).write_text("begun good-1\nbegun good-2\nended good-1\nbegun good-1\n")
    assert read_ledger(tmp_path) == {"good-1": Runs(2, 1), "good-2": Runs(1, 0)}


async def test_l01_of_a_thousand_streams_at_once_none_is_lost(worker: Worker) -> None:
    watch = Watch(worker)
    assert values(await many_streams(worker, chunks=10))["streams lost of 1,000 at once"] == 0
    await watch.assert_back(growth=256 * MIB)


async def test_l02_l11_thousands_of_requests_by_64_callers_are_answered_and_leave_nothing(worker: Worker) -> None:
    await pipelined(worker, requests=1000, at_once=64)
    watch = Watch(worker)
    assert values(await pipelined(worker, requests=3000, at_once=64))["pipelined requests lost"] == 0
    await watch.assert_back(growth=32 * MIB)


async def test_l11_large_bodies_leave_little_behind() -> None:
    """With the C library's own settings it would be some 45 MiB."""
    body = {"do": "measure", "list": list(range(900_000))}
    with open_worker() as worker:
        async with worker.open_caller() as caller:
            await worker.tell(caller)
            watch = Watch(worker)
            for _ in range(5):
                assert (await worker.tell(caller, body)).items == [900_000]
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(_tell_alone, worker, body)
        await watch.assert_back(growth=24 * MIB)


async def _tell_alone(worker: Worker, body: object) -> None:
    async with worker.open_caller() as caller:
        assert (await worker.tell(caller, body)).is_whole


async def test_streams_that_are_not_whole_are_lost(worker: Worker) -> None:
    result = await trio.to_thread.run_sync(
        lambda: take(worker.record, {"do": "raise"}, 3, chunks=2, connections=1, at_once=2)
    )
    assert result.lost == 3


def test_growth_is_seen_behind_the_warm_up() -> None:
    grows = [(float(at), 1000.0 * max(at - 60, 0) + 10**6 * min(at, 60)) for at in range(600)]
    assert slope(grows, 600) == pytest.approx(1000)
    assert slope([(at, 5.0 - at) for at, _ in grows], 600) == 0
    assert slope(grows[:1], 600) == 0


def test_memory_that_goes_up_and_down_does_not_grow() -> None:
    saw = [(at / 2, 50.0 * MIB + at % 40 * MIB / 10) for at in range(1200)]
    assert slope(saw, 600) * 60 < MIB / 20


def test_figures_are_a_table_and_are_met_or_not() -> None:
    figures = [
        Figure("lost", 0, 0),
        Figure("rate", 1234.5, 1800, "a second", at_least=True),
        Figure("time", 0.5, 1, "s"),
    ]
    assert [figure.is_met for figure in figures] == [True, False, True]
    assert table(figures, 60).splitlines()[2:] == [
        "| lost | 0 | at most 0 |",
        "| rate | 1,234 a second | at least 1,800 a second, missed |",
        "| time | 0.50 s | at most 1 s |",
        "| length of the villain's run | 60 s | |",
    ]
