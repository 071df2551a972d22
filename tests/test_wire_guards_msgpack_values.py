"""msgpack bodies that are meant to hurt: refused, quickly, and with little memory."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.errors import DeserializationError
from ingress.testing import _strategies as wire
from ingress.wire.codec import codec_named
from ingress.wire.guards import MAX_BODY_NODES, check_msgpack_size

from .wire_costs import MIB, measured, timed

MSGPACK = codec_named("msgpack")


def msgpack_refuses(body: bytes) -> str:
    with pytest.raises(DeserializationError) as caught:
        MSGPACK.decode(body)
    return str(caught.value)


# Headers that announce 2^32 - 1 elements or bytes.
LYING = [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"]


@pytest.mark.parametrize("before", [b"", b"\x81\xa1a", b"\x92\x01", b"\x81\xa1a\x91\x81\xa1b"], ids=bytes.hex)
@pytest.mark.parametrize("after", [b"", b"\x01", b"\x01" * 1000], ids=len)
@pytest.mark.parametrize("first", LYING, ids=bytes.hex)
def test_c15_a_claim_of_4_gib_allocates_nothing(first: bytes, after: bytes, before: bytes) -> None:
    body = before + first + b"\xff\xff\xff\xff" + after
    with measured() as cost:
        assert msgpack_refuses(body).startswith("body is not msgpack: ")
    assert cost.peak < MIB
    assert cost.seconds < 0.1


@pytest.mark.parametrize("depth", [129, 500, 10**3, 24_000, 10**5, 10**6])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdc\xff\xff"], ids=bytes.hex)
def test_c16_msgpack_deeper_than_128_levels_is_refused(opening: bytes, depth: int) -> None:
    body = opening * depth + b"\xc0"
    with timed() as cost:
        msgpack_refuses(body)
    assert cost.seconds < 1


def test_c16_24_000_nested_arrays_that_each_claim_65_535_values_allocate_little() -> None:
    with measured() as cost:
        msgpack_refuses(b"\xdc\xff\xff" * 24_000)
    assert cost.peak < MIB


def test_c16_128_levels_of_msgpack_pass_and_129_do_not() -> None:
    MSGPACK.decode(b"\x91" * 127 + b"\x90")
    MSGPACK.decode(b"\x81\xa1a" * 128 + b"\xc0")
    assert msgpack_refuses(b"\x91" * 128 + b"\x90") == "request too deeply nested: more than 128 levels"
    assert msgpack_refuses(b"\x81\xa1a" * 129 + b"\xc0") == "request too deeply nested: more than 128 levels"


@pytest.mark.parametrize("first", [b"\x90", b"\x80", b"\xc0", b"\xa0", b"\x01"], ids=bytes.hex)
def test_c13_values_of_one_byte_are_refused_before_they_are_decoded(first: bytes) -> None:
    count = 32 * MIB - 5 if first == b"\x90" else 2 * MIB
    body = b"\xdd" + struct.pack(">I", count) + first * count
    with timed() as cost:
        assert msgpack_refuses(body) == "body too large: more than 1000000 values"
    assert cost.seconds < 2  # 0.1 s, where the decoder would take seconds and, for 32 MiB, 2 GiB


def test_c13_a_million_values_of_msgpack_pass_and_one_more_does_not() -> None:
    # The array itself counts four.
    body = b"\xdd" + struct.pack(">I", MAX_BODY_NODES - 4) + b"\xcc\xff" * (MAX_BODY_NODES - 4)
    assert len(MSGPACK.decode(body)) == MAX_BODY_NODES - 4
    more = b"\xdd" + struct.pack(">I", MAX_BODY_NODES - 3) + b"\xcc\xff" * (MAX_BODY_NODES - 3)
    assert msgpack_refuses(more) == "body too large: more than 1000000 values"


HEAVY = {
    "a million lists": b"\xdd" + struct.pack(">I", 999_990) + b"\x90" * 999_990,
    "lists in lists": b"\xdd" + struct.pack(">I", 8000) + (b"\x91" * 120 + b"\xc0") * 8000,
    "lists under keys": b"\xdf"
    + struct.pack(">I", 499_995)
    + b"".join(b"\xa6%06d\x90" % key for key in range(499_995)),
    "keys": b"\xdf" + struct.pack(">I", 250_000) + b"".join(b"\xa6%06d\x01" % key for key in range(250_000)),
    "claimed keys": b"\xdf\xff\xff\xff\xff" + b"\x01" * 400_000,
}


@pytest.mark.parametrize("name", HEAVY)
def test_c13_c14_containers_and_keys_of_msgpack_count_for_what_they_cost(name: str) -> None:
    assert msgpack_refuses(HEAVY[name]) == "body too large: more than 1000000 values"


def test_c14_200_000_keys_of_msgpack_do_not_pass_and_190_000_do() -> None:
    keys = {f"k{number}": number for number in range(190_000)}
    assert MSGPACK.decode(MSGPACK.encode(keys)) == keys
    more = {f"k{number}": number for number in range(200_000)}
    assert msgpack_refuses(MSGPACK.encode(more)) == "body too large: more than 1000000 values"


@pytest.mark.parametrize(
    "value", ["é[" * 4 * MIB, b"\x90" * 16 * MIB, [b"\x80" * MIB] * 20], ids=lambda v: type(v).__name__
)
def test_c13_what_strings_hold_is_no_value(value: Any) -> None:
    body = MSGPACK.encode(value)
    with timed() as cost:
        check_msgpack_size(body)
    assert cost.seconds < 0.1
    assert MSGPACK.decode(body) == value


# Every kind of msgpack value that has no values inside: how it starts, and how many bytes follow that start.
LEAVES = [
    *[(bytes([first]), 0) for first in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC2, 0xC3, 0xE0, 0xFF)],
    *[(bytes([0xA0 + size]), size) for size in (0, 1, 31)],
    *zip((b"\xcc", b"\xcd", b"\xce", b"\xcf"), (1, 2, 4, 8), strict=True),
    *zip((b"\xd0", b"\xd1", b"\xd2", b"\xd3"), (1, 2, 4, 8), strict=True),
    *zip((b"\xca", b"\xcb"), (4, 8), strict=True),
    *zip((b"\xd4", b"\xd5", b"\xd6", b"\xd7", b"\xd8"), (2, 3, 5, 9, 17), strict=True),
    *zip((b"\xc4\x05", b"\xc5\x01\x02", b"\xc6\x00\x01\x00\x02"), (5, 258, 65538), strict=True),
    *zip((b"\xd9\x28", b"\xda\x01\x02", b"\xdb\x00\x01\x00\x02"), (40, 258, 65538), strict=True),
    *zip((b"\xc7\x05", b"\xc8\x01\x02", b"\xc9\x00\x01\x00\x02"), (6, 259, 65539), strict=True),
    *[(start, 0) for start in (b"\xdc\x00\x00", b"\xdd" + bytes(4), b"\xde\x00\x00", b"\xdf" + bytes(4))],
]


@pytest.mark.parametrize(("start", "rest"), LEAVES, ids=[start.hex() for start, _ in LEAVES])
def test_the_scanner_steps_over_every_kind_of_value(start: bytes, rest: int) -> None:
    # What follows the first byte would itself count as one value a byte, so that a wrong step shows.
    leaf = start + b"\x01" * rest
    body = b"\xdc\x00\x12" + leaf * 17 + b"\xd9\x64" + b"x" * 100
    is_container = start[0] in b"\x80\x90\xdc\xdd\xde\xdf"
    nodes = 4 + 17 * (4 if is_container else 1) + 1
    check_msgpack_size(body, max_nodes=nodes)
    with pytest.raises(DeserializationError, match=f"more than {nodes - 1} values"):
        check_msgpack_size(body, max_nodes=nodes - 1)


@given(
    st.recursive(
        wire.scalars() | st.binary(max_size=300) | st.text(max_size=300),
        lambda inner: st.lists(inner, max_size=20) | st.dictionaries(wire.texts(40), inner, max_size=20),
        max_leaves=60,
    )
)
def test_the_scanner_counts_every_value_and_every_key(value: Any) -> None:
    def count(item: Any) -> int:
        if isinstance(item, dict):
            return 4 + sum(4 + count(entry) for entry in item.values())
        return 4 + sum(map(count, item)) if isinstance(item, list) else 1

    # Padding, because a body too small to be heavy is never scanned.
    body = b"\x92" + msgspec.msgpack.encode(value) + msgspec.msgpack.encode("x" * 100)
    check_msgpack_size(body, max_nodes=count(value) + 5)
    with pytest.raises(DeserializationError, match="body too large"):
        check_msgpack_size(body, max_nodes=count(value) + 4)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\xc1", "invalid opcode"),
        (b"\x81\xa1a\xc1", "invalid opcode"),
        (b"\xa1\xff", "utf-8"),
        (b"\xa3\xed\xa0\x80", "utf-8"),
        (b"\x01\x01", "trailing"),
        (b'{"a":1}', "trailing"),
        (b"", "truncated"),
        (b"\xc7\x01\x2a\x00", "extension type 42"),
        (b"\xd4\x2a\x00", "extension type 42"),
        (b"\x91\xc8\x00\x01\x2a\x00", "extension type 42"),
        (b"\xd6\xff\x00\x00\x00\x01", "timestamp"),
        (b"\xd7\xff" + bytes(8), "timestamp"),
        (b"\x91\xc7\x0c\xff" + bytes(12), "timestamp"),
        (b"\x81\x91\x01\x01", "array as key"),
        (b"\x81\xa1a\x91\x81\x90\x01", "array as key"),
        (b"\x81\x80\x01", "hashable"),
        (struct.pack(">Bd", 0xCB, math.nan), "NaN or infinity"),
        (b"\x81\xa1a\x92\x01" + struct.pack(">Bd", 0xCB, -math.inf), "NaN or infinity"),
        (struct.pack(">Bf", 0xCA, math.inf), "NaN or infinity"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.hex()[:12],
)
def test_c16_what_json_could_not_carry_is_refused_in_msgpack_too(body: bytes, text: str) -> None:
    message = msgpack_refuses(body)
    assert message.startswith("body is not msgpack")
    assert text.lower() in message.lower()


def test_msgpack_keys_may_be_numbers_bytes_and_null_and_bytes_stay_bytes() -> None:
    value = {1: 1, None: 2, b"k": b"v", False: 4, 1.5: 5}
    assert MSGPACK.decode(MSGPACK.encode(value)) == value
