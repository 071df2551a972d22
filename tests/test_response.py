"""A response stream from the dial-back to the sentinel, wherever it is cut."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress._handler import GOODBYE_TIMEOUT
from ingress._last_resort import FORCED_EXIT_TIME
from ingress._life import Phase
from ingress._worker import CLOSING_TIME
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ControlWord

from .raw_caller import NETWORKS, RawResponse, Transcript, open_raw_caller, open_stage, slow_network


async def count_to(request: int) -> AsyncIterator[Any]:
    for i in range(request):
        yield i
        await trio.lowlevel.checkpoint()


async def count_and_linger(request: int) -> AsyncIterator[Any]:
    for i in range(request):
        yield i
        await trio.sleep(0.01)


async def count_slowly(request: int) -> AsyncIterator[Any]:
    for i in range(request):
        await trio.sleep(1)
        yield i


# -- callers that go away (D06) --------------------------------------------------------------------------------------

MOMENTS = {
    "at accept": lambda said: True,
    "after the handshake": lambda said: said.subject,
    "after the prologue": lambda said: said.has_prologue,
    "after one chunk": lambda said: said.items,
    "after all chunks": lambda said: len(said.items) == 5,  # the engine has not ended
    "after the final": lambda said: said.has_final,
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("network", NETWORKS)
async def test_d06_a_caller_that_leaves_is_counted_exactly_once_or_had_everything(
    moment: str, network: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(count_and_linger, network=NETWORKS[network]()) as stage:
        response = await stage.call(5)
        await response.read_until(MOMENTS[moment])
        await response.aclose()
        await trio.sleep(1)
        ends = stage.counted_ends()
        if moment != "after the final":
            assert ends == {"cancellation": 1}
            assert stage.outcomes() == {("cancelled", "disconnect"): 1}
        elif network != "lockstep":  # there the caller is a step ahead of the worker
            assert ends == {}
        stage.assert_nothing_left()
        assert [record for record in caplog.records if record.exc_info] == []
        await stage.assert_alive(0)


async def test_d07_a_caller_that_never_reads_holds_back_its_engine_and_is_given_up_after_sixty_seconds(
    autojump_clock: MockClock,
) -> None:
    asked = 0

    async def engine(request: Any) -> AsyncIterator[Any]:
        nonlocal asked
        while request != "alive?":
            asked += 1
            yield "x" * 1000

    async with open_stage(engine, network=slow_network()) as stage:
        await stage.call(1)
        await trio.sleep(59)
        assert asked < 600  # 256 KiB of chunks, one send and one chunk
        assert stage.sample("inflight_requests") == 1
        await stage.assert_alive()
        await trio.sleep(2)
        assert stage.counted_ends() == {"publish_response": 1}
        stage.assert_nothing_left()


class Torn(MemoryNetwork):
    """Dial-backs that break with an error of the kernel's, met in reading or in writing."""

    def __init__(self, number: int, in_writing: bool) -> None:
        super().__init__()
        self._number, self._in_writing = number, in_writing

    async def connect(self, host: str, port: int) -> Any:
        stream: Any = await super().connect(host, port)
        if len(self.connects) == 1:  # the request connection
            return stream
        receive_some, send_all = stream.receive_some, stream.send_all

        async def torn_receive(max_bytes: int | None = None) -> bytes:
            if not self._in_writing:
                with trio.move_on_after(1):
                    return bytes(await receive_some(max_bytes))
                raise self._error()
            return bytes(await receive_some(max_bytes))

        async def torn_send(data: Any) -> None:
            if self._in_writing and trio.current_time() >= 1:
                raise self._error()
            await send_all(data)

        stream.receive_some, stream.send_all = torn_receive, torn_send
        return stream

    def _error(self) -> trio.BrokenResourceError:
        error = trio.BrokenResourceError("torn")
        error.__cause__ = OSError(self._number, os.strerror(self._number))
        return error


@pytest.mark.parametrize("in_writing", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(
    ("number", "counted"),
    [
        (errno.ECONNRESET, "cancellation"),
        (errno.EPIPE, "cancellation"),
        (errno.ETIMEDOUT, "publish_response"),
        (errno.EHOSTUNREACH, "publish_response"),
    ],
)
async def test_a_broken_stream_is_counted_alike_whether_it_is_met_in_reading_or_in_writing(
    number: int, counted: str, in_writing: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset is the caller's leave; what the network takes away is lost."""
    ended = trio.Event()

    async def engine(request: Any) -> AsyncIterator[Any]:
        try:
            while request != "alive?":
                yield 1
                await trio.sleep(0.3)
        finally:
            ended.set()

    async with open_stage(engine, network=Torn(number, in_writing)) as stage:
        await stage.call(0)
        with trio.fail_after(3):
            await ended.wait()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {counted: 1}
        outcome = ("cancelled", "disconnect") if counted == "cancellation" else ("failed", counted)
        assert stage.outcomes() == {outcome: 1}
        stage.assert_nothing_left()
        assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.parametrize("is_early", [True, False], ids=["before the dial-back", "after it"])
async def test_a_bad_body_whose_caller_has_gone_is_one_failure(is_early: bool) -> None:
    async with open_stage(count_to) as stage:
        async with open_raw_caller(stage.caller.network) as leaving:
            if is_early:
                await leaving.listener.aclose()
            assert await stage.ask(leaving.payload(b"{")) == ""
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"deserialization": 1}
        assert stage.outcomes() == {("failed", "deserialization"): 1}
        stage.assert_nothing_left()


async def test_d07_a_caller_that_is_given_up_for_reading_nothing_is_counted_as_slow(autojump_clock: MockClock) -> None:
    async with open_stage(count_to, network=slow_network()) as stage:
        await stage.call(50)
        await trio.sleep(59)
        assert stage.worker._tallies.slow_peer_closed == {"request": 0, "response": 0}
        await trio.sleep(2)
        assert stage.worker._tallies.slow_peer_closed == {"request": 0, "response": 1}


async def test_a_caller_that_stalls_on_the_final_frame_is_counted_as_publish_final(autojump_clock: MockClock) -> None:
    async with open_stage(count_to, network=slow_network()) as stage:
        await stage.call(0)
        await trio.sleep(61)
        assert stage.counted_ends() == {"publish_final": 1}
        stage.assert_nothing_left()


async def test_d09_a_slow_caller_that_makes_progress_is_not_cut(autojump_clock: MockClock) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        for i in range(200):
            yield f"{i:1000}"

    async with open_stage(engine, network=slow_network()) as stage:
        response = await stage.call()
        while not response.transcript.has_sentinel:
            await trio.sleep(1)
            assert await response.read_some(1024)
        assert response.transcript.is_whole and len(response.transcript.items) == 200
        await wait_all_tasks_blocked()
        await response.aclose()
        await trio.sleep(1)
        assert stage.counted_ends() == {}


# -- the goodbye of a worker that leaves -----------------------------------------------------------------------------


def assert_goodbye(said: Transcript, items: list[Any]) -> None:
    assert said.is_whole and said.items == items
    (error,) = said.errors
    assert (error.kind, error.is_backend, error.message) == ("EngineShutdown", True, "engine shutting down")


async def test_r04_requests_over_the_drain_budget_are_told_running_and_queued_ones_alike(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(count_slowly, drain_budget=3.5, engine_request_limit=1, request_queue_limit=2) as stage:
        running = await stage.call(100, request_id="running")
        for name in ("second", "third"):
            control = stage.caller.control(request_id=name)
            assert await stage.ask(stage.caller.payload(1, control)) == ""
        stage.worker.drain()
        queued = [await stage.caller.accept() for _ in range(2)]
        assert trio.current_time() == pytest.approx(3.5)
        assert_goodbye(await running.read_to_sentinel(), [0, 1, 2])
        for response in queued:
            assert_goodbye(await response.read_to_sentinel(), [])
        await stage.caller.close_all()
        await trio.sleep(0.1)
        assert stage.counted_ends() == {"cancellation": 3}
        assert stage.worker.cancelled_by_drain == 3
        assert any("running" in record.getMessage() for record in caplog.records)
    assert trio.current_time() < 3.5 + 3


async def test_r04_a_caller_is_told_also_when_the_engine_does_not_let_go(autojump_clock: MockClock) -> None:
    async def stuck(request: Any) -> AsyncIterator[Any]:
        yield 1
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        yield 2

    async with open_stage(stuck) as stage:
        response = await stage.call()
        await response.read_items(1)
        stage.worker.drain()
        assert_goodbye(await response.read_to_sentinel(), [1])
        assert trio.current_time() < 1


async def test_r04_a_caller_that_reads_nothing_does_not_hold_up_the_end(autojump_clock: MockClock) -> None:
    async with open_stage(count_to, network=slow_network(), drain_budget=1) as stage:
        await stage.call(10**9)
        await wait_all_tasks_blocked()
        stage.worker.drain()
        while stage.worker.phase is not Phase.STOPPED:
            await trio.sleep(0.01)
    assert 1 + GOODBYE_TIMEOUT <= trio.current_time() <= 1.1 + GOODBYE_TIMEOUT + CLOSING_TIME
    assert GOODBYE_TIMEOUT + CLOSING_TIME + FORCED_EXIT_TIME < 3  # with an engine that does not end, besides


async def test_r04_a_slow_caller_still_gets_its_whole_goodbye(autojump_clock: MockClock) -> None:
    async with open_stage(count_slowly, network=slow_network(), drain_budget=1.5) as stage:
        response = await stage.call(100)
        stage.worker.drain()
        await trio.sleep(2)
        assert_goodbye(await response.read_to_sentinel(), [0])
        assert (await response.read_to_end()).end == "fin"


async def test_an_answer_that_is_complete_but_unread_when_the_budget_ends_is_not_spoilt(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(count_to, network=slow_network()) as stage:
        response = await stage.call(3)
        await wait_all_tasks_blocked()
        stage.worker.drain()
        await trio.sleep(1)
        said = await response.read_to_sentinel()
        assert (said.items, said.errors) == ([0, 1, 2], [])


async def test_a_caller_that_stops_during_the_goodbye_ends_it(autojump_clock: MockClock) -> None:
    async with open_stage(count_slowly, network=slow_network()) as stage:
        response = await stage.call(100)
        await wait_all_tasks_blocked()
        stage.worker.drain()
        await wait_all_tasks_blocked()
        await response.aclose()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}


async def test_a_worker_that_is_cancelled_outright_closes_its_streams_and_counts_them() -> None:
    network = MemoryNetwork()
    async with open_raw_caller(network) as caller:
        with trio.CancelScope() as scope:
            async with open_stage(count_to, network=network) as stage:
                response = await caller.call(stage.connection, 10**9)
                await response.read_items(2)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        said = await response.read_to_end()
    assert (said.end, said.has_final) == ("fin", False)
    assert stage.counted_ends() == {"cancellation": 1}
    stage.assert_nothing_left()


# -- races -----------------------------------------------------------------------------------------------------------


# -- races -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["unbounded", "pipes"])
async def test_s08_a_stop_round_the_final_leads_to_a_clean_end_or_a_cancelled_one_and_nothing_between(
    network: str,
) -> None:
    async def engine(request: int) -> AsyncIterator[Any]:
        for i in range(3):
            yield i
            for _ in range(request >> (2 * i) & 3):
                await trio.lowlevel.checkpoint()

    dice = random.Random(8)
    outcomes = {"clean": 0, "cancelled": 0}
    async with open_stage(engine, network=NETWORKS[network]()) as stage:
        for _ in range(500):
            response = await stage.call(dice.randrange(64))
            for _ in range(dice.randrange(12)):
                await trio.lowlevel.checkpoint()
            await response.send_word(dice.choice([ControlWord.STOP, ControlWord.KILL]))
            said = await response.read_to_end()
            assert said.items == [0, 1, 2][: len(said.items)]
            assert said.has_final == said.has_sentinel
            if said.has_final:
                assert said.items == [0, 1, 2]
            outcomes["clean" if said.has_final else "cancelled"] += 1
            await response.aclose()
        await wait_all_tasks_blocked()
        stage.assert_nothing_left()
        assert stage.counted_ends() == {"cancellation": outcomes["cancelled"]}
        assert min(outcomes.values()) > 25, outcomes


class Tasks(trio.abc.Instrument):
    """Counts the tasks of a run."""

    def __init__(self) -> None:
        self.alive = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.alive += 1

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.alive -= 1


@pytest.mark.parametrize("network", NETWORKS)
async def test_a_thousand_requests_cancelled_at_random_instants_leave_nothing_behind(network: str) -> None:
    count = 1000 if network == "pipes" else 250
    dice = random.Random(1000)
    tasks = Tasks()

    async def engine(request: int) -> AsyncIterator[Any]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for _ in range(request % 3):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        for _i in range(request):
            yield "x" * dice.randrange(3000)
            for _ in range(dice.randrange(3)):
                await trio.lowlevel.checkpoint()

    async def leave(response: RawResponse, how: int) -> None:
        for _ in range(dice.randrange(30)):
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(0):
            await response.read_some(dice.randrange(1, 5000))
        try:
            if how == 0:
                await response.send_word(dice.choice([ControlWord.STOP, ControlWord.KILL]))
                await response.read_to_end()
        except trio.BrokenResourceError:
            pass
        await response.aclose()

    async with open_stage(engine, network=NETWORKS[network]()) as stage:
        await stage.assert_alive(0)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(tasks)
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                response = await stage.call(dice.randrange(40))
                nursery.start_soon(leave, response, dice.randrange(2))
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(tasks)
        assert tasks.alive == 0
        stage.assert_nothing_left()
        ends = stage.counted_ends()
        assert set(ends) == {"cancellation"}
        assert count / 10 < sum(ends.values()) <= count
        await stage.assert_alive(0)
