"""The frames of a request stream, and everything that ends an input."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress._context import Ending, RequestContext
from ingress._heavy_work import LARGE_BODY
from ingress._request_memory import HeldMemory, RequestMemory
from ingress._request_stream import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, RequestInput
from ingress._weight import worst_weight
from ingress.errors import RequestMemoryExhausted
from ingress.testing._memory import MemoryStream
from ingress.wire.codec import codec_named
from ingress.wire.messages import ControlWord
from ingress.wire.records import EndpointId
from ingress.wire.two_part import PREFIX, encode_two_part

SENTINEL = encode_two_part(ControlWord.SENTINEL.encode())
STOP = encode_two_part(ControlWord.STOP.encode())
KILL = encode_two_part(ControlWord.KILL.encode())


decode_json = codec_named("json").decode


def frame(value: Any) -> bytes:
    return encode_two_part(body=json.dumps(value).encode())


def make_context(**options: Any) -> RequestContext:
    return RequestContext(request_id="r", endpoint=EndpointId("a", "b", "c"), metadata={}, headers={}, **options)


def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    left, right = (MemoryStream(end, lambda _: None) for end in trio.testing.memory_stream_pair())
    left.join(right)
    return left, right


@define
class Conversation:
    """A caller's end, and an engine that takes whatever comes."""

    caller: Any
    context: RequestContext
    requests: RequestInput[Any]
    held: HeldMemory
    taken: list[Any] = field(factory=list)
    end: str = ""
    """How the engine saw its input end: ``ended`` or ``cancelled``; empty while it goes on."""

    def close(self) -> None:
        """The request has ended."""
        self.requests.close()
        self.held.release()

    async def take_all(self) -> None:
        try:
            async for request in self.requests:
                self.taken.append(request)
        except trio.Cancelled:
            self.end = "cancelled"
            raise
        self.end = "ended"


@asynccontextmanager
async def open_conversation(
    pair: tuple[Any, Any] | None = None,
    *,
    decode: Callable[[bytes], Any] = decode_json,
    is_taking: bool = True,
    memory: RequestMemory | None = None,
    **options: Any,
) -> AsyncIterator[Conversation]:
    caller, worker = stream_pair() if pair is None else pair
    context = make_context(**options)
    memory = RequestMemory() if memory is None else memory
    held = memory.open("127.0.0.1")
    requests: RequestInput[Any] = RequestInput(worker, context, decode, held)
    conversation = Conversation(caller, context, requests, held)

    async def run_engine() -> None:
        with context.scope:
            await conversation.take_all()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.read)
        if is_taking:
            nursery.start_soon(run_engine)
        yield conversation
        nursery.cancel_scope.cancel()


# -- input, and its one good end --------------------------------------------------------------------------------------


async def test_frames_are_bare_values_and_the_sentinel_ends_them_without_cancelling() -> None:
    async with open_conversation() as conversation:
        for value in ({"a": 1}, "text", 7, None, [1.5, True]):
            await conversation.caller.send_all(frame(value))
        await conversation.caller.send_all(SENTINEL)
        await wait_all_tasks_blocked()
        assert conversation.taken == [{"a": 1}, "text", 7, None, [1.5, True]]
        assert conversation.end == "ended"
        assert conversation.context.ending is None


async def test_c13_a_large_frame_is_decoded_while_other_callers_are_served_and_keeps_its_place() -> None:
    """The thread is held here until another caller has been served: on the loop that would never come."""
    served = threading.Event()
    loop = threading.get_ident()
    decoded_in: list[int] = []

    def decode(body: bytes) -> Any:
        if len(body) > LARGE_BODY:
            assert served.wait(30), "the loop is held up"
        decoded_in.append(threading.get_ident())
        return decode_json(body)[:1]

    large = ["l" * LARGE_BODY]
    with trio.fail_after(60):
        async with open_conversation(decode=decode) as busy, open_conversation() as other:
            await busy.caller.send_all(frame("first") + frame(large) + frame("second") + frame(large) + SENTINEL)
            while not busy.taken:
                await trio.sleep(0)
            await other.caller.send_all(frame("good") + SENTINEL)
            await wait_all_tasks_blocked(0.01)
            assert (other.taken, other.end) == (["good"], "ended")
            assert (busy.taken, busy.end) == (["f"], ""), "what came before the large frame does not wait for it"
            served.set()
            while not busy.end:
                await trio.sleep(0.001)
            assert busy.taken == ["f", large, "s", large]
    assert [each == loop for each in decoded_in] == [True, False, True, False]


async def test_a_caller_is_not_read_while_its_large_frame_is_decoded() -> None:
    going = threading.Event()

    def decode(body: bytes) -> Any:
        assert going.wait(30)
        return decode_json(body)

    caller, worker = trio.testing.lockstep_stream_pair()
    with trio.fail_after(60):
        async with open_conversation((caller, worker), decode=decode) as conversation:
            await caller.send_all(frame("x" * LARGE_BODY))
            with trio.move_on_after(0.05) as scope:
                await caller.send_all(b"what nobody takes")
            assert scope.cancelled_caught
            conversation.context.kill("enough")  # and nobody waits for the thread
            await wait_all_tasks_blocked()
            assert conversation.end == "cancelled"
            going.set()


async def test_c08_a_large_frame_that_cannot_be_decoded_kills_its_request(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(60):
        async with open_conversation() as conversation:
            await conversation.caller.send_all(encode_two_part(body=b"[" * (LARGE_BODY + 1)))
            while not conversation.end:
                await trio.sleep(0.001)
        assert conversation.end == "cancelled"
    assert "nested" in caplog.text


async def test_the_bytes_of_the_sentinel_are_those_that_were_captured() -> None:
    assert SENTINEL.hex() == "000000000000000a000000000000000000000000000000002273656e74696e656c22"


async def test_frames_arrive_whole_however_the_bytes_are_cut() -> None:
    caller, worker = trio.testing.lockstep_stream_pair()
    async with open_conversation((caller, worker)) as conversation:
        for byte in frame({"a": 1}) + frame("b") + SENTINEL:
            await caller.send_all(bytes([byte]))
        await wait_all_tasks_blocked()
        assert (conversation.taken, conversation.end) == ([{"a": 1}, "b"], "ended")


async def test_a_wrong_checksum_is_accepted_as_real_workers_do() -> None:
    async with open_conversation() as conversation:
        await conversation.caller.send_all(PREFIX.pack(0, 1, 12345) + b"7")
        await wait_all_tasks_blocked()
        assert conversation.taken == [7]


async def test_what_follows_the_sentinel_is_ignored_in_the_same_segment_and_later() -> None:
    async with open_conversation() as conversation:
        await conversation.caller.send_all(frame(1) + SENTINEL + frame(2) + KILL + bytes(24) + b"garbage" * 10)
        await wait_all_tasks_blocked()
        await conversation.caller.send_all(KILL)
        await wait_all_tasks_blocked()
        assert (conversation.taken, conversation.end) == ([1], "ended")
        assert conversation.context.ending is None


async def test_an_ended_input_stays_ended() -> None:
    async with open_conversation(is_taking=False) as conversation:
        await conversation.caller.send_all(frame(1) + SENTINEL)
        assert [request async for request in conversation.requests] == [1]
        assert [request async for request in conversation.requests] == []


async def test_a_cancelled_wait_for_input_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_conversation(is_taking=False) as conversation:
        with trio.move_on_after(1):
            await anext(conversation.requests)
        await conversation.caller.send_all(frame(1) + SENTINEL)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(conversation.requests)
        assert [request async for request in conversation.requests] == [1]


# -- memory and time --------------------------------------------------------------------------------------------------


async def test_l08_a_frame_counts_until_the_engine_has_the_next() -> None:
    memory = RequestMemory(1 << 30)
    async with open_conversation(is_taking=False, memory=memory) as conversation:
        await conversation.caller.send_all(frame("x" * 1000) + frame("y" * 5000))
        await wait_all_tasks_blocked()
        first, second = (worst_weight(size) for size in (1002, 5002))
        assert memory.held == first + second
        assert await anext(conversation.requests) == "x" * 1000
        assert memory.held == first + second
        assert await anext(conversation.requests) == "y" * 5000
        assert memory.held == second
        await conversation.caller.send_all(SENTINEL)
        assert [request async for request in conversation.requests] == []
        assert memory.held == second  # a loop holds its last item while it waits for one more
        conversation.close()
        assert memory.held == 0


async def test_l08_a_large_frame_counts_once_it_is_decoded_as_what_it_is_and_nothing_keeps_its_bytes() -> None:
    bodies: list[bytes] = []

    def decode(body: bytes) -> Any:
        bodies.append(body)
        return "decoded"

    memory = RequestMemory(1 << 30)
    with trio.fail_after(60):
        async with open_conversation(is_taking=False, memory=memory, decode=decode) as conversation:
            await conversation.caller.send_all(frame("x" * 1_000_000))
            while memory.held != 1_000_002:
                await trio.sleep(0.001)
            await wait_all_tasks_blocked()
            assert memory.held == 1_000_002
            body = bodies.pop()
            references = sys.getrefcount(body)
            assert references == 2, "not only this test's"


async def test_l08_what_waits_in_the_queue_of_a_request_that_has_ended_is_freed_in_its_turn() -> None:
    memory = RequestMemory(1 << 30)
    async with open_conversation(is_taking=False, memory=memory) as conversation, trio.open_nursery() as nursery:
        nursery.start_soon(memory.free_discarded)
        for _ in range(3):
            await conversation.caller.send_all(frame("x" * 50_000))
        await wait_all_tasks_blocked()
        await anext(conversation.requests)
        weight = worst_weight(50_002)
        assert memory.held == 3 * weight
        conversation.close()
        assert memory.held == 3 * weight
        await wait_all_tasks_blocked()
        assert memory.held == 0
        nursery.cancel_scope.cancel()


async def test_what_a_stopped_engine_is_not_given_is_no_overload_either() -> None:
    memory = RequestMemory(1, 1000)
    async with open_conversation(is_taking=False, memory=memory, stop_grace=5) as conversation:
        for _ in range(2):
            await conversation.caller.send_all(frame([{} for _ in range(1000)]))
        await wait_all_tasks_blocked()
        conversation.context.stop()
        assert [request async for request in conversation.requests] == []


async def test_l08_the_engine_gets_what_came_before_the_frame_for_which_there_is_no_memory() -> None:
    memory = RequestMemory(1, 1000)
    async with open_conversation(is_taking=False, memory=memory) as conversation:
        for _ in range(2):
            await conversation.caller.send_all(frame([{} for _ in range(1000)]))
        await wait_all_tasks_blocked()
        assert len(await anext(conversation.requests)) == 1000
        with pytest.raises(RequestMemoryExhausted, match="requests of one caller would take more than 0 MiB of memory"):
            await anext(conversation.requests)
        with pytest.raises(RequestMemoryExhausted):
            await anext(conversation.requests)
        assert conversation.context.ending is None
        conversation.close()
        assert memory.held == 0


async def test_l08_bytes_of_a_frame_count_as_they_arrive_and_no_more_is_read_than_there_is_room_for() -> None:
    memory = RequestMemory(1, 1000)
    others = memory.open("127.0.0.9")
    caller, worker = trio.testing.lockstep_stream_pair()
    async with open_conversation((caller, worker), is_taking=False, memory=memory) as conversation:
        others.take(memory.most - 50_000)
        await caller.send_all(PREFIX.pack(0, 200_000, 0) + b"x" * 40_000)
        await wait_all_tasks_blocked()
        assert memory.most - 50_000 + 32_000 < memory.held <= memory.most
        with trio.move_on_after(1), pytest.raises(trio.BrokenResourceError):
            await caller.send_all(b"x" * 160_000)
        await wait_all_tasks_blocked()
        assert memory.held == memory.most - 50_000
        with pytest.raises(RequestMemoryExhausted, match="requests would take more than 0 MiB of memory"):
            await anext(conversation.requests)


async def test_f14_a_frame_has_its_time_from_its_first_byte_on(autojump_clock: MockClock) -> None:
    async with open_conversation() as conversation:
        await trio.sleep(1000)  # between frames a caller may rest
        await conversation.caller.send_all(frame(1) + frame(2)[:-1])
        await trio.sleep(20)
        await conversation.caller.send_all(b"")
        assert conversation.end == ""
        await trio.sleep(11)
        assert (conversation.taken, conversation.end) == ([1], "cancelled")
        assert conversation.context.kill_reason == "protocol error on the request stream"


async def test_f14_a_large_frame_has_a_second_more_for_each_64_kib(autojump_clock: MockClock) -> None:
    async with open_conversation() as conversation:
        whole = frame("x" * 200_000)
        for start in range(0, len(whole), 7000):
            await conversation.caller.send_all(whole[start : start + 7000])
            await trio.sleep(1.15)  # some 33 s in all
        await wait_all_tasks_blocked()
        assert [len(each) for each in conversation.taken] == [200_000]
        assert conversation.end == ""


async def test_the_time_that_an_engine_takes_is_not_the_callers(autojump_clock: MockClock) -> None:
    async with open_conversation(is_taking=False) as conversation:
        whole = frame("x" * MAX_QUEUED_BYTES)
        await conversation.caller.send_all(whole + whole[:1000])
        await trio.sleep(1000)
        assert len(await anext(conversation.requests)) == MAX_QUEUED_BYTES
        await trio.sleep(20)
        await conversation.caller.send_all(whole[1000:])
        assert len(await anext(conversation.requests)) == MAX_QUEUED_BYTES
        assert conversation.context.ending is None


# -- the other ends ---------------------------------------------------------------------------------------------------

KILLS: dict[str, tuple[bytes, str]] = {
    "kill": (KILL, "kill from the caller"),
    "an unknown word": (encode_two_part(b'"pause"'), "protocol error on the request stream"),
    "an object in the header": (encode_two_part(b'{"stop":true}'), "protocol error on the request stream"),
    "header and data": (encode_two_part(b'"stop"', b"1"), "protocol error on the request stream"),
    "an empty frame": (bytes(24), "protocol error on the request stream"),
    "data that is no JSON": (encode_two_part(body=b"\xff\x00 not json"), "protocol error on the request stream"),
    "data with a tail": (encode_two_part(body=b"1 2"), "protocol error on the request stream"),
    "NaN": (encode_two_part(body=b"NaN"), "protocol error on the request stream"),
    "deep nesting": (encode_two_part(body=b"[" * 5000), "protocol error on the request stream"),
    "a frame above the limit": (PREFIX.pack(0, 1 << 40, 0), "protocol error on the request stream"),
    "lengths beyond any file": (PREFIX.pack(2**64 - 1, 2**64 - 1, 0), "protocol error on the request stream"),
}


@pytest.mark.parametrize("what", KILLS)
async def test_whatever_else_comes_is_a_kill(what: str) -> None:
    data, reason = KILLS[what]
    async with open_conversation() as conversation:
        await conversation.caller.send_all(frame(1))
        await wait_all_tasks_blocked()
        await conversation.caller.send_all(data)
        await wait_all_tasks_blocked()
        assert conversation.taken == [1]
        assert conversation.end == "cancelled"
        assert conversation.context.is_killed
        assert conversation.context.kill_reason == reason


async def test_a_stop_is_no_kill() -> None:
    async with open_conversation() as conversation:
        await conversation.caller.send_all(frame(1) + STOP)
        await wait_all_tasks_blocked()
        assert conversation.end == "cancelled"
        assert conversation.context.ending is Ending.STOPPED
        assert not conversation.context.is_killed


@pytest.mark.parametrize("tail", [b"", frame("half")[:-1], frame("half")[:10]])
async def test_an_end_of_stream_before_the_sentinel_is_a_kill(tail: bytes) -> None:
    async with open_conversation() as conversation:
        await conversation.caller.send_all(frame(1) + tail)
        await conversation.caller.aclose()
        await wait_all_tasks_blocked()
        assert conversation.end == "cancelled"
        assert conversation.context.kill_reason == "request stream ended before its sentinel"


async def test_a_reset_is_a_kill() -> None:
    async with open_conversation() as conversation:
        await conversation.caller.reset()
        await wait_all_tasks_blocked()
        assert conversation.end == "cancelled"
        assert conversation.context.kill_reason == "caller reset the request stream"


async def test_an_input_that_was_cut_never_looks_to_the_engine_like_one_that_has_ended() -> None:
    """The engine is busy elsewhere when the caller goes; what it asks for next is told to it as a cancellation."""
    async with open_conversation(is_taking=False) as conversation:
        await conversation.caller.send_all(frame(1) + frame(2))
        await conversation.caller.aclose()
        await wait_all_tasks_blocked()
        with conversation.context.scope:
            await conversation.take_all()
        assert (conversation.taken, conversation.end) == ([], "cancelled")


async def test_an_engine_with_a_stop_grace_sees_its_input_end_and_what_was_queued_is_dropped() -> None:
    async with open_conversation(is_taking=False, stop_grace=5.0) as conversation:
        await conversation.caller.send_all(frame(1) + frame(2) + STOP)
        await wait_all_tasks_blocked()
        with conversation.context.scope:
            await conversation.take_all()
        assert (conversation.taken, conversation.end) == ([], "ended")


class PanicException(BaseException):
    """As extensions in Rust raise it; no Exception, so that nobody takes it for one."""


@pytest.mark.parametrize("kind", [RuntimeError, PanicException])
async def test_a_decode_function_that_fails_in_its_own_way_is_a_kill(kind: type[BaseException]) -> None:
    def decode(body: bytes) -> Any:
        raise kind("a bug in a codec")

    async with open_conversation(decode=decode) as conversation:
        await conversation.caller.send_all(frame(1))
        await wait_all_tasks_blocked()
        assert conversation.context.is_killed


async def test_what_was_wrong_is_logged_in_one_bounded_line(caplog: pytest.LogCaptureFixture) -> None:
    async with open_conversation() as conversation:
        await conversation.caller.send_all(encode_two_part(b'"\x1b[31m\n' + b"x" * 10_000))
        await wait_all_tasks_blocked()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith("request r: expected data, stop, kill or sentinel, got header-only")
    assert len(text) < 300 and text.isprintable()


async def test_closing_the_stream_under_the_reader_is_no_kill() -> None:
    caller, worker = stream_pair()
    async with open_conversation((caller, worker), is_taking=False) as conversation:
        await wait_all_tasks_blocked()
        await worker.aclose()
        await wait_all_tasks_blocked()
        assert conversation.context.ending is None
        assert [request async for request in conversation.requests] == []


# -- back-pressure ----------------------------------------------------------------------------------------------------


async def send_without_end(caller: Any, data: bytes, sent: list[int]) -> None:
    while True:
        await caller.send_all(data)
        sent.append(len(data))


@pytest.mark.parametrize(
    "body", [b"1", json.dumps("x" * 8000).encode(), json.dumps("x" * 100_000).encode()], ids=["tiny", "8 kB", "100 kB"]
)
async def test_a_caller_whose_engine_is_behind_is_not_read(body: bytes) -> None:
    caller, worker = trio.testing.lockstep_stream_pair()
    async with open_conversation((caller, worker), is_taking=False) as conversation, trio.open_nursery() as nursery:
        sent: list[int] = []
        nursery.start_soon(send_without_end, caller, encode_two_part(body=body), sent)
        await wait_all_tasks_blocked()
        stuck_at = len(sent)
        assert 1 <= stuck_at <= MAX_QUEUED_FRAMES
        assert sum(sent) <= MAX_QUEUED_BYTES + len(body) + PREFIX.size
        await wait_all_tasks_blocked()
        assert len(sent) == stuck_at
        for _ in range(10):
            assert await anext(conversation.requests) == json.loads(body)
            await wait_all_tasks_blocked()
        assert len(sent) == stuck_at + 10  # one for one
        nursery.cancel_scope.cancel()


async def test_one_read_of_tiny_frames_is_all_that_may_exceed_the_queue() -> None:
    async with open_conversation(is_taking=False) as conversation:
        await conversation.caller.send_all(frame(1) * 10_000)
        await wait_all_tasks_blocked()
        assert len(conversation.requests._items) <= MAX_QUEUED_FRAMES + 16 * 1024 // len(frame(1)) + 1
        await conversation.caller.send_all(SENTINEL)
        assert sum([request async for request in conversation.requests]) == 10_000


async def test_an_engine_takes_what_is_queued_without_another_task_in_between() -> None:
    async with open_conversation(is_taking=False) as conversation:
        await conversation.caller.send_all(frame(1) * 5)
        await wait_all_tasks_blocked()
        step = conversation.requests.__anext__()
        # checkpoint_if_cancelled passes no trap to the scheduler unless there is a cancellation.
        with pytest.raises(StopIteration) as stop:
            step.send(None)
        assert stop.value.value == 1


# -- any bytes --------------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.builds(frame, st.integers() | st.text(max_size=5)),
    st.sampled_from([SENTINEL, STOP, KILL, bytes(24), encode_two_part(b'"x"'), encode_two_part(b"x", b"y")]),
    st.binary(max_size=40),
)


@given(pieces=st.lists(PIECES, max_size=8), size=st.integers(1, 50))
@example(pieces=[frame(1), SENTINEL], size=1)
@example(pieces=[PREFIX.pack(1 << 63, 1 << 63, 0)], size=24)
def test_any_bytes_end_the_input_or_the_request_and_raise_nothing(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)

    async def converse() -> None:
        async with open_conversation() as conversation:
            for at in range(0, len(data), size):
                await conversation.caller.send_all(data[at : at + size])
            await conversation.caller.aclose()
            await wait_all_tasks_blocked()
            assert (conversation.end == "ended") == (conversation.context.ending is None)
            assert conversation.end in ("ended", "cancelled")
            if conversation.end == "ended":
                assert SENTINEL in data

    logging.disable()
    try:
        trio.run(converse)
    finally:
        logging.disable(logging.NOTSET)
