"""The memory that requests take together: who is refused, how it is told, and that everything is given back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from ingress import _heavy_work, _memory_watermark
from ingress._admission import Admission
from ingress._heavy_work import LARGE_BODY, heavy_work
from ingress._request_memory import LARGE_VALUE, SMALL_REQUEST, RequestMemory
from ingress._weight import worst_weight
from ingress.abc import AdmissionPolicy, Arrival, Load
from ingress.errors import IngressError, Overloaded, RequestMemoryExhausted
from ingress.wire.codec import codec_named

from .passes import Passes, a_slow_clock, nobody_let_go
from .raw_caller import Stage, open_stage, slow_network

MIB = 1 << 20
FRAME = 10_000
LARGEST = worst_weight(FRAME) + 2 * FRAME
OF_ONE = f"requests of one caller would take more than {LARGEST >> 20} MiB of memory"


def memory_of(most: int) -> RequestMemory:
    return RequestMemory(most, 1)


# -- the account -----------------------------------------------------------------------------------------------------


def test_l08_all_requests_have_one_budget_and_give_it_back() -> None:
    memory = memory_of(1000)
    first, second = memory.open("a"), memory.open("b")
    first.take(600)
    with pytest.raises(RequestMemoryExhausted, match="requests would take more than 0 MiB of memory"):
        second.take(401)
    second.take(400)
    first.give_back(100)
    second.take(100)
    assert memory.held == 1000
    first.release()
    second.release()
    assert memory.held == 0
    assert not memory._of_peers  # who has left takes no room


def test_l08_one_caller_leaves_the_others_a_quarter() -> None:
    memory = memory_of(1000 * MIB)
    held = [memory.open("a") for _ in range(2)]
    held[0].take(700 * MIB)
    with pytest.raises(RequestMemoryExhausted, match="requests of one caller would take more than 750 MiB of memory"):
        held[1].take(51 * MIB)
    memory.open("b").take(300 * MIB)
    held[0].release()
    memory.open(None).take(700 * MIB)  # whose address is unknown shares no limit
    assert memory.held == memory.most


def test_l08_where_two_callers_have_taken_all_others_find_a_little() -> None:
    memory = memory_of(1000 * MIB)
    for greedy in ("a", "b"):
        memory.open(greedy).take(500 * MIB)
    for unwelcome in ("a", "b", None):
        with pytest.raises(RequestMemoryExhausted, match="requests would take more than 1000 MiB"):
            memory.open(unwelcome).take(1)
    little = memory.most // 64
    memory.open("c").take(little)
    with pytest.raises(RequestMemoryExhausted):
        memory.open("c").take(1)
    for number in range(15):
        memory.open(f"d{number}").take(little)
    with pytest.raises(RequestMemoryExhausted):
        memory.open("e").take(little)
    assert 1200 * MIB < memory.held <= 1250 * MIB


def test_a_release_is_for_good() -> None:
    memory = memory_of(1000)
    held = memory.open("a")
    held.take(500)
    held.release()
    held.give_back(500)
    held.take(500)  # a reader that is being cancelled
    held.release()
    assert memory.held == held.held == 0


def test_one_of_the_largest_requests_always_fits() -> None:
    memory = RequestMemory(1, FRAME)
    held = memory.open("a")
    held.take(LARGEST)
    held.release()
    assert memory.held == 0


@pytest.mark.parametrize(
    ("memory", "most"), [(None, 256 * MIB), (512 * MIB, 256 * MIB), (4096 * MIB, 1024 * MIB), (64 << 30, 2 << 30)]
)
def test_the_budget_is_a_quarter_of_the_memory(memory: int | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory_watermark, "find_usable_memory", lambda: memory)
    assert RequestMemory(None, FRAME).most == most


async def test_nobody_looks_at_a_request_while_there_is_room_and_a_text_counts_its_length_then() -> None:
    memory = memory_of(1 << 20)
    text = "x" * 2000
    assert await memory.open("a").take_value(text, 2000, None) == worst_weight(2000)
    memory.open("a").take(1 << 19)
    assert 2000 <= await memory.open("a").take_value(text, 2000, None) < 2100


async def test_c13_what_was_decoded_in_its_turn_counts_in_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 900 bodies of 237 kB that became whole together 760 had been decoded and not counted: 5 GB, and 2 allowed."""
    memory = memory_of(64 * MIB)
    memory.open("other").take(32 * MIB)
    async with nobody_let_go(monkeypatch):
        spent = heavy_work().spent
        for size in (5000, LARGE_BODY):
            with assert_no_checkpoints():
                counted = await memory.open("a").take_value(["ab"] * (size // 8), size, None)
            assert size <= counted < worst_weight(size)
        assert heavy_work().spent > spent, "it takes its time all the same"


async def test_c13_what_is_weighed_in_turns_counts_as_the_worst_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, size = memory_of(64 * MIB), LARGE_BODY + 1
    memory.open("other").take(32 * MIB)
    held = memory.open("a")
    async with nobody_let_go(monkeypatch) as let_go, trio.open_nursery() as nursery:
        nursery.start_soon(held.take_value, "x" * size, size, None)
        await wait_all_tasks_blocked()
        assert held.held == worst_weight(size)
        let_go.set()
    assert size <= held.held < 2 * size


async def test_others_run_while_a_long_request_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heavy_work, "clock", a_slow_clock())
    memory = memory_of(64 * MIB)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        held = memory.open("a")
        await held.take_value(["a text of forty letters, all of them plain"] * 100_000, 4_200_000, None)
        nursery.cancel_scope.cancel()
    assert turns > 15


class Large:
    """Tells in which turn it is freed."""

    def __init__(self, freed: list[int], turns: Passes) -> None:
        self._freed, self._turns = freed, turns

    def __del__(self) -> None:
        self._freed.append(self._turns.count)


async def test_large_values_of_requests_that_end_together_are_freed_one_a_turn_and_count_until_then() -> None:
    memory = memory_of(1 << 30)
    freed: list[int] = []
    turns = Passes()
    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.free_discarded)
        await wait_all_tasks_blocked()
        requests = [memory.open("a") for _ in range(5)]
        for held in requests:
            held.take(LARGE_VALUE + 10)
            held.keep(Large(freed, turns), LARGE_VALUE)
            held.keep(object(), 10)  # too small to wait for its turn
        for held in requests:
            held.release()
        assert (freed, memory.held) == ([], 5 * LARGE_VALUE)
        await wait_all_tasks_blocked()
        assert len(freed) == len(set(freed)) == 5, "two in one turn"
        nursery.cancel_scope.cancel()
    assert memory.held == 0
    assert not memory._of_peers


async def test_what_waits_to_be_freed_is_freed_with_the_worker_and_at_once_after_it() -> None:
    memory = memory_of(1 << 30)
    freed: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.free_discarded)
        await wait_all_tasks_blocked()
        for _ in range(3):
            held = memory.open("a")
            held.take(LARGE_VALUE)
            held.keep(Large(freed, Passes()), LARGE_VALUE)
            held.release()
        nursery.cancel_scope.cancel()
    assert (len(freed), memory.held) == (3, 0)
    late = memory.open("a")
    late.take(LARGE_VALUE)
    late.keep(Large(freed, Passes()), LARGE_VALUE)
    late.release()
    assert (len(freed), memory.held) == (4, 0)
    assert not memory._of_peers


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_value_that_fails_while_it_is_freed_holds_up_no_other() -> None:
    class Failing(Large):
        def __del__(self) -> None:
            super().__del__()
            raise RuntimeError("not this one")

    memory, freed = memory_of(1 << 30), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.free_discarded)
        await wait_all_tasks_blocked()
        for kind in (Failing, Large):
            held = memory.open("a")
            held.take(LARGE_VALUE)
            held.keep(kind(freed, Passes()), LARGE_VALUE)
            held.release()
        await wait_all_tasks_blocked()
        assert (len(freed), memory.held) == (2, 0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("weight", [-(10**9), 0, 5.5])
async def test_a_shape_that_tells_nonsense_of_a_weight_counts_its_bytes(weight: Any) -> None:
    memory = memory_of(1 << 20)
    held = memory.open("a", 500)
    assert memory.held == 1000
    await held.settle("x", 500, weight)
    assert memory.held == held.held == 500
    held.release()
    assert memory.held == 0


# -- admission -------------------------------------------------------------------------------------------------------


def test_l08_a_request_is_held_twice_from_its_admission_and_small_ones_are_not_counted() -> None:
    admission = Admission(100, request_memory=memory_of(10_000))
    slots = [admission.admit(peer="a", size=SMALL_REQUEST) for _ in range(50)]
    assert admission.request_memory.held == 0
    slots.append(admission.admit(peer="a", size=3000))
    assert admission.request_memory.held == 6000
    with pytest.raises(Overloaded, match="memory"):
        admission.admit(peer="b", size=3000)
    assert (admission.running, admission.rejected) == (51, 1)
    for slot in slots:
        slot.release()
        slot.let_go()
    assert (admission.running, admission.request_memory.held) == (0, 0)


@pytest.mark.parametrize("error", [Overloaded("closed"), ValueError("a bug"), KeyboardInterrupt()])
def test_what_a_policy_refuses_holds_no_memory(error: BaseException) -> None:
    class Closed(AdmissionPolicy):
        def admit(self, arrival: Arrival, load: Load) -> None:
            raise error

        def release(self, arrival: Arrival) -> None:
            raise AssertionError("nothing was admitted")

    admission = Admission(policy=Closed(), request_memory=memory_of(10_000))
    arrival: Any = object()
    with pytest.raises((IngressError, KeyboardInterrupt)):
        admission.admit(arrival, peer="a", size=3000)
    assert admission.request_memory.held == 0


# -- through a worker ------------------------------------------------------------------------------------------------

go_on = trio.Event()


async def hold(request: Any) -> AsyncIterator[Any]:
    yield "begun"
    if not isinstance(request, str):
        await go_on.wait()


def dense_payload(stage: Stage) -> bytes:
    """Some 7 KB of msgpack that become 0.5 MB: more than half of what the stage has, with the first."""
    control = stage.caller.control(codec="msgpack")
    return stage.caller.payload([{} for _ in range(7000)], control)


@pytest.fixture
def small() -> dict[str, Any]:
    global go_on
    go_on = trio.Event()
    return {"max_frame_size": FRAME, "max_request_memory": LARGEST}


async def test_l08_a_request_that_turns_out_to_be_too_heavy_is_told_on_its_stream(small: dict[str, Any]) -> None:
    async with open_stage(hold, **small) as stage:
        memory = stage.worker.admission.request_memory
        payload = dense_payload(stage)
        assert await stage.ask(payload) == ""
        first = await stage.caller.accept("msgpack")
        await first.read_items(1)
        assert memory.held == worst_weight(len(payload))

        assert await stage.ask(dense_payload(stage)) == ""
        second = await stage.caller.accept("msgpack")
        said = await second.read_to_sentinel()
        assert OF_ONE in str(said)
        await wait_all_tasks_blocked()
        assert stage.outcomes() == {("refused", "overloaded"): 1}
        await stage.assert_alive()  # of a small one there is no account

        go_on.set()
        assert (await first.read_to_sentinel()).is_whole
        await first.aclose()
        await second.aclose()
        await wait_all_tasks_blocked()
        assert memory.held == 0
        stage.assert_nothing_left()
        assert (await stage.tell({"x": "y" * 5000})).is_whole
        assert memory.held == 0


async def test_l08_a_request_for_whose_bytes_there_is_no_room_is_refused_in_its_ack(small: dict[str, Any]) -> None:
    async with open_stage(hold, **small) as stage:
        memory = stage.worker.admission.request_memory
        stranger = memory.open("127.0.0.9")
        stranger.take(memory.most - 10_000)
        stranger.take_anyway(memory.most // 4)  # and what those find who hold little
        assert (
            await stage.ask(dense_payload(stage))
            == f"Server overloaded: requests would take more than {LARGEST >> 20} MiB of memory"
        )
        assert stage.outcomes() == {("refused", "overloaded"): 1}
        stranger.release()
        assert await stage.ask(dense_payload(stage)) == ""


async def test_a_request_whose_body_cannot_be_read_gives_its_memory_back(small: dict[str, Any]) -> None:
    async with open_stage(hold, **small) as stage:
        payload = dense_payload(stage)
        assert await stage.ask(payload[:-1] + b"\xc1") == ""
        response = await stage.caller.accept("msgpack")
        assert not (await response.read_to_sentinel()).items
        await response.aclose()
        await wait_all_tasks_blocked()
        assert stage.worker.admission.request_memory.held == 0


async def test_l08_a_large_chunk_that_nobody_takes_counts_and_those_who_come_meanwhile_are_refused() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield "x" * (LARGE_VALUE if request == "much" else 1)

    async with open_stage(engine, network=slow_network(), max_frame_size=FRAME, max_request_memory=1) as stage:
        memory = stage.worker.admission.request_memory
        slow = await stage.call("much")
        await wait_all_tasks_blocked()
        assert LARGE_VALUE < memory.held < LARGE_VALUE + 1000
        assert await stage.ask(stage.caller.payload("little")) == f"Server overloaded: {OF_ONE}"
        assert (await slow.read_to_sentinel()).is_whole
        await slow.aclose()
        await wait_all_tasks_blocked()
        assert memory.held == 0
        await stage.assert_alive("little")


async def test_l08_a_chunk_that_was_taken_counts_no_more_while_the_answer_goes_on() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield "x" * LARGE_VALUE
        await go_on.wait()

    global go_on
    go_on = trio.Event()
    async with open_stage(engine, network=slow_network()) as stage:
        memory = stage.worker.admission.request_memory
        slow = await stage.call("much")
        await wait_all_tasks_blocked()
        assert memory.held > LARGE_VALUE
        await slow.read_items(1)
        await wait_all_tasks_blocked()
        assert memory.held == 0
        go_on.set()
        assert (await slow.read_to_sentinel()).is_whole
        await slow.aclose()


async def test_l08_a_large_request_is_weighed_in_its_thread_and_freed_in_its_turn() -> None:
    """Above 240 KB, and of texts that nobody would take for dense."""
    global go_on
    go_on = trio.Event()
    body = {"texts": ["a text of forty letters, all of them plain"] * 120_000}
    async with open_stage(hold) as stage:
        memory = stage.worker.admission.request_memory
        discarded = watch_discarded(memory)
        with trio.fail_after(60):
            call = await stage.call(body)
            await call.read_items(1)
            kept = memory.held
            assert LARGE_VALUE < kept < 4 * len(codec_named("json").encode(body)) < worst_weight(5_000_000)
            go_on.set()
            assert (await call.read_to_sentinel()).is_whole
            await call.aclose()
            await wait_all_tasks_blocked()
            assert discarded == [kept]
            assert memory.held == 0


def watch_discarded(memory: RequestMemory) -> list[int]:
    """Return what large values weigh that wait for their turn to be freed, as they come."""
    discarded: list[int] = []
    discard = memory.discard

    def watch(value: object, peer: str, weight: int) -> None:
        held = memory.held
        discard(value, peer, weight)
        assert memory.held == held, "freed at once"
        discarded.append(weight)

    memory.discard = watch  # type: ignore[method-assign]
    return discarded
