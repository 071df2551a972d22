"""The request connection: frames in, acks out."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.errors import InvalidMessage, MessageTooLarge
from ingress.testing import _strategies as wire
from ingress.wire.request_frame import (
    DEFAULT_MAX_FRAME_SIZE,
    MAX_ACK_LENGTH,
    MAX_PARSED_HEADERS,
    MAX_PATH_LENGTH,
    AckDecoder,
    RequestFrame,
    RequestFrameDecoder,
    encode_ack,
    encode_request_frame,
)

from .wire_costs import MIB, measured

PATH = b"94350025299dac90/demo/backend/generate"


def frame(path: bytes, headers: bytes, payload: bytes) -> bytes:
    lengths = len(path), len(headers), len(payload)
    return struct.pack(f">H{lengths[0]}sH{lengths[1]}sI", lengths[0], path, lengths[1], headers, lengths[2]) + payload


def encode(message: RequestFrame) -> bytes:
    return frame(message.raw_path, message.raw_headers, message.payload)


def feed(decoder: RequestFrameDecoder, segments: Iterable[bytes]) -> list[RequestFrame]:
    frames: list[RequestFrame] = []
    for segment in segments:
        decoder.receive_data(segment)
        frames.extend(decoder)
    return frames


def headers_of(raw: bytes) -> dict[str, str]:
    return dict(RequestFrame(PATH, raw, b"").headers)


# -- frames ----------------------------------------------------------------------------------------------------------


def test_a_frame_is_path_headers_and_payload_behind_u16_u16_and_u32() -> None:
    encoded = encode_request_frame("p", {"k": "é"}, b"xyz")
    assert encoded == b'\x00\x01p\x00\x0a{"k":"\xc3\xa9"}\x00\x00\x00\x03xyz'


@given(st.lists(wire.request_frames(), max_size=3), st.data())
def test_f10_any_cutting_of_the_bytes_gives_the_same_frames(frames: list[RequestFrame], data: st.DataObject) -> None:
    decoder = RequestFrameDecoder()
    assert feed(decoder, data.draw(wire.splits(b"".join(map(encode, frames))))) == frames
    assert decoder.is_idle


@given(wire.names(), wire.request_headers(), st.binary(max_size=100))
def test_decoding_gives_back_what_was_encoded(path: str, headers: dict[str, str], payload: bytes) -> None:
    [decoded] = feed(RequestFrameDecoder(), [encode_request_frame(path, headers, payload)])
    assert (decoded.path, decoded.headers, decoded.payload) == (path, headers, payload)


def test_f10_two_frames_split_at_every_boundary_both_arrive() -> None:
    first, second = RequestFrame(PATH, b"{}", b"one"), RequestFrame(PATH, b"", b"two")
    stream = encode(first) + encode(second)
    for cut in range(len(stream) + 1):
        assert feed(RequestFrameDecoder(), [stream[:cut], stream[cut:]]) == [first, second]


def test_f09_a_frame_cut_anywhere_gives_nothing_and_leaves_the_decoder_in_the_middle_of_it() -> None:
    stream = encode(RequestFrame(PATH, b"{}", b"x" * 400))
    for cut in range(1, len(stream)):
        decoder = RequestFrameDecoder()
        assert feed(decoder, [stream[:cut]]) == []
        assert not decoder.is_idle


def test_f01_a_payload_of_4_gib_is_refused_at_its_length_and_nothing_is_kept() -> None:
    decoder = RequestFrameDecoder()
    with measured() as cost:
        decoder.receive_data(b"\x00\x27" + b"p" * 39 + b"\x00\x02{}" + b"\xff\xff\xff\xff")
        with pytest.raises(MessageTooLarge) as caught:
            list(decoder)
    size = 2 + 39 + 2 + 2 + 4 + 2**32 - 1
    assert str(caught.value) == f"message too large: {size} bytes (max: 33554432 bytes)"
    assert (caught.value.size, caught.value.limit) == (size, DEFAULT_MAX_FRAME_SIZE)
    assert decoder.is_idle
    assert cost.peak < MIB


def test_f02_the_limit_counts_the_whole_frame_and_includes_it() -> None:
    overhead = len(frame(PATH, b"{}", b""))
    decoder = RequestFrameDecoder(max_frame_size=1000)
    exact = frame(PATH, b"{}", b"x" * (1000 - overhead))
    assert len(feed(decoder, [exact])) == 1
    # The length fields alone are enough: not a byte of the payload has come.
    with pytest.raises(MessageTooLarge) as caught:
        feed(decoder, [frame(PATH, b"{}", b"")[:-4] + struct.pack(">I", 1001 - overhead)])
    assert caught.value.size == 1001


def test_f02_the_largest_frame_costs_its_buffer_and_its_payload() -> None:
    decoder = RequestFrameDecoder()
    stream = frame(PATH, b"{}", bytes(DEFAULT_MAX_FRAME_SIZE - len(frame(PATH, b"{}", b""))))
    with measured() as cost:
        assert len(feed(decoder, [stream])) == 1
    assert cost.peak < 2.5 * DEFAULT_MAX_FRAME_SIZE


def test_f03_an_announced_payload_costs_nothing_before_it_comes() -> None:
    decoders = [RequestFrameDecoder() for _ in range(50)]
    start = frame(PATH, b"{}", b"")[:-4] + struct.pack(">I", 33_000_000)
    with measured() as cost:
        for decoder in decoders:
            assert feed(decoder, [start]) == []
    assert cost.peak < MIB


def test_f04_an_empty_path_is_a_path() -> None:
    [decoded] = feed(RequestFrameDecoder(), [frame(b"", b"{}", b"x")])
    assert decoded.path == ""


@pytest.mark.parametrize("length", [MAX_PATH_LENGTH + 1, 65535])
def test_f05_a_path_longer_than_any_can_be_is_refused_at_its_length(length: int) -> None:
    decoder = RequestFrameDecoder()
    for _ in range(2):
        decoder.receive_data(struct.pack(">H", length))
        with pytest.raises(InvalidMessage, match=f"endpoint path of {length} bytes exceeds 1024 bytes"):
            list(decoder)
        assert decoder.is_idle


def test_f05_a_path_of_the_longest_length_passes() -> None:
    [decoded] = feed(RequestFrameDecoder(), [frame(b"p" * MAX_PATH_LENGTH, b"", b"")])
    assert len(decoded.path) == MAX_PATH_LENGTH


@pytest.mark.parametrize("path", [b"\xff\xfe\xfd", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_f06_a_path_that_is_no_utf8_comes_as_a_frame_whose_path_cannot_be_read(path: bytes) -> None:
    decoder = RequestFrameDecoder()
    [decoded, following] = feed(decoder, [frame(path, b"{}", b"x") + frame(PATH, b"{}", b"y")])
    with pytest.raises(InvalidMessage, match="not UTF-8"):
        _ = decoded.path
    assert following.path == PATH.decode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b'{"a":1}',
        b'{"a":{"b":"c"}}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b"[" * 30_000,
        b'{"a":' * 10_000,
        b'{"a":"' + b"x" * 65_527 + b'"}',
        b'{"a":"b"}}{',
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_f08_unusable_headers_count_as_none(raw: bytes) -> None:
    [decoded] = feed(RequestFrameDecoder(), [frame(PATH, raw, b"payload")])
    assert decoded.headers == {}
    assert decoded.payload == b"payload"


def test_f08_of_a_header_that_stands_twice_the_last_one_wins() -> None:
    assert headers_of(b'{"a":"1","a":"2"}') == {"a": "2"}


def test_f08_headers_of_up_to_16_kib_are_read() -> None:
    longest = b'{"a":"' + b"x" * (MAX_PARSED_HEADERS - 8) + b'"}'
    assert len(longest) == MAX_PARSED_HEADERS
    assert len(headers_of(longest)["a"]) == MAX_PARSED_HEADERS - 8
    assert headers_of(longest[:-2] + b'x"}') == {}


@pytest.mark.parametrize("value", ["", "soon", "-5", "1" + "0" * 40, "99999999999999999999"])
def test_t03_any_text_may_stand_for_the_time_of_sending(value: str) -> None:
    raw = msgspec.json.encode({"x-frontend-send-ts-ns": value})
    assert headers_of(raw) == {"x-frontend-send-ts-ns": value}


@pytest.mark.parametrize(
    "banner", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n", b"*1\r\n$4\r\nPING\r\n", b"SSH-2.0-OpenSSH_9.9\r\n"]
)
def test_f17_other_protocols_are_refused_by_their_first_two_bytes(banner: bytes) -> None:
    decoder = RequestFrameDecoder()
    decoder.receive_data(banner[:2])
    with pytest.raises(InvalidMessage, match=f"endpoint path of {int.from_bytes(banner[:2])} bytes"):
        list(decoder)


@given(st.binary(max_size=300), st.data())
@example(b"\x00\x00\x00\x00\xff\xff\xff\xff", None)
@example(b"\x00\x00\xff\xff" + b"h" * 5000, None)
def test_garbage_gives_frames_or_an_error_and_never_more_memory_than_the_limit(
    garbage: bytes, data: st.DataObject | None
) -> None:
    limit = 200
    decoder = RequestFrameDecoder(max_frame_size=limit)
    for segment in data.draw(wire.splits(garbage)) if data else [garbage]:
        decoder.receive_data(segment)
        try:
            for decoded in decoder:
                assert len(encode(decoded)) <= limit
                assert isinstance(decoded.headers, dict)
        except InvalidMessage:
            assert decoder.is_idle, "a dead decoder holds nothing"
        # The path comes before the lengths that would condemn the frame, and has its own limit.
        assert len(decoder._buffer) <= max(limit, 2 + MAX_PATH_LENGTH + 2)


@pytest.mark.parametrize(
    ("path", "headers"), [("p" * 65_536, {}), ("p", {"k": "v" * 65_536})], ids=["long path", "long headers"]
)
def test_a_frame_that_does_not_fit_its_length_fields_is_not_encoded(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidMessage, match="exceed u16, u16, u32"):
        encode_request_frame(path, headers, b"")


# -- acks ------------------------------------------------------------------------------------------------------------


def acks(segments: Iterable[bytes]) -> list[str]:
    decoder = AckDecoder()
    texts: list[str] = []
    for segment in segments:
        decoder.receive_data(segment)
        texts.extend(decoder)
    return texts


def test_an_accepted_request_is_answered_with_four_zero_bytes() -> None:
    assert encode_ack() == b"\0\0\0\0"
    assert acks([encode_ack()]) == [""]


def test_a_refusal_is_a_u32_length_and_its_text() -> None:
    assert encode_ack("Server unavailable: é") == b"\0\0\0\x16Server unavailable: \xc3\xa9"


@given(st.lists(wire.texts(40), max_size=4), st.data())
def test_acks_come_back_in_order_however_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    assert acks(data.draw(wire.splits(b"".join(map(encode_ack, texts))))) == texts


def test_a_refusal_goes_out_even_when_its_text_holds_a_lone_surrogate() -> None:
    assert acks([encode_ack("Server unavailable: \ud800")]) == ["Server unavailable: ?"]


def test_an_ack_that_is_no_utf8_is_read_all_the_same() -> None:
    assert acks([b"\0\0\0\x02a\xff"]) == ["a\N{REPLACEMENT CHARACTER}"]


def test_an_ack_of_4_gib_is_refused_at_its_length_and_the_decoder_is_dead_after_it() -> None:
    decoder = AckDecoder()
    with measured() as cost:
        for _ in range(8):
            decoder.receive_data(b"\xff" * MIB)
            with pytest.raises(MessageTooLarge) as caught:
                list(decoder)
            assert not decoder._buffer
    assert (caught.value.size, caught.value.limit) == (2**32 - 1, MAX_ACK_LENGTH)
    assert cost.peak < 4 * MIB


def test_a_frame_that_is_discarded_tells_what_has_come_of_it() -> None:
    whole = encode_request_frame("path", {"k": "v"}, b"payload")
    start = len(whole) - len(b"payload")
    for cut in range(len(whole)):
        decoder = RequestFrameDecoder()
        decoder.receive_data(whole + whole[:cut])
        assert len(list(decoder)) == 1
        frame = decoder.discard(3)
        assert decoder.is_idle and decoder.held_bytes == 0
        if cut < start:
            assert frame is None
        else:
            assert frame is not None
            assert (frame.path, frame.headers) == ("path", {"k": "v"})
            assert frame.payload == whole[start : min(cut, start + 3)]
