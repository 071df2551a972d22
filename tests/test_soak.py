"""The soak, small: nothing good is lost beside a villain, and the load client tells whole streams from others."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import trio

from .reliability.served import Watch, Worker, open_worker
from .soak.__main__ import table
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
    assert found["good requests beside a villain"] > 100
    assert found["attacks of the villain"] > 10
    assert found["descriptors left behind"] <= 3
    assert found["requests in flight left behind"] == 0


async def test_l01_of_a_thousand_streams_at_once_none_is_lost(worker: Worker) -> None:
    watch = Watch(worker)
    assert values(await many_streams(worker, chunks=10))["streams lost of 1,000 at once"] == 0
    await watch.assert_back(growth=256 * MIB)


async def test_l02_l11_thousands_of_requests_by_64_callers_are_answered_and_leave_nothing(worker: Worker) -> None:
    await pipelined(worker, requests=1000, at_once=64)
    watch = Watch(worker)
    assert values(await pipelined(worker, requests=3000, at_once=64))["pipelined requests lost"] == 0
    await watch.assert_back(growth=32 * MIB)


async def test_streams_that_are_not_whole_are_lost(worker: Worker) -> None:
    result = await trio.to_thread.run_sync(
        lambda: take(worker.record, {"do": "raise"}, 3, chunks=2, connections=1, at_once=2)
    )
    assert result.lost == 3


def test_growth_is_seen_behind_the_warm_up() -> None:
    grows = [(float(at), 1000.0 * max(at - 20, 0) + 10**6 * min(at, 20)) for at in range(100)]
    assert slope(grows, 100) == pytest.approx(1000)
    assert slope([(at, 5.0 - at) for at, _ in grows], 100) == 0
    assert slope(grows[:1], 100) == 0


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
