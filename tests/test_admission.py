"""What admission means to callers: the line, its deadline, policies. The state machine is in
``test_testing_admission.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import AdmissionPolicy, Overloaded
from ingress._admission import Admission, Slot
from ingress._descriptors import StreamDescriptors
from ingress.abc import Arrival, Load
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ControlWord

from .raw_caller import open_raw_caller, open_stage, slow_network


async def test_the_line_moves_in_order() -> None:
    order: list[int] = []

    async def take(slot: Slot, number: int) -> None:
        await slot.wait_granted()
        order.append(number)
        slot.release()

    admission = Admission(1, 10)
    first = admission.admit()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(take, admission.admit(), number)
        await wait_all_tasks_blocked()
        assert order == []
        first.release()
    assert order == list(range(10))
    assert (admission.running, admission.queued) == (0, 0)


async def test_a_slot_that_was_granted_to_a_waiter_being_cancelled_is_passed_on() -> None:
    admission = Admission(1, 2)
    first, second, third = (admission.admit() for _ in range(3))
    with trio.move_on_after(0):
        try:
            await second.wait_granted()
        finally:
            first.release()  # grants the second, which is being cancelled
            second.release()
    assert third.is_granted
    third.release()
    assert admission.running == 0


class SlowToClose(MemoryNetwork):
    """Dial-backs whose closing takes its time, as the goodbye of TLS does."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = 0
        self.may_close = trio.Event()

    async def connect(self, host: str, port: int) -> Any:
        stream: Any = await super().connect(host, port)
        if len(self.connects) == 1:  # the request connection
            return stream
        aclose = stream.aclose

        async def aclose_slowly() -> None:
            self.closing += 1
            await self.may_close.wait()
            await aclose()

        stream.closes_promptly, stream.aclose = True, aclose_slowly
        return stream


async def test_a_slot_is_free_while_the_closing_of_a_stream_still_takes_its_time() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield request
        if request == "endless":
            await trio.sleep_forever()

    network = SlowToClose()
    async with open_stage(engine, network=network, engine_request_limit=1) as stage:
        try:
            killed = await stage.call("endless")
            assert await killed.read_items(1) == ["endless"]
            await killed.send_word(ControlWord.KILL)
            await wait_all_tasks_blocked()
            assert network.closing == 2, "by who has heard the word, and by the request itself"
            assert (stage.worker.admission.running, len(stage.worker.open_requests)) == (0, 0)
            following = await stage.call("short")
            assert (await following.read_to_sentinel()).is_whole
        finally:
            network.may_close.set()


# -- the queue deadline ----------------------------------------------------------------------------------------------


async def sleep_for(request: float) -> AsyncIterator[Any]:
    await trio.sleep(request)
    yield request


OVERLOAD = {
    "error_type": "ResourceExhausted",
    "class": "CapacityExhausted",
    "message": "no slot became free within 2 s",
    "diagnostic": "no slot became free within 2 s",
}


async def test_l06_a_request_that_waits_too_long_is_told_in_stream_and_counted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[float] = []

    async def engine(request: float) -> AsyncIterator[Any]:
        started.append(request)
        async for item in sleep_for(request):
            yield item

    async with open_stage(engine, engine_request_limit=1, request_queue_limit=1, queue_deadline=2) as stage:
        running = await stage.call(3)
        waiting = await stage.call(1, request_id="patient")  # returns when it is dialled back
        assert trio.current_time() == pytest.approx(2)
        said = await waiting.read_to_sentinel()
        assert said.is_whole and [error.to_wire() for error in said.errors] == [OVERLOAD]
        await waiting.aclose()
        await wait_all_tasks_blocked()
        assert stage.outcomes() == {("refused", "queue_deadline"): 1}
        assert stage.counted_ends() == {}, "the engine did not fail"
        assert "patient refused: no slot became free within 2 s" in caplog.text
        # Its place is free again, and what comes later is not touched by its deadline.
        later = await stage.call(1)
        assert (await later.read_to_sentinel()).items == [1]
        assert (await running.read_to_sentinel()).items == [3]
        assert started == [3, 1]
        await wait_all_tasks_blocked()
        stage.assert_nothing_left()


async def test_who_is_being_told_keeps_the_place_in_line(autojump_clock: MockClock) -> None:
    """Or a caller that takes nothing could have any number of them."""
    network = slow_network()
    async with open_stage(
        sleep_for, network=network, engine_request_limit=1, request_queue_limit=1, queue_deadline=2
    ) as stage:
        await stage.call(50)
        waiting = await stage.call(1)
        await trio.sleep(1)
        assert stage.worker.admission.queued == 1
        assert await stage.ask(stage.caller.payload(1)) == "Server overloaded: worker at capacity"
        await waiting.read_to_sentinel()
        await waiting.aclose()
        await wait_all_tasks_blocked()
        assert stage.worker.admission.queued == 0


async def test_a_caller_that_has_gone_when_its_deadline_passes_is_counted_once(autojump_clock: MockClock) -> None:
    async with open_stage(sleep_for, engine_request_limit=1, request_queue_limit=1, queue_deadline=2) as stage:
        await stage.call(5)
        async with open_raw_caller(stage.caller.network) as leaving:
            assert await stage.ask(leaving.payload(1)) == ""
        await trio.sleep(3)
        assert stage.outcomes() == {("refused", "queue_deadline"): 1}
        assert stage.counted_ends() == {}


# -- policies --------------------------------------------------------------------------------------------------------


class Budget(AdmissionPolicy):
    """A policy as one would write it: so many bytes of requests at a time, and no guests."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.seen: list[tuple[str, str, int, int]] = []

    def admit(self, arrival: Arrival, load: Load) -> None:
        self.seen.append((str(arrival.endpoint), arrival.headers.get("tenant", ""), load.running, load.queued))
        if (arrival.control.metadata or {}).get("user") == "guest":
            raise Overloaded("no guests\n\x1b")
        if arrival.headers.get("tenant") == "bug":
            raise ZeroDivisionError("secret")
        if arrival.size > self.left:
            raise Overloaded(f"{arrival.size} bytes are more than a budget of {self.left} bytes")
        self.left -= arrival.size

    def release(self, arrival: Arrival) -> None:
        self.left += arrival.size
        if arrival.headers.get("tenant") == "bug at the end":
            raise KeyError("account")


async def test_a_policy_decides_with_what_is_known_before_the_ack(autojump_clock: MockClock) -> None:
    policy = Budget(5000)
    async with open_stage(sleep_for, admission=policy, engine_request_limit=1, request_queue_limit=5) as stage:
        caller = stage.caller
        running = await stage.call(1.0)
        assert 4000 < policy.left < 5000
        guest = caller.payload(1.0, caller.control(metadata={"user": "guest"}))
        assert await stage.ask(guest) == "Server overloaded: no guests\\n\\x1b"
        big = caller.payload("x" * 5000)
        assert (await stage.ask(big)).startswith(f"Server overloaded: {len(big)} bytes are more than a budget of")
        assert await stage.ask(caller.payload(1.0), headers={"tenant": "blue"}) == ""
        assert policy.seen == [
            ("demo.backend.generate", "", 0, 0),
            ("demo.backend.generate", "", 1, 0),
            ("demo.backend.generate", "", 1, 0),
            ("demo.backend.generate", "blue", 1, 0),
        ]
        for response in (running, await caller.accept()):
            assert (await response.read_to_sentinel()).items == [1.0]
        await wait_all_tasks_blocked()
        assert policy.left == 5000
        assert stage.outcomes() == {("refused", "overloaded"): 2, ("completed", "ok"): 2}
        assert stage.sample("dynamo_rejection_request_total") == 2
        stage.assert_nothing_left()


async def test_a_policy_that_fails_refuses_and_is_counted_and_takes_nothing_down(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(sleep_for, admission=Budget(5000)) as stage:
        ack = await stage.ask(stage.caller.payload(0), headers={"tenant": "bug"})
        assert ack == "Server unavailable: admission policy failed"
        assert "ZeroDivisionError: secret (test_admission.py:" in caplog.text
        assert stage.outcomes() == {("refused", "policy"): 1}
        assert stage.counted_ends() == {} and stage.sample("requests_total") == 0
        assert await stage.ask(stage.caller.payload(0), headers={"tenant": "bug at the end"}) == ""
        assert (await (await stage.caller.accept()).read_to_sentinel()).is_whole
        await wait_all_tasks_blocked()
        assert "admission policy failed in release: KeyError: 'account'" in caplog.text
        await stage.assert_alive(0)
        stage.assert_nothing_left()


async def test_the_limits_hold_whatever_a_policy_says() -> None:
    class Open(AdmissionPolicy):
        def admit(self, arrival: Arrival, load: Load) -> None:
            pass

    async with open_stage(sleep_for, admission=Open(), engine_request_limit=1) as stage:
        await stage.call(1000)
        assert await stage.ask(stage.caller.payload(1)) == "Server overloaded: worker at capacity"


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_l04_a_request_is_refused_where_there_is_no_descriptor_for_its_streams() -> None:
    descriptors = StreamDescriptors(3)
    admission = Admission(1, 5, descriptors=descriptors)
    first, second = admission.admit(streams=2), admission.admit()
    with pytest.raises(Overloaded, match="worker is short of descriptors"):
        admission.admit()
    assert (admission.running, admission.queued, admission.rejected) == (1, 1, 1)
    first.release()
    assert descriptors.held == 3  # its streams are open yet
    with pytest.raises(Overloaded):
        admission.admit()
    for _ in range(2):
        first.let_go()
    assert descriptors.held == 1
    with pytest.raises(Overloaded):
        admission.admit(streams=3)
    second.close()
    assert descriptors.held == 0


def test_l08_an_account_that_is_opened_when_all_has_been_let_go_holds_nothing() -> None:
    admission = Admission()
    slot = admission.admit(peer="10.0.0.1")
    slot.close()
    slot.open_memory().take(1000)
    assert admission.request_memory.held == 0


def test_l04_a_refusal_for_another_reason_holds_no_descriptor() -> None:
    class Closed(AdmissionPolicy):
        def admit(self, arrival: Arrival, load: Load) -> None:
            raise Overloaded("closed")

    arrival: Any = object()
    descriptors = StreamDescriptors()
    admission = Admission(1, policy=Closed(), descriptors=descriptors)
    with pytest.raises(Overloaded, match="closed"):
        admission.admit(arrival)
    assert descriptors.held == 0


async def test_l04_a_caller_for_whom_there_is_no_descriptor_is_told_in_the_ack(autojump_clock: MockClock) -> None:
    async with open_stage(forever) as stage:
        descriptors = stage.worker._streams.descriptors
        descriptors.set_total(2)
        responses = [await stage.call(), await stage.call()]
        assert await stage.ask(stage.caller.payload()) == "Server overloaded: worker is short of descriptors"
        assert stage.outcomes() == {("refused", "overloaded"): 1}
        for response in responses:
            await response.aclose()
        await wait_all_tasks_blocked()
        assert descriptors.held == 0
        await stage.call()


async def test_d11_l04_an_answer_that_its_caller_does_not_close_holds_its_descriptor(autojump_clock: MockClock) -> None:
    async with open_stage(echo) as stage:
        descriptors = stage.worker._streams.descriptors
        response = await stage.call("x")
        await response.read_to_sentinel()
        await wait_all_tasks_blocked()
        assert descriptors.held == 1
        await response.aclose()
        await wait_all_tasks_blocked()
        assert descriptors.held == 0
        silent = await stage.call("x")
        await trio.sleep(11)
        assert descriptors.held == 0
        await silent.aclose()


async def echo(request: object) -> AsyncIterator[object]:
    yield request


# -- one peer's share ------------------------------------------------------------------------------------------------


def test_l07_one_peer_takes_no_more_than_its_share_of_slots_and_line() -> None:
    admission = Admission(2, 4, max_inflight_per_peer=3)
    greedy = [admission.admit(peer="10.0.0.1") for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests of one caller are in flight"):
        admission.admit(peer="10.0.0.1")
    other = admission.admit(peer="10.0.0.2")
    assert (admission.running, admission.queued, admission.rejected) == (2, 2, 1)
    greedy.pop().release()
    greedy.append(admission.admit(peer="10.0.0.1"))
    for slot in (*greedy, other):
        slot.release()
        slot.release()
    assert (admission.running, admission.queued) == (0, 0)
    assert not admission._of_peers  # who has left takes no room


def test_l07_peers_whose_address_is_unknown_share_no_limit() -> None:
    admission = Admission(5, max_inflight_per_peer=1)
    for _ in range(5):
        admission.admit()


async def test_l07_a_caller_over_its_share_is_told_that_the_worker_is_overloaded() -> None:
    async with open_stage(forever, max_inflight_per_peer=2) as stage:
        for expected in ("", "", "Server overloaded: 2 requests of one caller are in flight"):
            assert await stage.ask(stage.caller.payload()) == expected


async def forever(request: object) -> AsyncIterator[object]:
    yield "begun"
    await trio.sleep_forever()


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_inflight_per_peer must be at least 1, got 0"):
        Admission(max_inflight_per_peer=0)
