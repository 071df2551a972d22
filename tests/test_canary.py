"""Canaries: only in silence, one at a time, judged by the first item, cancelled in the engine, never counted."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import ingress
from ingress import Annotated, ErrorEvent
from ingress._engine import make_engine
from ingress.errors import CannotConnect
from ingress.metrics import WorkerMetrics
from ingress.status import EndpointHealth, StatusOptions, WorkerStatus
from ingress.status._canary import Canary
from ingress.wire.records import EndpointId

GENERATE = EndpointId("demo", "backend", "generate")


class Probed:
    """An engine that notes its requests and does what it is told, and the canary that probes it."""

    def __init__(self, behave: Callable[[Any], AsyncGenerator[Any, None]], **options: Any) -> None:
        self.behave = behave
        self.asked_at: list[float] = []
        self.requests: list[Any] = []
        self.contexts: list[Any] = []
        self.running = 0
        self.most_running = 0
        self.health = EndpointHealth(GENERATE, needs_proof=True)
        options = {"wait": 2.0, "timeout": 1.0, **options}
        self.canary = Canary(make_engine(self.generate), {"canary": True, "list": [1]}, self.health, **options)

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked_at.append(trio.current_time())
        self.requests.append(request)
        self.contexts.append(context)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            async with aclosing(self.behave(request)) as items:
                async for item in items:
                    yield item
        finally:
            self.running -= 1

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[float]:
        """Probe while inside; yields the time at the beginning."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.canary.serve)
            yield trio.current_time()
            nursery.cancel_scope.cancel()


async def good(request: Any) -> AsyncGenerator[Any, None]:
    yield {"ok": True}


async def hanging(request: Any) -> AsyncGenerator[Any, None]:
    await trio.sleep(math.inf)
    yield


async def raising(request: Any) -> AsyncGenerator[Any, None]:
    if request["canary"]:
        raise CannotConnect("no backend\x1b[31m")
    yield


async def silent(request: Any) -> AsyncGenerator[Any, None]:
    if not request["canary"]:
        yield


async def error_item(request: Any) -> AsyncGenerator[Any, None]:
    yield Annotated.from_error(ErrorEvent("out of cheese"))
    yield {"ok": True}


async def endless(request: Any) -> AsyncGenerator[Any, None]:
    while True:
        yield 1
        await trio.sleep(0.1)


async def never_waiting(request: Any) -> AsyncGenerator[Any, None]:
    while True:
        yield 1


# -- when ------------------------------------------------------------------------------------------------------------


async def test_a_canary_is_sent_after_each_wait_of_silence(autojump_clock: MockClock) -> None:
    probed = Probed(good)
    async with probed.serving() as started:
        assert not probed.health.is_ready
        await trio.sleep(6.5)
    assert [at - started for at in probed.asked_at] == [2.0, 4.0, 6.0]
    assert probed.health.is_ready


async def test_no_canary_is_sent_while_good_requests_come(autojump_clock: MockClock) -> None:
    probed = Probed(good)
    async with probed.serving() as started:
        for _ in range(20):
            await trio.sleep(0.5)
            probed.health.record_activity()
        assert probed.asked_at == []
        await trio.sleep(2.5)
    assert [at - started for at in probed.asked_at] == [12.0]


async def test_at_most_one_canary_is_under_way_and_a_stuck_engine_is_not_pressed(autojump_clock: MockClock) -> None:
    probed = Probed(hanging, wait=0.5)
    async with probed.serving():
        await trio.sleep(15)
    assert probed.most_running == 1
    assert len(probed.asked_at) == 10  # half a second of silence, one second of waiting


async def test_every_canary_has_a_context_and_a_payload_of_its_own(autojump_clock: MockClock) -> None:
    async def greedy(request: Any) -> AsyncGenerator[Any, None]:
        request["list"].append(2)
        request.clear()
        yield 1

    probed = Probed(greedy)
    async with probed.serving():
        await trio.sleep(6.5)
    assert probed.health.is_ready
    ids = {context.id for context in probed.contexts}
    assert len(ids) == 3 and all(ids)
    assert {context.endpoint for context in probed.contexts} == {GENERATE}
    assert all(request == {} for request in probed.requests)
    assert len({id(request) for request in probed.requests}) == 3


# -- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (hanging, "no item within 1 s"),
        (raising, "CannotConnect: no backend\\x1b[31m"),
        (silent, "the engine answered without an item"),
        (error_item, "error item: out of cheese"),
    ],
)
async def test_an_engine_that_gives_no_good_first_item_is_not_ready_and_one_good_canary_cures_it(
    behave: Any, reason: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    probed = Probed(behave)
    probed.health.record_activity()
    async with probed.serving():
        await trio.sleep(20)
        assert not probed.health.is_ready
        assert reason in (probed.health.reason or "")
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1  # said once, and not at each canary
        assert "\x1b" not in warnings[0].getMessage()
        probed.behave = good
        await trio.sleep(3.5)
        assert probed.health.is_ready


async def test_one_good_request_cures_too(autojump_clock: MockClock) -> None:
    probed = Probed(raising)
    async with probed.serving():
        await trio.sleep(2.5)
        assert not probed.health.is_ready
        probed.health.record_activity()
        assert probed.health.is_ready


async def test_a_caller_that_is_answered_while_the_canary_waits_knows_better(autojump_clock: MockClock) -> None:
    probed = Probed(hanging)
    async with probed.serving():
        await trio.sleep(2.5)
        probed.health.record_activity()
        await trio.sleep(1)
        assert probed.health.is_ready


async def test_only_the_first_item_counts(autojump_clock: MockClock) -> None:
    async def worse_later(request: Any) -> AsyncGenerator[Any, None]:
        yield 1
        yield Annotated.from_error(ErrorEvent("too late"))
        raise RuntimeError("even later")

    probed = Probed(worse_later)
    async with probed.serving():
        await trio.sleep(2.5)
        assert probed.health.is_ready


# -- the engine's side -----------------------------------------------------------------------------------------------


async def test_a_canary_that_is_late_is_cancelled_in_the_engine(autojump_clock: MockClock) -> None:
    ended: list[tuple[float, bool]] = []

    async def patient(request: Any) -> AsyncGenerator[Any, None]:
        try:
            await trio.sleep(math.inf)
            yield
        finally:
            ended.append((trio.current_time(), probed.contexts[-1].is_killed))

    probed = Probed(patient)
    async with probed.serving() as started:
        await trio.sleep(4)
    assert [(at - started, is_killed) for at, is_killed in ended] == [(3.0, True)]


@pytest.mark.parametrize("behave", [endless, never_waiting])
async def test_the_rest_is_drained_but_not_for_ever(behave: Any, autojump_clock: MockClock) -> None:
    # never_waiting gives the clock no chance to jump, so it is given some real speed
    autojump_clock.rate = 50.0
    probed = Probed(behave)
    async with probed.serving():
        with trio.fail_after(60):
            while not (probed.asked_at and probed.running == 0):
                await trio.sleep(0.5)
        assert probed.health.is_ready


async def test_an_engine_that_will_not_be_cancelled_is_not_ready_at_once_and_is_let_go_later(
    autojump_clock: MockClock,
) -> None:
    async def stubborn(request: Any) -> AsyncGenerator[Any, None]:
        with trio.CancelScope(shield=True):
            await trio.sleep(30)
        yield 1

    probed = Probed(stubborn)
    probed.health.record_activity()
    async with probed.serving() as started:
        await trio.sleep(3.5)
        assert not probed.health.is_ready
        await trio.sleep(40)
    assert probed.most_running == 1
    assert [at - started for at in probed.asked_at] == [2.0, 34.0]


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), KeyboardInterrupt(), ExceptionGroup("both", [ValueError(), OSError()])]
)
async def test_e06_whatever_the_engine_raises_the_canary_goes_on(
    error: BaseException, autojump_clock: MockClock
) -> None:
    async def failing(request: Any) -> AsyncGenerator[Any, None]:
        if request["canary"]:
            raise error
        yield

    probed = Probed(failing)
    async with probed.serving():
        await trio.sleep(4.5)
        assert len(probed.asked_at) == 2
        probed.behave = good
        await trio.sleep(2)
        assert probed.health.is_ready


async def test_an_engine_that_cancels_itself_or_leaves_a_nursery_open_is_not_ready(autojump_clock: MockClock) -> None:
    async def self_cancelling(request: Any) -> AsyncGenerator[Any, None]:
        with trio.CancelScope() as scope:
            scope.cancel()
            yield 1
            await trio.sleep(1)

    async def own_nursery(request: Any) -> AsyncGenerator[Any, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            if request["canary"]:
                raise KeyError("inside")
            yield

    async def abandoned_nursery(request: Any) -> AsyncGenerator[Any, None]:
        nursery = await trio.open_nursery().__aenter__()
        nursery.start_soon(trio.sleep_forever)
        if request["canary"]:
            raise KeyError("inside")
        yield

    for behave in (self_cancelling, own_nursery, abandoned_nursery):
        probed = Probed(behave)
        async with probed.serving():
            await trio.sleep(2.5)
            probed.behave = good
            await trio.sleep(10)
            assert probed.health.is_ready


async def test_plain_functions_and_bidirectional_engines_are_probed_too() -> None:
    thread_ids: list[int] = []

    def plain(request: Any) -> Any:
        thread_ids.append(threading.get_ident())
        return request

    @ingress.bidirectional
    async def both_ways(requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    for target in (plain, both_ways):
        health = EndpointHealth(GENERATE, needs_proof=True)
        await Canary(make_engine(target), {"x": 1}, health).probe()
        assert health.is_ready, target
    assert thread_ids[0] != threading.get_ident()


async def test_a_canary_can_be_cancelled_at_any_moment(autojump_clock: MockClock) -> None:
    for delay in (0.0, 1.0, 2.0, 2.5, 3.0):
        probed = Probed(hanging)
        with trio.move_on_after(delay) as scope:
            await probed.canary.serve()
        assert scope.cancelled_caught
        assert probed.running == 0


@pytest.mark.parametrize(("wait", "timeout"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_a_wait_or_timeout_of_nothing_is_refused(wait: float, timeout: float) -> None:
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Probed(good, wait=wait, timeout=timeout)


# -- as part of a worker's status ------------------------------------------------------------------------------------


def status_of(engine: Any, **options: Any) -> WorkerStatus:
    metrics = WorkerMetrics(1)
    metrics.endpoint(GENERATE)
    status = WorkerStatus({GENERATE: make_engine(engine)}, metrics, StatusOptions(**options))
    status.health.release("starting")
    return status


async def test_without_the_switch_a_payload_changes_nothing(autojump_clock: MockClock) -> None:
    asked = []

    async def engine(request: Any) -> AsyncGenerator[Any, None]:
        asked.append(request)
        yield 1

    status = status_of(engine, health_check_payloads={"demo.backend.generate": {}})
    assert status.health.is_ready
    assert status.notifiers() == {}
    with trio.move_on_after(60):
        await status.serve_canaries()
        await trio.sleep(math.inf)
    assert asked == []


async def test_with_it_the_endpoint_is_not_ready_until_proof_and_traffic_is_proof(autojump_clock: MockClock) -> None:
    for prove_by_traffic in (False, True):
        status = status_of(good, canaries=True, health_check_payloads={"demo.backend.generate": {}})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(status.serve_canaries)
            seen = []
            for wait in (9.9, 0.2):
                await trio.sleep(wait)
                seen.append(status.health.is_ready)
                if prove_by_traffic:
                    status.notifiers()[GENERATE]()
                    seen.append(status.health.is_ready)
            assert seen == ([False, True, True, True] if prove_by_traffic else [False, True])
            nursery.cancel_scope.cancel()


async def test_canaries_are_not_counted_as_traffic(autojump_clock: MockClock) -> None:
    metrics = WorkerMetrics(1)
    metrics.endpoint(GENERATE)
    options = StatusOptions(canaries=True, health_check_payloads={str(GENERATE): {}})
    status = WorkerStatus({GENERATE: make_engine(good)}, metrics, options)
    before = [
        sample for family in metrics.registry.collect() for sample in family.samples if "uptime" not in sample.name
    ]
    with trio.move_on_after(35):
        await status.serve_canaries()
    assert status.progress().status == "idle"
    after = [
        sample for family in metrics.registry.collect() for sample in family.samples if "uptime" not in sample.name
    ]
    assert before == after


def test_a_payload_for_an_endpoint_that_is_not_served_is_refused() -> None:
    with pytest.raises(ValueError, match=r"demo\.backend\.other"):
        status_of(good, health_check_payloads={"demo.backend.other": {}})
