"""Of heavy work little is done in one pass of the event loop, however many tasks have some at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ingress import _heavy_work, bodies
from ingress._fair_line import working_for
from ingress._heavy_work import LARGE_BODY, MAX_SECONDS_A_PASS, HeavyWork, heavy_work
from ingress._pump import LARGE_CHUNK
from ingress._request_stream import MAX_QUEUED_FRAMES
from ingress._tallies import Tallies
from ingress.abc import PlaneOptions, Push
from ingress.bodies import SMALL_BODY, decode_body
from ingress.planes._connections import Connections
from ingress.planes._conversation import Conversations
from ingress.planes._incomplete import IncompleteFrames
from ingress.testing import MemoryNetwork
from ingress.wire.request_frame import encode_request_frame

from .passes import Passes, a_slow_clock, counted_passes, nobody_let_go
from .raw_caller import open_stage
from .test_pump import open_pump
from .test_request_stream import SENTINEL, frame, open_conversation


async def test_of_tasks_with_heavy_work_one_works_in_a_pass_in_order_and_others_run_between() -> None:
    work = HeavyWork()
    worked: list[tuple[int, int]] = []

    async def do_heavy_work(number: int) -> None:
        await work.wait_turn()
        worked.append((passes.count, number))
        work.spent += 2 * MAX_SECONDS_A_PASS

    async with counted_passes() as passes, trio.open_nursery() as nursery:
        work.spent = 1.0  # or the first two would come in one pass
        for number in range(10):
            nursery.start_soon(do_heavy_work, number)
            await trio.lowlevel.checkpoint()
    assert [number for _, number in worked] == list(range(10))
    assert len({count for count, _ in worked}) == 10


async def test_who_has_much_to_do_keeps_another_caller_waiting_for_one_of_it() -> None:
    work = HeavyWork()
    work.spent = 1.0
    worked: list[str] = []

    async def do_heavy_work(peer: str) -> None:
        working_for.set(peer)
        await work.wait_turn()
        worked.append(peer)
        work.spent += 2 * MAX_SECONDS_A_PASS

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(do_heavy_work, "greedy")
        await trio.lowlevel.checkpoint()
        nursery.start_soon(do_heavy_work, "good")
    assert len(worked) == 51
    assert worked.index("good") <= 3


async def test_short_work_goes_before_long_and_leaves_it_half_of_the_time() -> None:
    work = HeavyWork()
    work.spent = 1.0
    worked: list[str] = []

    async def do_work(peer: str, what: str, seconds: float) -> None:
        working_for.set(peer)
        await work.spend(seconds)
        worked.append(what)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(do_work, f"10.0.0.{number}", "long", 5e-3)
        await wait_all_tasks_parked(200, work)
        for number in range(200):
            nursery.start_soon(do_work, f"10.0.1.{number}", "short", 1e-4)
    assert len(worked) == 400
    last_short = max(at for at, what in enumerate(worked) if what == "short")
    assert 200 <= last_short <= 220


async def wait_all_tasks_parked(count: int, work: HeavyWork) -> None:
    while len(work._expected) < count:
        await trio.lowlevel.checkpoint()


async def test_c13_a_large_body_of_another_caller_waits_for_one_of_a_crowd() -> None:
    decoded: list[str] = []

    async def decode_for(peer: str) -> None:
        working_for.set(peer)
        await decode_body(lambda body: decoded.append(peer), bytes(LARGE_BODY + 1))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(decode_for, "greedy")
            await trio.lowlevel.checkpoint()
            nursery.start_soon(decode_for, "good")
    assert len(decoded) == 21
    assert decoded.index("good") <= 3


@pytest.mark.parametrize(
    ("body", "is_short"),
    [
        (b'{"prompt":"%s"}' % (b"word, " * 3000), True),
        (b"[%s]" % (b"1," * 14_000), False),
        (b"[%s]" % (b"[" * 18_000), False),
        (b'[%s{"":0}]' % (b"{}," * 6000), False),
        (b"\xdb\xff\xff" + b"x" * 18_000, False),  # msgpack, of which nobody can tell
    ],
)
async def test_c13_a_long_text_goes_before_many_values(
    body: bytes, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 KB a text takes 0.2 ms, and a list of lists 3.3."""
    decoded = list[str]()

    async def decode_for(peer: str, body: bytes) -> None:
        working_for.set(peer)
        await decode_body(lambda _: decoded.append(peer), body)

    async with trio.open_nursery() as nursery, nobody_let_go(monkeypatch):
        for at in range(20):
            nursery.start_soon(decode_for, f"10.0.0.{at}", b"[" * 18_000)
            await trio.lowlevel.checkpoint()
        nursery.start_soon(decode_for, "good", body)
        await wait_all_tasks_blocked()
        assert not decoded
    assert len(decoded) == 21
    assert (decoded.index("good") < 10) is is_short


@pytest.mark.parametrize("size", [SMALL_BODY + 100, LARGE_BODY + 100])
async def test_l06_a_caller_that_leaves_while_its_body_waits_for_others_holds_nothing(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        asked.append(request)
        yield len(request)

    asked: list[Any] = []
    async with open_stage(engine) as stage:
        memory = stage.worker.admission.request_memory
        async with nobody_let_go(monkeypatch) if size <= LARGE_BODY else bodies._lines.get()[False].turn:
            leaves, stays = await stage.call("x" * size), await stage.call("y" * size)
            await wait_all_tasks_blocked()
            assert stage.sample("inflight_requests") == 2
            await leaves.aclose()
            await wait_all_tasks_blocked()
            assert stage.sample("inflight_requests") == 1
            assert memory.held < 3 * size, "twice the payload of one"
        with trio.fail_after(30):
            said = await stays.read_to_sentinel()
        assert (said.items, said.is_whole) == ([size], True)
        await stays.aclose()
        await wait_all_tasks_blocked()
        assert asked == ["y" * size]
        assert stage.outcomes() == {("cancelled", "disconnect"): 1, ("completed", "ok"): 1}
        stage.assert_nothing_left()


class TwoHosts(MemoryNetwork):
    """Connections come from the host that is named when they are opened."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[trio.abc.Stream, str] = {}

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return self._hosts.setdefault(stream, self.host)


async def test_a_body_of_another_address_waits_for_one_of_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        asked.append(request[:4])
        yield len(request)

    asked: list[str] = []
    network = TwoHosts()
    async with open_stage(engine, network=network) as stage:
        # 14 KB are read at once and take 1.4 ms at the most, so that eight go on at a time.
        greedy = ["busy" * 3500 for _ in range(20)]
        async with nobody_let_go(monkeypatch):
            answers = [await stage.call(body) for body in greedy]
            network.host = "127.0.0.2"
            other = await stage.caller.connect(stage.worker)
            answers.append(await stage.caller.call(other, "good" * 3500))
            await wait_all_tasks_blocked()
            assert asked == []
            # Who waits has been dialled: a caller that leaves is heard.
            await answers[-1].read_until(lambda said: said.subject)
        for answer in answers:
            await answer.read_to_sentinel()
    assert len(asked) == 21
    assert asked.index("good") < 8


async def test_a_caller_that_leaves_waits_for_no_decoder() -> None:
    is_decoding, let_go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def decode(body: bytes) -> None:
        token.run_sync_soon(is_decoding.set)
        assert let_go.wait(30)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(decode_body, decode, bytes(LARGE_BODY + 1))
            await is_decoding.wait()
            nursery.cancel_scope.cancel()
        assert not let_go.is_set()
    finally:
        let_go.set()


async def test_little_work_waits_for_no_pass() -> None:
    work = HeavyWork()
    async with counted_passes() as passes:
        for _ in range(100):
            await work.wait_turn()
            work.spent += MAX_SECONDS_A_PASS / 200
        assert passes.count == 0


async def test_who_gives_up_waiting_keeps_nobody_else_from_a_turn() -> None:
    work = HeavyWork()
    work.spent = 1.0
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(work.wait_turn)
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await work.wait_turn()


async def test_a_run_has_one_account() -> None:
    assert heavy_work() is heavy_work()


@pytest.mark.parametrize("size", [SMALL_BODY + 1, LARGE_BODY])
async def test_c13_bodies_that_are_whole_in_the_same_moment_are_decoded_one_a_pass(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four hundred of 200 KB, of empty maps, had kept the loop for 18 s and taken 5.7 GB."""
    monkeypatch.setattr(_heavy_work, "clock", a_slow_clock())  # small ones take longer than is expected
    decoded: list[int] = []

    def decode(body: bytes) -> None:
        decoded.append(passes.count)

    async with counted_passes() as passes, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(decode_body, decode, bytes(size))
    assert len(set(decoded)) == len(decoded) == 20


async def test_c13_of_bodies_that_take_little_as_many_are_decoded_in_a_pass_as_it_has_time_for() -> None:
    """With one a pass those of 5 KB had waited 7 s beside 400 connections, which made passes long."""
    decoded: list[int] = []

    def decode(body: bytes) -> None:
        decoded.append(passes.count)

    heavy_work().spent = 1.0
    async with counted_passes() as passes, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(decode_body, decode, bytes(10_000))
    assert len(decoded) == 200
    # 10 KB take 1 ms at most.
    assert 15 <= len(set(decoded)) <= 40


class GreedyStream(trio.abc.Stream):
    """A request connection whose caller sends a large frame as fast as it can, and never ends it."""

    def __init__(self, passes: Passes) -> None:
        self.read_at: list[int] = []
        self._passes = passes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if len(self.read_at) == 20:
            return b""
        self.read_at.append(self._passes.count)
        if len(self.read_at) == 1:
            return encode_request_frame("a/b/c/d", {}, bytes(6_000_000))[:16_384]
        return bytes(max_bytes or 0)

    async def send_all(self, data: object) -> None:
        raise AssertionError("nothing is whole, so nothing is answered")

    async def wait_send_all_might_not_block(self) -> None: ...

    async def aclose(self) -> None: ...


async def test_c13_parts_of_large_frames_are_read_in_turns_in_which_addresses_come_one_after_the_other() -> None:
    connections = Connections(1000, 1000, Tallies())
    options = PlaneOptions(network=MemoryNetwork())
    conversations = Conversations(options, connections, IncompleteFrames(1 << 40, 1 << 25), Tallies())

    def never(push: Push) -> str:
        raise AssertionError("no frame is whole")

    async with counted_passes() as passes, trio.open_nursery() as nursery:
        greedy = [GreedyStream(passes) for _ in range(300)]
        good = GreedyStream(passes)
        for stream, peer in [*((stream, "greedy") for stream in greedy), (good, "good")]:
            connection, _ = connections.enter(stream, peer)
            assert connection is not None
            nursery.start_soon(conversations.hold, connection, never)
    reads = Counter(at for stream in greedy for at in stream.read_at[1:])
    assert sum(reads.values()) == 300 * 19
    # 256 KiB count for 0.5 ms; who begins in the first passes has waited for nobody.
    assert max(list(reads.values())[2:]) <= 20
    assert good.read_at[-1] < min(stream.read_at[-1] for stream in greedy)


async def test_c13_a_body_that_cannot_be_decoded_has_taken_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_heavy_work, "clock", a_slow_clock())

    def decode(body: bytes) -> None:
        raise ValueError("no body")

    before = heavy_work().spent
    with pytest.raises(ValueError, match="no body"):
        await decode_body(decode, bytes(SMALL_BODY + 1))
    assert heavy_work().spent > before + MAX_SECONDS_A_PASS


async def test_c13_frames_of_a_byte_count_too_and_an_engine_has_few_of_them_waiting() -> None:
    """A read of 16 KiB may hold 655: a hundred streams had made a pass of 387 ms."""
    before = heavy_work().spent
    async with open_conversation(is_taking=False) as conversation:
        await conversation.caller.send_all(frame(1) * 600 + SENTINEL)
        await wait_all_tasks_blocked()
        assert len(conversation.requests._items) == MAX_QUEUED_FRAMES
        assert heavy_work().spent - before >= MAX_QUEUED_FRAMES * 1e-5
        with trio.fail_after(5):
            await conversation.take_all()
        assert conversation.taken == [1] * 600


async def test_c13_small_frames_of_many_request_streams_count_together() -> None:
    async with counted_passes() as passes:
        taken: list[int] = []

        def decode(body: bytes) -> Any:
            taken.append(passes.count)
            return len(body)

        async with open_conversation(decode=decode) as first, open_conversation(decode=decode) as second:
            for conversation in (first, second):
                await conversation.caller.send_all(frame("x" * 4000) * 60 + SENTINEL)
            await wait_all_tasks_blocked()
            assert first.end == second.end == "ended"
    assert len(taken) == 120
    # 4 KB count for 0.4 ms, so that some 25 are what a pass may take.
    assert max(taken.count(each) for each in set(taken)) <= 30


async def test_c13_a_large_frame_that_is_whole_waits_for_its_turn_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    work = heavy_work()
    async with open_conversation() as conversation, trio.open_nursery() as nursery:
        whole = frame("x" * 3_000_000)
        await conversation.caller.send_all(whole[:-1])
        await wait_all_tasks_blocked()
        async with nobody_let_go(monkeypatch):
            nursery.start_soon(conversation.caller.send_all, whole[-1:] + SENTINEL)
            await wait_all_tasks_blocked()
            assert (work.spent, conversation.end) == (1.0, "")
        with trio.fail_after(30):
            while not conversation.end:
                await trio.sleep(0.001)
        assert [len(each) for each in conversation.taken] == [3_000_000]
        assert work.spent >= 0.003


async def test_d07_large_chunks_that_engines_yield_in_the_same_moment_are_encoded_one_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three hundred of 30 MB had kept the loop for 48 s."""
    seconds = a_slow_clock()
    looked_at: list[int] = []

    def clock() -> float:
        looked_at.append(passes.count)
        return seconds()

    monkeypatch.setattr(_heavy_work, "clock", clock)
    go = trio.Event()

    async def engine() -> AsyncIterator[Any]:
        await go.wait()
        for _ in range(3):
            yield {"text": "x" * (LARGE_CHUNK + 1)}

    async def run() -> None:
        async with open_pump() as pump:
            await pump.run(engine())
            assert len(pump.socket.said.items) == 3

    async with counted_passes() as passes, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(run)
        await wait_all_tasks_blocked()
        go.set()
    # Before and after each.
    assert sorted(Counter(looked_at).values()) == [2] * 30


async def test_small_chunks_wait_for_no_turn() -> None:
    heavy_work().spent = 1.0

    async def engine() -> AsyncIterator[Any]:
        for _ in range(3):
            yield {"text": "x" * 100}

    async with open_pump() as pump:
        await pump.run(engine())
    assert heavy_work().spent == 1.0
