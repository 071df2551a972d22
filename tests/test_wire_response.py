"""The response conversation: the worker's role, the caller's role, the worker's ear."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.errors import (
    DeserializationError,
    GenerateError,
    IngressError,
    InvalidMessage,
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    StreamIncomplete,
)
from ingress.testing import _strategies as wire
from ingress.wire.codec import codec_named
from ingress.wire.messages import Annotated, CallHomeHandshake, ControlWord, Prologue
from ingress.wire.response import (
    MAX_CONTROL_FRAME,
    ControlWordReader,
    FinalReceived,
    HandshakeReceived,
    ItemReceived,
    PrologueReceived,
    ResponseEvent,
    ResponseReceiver,
    ResponseSender,
    ResponseState,
)
from ingress.wire.two_part import encode_two_part

from .wire_costs import MIB, measured

JSON = codec_named("json")
SENTINEL = encode_two_part(ControlWord.SENTINEL.encode())
HANDSHAKE = encode_two_part(CallHomeHandshake("s", "response").encode())
PROLOGUE = encode_two_part(b'{"error":null}')
ITEM = encode_two_part(body=b'{"data":{"data":1},"complete_final":false}')
FINAL = encode_two_part(body=b'{"complete_final":true}')
EMPTY = encode_two_part()


def receive(receiver: ResponseReceiver, *segments: bytes) -> list[ResponseEvent]:
    events: list[ResponseEvent] = []
    for segment in segments:
        receiver.receive_data(segment)
        events.extend(receiver)
    return events


def receiver_in(state: ResponseState) -> ResponseReceiver:
    """Return a receiver that expects what ``state`` says."""
    before = {
        ResponseState.HANDSHAKE: [],
        ResponseState.PROLOGUE: [HANDSHAKE],
        ResponseState.ITEMS: [HANDSHAKE, PROLOGUE],
        ResponseState.SENTINEL: [HANDSHAKE, PROLOGUE, FINAL],
        ResponseState.DONE: [HANDSHAKE, PROLOGUE, FINAL, SENTINEL],
    }
    receiver = ResponseReceiver(JSON)
    receive(receiver, *before[state])
    assert receiver.state is state
    return receiver


# -- the worker's role -----------------------------------------------------------------------------------------------


def test_a_whole_answer_is_handshake_prologue_items_final_sentinel() -> None:
    sender = ResponseSender(JSON)
    assert sender.handshake("s") == HANDSHAKE
    assert sender.prologue() == PROLOGUE
    assert sender.item(1) == ITEM
    assert sender.final() == FINAL + SENTINEL
    assert sender.state is ResponseState.DONE


def test_an_error_prologue_ends_the_conversation_with_the_sentinel() -> None:
    sender = ResponseSender(JSON)
    sender.handshake("s")
    assert sender.error_prologue("no") == encode_two_part(b'{"error":"no"}') + SENTINEL
    assert sender.state is ResponseState.DONE


def test_the_bodies_of_data_frames_are_counted_with_the_final_one() -> None:
    sender = ResponseSender(JSON)
    sender.handshake("s")
    sender.prologue()
    assert sender.body_bytes == 0
    sender.item("é")
    sender.item([1, 2])
    sender.final()
    assert sender.body_bytes == (
        len('{"data":{"data":"é"},"complete_final":false}'.encode())
        + len(b'{"data":{"data":[1,2]},"complete_final":false}')
        + len(b'{"complete_final":true}')
    )


def test_the_handshake_of_a_request_stream_says_so() -> None:
    frame = ResponseSender(JSON).handshake("s", "request")
    assert frame == encode_two_part(b'{"subject":"s","stream_type":"request"}')


STEPS: dict[str, Callable[[ResponseSender], bytes]] = {
    "handshake": lambda sender: sender.handshake("s"),
    "prologue": lambda sender: sender.prologue(),
    "error prologue": lambda sender: sender.error_prologue("no"),
    "item": lambda sender: sender.item(1),
    "final": lambda sender: sender.final(),
}
ALLOWED = {
    ResponseState.HANDSHAKE: {"handshake"},
    ResponseState.PROLOGUE: {"prologue", "error prologue"},
    ResponseState.ITEMS: {"item", "final"},
    ResponseState.DONE: set[str](),
}


@pytest.mark.parametrize("state", ALLOWED, ids=lambda state: state.value)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_out_of_order_is_refused_and_changes_nothing(state: ResponseState, step: str) -> None:
    sender = ResponseSender(JSON)
    for done in ("handshake", "prologue", "final"):
        if sender.state is not state:
            STEPS[done](sender)
    if step in ALLOWED[state]:
        assert STEPS[step](sender)
    else:
        counted = sender.body_bytes
        with pytest.raises(LocalProtocolError, match=f"may not be sent in state {state.value}"):
            STEPS[step](sender)
        assert (sender.state, sender.body_bytes) == (state, counted)


def test_e04_after_an_item_the_codec_cannot_hold_the_stream_goes_on() -> None:
    sender = ResponseSender(JSON)
    sender.handshake("s")
    sender.prologue()
    with pytest.raises(GenerateError):
        sender.item(object())
    assert sender.body_bytes == 0
    assert sender.item(1) == ITEM


# -- the caller's role -----------------------------------------------------------------------------------------------


@given(wire.response_conversations(), st.data())
def test_a_conversation_arrives_whole_however_its_bytes_are_cut(
    conversation: wire.ResponseConversation, data: st.DataObject
) -> None:
    receiver = ResponseReceiver(codec_named(conversation.codec_name))
    events = receive(receiver, *data.draw(wire.splits(conversation.encode())))
    expected: list[ResponseEvent] = [HandshakeReceived(conversation.handshake)]
    if conversation.refusal is not None:
        expected.append(PrologueReceived(conversation.refusal))
    else:
        expected.append(PrologueReceived(Prologue()))
        expected.extend(map(ItemReceived, conversation.items))
        expected.append(FinalReceived())
    assert events == expected
    assert receiver.state is ResponseState.DONE
    receiver.receive_eof()


@given(wire.response_conversations(), st.data())
def test_a_stream_cut_before_its_end_is_whole_only_after_final_or_refusal(
    conversation: wire.ResponseConversation, data: st.DataObject
) -> None:
    stream = conversation.encode()
    receiver = ResponseReceiver(codec_named(conversation.codec_name))
    events = receive(receiver, stream[: data.draw(st.integers(0, len(stream)))])
    refusals = [event for event in events if isinstance(event, PrologueReceived) and event.prologue.error is not None]
    if FinalReceived() in events or refusals:
        receiver.receive_eof()
    else:
        with pytest.raises(StreamIncomplete, match="before its final frame"):
            receiver.receive_eof()


def test_a_final_frame_with_data_is_an_item_and_the_end() -> None:
    receiver = receiver_in(ResponseState.ITEMS)
    frame = encode_two_part(body=b'{"data":{"data":1},"complete_final":true}')
    assert receive(receiver, frame) == [ItemReceived(Annotated(data=1)), FinalReceived()]
    receiver.receive_eof()


@pytest.mark.parametrize("state", list(ResponseState), ids=lambda state: state.value)
def test_an_empty_frame_is_skipped_wherever_it_comes(state: ResponseState) -> None:
    receiver = receiver_in(state)
    assert receive(receiver, EMPTY * 3) == []
    assert receiver.state is state


BREACHES: list[tuple[ResponseState, bytes, type[IngressError], str]] = [
    (ResponseState.HANDSHAKE, ITEM, RemoteProtocolError, "data-only frame in state handshake"),
    (ResponseState.HANDSHAKE, PROLOGUE, DeserializationError, "call-home handshake"),
    (ResponseState.HANDSHAKE, encode_two_part(b"{}", b"x"), RemoteProtocolError, "header-and-data frame"),
    (ResponseState.PROLOGUE, ITEM, RemoteProtocolError, "data-only frame in state prologue"),
    (ResponseState.PROLOGUE, SENTINEL, DeserializationError, "prologue"),
    (ResponseState.ITEMS, SENTINEL, StreamIncomplete, "sentinel before the final frame"),
    (ResponseState.ITEMS, encode_two_part(b'"stop"'), RemoteProtocolError, "control word"),
    (ResponseState.ITEMS, HANDSHAKE, RemoteProtocolError, "control word"),
    (ResponseState.ITEMS, encode_two_part(b'"sentinel"', b"x"), RemoteProtocolError, "header-and-data frame"),
    (ResponseState.ITEMS, encode_two_part(body=b'{"complete_final":false}'), DeserializationError, "without data"),
    (ResponseState.ITEMS, encode_two_part(body=b'{"data":null,"complete_final":false}'), DeserializationError, "data"),
    (ResponseState.ITEMS, encode_two_part(body=b'{"data":{"data":1}}'), DeserializationError, "complete_final"),
    (ResponseState.ITEMS, encode_two_part(body=b"\xff\xfe{"), DeserializationError, "body is not JSON"),
    (ResponseState.SENTINEL, ITEM, RemoteProtocolError, "data-only frame in state sentinel"),
    (ResponseState.SENTINEL, FINAL, RemoteProtocolError, "data-only frame in state sentinel"),
    (ResponseState.DONE, ITEM, RemoteProtocolError, "frame after the sentinel"),
    (ResponseState.DONE, SENTINEL, RemoteProtocolError, "frame after the sentinel"),
]


@pytest.mark.parametrize(
    ("state", "frame", "error", "text"), BREACHES, ids=[f"{state.value}: {text}" for state, _, _, text in BREACHES]
)
def test_a_frame_that_may_not_come_now_is_a_typed_error(
    state: ResponseState, frame: bytes, error: type[IngressError], text: str
) -> None:
    receiver = receiver_in(state)
    with pytest.raises(error, match=text):
        receive(receiver, frame)


@pytest.mark.parametrize("state", list(ResponseState), ids=lambda state: state.value)
def test_the_end_of_the_stream_is_clean_after_the_final_frame_alone(state: ResponseState) -> None:
    receiver = receiver_in(state)
    if state in (ResponseState.SENTINEL, ResponseState.DONE):
        receiver.receive_eof()
    else:
        with pytest.raises(StreamIncomplete, match=f"ended in state {state.value}"):
            receiver.receive_eof()


def test_an_item_above_the_limit_is_refused_at_its_length() -> None:
    receiver = ResponseReceiver(JSON, max_message_size=1000)
    receive(receiver, HANDSHAKE, PROLOGUE)
    with measured() as cost, pytest.raises(MessageTooLarge, match="response frame of 4611686018427387928 bytes"):
        receive(receiver, (0).to_bytes(8) + (2**62).to_bytes(8) + bytes(8))
    assert cost.peak < MIB


@given(st.data(), wire.hostile_bytes(), st.sampled_from(list(ResponseState)))
def test_garbage_in_any_state_gives_events_or_an_ingress_error(
    data: st.DataObject, garbage: bytes, state: ResponseState
) -> None:
    receiver = receiver_in(state)
    for segment in data.draw(wire.splits(garbage)):
        try:
            receive(receiver, segment)
        except IngressError:
            break


def test_the_cutting_of_a_stream_does_not_change_where_an_error_appears() -> None:
    stream = HANDSHAKE + PROLOGUE + ITEM + FINAL + ITEM

    def outcome(segments: Iterable[bytes]) -> tuple[list[ResponseEvent], str]:
        receiver = ResponseReceiver(JSON)
        events: list[ResponseEvent] = []
        try:
            for segment in segments:
                receiver.receive_data(segment)
                for event in receiver:
                    events.append(event)
        except RemoteProtocolError as exc:
            return events, str(exc)
        return events, ""

    whole = outcome([stream])
    assert len(whole[0]) == 4
    assert whole[1] == "data-only frame in state sentinel of a response stream"
    assert outcome(stream[at : at + 1] for at in range(len(stream))) == whole


# -- the worker's ear ------------------------------------------------------------------------------------------------


def words(*segments: bytes) -> list[ControlWord]:
    reader = ControlWordReader()
    heard: list[ControlWord] = []
    for segment in segments:
        reader.receive_data(segment)
        heard.extend(reader)
    return heard


def test_s03_stop_stop_kill_in_one_segment_are_three_words() -> None:
    stop, kill = encode_two_part(b'"stop"'), encode_two_part(b'"kill"')
    assert words(stop + stop + kill) == [ControlWord.STOP, ControlWord.STOP, ControlWord.KILL]


@given(st.lists(st.sampled_from([ControlWord.STOP, ControlWord.KILL]), max_size=4), st.data())
def test_control_words_arrive_however_they_are_cut(sent: list[ControlWord], data: st.DataObject) -> None:
    stream = b"".join(encode_two_part(word.encode()) for word in sent)
    assert words(*data.draw(wire.splits(stream))) == sent


@pytest.mark.parametrize(
    "frame",
    [
        SENTINEL,
        encode_two_part(b'"pause"'),
        encode_two_part(b'{"stop":true}'),
        encode_two_part(b'"STOP"'),
        encode_two_part(b"stop"),
        encode_two_part(b"\xff\xfe"),
        encode_two_part(body=b'"stop"'),
        encode_two_part(b'"stop"', b"x"),
        EMPTY,
    ],
    ids=lambda frame: repr(frame[24:]),
)
def test_s04_any_other_frame_is_a_breach_of_the_protocol(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="expected stop or kill, got"):
        words(frame)


def test_s05_a_control_frame_of_2_to_the_62_is_refused_at_its_length() -> None:
    reader = ControlWordReader()
    with measured() as cost:
        reader.receive_data((2**62).to_bytes(8) + bytes(16))
        with pytest.raises(MessageTooLarge) as caught:
            list(reader)
        for _ in range(8):
            reader.receive_data(bytes(MIB))
    assert caught.value.limit == MAX_CONTROL_FRAME
    assert cost.peak < 2 * MIB


def test_s06_half_a_control_frame_is_not_heard() -> None:
    assert words(encode_two_part(b'"stop"')[:-1]) == []


@given(wire.hostile_bytes())
def test_s04_random_bytes_are_heard_as_words_or_refused(garbage: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError, InvalidMessage):
        assert set(words(garbage)) <= {ControlWord.STOP, ControlWord.KILL}
