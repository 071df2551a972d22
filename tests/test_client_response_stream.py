"""How an answer begins, goes on and ends, as the caller sees it: docs/wire.md §4.2, §5 to §5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ingress.errors import (
    DeserializationError,
    IngressError,
    MessageTooLarge,
    RemoteError,
    RemoteProtocolError,
    StreamIncomplete,
    Unavailable,
)
from ingress.wire.codec import codec_named
from ingress.wire.messages import Annotated, CallHomeHandshake, ErrorEvent
from ingress.wire.response import ResponseSender
from ingress.wire.two_part import PREFIX, encode_two_part
from tests.test_client_doubles import Call, DialBack, Script, Stage, answer, collect, open_stage

SENTINEL = encode_two_part(b'"sentinel"')
FINAL = encode_two_part(body=b'{"complete_final":true}')


def item(value: str) -> bytes:
    """Build an item frame from the JSON of its data."""
    return encode_two_part(body=b'{"data":{"data":' + value.encode() + b'},"complete_final":false}')


def raw(*frames: bytes) -> Script:
    """Build a script that sends these frames after the prologue, then closes."""
    return answer(lambda _: b"".join(frames))


async def receive(stage: Stage) -> tuple[list[Any], IngressError | None]:
    """Make a call, and return its items and the error that ended it; checks that nothing follows."""
    items: list[Any] = []
    async with stage.client.stream("demo.backend.generate", None) as responses:
        try:
            async for value in responses:
                items.append(value)
        except IngressError as exc:
            assert [value async for value in responses] == [], "an iteration that failed delivers nothing more"
            return items, exc
        assert [value async for value in responses] == []
    return items, None


# -- normal ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_items_arrive_in_order_in_the_codec_of_the_record(codec: str) -> None:
    values: list[Any] = [None, True, 1, -1, 1.5, "é\n", [], {"b": 1, "a": [2]}, 2**64 - 1]

    async with open_stage(
        answer(lambda dial: b"".join(map(dial.sender.item, values)) + dial.sender.final()), codec=codec
    ) as stage:
        assert await collect(stage, {"prompt": "é"}) == values
        call = stage.worker.calls[0]
        assert call.control.codec_name == codec
        assert call.request == {"prompt": "é"}


@pytest.mark.parametrize(
    "ending",
    [
        FINAL + SENTINEL,
        FINAL,
        encode_two_part(body=b'{"data":null,"complete_final":true}') + SENTINEL,
        bytes(24) + FINAL + bytes(24) + SENTINEL,
        FINAL + SENTINEL + item("2"),
        FINAL + item("2") + SENTINEL,
        FINAL + b"\xff" * 100,
        FINAL + encode_two_part(b'"who knows"'),
        FINAL + SENTINEL[:20],
    ],
)
async def test_nothing_after_the_final_frame_matters(ending: bytes) -> None:
    async with open_stage(raw(item("1"), ending)) as stage:
        assert await receive(stage) == ([1], None)


async def test_a_final_frame_may_carry_data() -> None:
    final = encode_two_part(body=b'{"data":{"data":2},"complete_final":true}')
    async with open_stage(raw(item("1"), final, SENTINEL)) as stage:
        assert await receive(stage) == ([1, 2], None)


async def test_an_empty_answer_is_a_whole_answer() -> None:
    async with open_stage(raw(FINAL, SENTINEL)) as stage:
        assert await receive(stage) == ([], None)


async def test_the_caller_closes_first_and_as_soon_as_it_has_the_sentinel() -> None:
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.send(FINAL + SENTINEL)
        words.append(await dial.words())

    async with open_stage(script) as stage, stage.client.stream("demo.backend.generate", 1) as responses:
        assert [value async for value in responses] == []
        await trio.testing.wait_all_tasks_blocked()
        assert words == [[]], "closed, without a kill, although the block is not left yet"


async def test_a_socket_left_open_after_the_final_frame_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_stage(answer(lambda _: FINAL, close=False)) as stage:
        async with stage.client.stream("demo.backend.generate", 1) as responses:
            assert [value async for value in responses] == []
            assert trio.current_time() == 0
        assert trio.current_time() == pytest.approx(1, abs=0.1), "the sentinel was waited for, for a second"


async def test_items_without_data_show_only_with_their_envelopes() -> None:
    frames = [
        encode_two_part(body=b'{"data":{},"complete_final":false}'),
        encode_two_part(body=b'{"data":{"event":"tick","comment":["a","b"],"x":1},"complete_final":false}'),
        encode_two_part(body=b'{"data":{"id":"7","data":{"data":1}},"complete_final":false}'),
    ]
    async with open_stage(raw(*frames, FINAL)) as stage:
        assert await receive(stage) == ([{"data": 1}], None)
        async with stage.client.stream("demo.backend.generate", 1) as responses:
            assert [item async for item in responses.annotated()] == [
                Annotated(),
                Annotated(event="tick", comment=["a", "b"]),
                Annotated(id="7", data={"data": 1}),
            ]


# -- ends that are failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "kind", "text"),
    [
        (b"", StreamIncomplete, "ended in state items, before its final frame"),
        (SENTINEL, StreamIncomplete, "sentinel before the final frame"),
        (item("2")[:-3], StreamIncomplete, "ended in state items"),
        (item("2")[:10], StreamIncomplete, "ended in state items"),
        (encode_two_part(body=b'{"complete_final":false}'), DeserializationError, "without data"),
        (encode_two_part(body=b'{"data":{"data":1}}'), DeserializationError, "complete_final"),
        (encode_two_part(body=b"garbage"), DeserializationError, "not JSON"),
        (encode_two_part(body=b'{"data":1,"complete_final":false}'), DeserializationError, "expected an object"),
        (encode_two_part(b'"stop"'), RemoteProtocolError, "control word"),
        (encode_two_part(b'"whatever"'), RemoteProtocolError, "control word"),
        (encode_two_part(b'"sentinel"', b"body"), RemoteProtocolError, "header-and-data"),
        (PREFIX.pack(0, 2**60, 0), MessageTooLarge, "exceeds the limit"),
    ],
)
async def test_an_answer_that_does_not_end_well_says_why(ending: bytes, kind: type[IngressError], text: str) -> None:
    async with open_stage(raw(item("1"), ending)) as stage:
        items, error = await receive(stage)
        assert items == [1]
        assert type(error) is kind
        assert text in str(error)


async def test_a_reset_in_mid_stream_is_an_incomplete_stream() -> None:
    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.items(1)
        await dial.reset()

    async with open_stage(script) as stage:
        items, error = await receive(stage)
        assert items == [1]
        assert isinstance(error, StreamIncomplete)
        assert "reset" in str(error)


async def test_a_frame_above_the_limit_is_refused_by_its_lengths() -> None:
    async with open_stage(raw(item('"' + "x" * 2000 + '"')), max_message_size=2000) as stage:
        _, error = await receive(stage)
        assert isinstance(error, MessageTooLarge)


async def test_a_worker_that_breaks_the_rules_is_killed() -> None:
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.send(encode_two_part(b'"whatever"'))
        words.append(await dial.words())

    async with open_stage(script) as stage:
        await receive(stage)
        await trio.testing.wait_all_tasks_blocked()
        assert words == [["kill"]]


# -- error events ----------------------------------------------------------------------------------------------------

CAUGHT = "a python exception was caught while processing the async generator: ValueError: x"


@pytest.mark.parametrize(
    ("event", "kind", "error_class", "reason", "message"),
    [
        ({"event": "error", "comment": [CAUGHT]}, "Unknown", None, None, CAUGHT),
        (
            {"event": "error", "error": {"error_type": "Unknown", "message": CAUGHT}},
            "Unknown",
            None,
            None,
            CAUGHT,
        ),
        (
            {"event": "error", "error": {"error_type": {"Backend": "InvalidArgument"}, "message": "ValueError: x"}},
            "InvalidArgument",
            None,
            None,
            "ValueError: x",
        ),
        (
            {
                "event": "error",
                "error": {
                    "error_type": {"Backend": "InvalidArgument"},
                    "class": "InvalidRequest",
                    "reason": "backend.invalid_argument",
                    "message": "ValueError: x",
                    "diagnostic": "ValueError: x, in detail",
                },
            },
            "InvalidArgument",
            "InvalidRequest",
            "backend.invalid_argument",
            "ValueError: x, in detail",
        ),
        ({"error": {"error_type": "WorkerUnavailable", "message": "m"}}, "WorkerUnavailable", None, None, "m"),
        ({"event": "error"}, "Unknown", None, None, "unspecified error"),
        ({"event": "error", "error": {"error_type": 7, "message": 8}}, "Unknown", None, None, "8"),
    ],
    ids=["0.9.1", "1.0.2", "1.2.1", "1.6.1", "top level", "empty", "odd"],
)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_an_error_event_of_any_version_is_a_typed_exception(
    event: dict[str, Any], kind: str, error_class: str | None, reason: str | None, message: str, codec: str
) -> None:
    def body(dial: DialBack) -> bytes:
        encode = codec_named(codec).encode
        error = encode_two_part(body=encode({"data": event, "complete_final": False}))
        return dial.sender.item(1) + error + dial.sender.item("never seen") + dial.sender.final()

    async with open_stage(answer(body), codec=codec) as stage:
        items, error = await receive(stage)
        assert items == [1]
        assert isinstance(error, RemoteError)
        assert (error.kind, error.error_class, error.reason, error.message) == (kind, error_class, reason, message)
        assert str(error) == f"{error_class or kind}: {message}"


@pytest.mark.parametrize("ends_at_once", [True, False])
async def test_a_worker_that_reports_an_error_may_end_its_stream_itself(ends_at_once: bool) -> None:
    """A kill would be counted as a cancellation there, and a reset too."""
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        dial = await call.dial()
        error = dial.sender.item(Annotated.from_error(ErrorEvent.of_kind("Unknown", "boom")))
        if ends_at_once:
            await dial.send(error + dial.sender.final())
        else:
            await dial.send(error)
            await trio.testing.wait_all_tasks_blocked()
            await dial.send(dial.sender.final())
        words.append(await dial.words())

    async with open_stage(script) as stage:
        with pytest.raises(RemoteError, match="boom"):
            await collect(stage)
        await trio.testing.wait_all_tasks_blocked()
        assert words == [[]]


async def test_a_worker_that_goes_on_after_its_error_is_killed_after_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.items(Annotated.from_error(ErrorEvent.of_kind("Unknown", "boom")))
        words.append(await dial.words())

    async with open_stage(script) as stage:
        with pytest.raises(RemoteError, match="boom"):
            await collect(stage)
        assert trio.current_time() == pytest.approx(1, abs=0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert words == [["kill"]]


# -- before the first item -------------------------------------------------------------------------------------------


def refusal(prologue: bytes) -> Script:
    async def script(call: Call) -> None:
        dial = await call.connect()
        await dial.send(dial.sender.handshake(call.info.subject) + encode_two_part(prologue) + SENTINEL)
        assert await dial.words() == []

    return script


@pytest.mark.parametrize(
    "prologue",
    [
        b'{"error":"Generate Error: ValueError: sync-boom"}',
        b'{"error":"Generate Error: ValueError: sync-boom","typed_error":{"error_type":"Unknown","class":"Internal",'
        b'"reason":"runtime.unclassified","message":"ValueError: sync-boom","diagnostic":"ValueError: sync-boom"}}',
    ],
)
async def test_an_error_prologue_means_that_the_instance_is_unavailable(prologue: bytes) -> None:
    async with open_stage(refusal(prologue)) as stage:
        with pytest.raises(Unavailable, match=r"before the response stream: Generate Error: ValueError: sync-boom"):
            await collect(stage)


async def test_an_error_prologue_of_a_class_that_blames_the_request_is_a_remote_error() -> None:
    prologue = (
        b'{"error":"Generate Error: x","typed_error":{"error_type":"InvalidArgument","class":"InvalidRequest",'
        b'"reason":"request.invalid","message":"no such model"}}'
    )
    async with open_stage(refusal(prologue)) as stage:
        for _ in range(2):  # the second call finds the instance as usable as before
            with pytest.raises(RemoteError, match="InvalidRequest: no such model") as caught:
                await collect(stage)
            assert caught.value.reason == "request.invalid"


async def test_an_empty_object_is_a_good_prologue() -> None:
    async def script(call: Call) -> None:
        dial = await call.connect()
        await dial.send(dial.sender.handshake(call.info.subject) + encode_two_part(b"{}") + item("1") + FINAL)
        await dial.words()

    async with open_stage(script) as stage:
        assert await receive(stage) == ([1], None)


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", StreamIncomplete, "ended in state prologue"),
        (encode_two_part(body=b"{}"), RemoteProtocolError, "data-only frame in state prologue"),
        (encode_two_part(b"[]"), DeserializationError, "prologue"),
        (encode_two_part(b'{"error":7}'), DeserializationError, "expected text or null"),
    ],
)
async def test_a_stream_without_a_good_prologue_fails_at_once(data: bytes, kind: type[IngressError], text: str) -> None:
    async def script(call: Call) -> None:
        dial = await call.connect()
        await dial.send(dial.sender.handshake(call.info.subject) + data)
        await dial.stream.aclose()

    async with open_stage(script) as stage:
        with pytest.raises(kind, match=text):
            await collect(stage)


# -- stop and leaving ------------------------------------------------------------------------------------------------


async def endless(call: Call) -> None:
    """Send an item, then wait for a word; what came is left on the script's record."""
    dial = await call.dial()
    await dial.items(1)
    WORDS.append(await dial.words())


WORDS: list[list[str]] = []


@pytest.fixture(autouse=True)
def no_words() -> None:
    WORDS.clear()


async def test_leaving_the_block_early_kills() -> None:
    async with open_stage(endless) as stage:
        async with stage.client.stream("demo.backend.generate", 1) as responses:
            async for _ in responses:
                break
        await trio.testing.wait_all_tasks_blocked()
        assert WORDS == [["kill"]]


async def test_never_iterating_kills() -> None:
    async with open_stage(endless) as stage:
        async with stage.client.stream("demo.backend.generate", 1):
            pass
        await trio.testing.wait_all_tasks_blocked()
        assert WORDS == [["kill"]]


async def test_an_exception_in_the_block_kills_and_arrives_as_it_is() -> None:
    async with open_stage(endless) as stage:
        with pytest.raises(KeyError, match="mine"):
            async with stage.client.stream("demo.backend.generate", 1):
                raise KeyError("mine")
        await trio.testing.wait_all_tasks_blocked()
        assert WORDS == [["kill"]]


async def test_a_cancelled_caller_kills(autojump_clock: trio.testing.MockClock) -> None:
    async with open_stage(endless) as stage:
        with trio.move_on_after(3):
            await collect(stage)
        assert trio.current_time() == pytest.approx(3)
        await trio.testing.wait_all_tasks_blocked()
        assert WORDS == [["kill"]]


async def test_a_cancelled_iteration_can_be_resumed(autojump_clock: trio.testing.MockClock) -> None:
    async def script(call: Call) -> None:
        dial = await call.dial()
        for number in range(3):
            frame = item(str(number))
            await dial.send(frame[:30])
            await trio.sleep(1)
            await dial.send(frame[30:])
        await dial.send(FINAL)

    async with open_stage(script) as stage, stage.client.stream("demo.backend.generate", 1) as responses:
        items: list[int] = []
        while len(items) < 3:
            with trio.move_on_after(0.3):
                items.append(await responses.__anext__())
        assert items == [0, 1, 2]


async def test_stop_is_sent_once_and_what_still_comes_is_delivered() -> None:
    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.items(1)
        word = await dial.next_word()
        await dial.items(word.value if word else None)
        await dial.send(dial.sender.final())
        WORDS.append(await dial.words())

    async with open_stage(script) as stage, stage.client.stream("demo.backend.generate", 1) as responses:
        items = []
        async for value in responses:
            items.append(value)
            await responses.stop()
            await responses.stop()
        assert items == [1, "stop"]
        await trio.testing.wait_all_tasks_blocked()
        assert WORDS == [[]]


def close_after(end: Callable[[DialBack], Any]) -> Script:
    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.items(1)
        await dial.next_word()
        await end(dial)

    return script


async def half_a_frame(dial: DialBack) -> None:
    await dial.send(item("2")[:-1])
    await dial.stream.aclose()


@pytest.mark.parametrize(
    "end",
    [lambda dial: dial.stream.aclose(), lambda dial: dial.reset(), half_a_frame, lambda dial: dial.send(SENTINEL)],
    ids=["FIN", "RST", "half a frame", "sentinel"],
)
async def test_after_stop_an_end_without_a_final_frame_is_a_normal_end(end: Callable[[DialBack], Any]) -> None:
    """Docs/wire.md §5: released workers close at once when told to stop."""
    async with open_stage(close_after(end)) as stage:
        for _ in range(2):  # and the instance is not blamed for it
            async with stage.client.stream("demo.backend.generate", 1) as responses:
                items = []
                async for value in responses:
                    items.append(value)
                    await responses.stop()
                assert items == [1]


async def test_stop_may_come_from_another_task_and_leaving_after_it_still_kills() -> None:
    async with open_stage(endless) as stage:
        async with stage.client.stream("demo.backend.generate", 1) as responses, trio.open_nursery() as nursery:
            assert await responses.__anext__() == 1
            nursery.start_soon(responses.stop)
        await trio.testing.wait_all_tasks_blocked()
        assert WORDS == [["stop", "kill"]]


async def test_stop_after_the_end_does_nothing() -> None:
    async with open_stage(raw(FINAL, SENTINEL)) as stage:
        async with stage.client.stream("demo.backend.generate", 1) as responses:
            assert [value async for value in responses] == []
            await responses.stop()
        await responses.stop()
        await responses.aclose()


async def test_a_worker_that_does_not_read_cannot_hold_up_the_leaving(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_stage(endless) as stage:
        async with stage.client.stream("demo.backend.generate", 1) as responses:

            async def stuck(data: bytes) -> None:
                await trio.sleep_forever()

            monkeypatch.setattr(responses._appointment.dial_in.stream, "send_all", stuck)  # type: ignore[union-attr]  # it is open
        assert trio.current_time() == pytest.approx(1, abs=0.1)


# -- bytes -----------------------------------------------------------------------------------------------------------

DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(DATA, max_size=5), st.sampled_from(["json", "msgpack"]), st.data())
def test_an_answer_cut_anywhere_gives_the_same_items(values: list[Any], codec: str, data: st.DataObject) -> None:
    async def script(call: Call) -> None:
        dial = await call.connect()
        whole = dial.sender.handshake(call.info.subject) + dial.sender.prologue()
        whole += b"".join(map(dial.sender.item, values)) + dial.sender.final()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            await dial.send(whole[start:end])
            await trio.testing.wait_all_tasks_blocked()
        await dial.words()

    async def main() -> None:
        async with open_stage(script, codec=codec) as stage:
            assert await collect(stage) == values

    trio.run(main)


@given(st.binary(max_size=120))
def test_any_bytes_give_items_or_an_ingress_error(garbage: bytes) -> None:
    async def main() -> None:
        async with open_stage(raw(item("1"), garbage)) as stage:
            items, error = await receive(stage)
            assert items[0] == 1
            assert isinstance(error, IngressError)

    trio.run(main)


def test_the_scripts_here_speak_as_the_sender_of_the_wire_does() -> None:
    sender = ResponseSender(codec_named("json"))
    sender.handshake("s")
    sender.prologue()
    assert sender.item(1) == item("1")
    assert sender.final() == FINAL + SENTINEL
    assert CallHomeHandshake("s", "response").encode() == b'{"subject":"s","stream_type":"response"}'
