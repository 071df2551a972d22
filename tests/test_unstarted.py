"""Requests that wait for something before the engine is asked give their slots to addresses that have fewer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import AdmissionPolicy, Overloaded
from ingress._admission import Admission, Slot
from ingress._unstarted import LOOKS
from ingress.abc import Arrival, Load
from ingress.bodies import SMALL_BODY
from ingress.errors import ResponseStreamError
from ingress.testing import MemoryNetwork

from .passes import nobody_let_go
from .raw_caller import RawConnection, Stage, open_stage

GAVE_WAY = "worker at capacity, and others have fewer requests"
BODY = "x" * (2 * SMALL_BODY)


class Hosts(MemoryNetwork):
    """Connections come from the host that is named when they are opened."""

    host = "127.0.0.1"

    is_deaf = False
    """Whether nobody who is dialled answers."""

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[trio.abc.Stream, str] = {}

    async def connect(self, host: str, port: int) -> Any:
        if self.is_deaf:
            await trio.sleep_forever()
        stream = await super().connect(host, port)
        self.when_reached()
        return stream

    def when_reached(self) -> None: ...

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return self._hosts.setdefault(stream, self.host)


async def length(request: Any) -> AsyncIterator[Any]:
    yield len(request)


@asynccontextmanager
async def full_stage(slots: int = 4, **options: Any) -> AsyncIterator[tuple[Stage, RawConnection]]:
    """A worker, and a connection to it of another address than its other caller's."""
    network = Hosts()
    async with open_stage(length, network=network, engine_request_limit=slots, **options) as stage:
        await wait_all_tasks_blocked()
        network.host = "127.0.0.2"
        yield stage, await stage.caller.connect(stage.worker)


async def test_c13_bodies_that_wait_to_be_decoded_keep_nobody_from_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty connections with bodies of 100 KB had all 2,048, and callers with small requests were refused."""
    async with full_stage() as (stage, other):
        memory = stage.worker.admission.request_memory
        async with nobody_let_go(monkeypatch):
            waiting = [await stage.call(BODY) for _ in range(4)]
            await wait_all_tasks_blocked()
            assert await stage.ask(stage.caller.payload(BODY)) == "Server overloaded: worker at capacity"
            held = memory.held
            good = await stage.caller.call(other, "good")
            await wait_all_tasks_blocked()
            assert memory.held == held * 3 / 4  # what it came with is held no longer
            assert (await good.read_to_sentinel()).items == [4]
            await good.aclose()
            said = await waiting[3].read_to_sentinel()
            assert (said.items, said.is_whole) == ([], True)
            assert [error.message for error in said.errors] == [GAVE_WAY]
            await waiting[3].aclose()
            await wait_all_tasks_blocked()
            assert stage.sample("inflight_requests") == 3
            assert stage.outcomes() == {("refused", "overloaded"): 2, ("completed", "ok"): 1}
        for answer in waiting[:3]:
            assert (await answer.read_to_sentinel()).items == [len(BODY)]
            await answer.aclose()
        await wait_all_tasks_blocked()
        assert memory.held == 0
        stage.assert_nothing_left()


async def test_d05_requests_whose_callers_are_not_reached_keep_nobody_from_a_slot(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 30 addresses they had all 2,048 slots, as more wait for a dial than are pending: 88 of 100 others had none."""
    network = Hosts()
    async with open_stage(length, network=network, engine_request_limit=4) as stage:
        await wait_all_tasks_blocked()
        network.host = "127.0.0.2"
        other = await stage.caller.connect(stage.worker)
        network.is_deaf = True
        for _ in range(4):
            assert await stage.ask(stage.caller.payload("x")) == ""
        network.is_deaf = False
        await trio.sleep(0.4)
        assert await other.ask(stage.caller.payload("good")) == "Server overloaded: worker at capacity"
        await trio.sleep(0.2)
        assert await stage.ask(stage.caller.payload("x")) == "Server overloaded: worker at capacity"
        assert (await (await stage.caller.call(other, "good")).read_to_sentinel()).items == [4]
        assert stage.outcomes() == {
            ("refused", "overloaded"): 2,
            ("failed", "response_stream"): 1,
            ("completed", "ok"): 1,
        }
        assert f"dial-back given up: {GAVE_WAY}" in caplog.text
        assert stage.sample("inflight_requests") == 3
        await trio.sleep(10)
        assert stage.sample("inflight_requests") == 0


async def test_d05_a_request_that_gives_way_in_the_moment_in_which_its_caller_is_reached_has_ended() -> None:
    network = Hosts()
    async with open_stage(length, network=network) as stage:
        unstarted = stage.worker.admission.unstarted

        def give_up() -> None:
            unstarted.give_up(next(iter(unstarted._by_peer["127.0.0.1"])))

        await wait_all_tasks_blocked()
        network.when_reached = give_up  # type: ignore[method-assign]
        answer = await stage.call("x")
        said = await answer.read_to_end()
        assert said.subject is None and not said.items
        await answer.aclose()
        await wait_all_tasks_blocked()
        assert stage.outcomes() == {("failed", "response_stream"): 1}
        stage.assert_nothing_left()


async def test_a_request_that_gives_way_in_the_moment_in_which_it_was_decoded_is_not_run() -> None:
    admission = Admission(2)
    slot = admission.admit(peer="a")
    with pytest.raises(Overloaded, match=GAVE_WAY), slot.decoding():
        admission.unstarted.give_up(slot)  # and nothing is waited for after that
    assert admission.unstarted.untold == {slot}
    slot.close()
    assert not admission.unstarted.untold


@pytest.mark.parametrize("failure", [None, KeyError("shape")])
async def test_what_has_been_decoded_gives_no_way_any_more(failure: Exception | None) -> None:
    admission = Admission(2)
    slots = [admission.admit(peer="a") for _ in range(2)]
    for slot in slots:
        with contextlib.suppress(KeyError), slot.decoding():
            if failure is not None:
                raise failure
    with pytest.raises(Overloaded, match="worker at capacity"):
        admission.admit(peer="b")
    assert admission.running == 2


# -- who gives way ---------------------------------------------------------------------------------------------------


class Full:
    """All slots of an admission, of which some wait to be decoded."""

    def __init__(self, admission: Admission, nursery: trio.Nursery) -> None:
        self.admission = admission
        self._nursery = nursery
        self._waiting = dict[Slot, trio.CancelScope]()

    async def take(
        self, peer: str | None, count: int, *, is_decoded: bool = False, patience: float = 0.0
    ) -> list[Slot]:
        slots = [self.admission.admit(peer=peer) for _ in range(count)]
        for slot in slots if not is_decoded else []:
            self._waiting[slot] = await self._nursery.start(self._wait, slot, patience)
        return slots

    async def _wait(self, slot: Slot, patience: float, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope, self.admission.unstarted.waiting(slot, patience):
            task_status.started(scope)
            await trio.sleep_forever()

    async def decode(self, slots: list[Slot]) -> None:
        for slot in slots:
            self._waiting.pop(slot).cancel()
        await wait_all_tasks_blocked()

    async def given_up_for(self, peer: str | None, *, is_told: bool = True) -> list[Slot]:
        before = {slot for slot in self._waiting if slot.has_given_way}
        self.admission.admit(peer=peer)
        given_up = [slot for slot in self._waiting if slot.has_given_way and slot not in before]
        await wait_all_tasks_blocked()
        for slot in given_up if is_told else []:
            slot.close()
        return given_up


@asynccontextmanager
async def all_taken(slots: int, queue: int = 0, **options: Any) -> AsyncIterator[Full]:
    async with trio.open_nursery() as nursery:
        yield Full(Admission(slots, queue, **options), nursery)
        nursery.cancel_scope.cancel()


async def test_the_latest_of_the_address_that_has_most_gives_way_as_long_as_it_has_more() -> None:
    async with all_taken(10) as full:
        few, most = await full.take("few", 4), await full.take("most", 6)
        assert [await full.given_up_for("new") for _ in range(2)] == [[most[5]], [most[4]]]
        with pytest.raises(Overloaded, match="worker at capacity"):
            await full.given_up_for("new")  # which has two, and the others four
        assert await full.given_up_for("newer") == [few[3]]
        assert full.admission.running == 10


@pytest.mark.parametrize(("most", "gives_way"), [(4, False), (5, True)])
async def test_an_address_gives_way_that_has_half_as_many_again_without_it(most: int, gives_way: bool) -> None:
    async with all_taken(most + 2) as full:
        await full.take("most", most)
        await full.take("other", 2, is_decoded=True)
        with contextlib.nullcontext() if gives_way else pytest.raises(Overloaded):
            assert await full.given_up_for("other")


async def test_what_is_decoded_counts_and_gives_no_way() -> None:
    async with all_taken(10) as full:
        await full.take("running", 6, is_decoded=True)
        waiting = await full.take("waiting", 4)
        with pytest.raises(Overloaded, match="worker at capacity"):
            await full.given_up_for("running")
        assert await full.given_up_for("new") == [waiting[3]]
        await full.decode(waiting[:3])
        with pytest.raises(Overloaded, match="worker at capacity"):
            await full.given_up_for("other")
        assert not full.admission.unstarted._by_peer


async def test_who_nobody_knows_neither_gives_way_nor_is_given_it() -> None:
    async with all_taken(8) as full:
        await full.take(None, 4)
        await full.take("a", 4)
        with pytest.raises(Overloaded, match="worker at capacity"):
            await full.given_up_for(None)
        assert len(await full.given_up_for("b")) == 1


async def test_some_addresses_are_looked_at_for_each_and_the_next_ones_for_the_next() -> None:
    async with all_taken(3 * LOOKS + 1) as full:
        for at in range(2 * LOOKS):
            await full.take(f"few{at}", 1)
        most = await full.take("most", LOOKS + 1)
        for peer in ("b", "c"):
            with pytest.raises(Overloaded, match="worker at capacity"):
                await full.given_up_for(peer)
        assert await full.given_up_for("d") == [most[-1]]


class NotYou(AdmissionPolicy):
    def admit(self, arrival: Arrival, load: Load) -> None:
        raise Overloaded("not you")


@pytest.mark.parametrize(
    ("options", "why"), [({"max_inflight_per_peer": 2}, "2 requests of one caller"), ({"policy": NotYou()}, "not you")]
)
async def test_nobody_gives_way_to_a_request_that_is_refused_all_the_same(options: dict[str, Any], why: str) -> None:
    async with all_taken(12, **options) as full:
        memory = full.admission.request_memory
        if "policy" not in options:
            full.admission.max_inflight_per_peer = None
        waiting = await full.take("a", 10)
        await full.take("new", 2, is_decoded=True)
        full.admission.max_inflight_per_peer = options.get("max_inflight_per_peer")
        arrival: Any = object()
        with pytest.raises(Overloaded, match=why):
            full.admission.admit(arrival, peer="new", size=5000)
        assert not any(slot.has_given_way for slot in waiting)
        assert (full.admission.running, memory.held) == (12, 0)


async def test_who_gives_way_makes_room_in_the_line(autojump_clock: MockClock) -> None:
    async with all_taken(4, 1) as full:
        await full.take("a", 4)
        (first,) = await full.take("b", 1, is_decoded=True)
        assert full.admission.queued == 1
        assert len(await full.given_up_for("c")) == 1
        with trio.fail_after(1):
            await first.wait_granted()
        assert (full.admission.running, full.admission.queued) == (4, 1)


async def test_of_requests_that_are_too_young_the_eldest_gives_way_once_it_is_old_enough(mock_clock: MockClock) -> None:
    async with all_taken(4) as full:
        eldest, *_ = await full.take("a", 2, patience=0.5)
        mock_clock.jump(0.4)
        *_, latest = await full.take("a", 2, patience=0.5)
        with pytest.raises(Overloaded, match="worker at capacity"):
            await full.given_up_for("b")
        mock_clock.jump(0.11)
        assert await full.given_up_for("b") == [eldest]
        mock_clock.jump(0.4)
        assert await full.given_up_for("c") == [latest]


async def test_few_are_being_told_at_a_time() -> None:
    async with all_taken(16) as full:
        await full.take("a", 16)
        given_up = [slot for peer in ("b", "c") for slot in await full.given_up_for(peer, is_told=False)]
        with pytest.raises(Overloaded, match="worker at capacity"):
            await full.given_up_for("d")
        given_up[0].close()
        assert len(await full.given_up_for("d")) == 1


# -- one wait inside of another --------------------------------------------------------------------------------------


async def test_a_request_that_was_dialled_while_it_is_decoded_still_waits_to_be_decoded() -> None:
    """As of a shape that has streams of its own."""
    admission = Admission(2)
    slot = admission.admit(peer="a")
    admission.admit(peer="a")
    with pytest.raises(Overloaded, match=GAVE_WAY), slot.decoding():
        with slot.dialling():
            pass
        admission.admit(peer="b")
    assert not admission.unstarted._by_peer


async def test_a_shape_that_catches_that_its_dial_was_given_up_goes_on_no_further() -> None:
    admission = Admission(2)
    slot = admission.admit(peer="a")
    with (
        pytest.raises(Overloaded, match=GAVE_WAY),
        slot.decoding(),
        contextlib.suppress(ResponseStreamError),
        slot.dialling(),
    ):
        admission.unstarted.give_up(slot)
    with pytest.raises(Overloaded, match=GAVE_WAY):
        slot.check()


async def test_a_request_that_has_given_way_waits_for_no_other_dial(autojump_clock: MockClock) -> None:
    """It could give the slot that it had not any more away once more: more ran and waited than may."""
    admission = Admission(2)
    slot = admission.admit(peer="a")
    for is_first in (True, False):
        with pytest.raises(ResponseStreamError, match=GAVE_WAY), slot.dialling():
            if is_first:
                admission.unstarted.give_up(slot)
            await trio.sleep_forever()
    assert not admission.unstarted._by_peer
