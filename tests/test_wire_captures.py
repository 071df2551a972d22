"""Every golden vector is decoded, and what is ours to send is encoded again to the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from ingress.errors import DeserializationError, RemoteProtocolError
from ingress.wire.codec import PayloadCodec, codec_named
from ingress.wire.messages import CallHomeHandshake, ConnectionInfo, ControlWord, Prologue, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import AckDecoder, RequestFrame, RequestFrameDecoder, encode_ack, encode_request_frame
from ingress.wire.response import (
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
from ingress.wire.two_part import (
    MessageKind,
    TwoPartDecoder,
    TwoPartMessage,
    checksum_of,
    decode_two_part,
    encode_two_part,
)

from . import captures
from .captures import Capture

VERSIONS = ("1.0.2", "1.2.1", "1.3.1", "1.4.2", "1.6.1")
SENTINEL = encode_two_part(ControlWord.SENTINEL.encode())

REQUESTS = [*captures.names("req-"), *captures.names("request-"), *captures.names("bidi-request-1")]
RESPONSES = [*captures.names("response-"), *captures.names("shutdown-stream"), *captures.names("bidi-response")]
ACKS = captures.names("ack-")
CONTROLS = captures.names("client-control-")
RECORDS = captures.names("discovery-record-")
BIDI_STREAMS = captures.names("bidi-request-stream-")
EXCHANGES = captures.exchange_names()


def frames_of(data: bytes) -> list[TwoPartMessage]:
    decoder = TwoPartDecoder()
    decoder.receive_data(data)
    frames = list(decoder)
    assert decoder.is_idle
    return frames


def request_of(data: bytes) -> RequestFrame:
    decoder = RequestFrameDecoder()
    decoder.receive_data(data)
    [frame] = decoder
    assert decoder.is_idle
    return frame


def events_of(data: bytes, codec: PayloadCodec) -> tuple[list[ResponseEvent], ResponseState]:
    receiver = ResponseReceiver(codec)
    receiver.receive_data(data)
    return list(receiver), receiver.state


def codec_of(name: str) -> PayloadCodec:
    return codec_named("msgpack" if "msgpack" in name else "json")


def test_every_vector_is_used_and_every_release_has_some() -> None:
    used = {*REQUESTS, *RESPONSES, *ACKS, *CONTROLS, *RECORDS, *BIDI_STREAMS}
    assert used == set(captures.names())
    assert {captures.load(name).version for name in used} == set(VERSIONS)
    assert len(used) > 220
    assert len(EXCHANGES) == 39


# -- requests and acks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_read_and_written_again_to_the_same_bytes(name: str) -> None:
    capture = captures.load(name)
    check_request(capture.data, capture.decoded)


def check_request(data: bytes, decoded: Any) -> RequestControlMessage:
    frame = request_of(data)
    message = decode_two_part(frame.payload)
    control = RequestControlMessage.decode(message.header)
    assert encode_request_frame(frame.path, frame.headers, frame.payload) == data
    assert encode_two_part(control.encode(), message.body) == frame.payload
    # What whoever recorded it saw in it, as far as it was written down.
    assert decoded.get("path", frame.path) == frame.path
    assert json.loads(control.encode()) == decoded["control"]
    if "headers" in decoded and isinstance(decoded["headers"], dict):
        assert frame.headers == decoded["headers"]
    for address in (control.connection_info, control.request_stream_connection_info):
        if address is not UNSET:
            info = ConnectionInfo.from_address(address)
            assert info.context == control.id
            assert info.to_address() == address
    if message.body:
        codec = codec_named(control.codec_name)
        body = codec.decode(message.body)
        assert codec.decode(codec.encode(body)) == body
    return control


@pytest.mark.parametrize("name", captures.names("request-unary-record-msgpack"))
def test_a_real_caller_writes_msgpack_bodies_as_we_do(name: str) -> None:
    message = decode_two_part(request_of(captures.load(name).data).payload)
    codec = codec_named("msgpack")
    assert codec.encode(codec.decode(message.body)) == message.body


def test_callers_up_to_1_2_1_name_no_codec_and_later_ones_do() -> None:
    named = {
        captures.load(name).version: not check_request(
            captures.load(name).data, captures.load(name).decoded
        ).is_from_legacy_caller
        for name in captures.names("request-unary-1")
    }
    assert named == {"1.0.2": False, "1.2.1": False, "1.4.2": True, "1.6.1": True}


@pytest.mark.parametrize("name", captures.names("request-metadata"))
def test_metadata_arrives_as_text(name: str) -> None:
    capture = captures.load(name)
    assert check_request(capture.data, capture.decoded).metadata == {"k": "v", "é": "ü"}


@pytest.mark.parametrize("name", ACKS)
def test_an_ack_is_read_and_written_again_to_the_same_bytes(name: str) -> None:
    capture = captures.load(name)
    decoder = AckDecoder()
    decoder.receive_data(capture.data)
    texts = list(decoder)
    assert b"".join(map(encode_ack, texts)) == capture.data
    assert texts == capture.decoded.get("acks", [capture.decoded.get("text")])


@pytest.mark.parametrize("name", [name for name in ACKS if "request_hex" in captures.load(name).record])
def test_what_a_real_worker_made_of_a_bad_request_is_what_we_make_of_it(name: str) -> None:
    payload = request_of(captures.load(name).request).payload
    message = decode_two_part(payload)
    if "bad-control" in name:
        with pytest.raises(DeserializationError, match="control message"):
            RequestControlMessage.decode(message.header)
        return
    RequestControlMessage.decode(message.header)
    if "bad-body" in name:
        with pytest.raises(DeserializationError, match="body is not JSON"):
            codec_named("json").decode(message.body)
    elif "bad-header" in name:
        assert request_of(captures.load(name).request).headers == {}
    elif "checksum-xxh3" in name:
        assert int.from_bytes(payload[16:24]) == checksum_of(message.header, message.body)
        assert decode_two_part(payload, verify_checksum=True) == message
    elif "checksum-wrong" in name:
        assert int.from_bytes(payload[16:24]) == 12345


# -- responses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_stream_is_read_as_it_was_seen(name: str) -> None:
    capture = captures.load(name)
    frames = frames_of(capture.data)
    assert len(frames) == len(capture.decoded)
    for frame, seen in zip(frames, capture.decoded, strict=True):
        assert (len(frame.header), len(frame.body)) == (seen["header_len"], seen["body_len"])
        assert frame.header.decode() == (seen["header"] or "")
        if isinstance(seen["body"], str):
            assert frame.body.decode() == seen["body"]
        elif seen["body"] is not None:
            assert frame.body.hex() == seen["body"]["hex"]
            assert codec_named("msgpack").decode(frame.body) == seen["body_msgpack"]
    events, state = events_of(capture.data, codec_of(name))
    assert isinstance(events[0], HandshakeReceived)
    # Callers of a stopped or killed stream see its end without a final frame; every other stream is whole.
    is_cut = "after-kill" in name or "after-stop" in name
    assert (state is ResponseState.ITEMS) == is_cut
    assert is_cut or state is ResponseState.DONE


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_stream_is_written_again_to_the_same_bytes(name: str) -> None:
    capture = captures.load(name)
    codec = codec_of(name)
    events, state = events_of(capture.data, codec)
    written = write_again(events, state, codec)
    if written != capture.data:
        assert_same_but_for_exponents(written, capture.data)


def write_again(events: list[ResponseEvent], state: ResponseState, codec: PayloadCodec) -> bytes:
    """Return the bytes that our worker sends where a real one caused these events."""
    sender = ResponseSender(codec)
    parts: list[bytes] = []
    for event in events:
        match event:
            case HandshakeReceived(handshake):
                parts.append(sender.handshake(handshake.subject, handshake.stream_type))
            case PrologueReceived(Prologue(None)):
                parts.append(sender.prologue())
            case PrologueReceived(Prologue(str(error), typed_error)):
                parts.append(sender.error_prologue(error, typed_error))
            case ItemReceived(annotated):
                parts.append(sender.item(annotated))
            case FinalReceived():
                parts.append(sender.final())
    assert (sender.state is ResponseState.DONE) == (state is ResponseState.DONE)
    return b"".join(parts)


def assert_same_but_for_exponents(written: bytes, captured: bytes) -> None:
    pairs = list(zip(frames_of(written), frames_of(captured), strict=True))
    differing = [(ours.body, theirs.body) for ours, theirs in pairs if ours != theirs]
    assert differing
    for ours, theirs in differing:
        assert ours == theirs.replace(b"e+", b"e")
        assert json.loads(ours) == json.loads(theirs)


def test_only_the_streams_with_a_large_float_need_that_exception() -> None:
    differing = [
        name
        for name in RESPONSES
        if write_again(*events_of(captures.load(name).data, codec_of(name)), codec_of(name)) != captures.load(name).data
    ]
    assert differing == [f"response-types-{version}" for version in ("1.0.2", "1.2.1", "1.4.2", "1.6.1")]


@pytest.mark.parametrize("name", captures.names("response-", version="1.6.1"))
def test_the_plain_items_of_a_1_6_1_worker_are_what_encoding_their_data_gives(name: str) -> None:
    codec = codec_of(name)
    for frame in frames_of(captures.load(name).data):
        if frame.kind is MessageKind.DATA_ONLY and frame.body != codec.final:
            annotated = codec.decode_item(frame.body).annotated
            assert annotated is not None
            if not annotated.is_error:
                assert codec.encode_item(annotated.data) == frame.body.replace(b"e+", b"e")


@pytest.mark.parametrize("name", CONTROLS)
def test_control_words_of_real_callers_are_heard_and_written_again(name: str) -> None:
    capture = captures.load(name)
    reader = ControlWordReader()
    reader.receive_data(capture.data)
    words = list(reader)
    assert words == [ControlWord.KILL if "kill" in name else ControlWord.STOP]
    assert encode_two_part(words[0].encode()) == capture.data


@pytest.mark.parametrize("name", RECORDS)
def test_a_discovery_record_is_read_and_written_again_to_the_same_bytes(name: str) -> None:
    capture = captures.load(name)
    record = InstanceRecord.decode(capture.data, file_name=capture.record["file_name"])
    assert record.encode() == capture.data
    assert record.file_name == capture.record["file_name"]
    assert json.loads(record.encode()) == capture.decoded
    address, path = record.tcp_target
    assert f"{address}/{path}" == capture.decoded["transport"]["tcp"]


# -- bidirectional exchanges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BIDI_STREAMS)
def test_a_request_stream_carries_bare_values_and_words(name: str) -> None:
    capture = captures.load(name)
    frames = frames_of(capture.data)
    assert b"".join(encode_two_part(frame.header, frame.body) for frame in frames) == capture.data
    if capture.is_from_worker:
        [handshake] = frames
        assert CallHomeHandshake.decode(handshake.header).stream_type == "request"
        assert CallHomeHandshake.decode(handshake.header).encode() == handshake.header
    else:
        assert [codec_named("json").decode(frame.body) for frame in frames[:-1]] == [{"x": 1}, {"x": 2}]
        assert ControlWord.decode(frames[-1].header) is ControlWord.SENTINEL


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_bidirectional_exchange_is_read_and_what_the_worker_sent_is_written_again(name: str) -> None:
    exchange = captures.load_exchange(name)
    if "connection_info" not in exchange[0].decoded["control"]:  # left out on purpose; no release does without
        with pytest.raises(DeserializationError, match="connection_info"):
            RequestControlMessage.decode(decode_two_part(request_of(exchange[0].data).payload).header)
        return
    control = RequestControlMessage.decode(decode_two_part(request_of(exchange[0].data).payload).header)
    assert json.loads(control.encode()) == exchange[0].decoded["control"]
    codec = codec_named(control.codec_name)
    for capture in exchange:
        if capture.is_from_worker:
            check_from_worker(capture, codec)
        elif capture is not exchange[0]:
            check_from_caller(capture, codec)


def check_from_caller(capture: Capture, codec: PayloadCodec) -> None:
    [frame] = frames_of(capture.data)
    if capture.name.startswith("request_frame"):
        assert codec.decode(frame.body) == capture.decoded
    elif capture.name == "bad_checksum":
        assert codec.decode(frame.body) == {"ck": 1}
    elif capture.name == "bad_frame":
        with pytest.raises(DeserializationError):
            codec.decode(frame.body)
    elif frame.kind is MessageKind.HEADER_ONLY and capture.name != "bad_ctl":
        assert ControlWord(capture.decoded).encode() == frame.header


def check_from_worker(capture: Capture, codec: PayloadCodec) -> None:
    if capture.name == "ack":
        assert capture.data == encode_ack()
        return
    [frame] = frames_of(capture.data)
    if capture.name.endswith("_handshake"):
        handshake = CallHomeHandshake.decode(frame.header)
        assert encode_two_part(handshake.encode()) == capture.data
        assert capture.name == f"{handshake.stream_type}_handshake"
    elif capture.name.endswith("_prologue"):
        assert encode_two_part(Prologue.decode(frame.header).encode()) == capture.data
    elif capture.name.endswith("_sentinel"):
        assert capture.data == SENTINEL
    else:
        item = codec.decode_item(frame.body)
        assert item.complete_final == capture.name.endswith("_final")
        assert encode_two_part(body=codec.final if item.complete_final else codec.encode_item(item.annotated)) == (
            capture.data
        )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bidi_echo_badctl_1.6.1", "bad_ctl"),
        ("bidi_echo_empty_1.6.1", "empty_frame"),
        ("bidi_echo_mixed_1.6.1", "mixed_frame"),
        ("bidi_tick_sent_resp_1.6.1", "response_sentinel"),
    ],
)
def test_frames_that_made_a_real_worker_kill_the_request_are_no_control_words(name: str, part: str) -> None:
    [capture] = [capture for capture in captures.load_exchange(name) if capture.name == part]
    reader = ControlWordReader()
    reader.receive_data(capture.data)
    with pytest.raises(RemoteProtocolError, match="expected stop or kill"):
        list(reader)
