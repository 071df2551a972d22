"""The two-part frame: four kinds, any cutting, lying lengths, checksums."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.errors import InvalidMessage, MessageTooLarge
from ingress.testing import _strategies as wire
from ingress.wire.two_part import (
    DEFAULT_MAX_MESSAGE_SIZE,
    PREFIX,
    MessageKind,
    TwoPartDecoder,
    TwoPartMessage,
    decode_two_part,
    encode_two_part,
    kind_of,
)

from .wire_costs import MIB, measured, timed

KINDS = [
    (TwoPartMessage(b"", b""), MessageKind.EMPTY),
    (TwoPartMessage(b"h", b""), MessageKind.HEADER_ONLY),
    (TwoPartMessage(b"", b"b"), MessageKind.DATA_ONLY),
    (TwoPartMessage(b"h", b"b"), MessageKind.HEADER_AND_DATA),
]


def prefix(header_len: int, body_len: int, checksum: int = 0) -> bytes:
    return struct.pack(">QQQ", header_len, body_len, checksum)


def feed(decoder: TwoPartDecoder, segments: Iterable[bytes]) -> list[TwoPartMessage]:
    messages: list[TwoPartMessage] = []
    for segment in segments:
        decoder.receive_data(segment)
        messages.extend(decoder)
    return messages


# -- whole frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "kind"), KINDS, ids=[kind.value for _, kind in KINDS])
def test_each_of_the_four_kinds_is_told_by_its_two_lengths(message: TwoPartMessage, kind: MessageKind) -> None:
    frame = encode_two_part(message.header, message.body)
    assert kind_of(frame) is kind
    assert decode_two_part(frame).kind is kind
    assert feed(TwoPartDecoder(), [frame]) == [message]


def test_the_prefix_is_three_big_endian_u64_and_the_checksum_is_written_as_zero() -> None:
    assert encode_two_part(b"abc", b"de") == prefix(3, 2, 0) + b"abcde"


def test_the_kind_of_a_cut_prefix_is_unknown() -> None:
    assert kind_of(b"\0" * 23) is None
    assert kind_of(b"\0" * 24) is MessageKind.EMPTY


@given(wire.two_part_messages())
def test_decoding_gives_back_what_was_encoded(message: TwoPartMessage) -> None:
    assert decode_two_part(encode_two_part(message.header, message.body)) == message


@pytest.mark.parametrize("size", [0, 1, 23])
def test_p01_a_payload_shorter_than_a_prefix_is_invalid(size: int) -> None:
    with pytest.raises(InvalidMessage, match=f"needs 24 bytes of prefix, got {size}"):
        decode_two_part(b"\0" * size)


@pytest.mark.parametrize(
    ("header_len", "body_len"),
    [(0, 1), (1, 0), (2**64 - 1, 0), (0, 2**64 - 1), (2**63, 2**63), (2**64 - 1, 25), (2**32, 2**32)],
)
def test_p03_lengths_beyond_the_payload_are_invalid_also_where_their_sum_wraps(header_len: int, body_len: int) -> None:
    payload = prefix(header_len, body_len)
    with measured() as cost, pytest.raises(InvalidMessage, match="announces"):
        decode_two_part(payload)
    assert cost.peak < MIB


def test_p04_a_header_length_that_swallows_the_body_makes_one_header() -> None:
    payload = prefix(4, 0) + b"head" + b"body"
    assert decode_two_part(payload) == TwoPartMessage(b"head", b"")
    assert decode_two_part(prefix(8, 0) + b"head" + b"body") == TwoPartMessage(b"headbody", b"")


def test_p05_bytes_after_the_frame_are_ignored_in_a_payload() -> None:
    assert decode_two_part(encode_two_part(b"h", b"b") + b"x" * 50) == TwoPartMessage(b"h", b"b")


# -- the incremental decoder -----------------------------------------------------------------------------------------


@given(st.lists(wire.two_part_messages(60), max_size=4), st.data())
def test_any_cutting_of_the_bytes_gives_the_same_messages(messages: list[TwoPartMessage], data: st.DataObject) -> None:
    stream = b"".join(encode_two_part(message.header, message.body) for message in messages)
    decoder = TwoPartDecoder()
    assert feed(decoder, data.draw(wire.splits(stream))) == messages
    assert decoder.is_idle


def test_a_message_is_given_out_with_its_last_byte_and_not_before() -> None:
    frame = encode_two_part(b"head", b"body")
    decoder = TwoPartDecoder()
    for cut in range(len(frame)):
        decoder.receive_data(frame[cut : cut + 1])
        assert list(decoder) == ([TwoPartMessage(b"head", b"body")] if cut == len(frame) - 1 else [])
        assert decoder.is_idle == (cut == len(frame) - 1)


@pytest.mark.parametrize("data", [bytearray, memoryview])
def test_the_decoder_keeps_nothing_of_the_buffer_it_was_given(data: type[bytearray] | type[memoryview]) -> None:
    received = bytearray(encode_two_part(b"h", b"b"))
    decoder = TwoPartDecoder()
    decoder.receive_data(data(received))
    received[:] = bytes(len(received))
    assert list(decoder) == [TwoPartMessage(b"h", b"b")]


@given(wire.hostile_bytes(), st.data())
@example(prefix(2**62, 0), None)
@example(prefix(0, 2**64 - 1) + b"x" * 100, None)
def test_garbage_gives_messages_or_an_error_and_never_more_memory_than_the_limit(
    garbage: bytes, data: st.DataObject | None
) -> None:
    limit = 300
    decoder = TwoPartDecoder(max_message_size=limit)
    for segment in data.draw(wire.splits(garbage)) if data else [garbage]:
        decoder.receive_data(segment)
        try:
            for message in decoder:
                assert PREFIX.size + len(message.header) + len(message.body) <= limit
        except InvalidMessage:
            assert decoder.is_idle, "a dead decoder holds nothing"
        assert len(decoder._buffer) <= limit


def test_a_size_of_2_to_the_62_is_refused_with_its_prefix_and_nothing_is_kept() -> None:
    decoder = TwoPartDecoder(what="control frame")
    with measured() as cost:
        decoder.receive_data(prefix(2**62, 0))
        with pytest.raises(MessageTooLarge, match="control frame of") as caught:
            list(decoder)
    assert caught.value.size == 2**62 + 24
    assert caught.value.limit == DEFAULT_MAX_MESSAGE_SIZE
    assert decoder.is_idle
    assert cost.peak < MIB


def test_a_dead_decoder_takes_nothing_and_says_the_same_again() -> None:
    decoder = TwoPartDecoder(max_message_size=100)
    decoder.receive_data(prefix(0, 1000))
    with pytest.raises(MessageTooLarge) as first:
        list(decoder)
    with measured() as cost:
        for _ in range(16):
            decoder.receive_data(bytes(MIB))
    assert cost.peak < 2 * MIB
    with pytest.raises(MessageTooLarge) as second:
        list(decoder)
    assert second.value is first.value


def test_messages_before_a_broken_one_are_still_given_out() -> None:
    decoder = TwoPartDecoder(max_message_size=100)
    decoder.receive_data(encode_two_part(b"first") + prefix(0, 1000))
    messages = iter(decoder)
    assert next(messages) == TwoPartMessage(b"first")
    with pytest.raises(MessageTooLarge):
        next(messages)


def test_a_message_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    body = b"x" * (100 - PREFIX.size)
    decoder = TwoPartDecoder(max_message_size=100)
    assert feed(decoder, [encode_two_part(b"", body)]) == [TwoPartMessage(b"", body)]
    with pytest.raises(MessageTooLarge) as caught:
        feed(decoder, [encode_two_part(b"", body + b"x")])
    assert (caught.value.size, caught.value.limit) == (101, 100)


def test_a_large_message_is_copied_once() -> None:
    frame = encode_two_part(b"h", bytes(8 * MIB))
    decoder = TwoPartDecoder()
    with measured() as cost:
        assert len(feed(decoder, [frame])) == 1
    # The decoder's buffer and the message; a slice of the buffer in between would make it 24 MiB.
    assert cost.peak < 20 * MIB


def test_ten_thousand_small_messages_in_one_read_take_linear_time() -> None:
    stream = encode_two_part(b"", b"x" * 100) * 10_000
    decoder = TwoPartDecoder()
    with timed() as cost:
        assert len(feed(decoder, [stream])) == 10_000
    assert cost.seconds < 2


# -- checksums -------------------------------------------------------------------------------------------------------


@given(wire.two_part_messages())
def test_a_checksum_is_xxh3_64_of_header_and_body_and_written_on_request(message: TwoPartMessage) -> None:
    frame = encode_two_part(message.header, message.body, checksum=True)
    _, _, checksum = PREFIX.unpack_from(frame)
    assert checksum == xxhash.xxh3_64_intdigest(message.header + message.body)
    assert feed(TwoPartDecoder(verify_checksum=True), [frame]) == [message]
    assert decode_two_part(frame, verify_checksum=True) == message


def test_p06_a_wrong_checksum_is_accepted_by_default_as_real_peers_do() -> None:
    frame = prefix(1, 1, 12345) + b"hb"
    assert decode_two_part(frame) == TwoPartMessage(b"h", b"b")
    assert feed(TwoPartDecoder(), [frame]) == [TwoPartMessage(b"h", b"b")]


def test_p06_a_wrong_checksum_is_refused_where_it_is_verified() -> None:
    frame = prefix(1, 1, 12345) + b"hb"
    with pytest.raises(InvalidMessage, match="checksum 0x0000000000003039 does not match"):
        decode_two_part(frame, verify_checksum=True)
    decoder = TwoPartDecoder(verify_checksum=True)
    for _ in range(2):
        with pytest.raises(InvalidMessage, match="checksum"):
            feed(decoder, [frame])
        assert decoder.is_idle


def test_p06_a_checksum_of_zero_passes_also_where_checksums_are_verified() -> None:
    frame = encode_two_part(b"h", b"b")
    assert decode_two_part(frame, verify_checksum=True) == TwoPartMessage(b"h", b"b")


def test_p06_32_mib_are_verified_within_a_fraction_of_a_second() -> None:
    frame = encode_two_part(b"h", bytes(32 * MIB - 100), checksum=True)
    with timed() as cost:
        decode_two_part(frame, verify_checksum=True)
    assert cost.seconds < 0.5  # ten times the 50 ms it may take
