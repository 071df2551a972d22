"""``ingress decode``, below the screen: bytes in, frames with names and offsets out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.cli._decode import Capture, read_captures
from ingress.cli._errors import CommandError
from ingress.cli._explain import FORMS, Explanation, Form, explain
from ingress.wire.request_frame import encode_ack, encode_request_frame
from ingress.wire.two_part import encode_two_part

CAPTURES = Path(__file__).parent / "captures"

# What a test client sent on purpose to see what happens.
BROKEN_ON_PURPOSE = {"bad_ctl", "bad_frame"}


def capture(name: str) -> bytes:
    return read_captures((CAPTURES / f"{name}.json").read_bytes())[0].data


def what_of(explanation: Explanation) -> list[str]:
    return [frame.what for frame in explanation.frames]


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*.json")), ids=lambda path: path.stem)
def test_every_capture_is_explained_to_its_last_byte(path: Path) -> None:
    for each in read_captures(path.read_bytes()):
        explanation = explain(each.data)
        if each.data:
            assert explanation.form is not None
        assert explanation.is_whole or each.name in BROKEN_ON_PURPOSE
        offset = 0
        for frame in explanation.frames:
            for field in frame.fields:
                assert field.offset == offset
                assert each.data[offset : offset + len(field.raw)] == field.raw
                offset += len(field.raw)
        assert offset == len(each.data)


def test_a_response_stream_is_told_from_handshake_to_sentinel() -> None:
    explanation = explain(capture("response-ok-1.6.1"))
    assert what_of(explanation) == ["handshake", "prologue", "item", "item", "final", "sentinel"]
    item = explanation.frames[2].fields[-1]
    assert (item.name, item.offset) == ("body", 161)
    assert item.details["data"] == {"i": 0, "t": "tök0"}


def test_a_msgpack_stream_is_told_like_a_json_one() -> None:
    explanation = explain(capture("response-msgpack-ok-1.6.1"))
    assert what_of(explanation) == ["handshake", "prologue", "item", "item", "final", "sentinel"]
    assert explanation.frames[2].fields[-1].value == "item as msgpack"


def test_an_error_event_is_named_and_its_kind_shown() -> None:
    explanation = explain(capture("response-exc-InvalidArgument-1.6.1"))
    error = next(frame for frame in explanation.frames if frame.what == "error event")
    assert error.fields[-1].details["error.error_type.Backend"] == "InvalidArgument"


def test_a_refusing_prologue_is_told_from_an_accepting_one() -> None:
    refused = explain(capture("response-error-prologue-1.6.1")).frames[1].fields[-1]
    accepted = explain(capture("response-ok-1.6.1")).frames[1].fields[-1]
    assert refused.value == "prologue: the engine refused"
    assert accepted.value == "prologue: the engine took the request"


def test_a_request_shows_its_control_message_and_the_connection_info_inside() -> None:
    explanation = explain(capture("req-ok-1.6.1"))
    (frame,) = explanation.frames
    fields = {field.name: field for field in frame.fields}
    assert frame.what == "unary request"
    assert fields["path"].value.endswith("/demo/backend/generate")
    assert fields["header"].details["connection_info.address"] == "127.0.0.1:40655"
    assert fields["body"].details["request"] == {"mode": "ok", "n": 2}


def test_a_bidirectional_request_shows_both_streams() -> None:
    (frame,) = explain(capture("bidi-request-1.6.1")).frames
    assert frame.what == "bidirectional request"
    details = frame.fields[-1].details
    assert details["request_stream_connection_info.stream_type"] == "request"
    assert details["connection_info.stream_type"] == "response"


def test_a_body_is_read_in_the_codec_that_the_control_message_names() -> None:
    (frame,) = explain(capture("request-unary-record-msgpack-1.6.1")).frames
    assert frame.fields[-1].value == "request as msgpack"
    assert frame.fields[-1].details["request"]["s"] == "é"


@pytest.mark.parametrize(
    ("name", "what"),
    [("ack-ok-1.6.1", "accepted"), ("ack-overload-1.4.2", "refused")],
)
def test_acks_say_whether_the_request_was_taken(name: str, what: str) -> None:
    assert what_of(explain(capture(name))) == [what]


def test_an_ack_of_another_text_is_called_what_callers_take_it_for() -> None:
    assert what_of(explain(encode_ack("nope"))) == ["text, which released callers take for success"]


def test_several_acks_in_a_row_are_several_acks() -> None:
    explanation = explain(encode_ack() + encode_ack("Server overloaded: full") + encode_ack())
    assert what_of(explanation) == ["accepted", "refused", "accepted"]


def test_control_words_are_named() -> None:
    assert what_of(explain(capture("client-control-stop-1.6.1"))) == ["stop"]


def test_a_discovery_record_shows_its_key() -> None:
    (frame,) = explain(capture("discovery-record-1.6.1")).frames
    assert frame.fields[0].details["key"] == "demo/backend/generate/94350025299dac90"


def test_a_cut_request_says_what_is_missing() -> None:
    (frame,) = explain(capture("req-ok-1.6.1")[:200]).frames
    assert frame.problem == (
        "header at offset 130 needs 322 bytes, 70 of them here: 252 are missing, and 19 after them"
    )


def test_a_cut_stream_explains_the_whole_frames_before_the_cut() -> None:
    explanation = explain(capture("response-ok-1.6.1")[:150])
    assert what_of(explanation)[:2] == ["handshake", "prologue"]
    assert explanation.frames[2].problem == "body_length at offset 145 needs 8 bytes, 5 of them here: 3 are missing"


def test_a_cut_prefix_is_still_told_as_one() -> None:
    explanation = explain(capture("response-ok-1.6.1")[:10])
    assert explanation.form == "two-part"
    assert not explanation.is_whole


def test_lengths_that_lie_are_told_and_the_next_frame_is_still_found() -> None:
    lying = encode_two_part(b'{"id":"x"}', b"{}")[:-1]
    frames = encode_request_frame("1/a/b/c", {}, lying) + encode_request_frame("1/a/b/c", {}, b"")
    explanation = explain(frames)
    assert explanation.frames[0].problem == "the lengths announce 10 + 2 bytes, the payload holds 11"
    assert len(explanation.frames) == 2


def test_what_follows_the_last_frame_is_named_with_its_offset() -> None:
    explanation = explain(capture("response-ok-1.6.1") + b"\xff" * 30)
    assert explanation.problem is not None
    assert explanation.problem.startswith("30 bytes from offset 386 on are no two-part frame")


def test_garbage_is_called_unknown_and_a_form_can_be_forced() -> None:
    assert explain(b"hello, world").form is None
    assert explain(bytes(24)).form == "ack"
    assert what_of(explain(bytes(24), "two-part")) == ["empty"]


def test_a_checksum_is_verified() -> None:
    pytest.importorskip("xxhash")
    right = explain(encode_two_part(b"{}", checksum=True)).frames[0].fields[2].value
    assert right.endswith("(xxh3-64, right)")
    wrong = bytearray(encode_two_part(b"{}", checksum=True))
    wrong[20] ^= 1
    assert "workers do not mind" in explain(bytes(wrong)).frames[0].fields[2].value


@given(st.binary(max_size=200), st.sampled_from([None, *FORMS]))
def test_any_bytes_are_explained_or_refused_in_words(data: bytes, form: Form | None) -> None:
    explanation = explain(data, form)
    assert explanation.is_whole or explanation.problem or any(frame.problem for frame in explanation.frames)
    assert sum(frame.size for frame in explanation.frames) <= len(data)


@given(st.integers(min_value=0), st.sampled_from(["response-ok-1.6.1", "req-ok-1.6.1", "ack-overload-1.4.2"]))
def test_a_capture_cut_anywhere_never_counts_as_more_than_was_there(cut: int, name: str) -> None:
    data = capture(name)
    cut %= len(data)
    explanation = explain(data[:cut])
    whole = [frame for frame in explanation.frames if frame.problem is None]
    assert sum(frame.size for frame in whole) <= cut
    if explanation.form not in (None, "ack"):
        assert sum(frame.size for frame in explanation.frames) == cut


# -- what may stand in the file ---------------------------------------------------------------------------------------


def test_hex_text_raw_bytes_and_capture_json_are_told_apart() -> None:
    data = encode_ack("Server overloaded: full")
    spaced = data.hex(" ").encode() + b"\n"
    assert read_captures(data) == [Capture(data)]
    assert read_captures(spaced) == read_captures(b"0x" + data.hex().encode()) == [Capture(data)]
    assert read_captures(b'{"bytes_hex": "%s", "name": "full"}' % data.hex().encode()) == [Capture(data, "full")]


def test_a_record_as_it_lies_in_the_store_can_be_given_too() -> None:
    record = capture("discovery-record-1.6.1")
    assert explain(read_captures(record)[0].data).form == "record"


def test_half_a_byte_of_hex_is_a_usage_error() -> None:
    with pytest.raises(CommandError, match="3 hex digits") as caught:
        read_captures(b"00 1")
    assert caught.value.exit_code == 2
