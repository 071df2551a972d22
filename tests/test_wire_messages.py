"""Control messages, connection infos, handshakes, prologues, error events, envelopes, control words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from ingress.errors import DeserializationError, IngressError
from ingress.testing import _strategies as wire
from ingress.wire.messages import (
    MAX_CONTROL_MESSAGE,
    MAX_METADATA_BYTES,
    MAX_METADATA_ENTRIES,
    MAX_REQUEST_ID,
    Annotated,
    CallHomeHandshake,
    ConnectionInfo,
    ControlWord,
    ErrorEvent,
    Prologue,
    RequestControlMessage,
    StreamAddress,
    exceeds_depth,
)

from .wire_costs import timed

INFO = '{"address":"127.0.0.1:40655","subject":"s","context":"r","stream_type":"response"}'
CONTROL: dict[str, Any] = {
    "id": "r",
    "request_type": "single_in",
    "response_type": "many_out",
    "connection_info": {"transport": "tcp_server", "info": INFO},
}


def control(**changes: Any) -> bytes:
    """Return a control message; a field that is set to None here is left out."""
    fields = CONTROL | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def refuses(header: bytes) -> str:
    with pytest.raises(DeserializationError) as caught:
        RequestControlMessage.decode(header)
    assert caught.value.error_type == "deserialization"
    return str(caught.value)


# -- control message -------------------------------------------------------------------------------------------------


@given(wire.control_messages())
def test_a_control_message_comes_back_as_it_was(message: RequestControlMessage) -> None:
    assert RequestControlMessage.decode(message.encode()) == message


@given(wire.control_messages())
def test_its_keys_are_written_in_the_order_of_released_callers(message: RequestControlMessage) -> None:
    order = [
        "id",
        "request_type",
        "response_type",
        "payload_codec",
        "connection_info",
        "request_stream_connection_info",
        "metadata",
        "frontend_send_ts_ns",
    ]
    keys = list(json.loads(message.encode()))
    assert keys == [key for key in order if key in keys]


def test_empty_metadata_is_left_out_as_released_callers_do() -> None:
    message = RequestControlMessage.decode(control(metadata={}))
    assert message.metadata == {}
    assert "metadata" not in json.loads(message.encode())


def test_a_message_without_codec_is_from_a_caller_up_to_1_2_1_and_means_json() -> None:
    legacy = RequestControlMessage.decode(control())
    modern = RequestControlMessage.decode(control(payload_codec="msgpack"))
    assert (legacy.codec_name, legacy.is_from_legacy_caller) == ("json", True)
    assert (modern.codec_name, modern.is_from_legacy_caller) == ("msgpack", False)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"no json",
        control()[:-1],
        control().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + control(),
        b"[]",
        b"null",
        b"7",
        b'"stop"',
        control().replace(b'"r"', b'"\xff"'),
        control().replace(b'"r"', b'"\\ud800"'),
        control() + b"}{",
        *(b'{"later":%s,' % value + control()[1:] for value in (b'"\xff"', b'{"\xc3":1}', b'[["\xed\xa0\x80"]]')),
    ],
    ids=lambda header: repr(header[:10]),
)
def test_c01_what_is_no_json_object_is_refused(header: bytes) -> None:
    assert refuses(header).startswith("control message")


def test_text_beyond_ascii_is_text_in_unknown_fields_too() -> None:
    raw = '{"later":"ä\U0001f469",'.encode() + control()[1:]
    assert RequestControlMessage.decode(raw) == RequestControlMessage.decode(control())


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": 7},
        {"connection_info": None},
        {"connection_info": INFO},
        {"connection_info": {"transport": "tcp_server"}},
        {"request_type": "some_in"},
        {"response_type": "no_out"},
        {"payload_codec": "cbor"},
        {"metadata": {"k": 1}},
        {"frontend_send_ts_ns": "1795450828746950840"},
    ],
    ids=repr,
)
def test_c02_a_missing_or_wrong_field_is_refused(changes: dict[str, Any]) -> None:
    assert refuses(control(**changes)).startswith("control message: ")


@pytest.mark.parametrize("field", ["id", "payload_codec", "connection_info"])
def test_c02_null_is_no_value(field: str) -> None:
    refuses(json.dumps(CONTROL | {field: None}).encode())


def test_c03_an_id_has_at_most_1024_bytes() -> None:
    assert len(RequestControlMessage.decode(control(id="i" * MAX_REQUEST_ID)).id) == 1024
    assert len(RequestControlMessage.decode(control(id="é" * 512)).id) == 512
    assert refuses(control(id="i" * 1025)) == "request id of 1025 bytes exceeds 1024"
    assert refuses(control(id="é" * 513)) == "request id of 1026 bytes exceeds 1024"


def test_a_control_message_has_at_most_256_kib() -> None:
    padded = control() + b" " * (MAX_CONTROL_MESSAGE - len(control()))
    assert RequestControlMessage.decode(padded).id == "r"
    assert refuses(padded + b" ") == "control message of 262145 bytes exceeds 262144 bytes"


def test_c04_unknown_fields_are_ignored() -> None:
    message = RequestControlMessage.decode(control(later={"nested": [1, {"x": None}]}, metadata={"k": "v", "é": "ü"}))
    assert message.metadata == {"k": "v", "é": "ü"}


def test_c04_metadata_has_at_most_64_entries_and_16_kib() -> None:
    full = {str(number): "" for number in range(MAX_METADATA_ENTRIES)}
    assert RequestControlMessage.decode(control(metadata=full)).metadata == full
    assert "65 entries exceeds" in refuses(control(metadata=full | {"one more": ""}))
    large = {"k": "v" * (MAX_METADATA_BYTES - 1)}
    assert RequestControlMessage.decode(control(metadata=large)).metadata == large
    assert "1 entries exceeds" in refuses(control(metadata={"k": large["k"] + "v"}))
    assert "1 entries exceeds" in refuses(control(metadata={"k": "é" * (MAX_METADATA_BYTES // 2)}))


def test_c05_of_a_key_that_stands_twice_the_last_one_wins() -> None:
    assert RequestControlMessage.decode(b'{"id":"first",' + control(id="last")[1:]).id == "last"


@pytest.mark.parametrize("depth", [10**2, 10**3, 10**4])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_c08_nesting_over_32_levels_is_refused(opening: str, depth: int) -> None:
    header = control()[:-1] + b',"later":' + (opening * depth).encode()
    with timed() as cost:
        assert refuses(header) == "control message: nested deeper than 32 levels"
    assert cost.seconds < 1


def test_c08_a_control_message_of_thousands_of_objects_is_refused() -> None:
    few, many = (control()[:-1] + b',"later":[' + b"{}," * count + b"0]}" for count in (4000, 60_000))
    assert RequestControlMessage.decode(few).id == "r"
    assert refuses(many) == "control message: more than 4096 objects and lists"


def test_c08_32_levels_pass_and_brackets_inside_strings_are_no_nesting() -> None:
    deep = control()[:-1] + b',"later":' + b"[" * 31 + b"]" * 31 + b"}"
    assert RequestControlMessage.decode(deep).id == "r"
    refuses(control()[:-1] + b',"later":' + b"[" * 32 + b"]" * 32 + b"}")
    quoted = {"prompt": '[{"[' * 500 + "\\" + '"' * 3}
    assert RequestControlMessage.decode(control(metadata=quoted)).metadata == quoted


@pytest.mark.parametrize("value", [0, 2**64 - 1, -1, 10**40])
def test_t03_any_integer_may_stand_for_the_time_of_sending(value: int) -> None:
    assert RequestControlMessage.decode(control(frontend_send_ts_ns=value)).frontend_send_ts_ns == value


@pytest.mark.parametrize("size", [10**3, 10**5, 2**18])
@pytest.mark.parametrize("unit", [b'"', b"\\", b'"\\', b'\\"', b'["', b'[\\"'], ids=repr)
def test_hostile_strings_are_refused_in_linear_time(unit: bytes, size: int) -> None:
    header = b"[" * 40 + (unit * size)[: size - 40]
    with timed() as cost:
        refuses(header)
    assert cost.seconds < 0.5


# -- connection info, handshake, prologue ----------------------------------------------------------------------------


@given(wire.connection_infos())
def test_connection_info_is_json_inside_a_string(info: ConnectionInfo) -> None:
    address = info.to_address()
    assert address.transport == "tcp_server"
    assert list(json.loads(address.info)) == ["address", "subject", "context", "stream_type"]
    assert ConnectionInfo.from_address(address) == info


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1:80", "[]", "{}", INFO.replace('"s"', "7"), "[" * 1000, '{"a":' * 1000, "\ud800", INFO + "x"],
    ids=lambda text: repr(text[:12]),
)
def test_c07_c08_an_info_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DeserializationError, match="connection info: "):
        ConnectionInfo.from_address(StreamAddress("tcp_server", text))


@given(wire.handshakes())
def test_a_handshake_comes_back_as_it_was(handshake: CallHomeHandshake) -> None:
    assert CallHomeHandshake.decode(handshake.encode()) == handshake


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'{"subject":"s"}',
        b'{"subject":"s","stream_type":"other"}',
        b'{"subject":1,"stream_type":"response"}',
    ],
)
def test_a_handshake_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(DeserializationError, match="call-home handshake: "):
        CallHomeHandshake.decode(raw)


@given(wire.prologues())
def test_a_prologue_comes_back_as_it_was(prologue: Prologue) -> None:
    assert Prologue.decode(prologue.encode()) == prologue


def test_a_prologue_of_success_is_error_null_and_an_empty_object_counts_as_one() -> None:
    assert Prologue().encode() == b'{"error":null}'
    assert Prologue.decode(b"{}") == Prologue.decode(b'{"error":null,"typed_error":null}') == Prologue()


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b'{"error":1}', b'{"error":{}}', b'{"error":"x"'])
def test_a_prologue_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(DeserializationError, match="prologue: "):
        Prologue.decode(raw)


@pytest.mark.parametrize("decode", [CallHomeHandshake.decode, Prologue.decode])
def test_handshakes_and_prologues_have_the_limits_of_control_messages(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(DeserializationError, match="exceeds 262144 bytes"):
        decode(b" " * (MAX_CONTROL_MESSAGE + 1))
    with pytest.raises(DeserializationError, match="nested deeper than 32 levels"):
        decode(b"[" * 33)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda end: control()[:-9] + end))
def test_garbage_gives_a_message_or_an_ingress_error(raw: bytes) -> None:
    for decode in (RequestControlMessage.decode, CallHomeHandshake.decode, Prologue.decode):
        try:
            decode(raw)
        except IngressError as exc:
            assert isinstance(exc, DeserializationError)


# -- error events ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error_class", "reason"),
    [
        ("InvalidArgument", "InvalidRequest", "backend.invalid_argument"),
        ("ConnectionTimeout", "DeadlineExceeded", "backend.connection_timeout"),
        ("CannotConnect", "Unavailable", "backend.cannot_connect"),
        ("Disconnected", "Unavailable", "backend.disconnected"),
        ("Cancelled", "Cancelled", "backend.cancelled"),
        ("EngineShutdown", "Unavailable", "backend.engine_shutdown"),
        ("Unknown", "Internal", "backend.unknown"),
    ],
)
def test_an_error_event_has_the_class_and_reason_that_1_6_1_gives_its_kind(
    kind: str, error_class: str, reason: str
) -> None:
    assert list(ErrorEvent.of_kind(kind, "text").to_wire().items()) == [
        ("error_type", {"Backend": kind}),
        ("class", error_class),
        ("reason", reason),
        ("message", "text"),
        ("diagnostic", "text"),
    ]


def test_a_text_for_the_end_user_stands_under_public_too() -> None:
    wire_form = ErrorEvent.of_kind("InvalidArgument", "text", is_public=True).to_wire()
    assert list(wire_form)[-1] == "public"
    assert wire_form["public"] == {"type": "message", "message": "text"}


@given(wire.error_events())
def test_an_error_event_comes_back_as_it_was(event: ErrorEvent) -> None:
    assert ErrorEvent.from_wire(event.to_wire()) == event


@given(wire.codec_values(), st.none() | st.lists(wire.texts(), max_size=2))
def test_any_error_object_is_read_as_far_as_it_can_be(odd: Any, comment: list[str] | None) -> None:
    assert isinstance(ErrorEvent.from_wire(odd, comment=comment).to_exception(), IngressError)
    whole = {"error_type": odd, "class": odd, "reason": odd, "message": odd, "diagnostic": odd, "public": odd}
    assert isinstance(ErrorEvent.from_wire(whole).message, str)


def test_the_error_object_of_1_0_2_has_a_bare_type_and_a_message() -> None:
    event = ErrorEvent.from_wire({"error_type": "Unknown", "message": "m"})
    assert event == ErrorEvent("m", "Unknown", is_backend=False)


def test_the_error_event_of_0_9_1_has_its_text_in_the_comment() -> None:
    event = Annotated.from_wire({"event": "error", "comment": ["a", "b"]})
    assert event.is_error
    assert event.error is not None
    assert event.error.message == "a; b"


def test_a_remote_error_shows_the_class_and_the_diagnostic() -> None:
    error = ErrorEvent("m", "InvalidArgument", error_class="InvalidRequest", diagnostic="d").to_exception()
    assert (str(error), error.kind) == ("InvalidRequest: d", "InvalidArgument")
    assert str(ErrorEvent("m", "Unknown").to_exception()) == "Unknown: m"


def test_a_failure_is_told_even_when_its_text_holds_a_lone_surrogate() -> None:
    event = ErrorEvent.of_kind("Unknown", "bad \ud800 text", is_public=True).to_wire()
    assert (event["message"], event["diagnostic"], event["public"]["message"]) == ("bad ? text",) * 3
    assert Prologue.decode(Prologue("bad \ud800").encode()).error == "bad ?"


# -- envelope --------------------------------------------------------------------------------------------------------


@given(wire.annotated())
def test_an_envelope_comes_back_as_it_was(item: Annotated) -> None:
    assert Annotated.from_wire(item.to_wire()) == item


def test_unset_fields_are_left_out_and_the_others_keep_their_order() -> None:
    full = Annotated(data=None, id="i", event="e", comment=["c"], error=ErrorEvent("m"))
    assert list(full.to_wire()) == ["data", "id", "event", "comment", "error"]
    assert Annotated().to_wire() == {}
    assert Annotated(data=None).to_wire() == {"data": None}


def test_an_envelope_may_lack_everything_and_hold_unknown_keys() -> None:
    assert Annotated.from_wire({}) == Annotated(data=UNSET)
    assert Annotated.from_wire({"later": 1, "event": "e"}) == Annotated(event="e")
    assert Annotated.from_wire({"id": 5, "comment": "no list", "event": None}) == Annotated()


@pytest.mark.parametrize("odd", [None, [], "text", 7])
def test_an_envelope_that_is_no_object_is_refused(odd: object) -> None:
    with pytest.raises(DeserializationError, match="annotated envelope: expected an object"):
        Annotated.from_wire(odd)


# -- control words and the depth of JSON -----------------------------------------------------------------------------


def test_control_words_are_json_strings() -> None:
    assert [word.encode() for word in ControlWord] == [b'"stop"', b'"kill"', b'"sentinel"']
    assert [ControlWord.decode(word.encode()) for word in ControlWord] == list(ControlWord)


@pytest.mark.parametrize("header", [b"", b"stop", b'"STOP"', b' "stop"', b'"pause"', b'{"stop":1}', b"\xff"])
def test_anything_else_is_no_control_word(header: bytes) -> None:
    assert ControlWord.decode(header) is None


@given(wire.json_values())
def test_depth_is_what_a_walk_over_the_value_finds(value: Any) -> None:
    def depth(item: Any) -> int:
        if isinstance(item, dict):
            return 1 + max(map(depth, item.values()), default=0)
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    raw = json.dumps(value).encode()
    levels = depth(value)
    assert not exceeds_depth(raw, levels)
    assert levels == 0 or exceeds_depth(raw, levels - 1)
