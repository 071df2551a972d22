"""Keys of msgpack whose hashes everybody can choose: refused before a dictionary is made of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.errors import DeserializationError
from ingress.testing import _strategies as wire
from ingress.wire.codec import codec_named
from ingress.wire.guards import MAX_NUMBER_KEYS, check_msgpack_keys

MSGPACK = codec_named("msgpack")

REFUSAL = "body too large: more than 8192 keys that are no text"


def refusal(body: bytes) -> str:
    with pytest.raises(DeserializationError) as caught:
        MSGPACK.decode(body)
    return str(caught.value)


def map_of(keys: Iterable[bytes], width: int = 4) -> bytes:
    parts = [key + b"\xc0" for key in keys]
    header = b"\xdf" + struct.pack(">I", len(parts)) if width == 4 else b"\xde" + struct.pack(">H", len(parts))
    return header + b"".join(parts)


def numbers(count: int, first: int = 1 << 16) -> list[bytes]:
    return [b"\xce" + struct.pack(">I", number) for number in range(first, first + count)]


@pytest.mark.parametrize(
    "keys",
    [
        numbers(MAX_NUMBER_KEYS + 1),
        [b"\xd3" + struct.pack(">q", -number) for number in range(MAX_NUMBER_KEYS + 1)],
        [b"\xcb" + struct.pack(">d", number) for number in range(MAX_NUMBER_KEYS + 1)],
        [b"\x92\x01" + key for key in numbers(MAX_NUMBER_KEYS + 1)],
        [b"\xd6\xff" + struct.pack(">I", number) for number in range(MAX_NUMBER_KEYS + 1)],
    ],
    ids=["unsigned", "signed", "floats", "arrays", "timestamps"],
)
@pytest.mark.parametrize("width", [2, 4])
def test_c14_one_key_too_many_that_is_no_text_is_refused(keys: list[bytes], width: int) -> None:
    assert refusal(map_of(keys, width)) == REFUSAL
    check_msgpack_keys(map_of(keys[1:], width))


def test_c14_as_many_numbers_as_are_allowed_are_keys() -> None:
    body = map_of(numbers(MAX_NUMBER_KEYS))
    assert len(MSGPACK.decode(body)) == MAX_NUMBER_KEYS


def test_c14_keys_of_several_maps_count_together_wherever_the_maps_stand() -> None:
    half = map_of(numbers(MAX_NUMBER_KEYS // 2 + 1))
    for body in (
        b"\x92" + half + half,
        b"\x82\xa1a" + half + b"\xa1b\x91" + half,
        b"\x93\xd9\x28" + b"x" * 40 + half + half,
        b"\xdf\0\0\x01\0" + b"".join(b"\xa3%03d\xc0" % n for n in range(254)) + b"\xa1a" + half + b"\xa1b" + half,
    ):
        assert refusal(body) == REFUSAL


def test_c14_texts_and_bytes_are_keys_without_number() -> None:
    keys = {f"key {number}": {"a": [number]} for number in range(40_000)}
    assert MSGPACK.decode(MSGPACK.encode(keys)) == keys
    binary = map_of(b"\xc4\x04" + struct.pack(">I", number) for number in range(40_000))
    assert len(MSGPACK.decode(binary)) == 40_000


def test_c14_numbers_that_are_no_keys_are_not_counted() -> None:
    value = {"tokens": list(range(1 << 15, 1 << 16)), "pairs": [{number: 0xDF} for number in range(20_000)]}
    assert MSGPACK.decode(MSGPACK.encode(value)) == value


def odd_keys(value: Any) -> int:
    """Count in a decoded value what the guard counts in its bytes."""
    if isinstance(value, dict):
        own = sum(not isinstance(key, str | bytes) for key in value) if len(value) > 255 else 0
        return own + sum(map(odd_keys, value.values()))
    return sum(map(odd_keys, value)) if isinstance(value, list) else 0


def large_maps(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Maps above and below the size from which their keys count, of numbers and texts in turn, with others inside."""

    def build(size: int, every: int, inside: list[Any]) -> dict[Any, Any]:
        made: dict[Any, Any] = {n if n % every else f"text {n}": n for n in range(size)}
        made.update((f"inside {n}", value) for n, value in enumerate(inside))
        return made

    return st.builds(build, st.integers(230, 280), st.integers(1, 4), st.lists(children, max_size=3))


@given(st.recursive(wire.codec_values(), lambda children: large_maps(children) | st.lists(children, max_size=3)))
def test_the_guard_counts_the_keys_of_large_maps_and_no_others(value: Any) -> None:
    body, keys = msgspec.msgpack.encode(value), odd_keys(value)
    check_msgpack_keys(body, max_keys=keys)
    if keys and len(body) > 2 * keys:
        with pytest.raises(DeserializationError):
            check_msgpack_keys(body, max_keys=keys - 1)


@given(st.sampled_from([b"", b"\xdf\0\0\x01\x2c"]), st.binary(max_size=2000), st.integers(0, 3))
@example(b"", b"\xb1\xdf", 0)
def test_any_bytes_are_read_to_their_end_or_refused(head: bytes, tail: bytes, keys: int) -> None:
    try:
        check_msgpack_keys(head + tail, max_keys=keys)
    except DeserializationError as refusal:
        assert "keys that are no text" in str(refusal)
