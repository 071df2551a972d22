"""Load in virtual time: when requests are sent, and from when their latencies count."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from ingress.cli._load import FAILURE_PAUSE, MAX_KINDS, OTHER_KINDS, Bounds, Load, arrivals
from ingress.client._lean_call import LeanCaller
from ingress.errors import Overloaded, RemoteError
from ingress.testing import memory_worker

ENDPOINT = "demo.backend.generate"
RATE = 100

Seen = Callable[[int, int], None]


def taking(seconds: float) -> Callable[[Seen], Awaitable[float]]:
    async def call(seen: Seen) -> float:
        await trio.sleep(seconds)
        seen(1, 10)
        return trio.current_time()

    return call


def make_load(call: Any, bounds: Bounds, *, timeout: float = 60, most_open: int = 10_000) -> Load:
    return Load(call, bounds, timeout=timeout, most_open=most_open)


# -- when requests are due --------------------------------------------------------------------------------------------


@given(st.floats(0.1, 1e5), st.integers(0, 5000))
def test_a_constant_rate_does_not_drift(rate: float, number: int) -> None:
    assert next(itertools.islice(arrivals(rate), number, None)) == number / rate


@given(st.floats(1, 1000), st.integers(0, 2**32))
def test_poisson_arrivals_are_in_order_and_the_same_for_a_seed(rate: float, seed: int) -> None:
    times = list(itertools.islice(arrivals(rate, "poisson", seed), 50))
    assert times == sorted(times) and times[0] > 0
    assert times == list(itertools.islice(arrivals(rate, "poisson", seed), 50))
    assert times != list(itertools.islice(arrivals(rate, "poisson", seed + 1), 50))


def test_poisson_arrivals_come_at_the_rate_and_as_unevenly_as_they_should() -> None:
    times = list(itertools.islice(arrivals(50, "poisson", 3), 20_001))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert variance**0.5 == pytest.approx(mean, rel=0.05), "the deviation of an exponential distribution is its mean"


# -- coordinated omission ---------------------------------------------------------------------------------------------


async def test_a_worker_that_stalls_for_a_second_is_seen_by_all_who_were_due_meanwhile(
    autojump_clock: MockClock,
) -> None:
    """100 requests are due in the second; the median of them waited for half of it."""
    stalled_until = trio.current_time() + 1.0

    async def engine(request: Any) -> AsyncIterator[Any]:
        await trio.sleep(max(0.0, stalled_until - trio.current_time()))
        yield request

    async with memory_worker(engine, endpoint=ENDPOINT) as client:
        load = make_load(LeanCaller(client, ENDPOINT, 1).call, Bounds(requests=RATE))
        await load.run_open(arrivals(RATE))
    measured = load.measured
    assert measured.answered == measured.sent == RATE
    assert 0.4 < measured.whole.quantile(0.5) < 0.6
    assert 0.4 < measured.first.quantile(0.5) < 0.6
    assert 0.97 < measured.whole.quantile(1) < 1.05


async def test_a_generator_that_could_not_send_in_time_counts_the_wait_and_leaves_nothing_out(
    autojump_clock: MockClock,
) -> None:
    """One request may be open; the first takes a second, the others nothing: counted from the send, all but one."""
    calls = itertools.count()

    async def call(seen: Seen) -> float:
        return await taking(1.0 if next(calls) == 0 else 0.0)(seen)

    load = make_load(call, Bounds(seconds=1.0), most_open=1)
    await load.run_open(arrivals(RATE))
    assert load.measured.answered == RATE
    assert load.measured.whole.quantile(0.5) == pytest.approx(0.5, abs=0.02)
    assert load.measured.late.quantile(0.5) == pytest.approx(0.5, abs=0.02)
    assert load.most_open == 1


async def test_callers_that_wait_for_their_answers_hardly_see_a_stall(autojump_clock: MockClock) -> None:
    """Why the figures of a closed loop are called service times."""
    stalled_until = trio.current_time() + 1.0

    async def call(seen: Seen) -> float:
        return await taking(max(0.01, stalled_until - trio.current_time()))(seen)

    load = make_load(call, Bounds(seconds=2.0))
    await load.run_closed(2)
    assert load.measured.whole.quantile(0.9) == pytest.approx(0.01, rel=0.02)
    assert load.measured.whole.quantile(1) == pytest.approx(1.0)


async def test_requests_are_sent_at_their_times_however_many_are_open(autojump_clock: MockClock) -> None:
    sent: list[float] = []
    began = trio.current_time()

    async def call(seen: Seen) -> float:
        sent.append(trio.current_time() - began)
        return await taking(10.0)(seen)

    load = make_load(call, Bounds(requests=50))
    await load.run_open(arrivals(10))
    assert sent == pytest.approx([number / 10 for number in range(50)])
    assert load.most_open == 50


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_the_warm_up_is_sent_and_not_counted(autojump_clock: MockClock) -> None:
    sent = itertools.count()

    async def call(seen: Seen) -> float:
        next(sent)
        return await taking(0.001)(seen)

    load = make_load(call, Bounds(warm_up=1.0, seconds=2.0))
    await load.run_open(arrivals(RATE))
    assert next(sent) == 3 * RATE
    assert load.measured.sent == load.measured.answered == load.measured.chunks == 2 * RATE
    assert load.measured.ended - load.measured.began == pytest.approx(2.0, abs=0.02)


async def test_so_many_requests_are_counted_and_no_more(autojump_clock: MockClock) -> None:
    load = make_load(taking(0.1), Bounds(warm_up=0.25, requests=25))
    await load.run_closed(4)
    assert load.measured.answered == load.measured.sent == 25
    assert load.most_open == 4


async def test_what_is_under_way_at_the_end_is_waited_for(autojump_clock: MockClock) -> None:
    load = make_load(taking(3.0), Bounds(seconds=1.0))
    await load.run_closed(4)
    assert load.measured.answered == 4
    assert load.measured.ended - load.measured.began == pytest.approx(3.0)


async def test_a_load_that_is_cancelled_keeps_its_figures_and_tells_what_was_open(autojump_clock: MockClock) -> None:
    load = make_load(taking(0.4), Bounds(seconds=100.0))
    with trio.move_on_after(1.0):
        await load.run_closed(3)
    load.stop()
    assert (load.measured.answered, load.measured.unfinished, load.measured.failed) == (6, 3, 0)
    assert load.measured.ended - load.measured.began == pytest.approx(1.0)
    assert load.open == 0


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_an_answer_that_takes_too_long_is_a_failure_and_not_a_latency(autojump_clock: MockClock) -> None:
    load = make_load(taking(5.0), Bounds(requests=3), timeout=1.0)
    await load.run_closed(1)
    assert load.measured.failures == {"NoAnswerInTime": 3}
    assert load.measured.examples["NoAnswerInTime"] == "no whole answer within 1 s"
    assert load.measured.whole.count == load.measured.answered == 0


async def test_failures_are_counted_by_kind_with_an_example(autojump_clock: MockClock) -> None:
    failures = itertools.cycle([Overloaded("no room"), RemoteError("boom", kind="InvalidArgument")])

    async def call(seen: Seen) -> float:
        raise next(failures)

    load = make_load(call, Bounds(requests=5))
    await load.run_closed(1)
    assert load.measured.failures == {"Overloaded": 3, "RemoteError InvalidArgument": 2}
    assert load.measured.examples["Overloaded"] == "no room"
    assert trio.current_time() >= 5 * FAILURE_PAUSE, "a worker that refuses at once is not called without end"


async def test_kinds_that_a_peer_makes_up_take_bounded_room(autojump_clock: MockClock) -> None:
    numbers = itertools.count()

    async def call(seen: Seen) -> float:
        raise RemoteError("x", kind=f"Kind{next(numbers)}")

    load = make_load(call, Bounds(requests=100))
    await load.run_open(arrivals(1000))
    assert len(load.measured.failures) == MAX_KINDS + 1
    assert load.measured.failures[OTHER_KINDS] == 100 - MAX_KINDS


# -- between chunks ---------------------------------------------------------------------------------------------------


async def test_times_between_chunks_are_those_of_their_arrival(autojump_clock: MockClock) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        for number in range(5):
            await trio.sleep(0.02)
            yield number

    async with memory_worker(engine, endpoint=ENDPOINT) as client:
        load = make_load(LeanCaller(client, ENDPOINT, 1).call, Bounds(requests=2))
        await load.run_closed(1)
    measured = load.measured
    assert (measured.chunks, measured.first.count, measured.between.count) == (10, 2, 8)
    assert measured.first.summary().max == pytest.approx(0.02)
    assert measured.between.summary().min == pytest.approx(0.02)
    assert measured.whole.summary().max == pytest.approx(0.1)


async def test_chunks_that_one_read_brings_came_together(autojump_clock: MockClock) -> None:
    async def call(seen: Seen) -> float:
        seen(0, 100)
        await trio.sleep(0.5)
        seen(3, 300)
        await trio.sleep(0.25)
        seen(2, 200)
        return trio.current_time()

    load = make_load(call, Bounds(requests=1))
    await load.run_closed(1)
    between = load.measured.between
    assert load.measured.first.summary().max == pytest.approx(0.5)
    assert (between.count, between.quantile(0.75)) == (4, 0.0)
    assert between.quantile(1) == pytest.approx(0.25)
    assert load.measured.bytes == 600
