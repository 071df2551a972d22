"""JSON bodies that are meant to hurt: refused, quickly, and with little memory."""

from __future__ import annotations

import gc
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.errors import DeserializationError
from ingress.testing import _strategies as wire
from ingress.wire.codec import PayloadCodec, codec_named
from ingress.wire.guards import MAX_BODY_DEPTH, MAX_BODY_NODES, check_json_body

from .wire_costs import MIB, measured, timed

JSON = codec_named("json")
MSGPACK = codec_named("msgpack")


def json_refuses(body: bytes) -> str:
    with pytest.raises(DeserializationError) as caught:
        JSON.decode(body)
    return str(caught.value)


@pytest.mark.parametrize("depth", [129, 10**3, 10**4, 10**5, 10**6])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_c08_json_deeper_than_128_levels_is_refused_before_it_is_decoded(opening: bytes, depth: int) -> None:
    body = opening * depth
    with timed() as cost:
        assert json_refuses(body).startswith("request too deeply nested: more than 128 levels")
    assert cost.seconds < 1  # ten times what the row allows


def test_c08_128_levels_of_json_pass() -> None:
    JSON.decode(b"[" * MAX_BODY_DEPTH + b"]" * MAX_BODY_DEPTH)
    JSON.decode(b'{"a":' * MAX_BODY_DEPTH + b"1" + b"}" * MAX_BODY_DEPTH)
    # With a sibling, so that the number of brackets alone does not settle it.
    JSON.decode(b"[" * 127 + b"[],[]" + b"]" * 127)
    assert json_refuses(b"[" * 128 + b"[],[]" + b"]" * 128) == "request too deeply nested: more than 128 levels"


@pytest.mark.parametrize(
    "text", ["[" * 1000, "{" * 1000, '["' * 1000, "\\[" * 1000, '\\"[' * 1000, "\\\\" * 3 + '"[' * 500]
)
def test_c08_brackets_inside_strings_are_no_nesting(text: str) -> None:
    value = {"prompt": text, text: [text, text]}
    assert JSON.decode(json.dumps(value).encode()) == value


@pytest.mark.parametrize(("depth", "is_refused"), [(MAX_BODY_DEPTH - 1, False), (MAX_BODY_DEPTH, True)])
def test_c08_nesting_counts_wherever_in_the_body_it_comes(depth: int, is_refused: bool) -> None:
    # Far behind the beginning that is looked at first; the outer array is a level too.
    body = b'["' + b"x" * 100_000 + b'",' + b"[" * depth + b"]" * depth + b"]"
    if is_refused:
        assert json_refuses(body) == "request too deeply nested: more than 128 levels"
    else:
        JSON.decode(body)


def test_more_brackets_that_close_than_open_are_not_counted_through() -> None:
    with pytest.raises(DeserializationError, match="more brackets close than open"):
        check_json_body(b"[" * 100 + b" " * 20_000 + b"[" + b"]" * 200 + b"[" * 40)


def test_c08_many_siblings_are_no_nesting() -> None:
    messages = [{"role": "user", "content": [{"type": "text"}]}] * 1000
    assert JSON.decode(json.dumps({"messages": messages}).encode()) == {"messages": messages}


def test_c13_32_mib_of_empty_arrays_are_refused_before_they_are_decoded() -> None:
    body = b"[" + b"[]," * (32 * MIB // 3) + b"[]]"
    with measured() as cost:
        assert json_refuses(body) == "body too large: more than 1000000 values"
    assert cost.peak < 4 * len(body)


def test_c13_a_million_values_pass_and_one_more_does_not() -> None:
    body = b"[" + b"1," * (MAX_BODY_NODES - 3) + b"1]"
    assert len(JSON.decode(body)) == MAX_BODY_NODES - 2
    assert json_refuses(body[:-1] + b",1]") == "body too large: more than 1000000 values"


def test_c13_beside_commas_inside_strings_the_limit_is_the_same() -> None:
    body = b'[",[:,1e1,00000000000000000000"' + b",1" * (MAX_BODY_NODES - 3) + b"]"
    assert len(JSON.decode(body)) == MAX_BODY_NODES - 2
    assert json_refuses(body[:-1] + b",1]") == "body too large: more than 1000000 values"


def many(unit: bytes, count: int) -> bytes:
    return b"[" + b",".join([unit] * count) + b"]"


# What would take a decoder more than 0.2 s, in which nothing else runs: up to 1.3 s.
HEAVY = {
    "lists": many(b"[]", 400_000),
    "lists in lists": many(b"[" * 100 + b"]" * 100, 9000),
    "objects": many(b'{"a":1}', 200_000),
    "keys": b"{" + b",".join(b'"k%024d":1' % key for key in range(400_000)) + b"}",
    "integers of 31 digits": many(b"1" * 31, 900_000),
    "integers of 4,299 digits": many(b"9" * 4299, 7800),
    "floats of 800 digits": many(b"0." + b"1234567890" * 80, 40_000),
    "exponents": many(b"1.5e10", 900_000),
}


@pytest.mark.parametrize("name", HEAVY)
def test_c09_c13_c14_what_is_dear_to_decode_counts_for_more_than_one_value(name: str) -> None:
    assert json_refuses(HEAVY[name]) == "body too large: more than 1000000 values"


@pytest.mark.parametrize(
    "body",
    [
        many(b"[]", 240_000),
        many(b"9" * 4299, 200),
        many(b"1700000000000000000", 900_000),
        many(b"0.12345678901234567", 900_000),
        many(b"true", 900_000),
        many(b'"' + b"1" * 40 + b'"', 700_000),
    ],
    ids=["lists", "long integers", "times", "floats", "booleans", "digits in strings"],
)
def test_c13_large_bodies_of_ordinary_values_pass(body: bytes) -> None:
    assert len(JSON.decode(body)) == body.count(b",") + 1


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)
def test_c13_nothing_is_collected_while_a_large_body_is_decoded(codec: PayloadCodec) -> None:
    def collections() -> int:
        return sum(generation["collections"] for generation in gc.get_stats())

    body = codec.encode([[]] * 100_000)
    before = collections()
    value = msgspec.json.decode(body) if codec is JSON else msgspec.msgpack.decode(body)
    alone = collections() - before
    del value
    before = collections()
    codec.decode(body)
    assert alone > 50 > 10 > collections() - before
    assert gc.isenabled()


def test_c13_commas_inside_strings_are_no_values() -> None:
    text = "a,b;" * 1_500_000
    assert JSON.decode(json.dumps({"document": text}).encode()) == {"document": text}


@pytest.mark.parametrize(
    "unit", [b'"', b"\\", b'"\\', b'\\"', b'"",', b'"\\\\"', b"]", b'{"":', b'"[', b"[,"], ids=repr
)
def test_hostile_json_is_refused_in_linear_time(unit: bytes) -> None:
    # Past the beginning that alone condemns deep nesting; what is quadratic would take minutes here.
    body = b"[" * 100 + b" " * 20_000 + b"[" * 100 + unit * (4 * MIB // len(unit))
    with timed() as cost:
        json_refuses(body)
    assert cost.seconds < 2


@pytest.mark.parametrize(
    "body",
    [
        b"1" * 4301,
        b"-" + b"1" * 4301,
        b"1" * 10**5,
        b"1e999",
        b"1e400",
        b"[1e400]",
    ],
    ids=lambda body: f"{body[:6]!r}… {len(body)}",
)
def test_c09_numbers_out_of_all_range_are_refused(body: bytes) -> None:
    with timed() as cost:
        json_refuses(body)
    assert cost.seconds < 0.1


@pytest.mark.parametrize("value", [2**64, 2**128, 10**100, 10**4299, -(10**40)])
def test_c09_integers_of_up_to_4300_digits_reach_the_engine_exact(value: int) -> None:
    assert JSON.decode(str(value).encode()) == value


@pytest.mark.parametrize("body", [b"NaN", b"Infinity", b"-Infinity", b'{"a":NaN}', b"[Infinity]", b"nan", b"inf"])
def test_c10_nan_and_infinity_are_no_json(body: bytes) -> None:
    assert json_refuses(body).startswith("body is not JSON: ")


def test_c11_of_a_key_that_stands_twice_the_last_one_wins() -> None:
    assert JSON.decode(b'{"a":1,"b":2,"a":3}') == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    "body",
    [
        b'"\\ud800"',
        b'"\\ude00"',
        b'"\\ud800\\u0041"',
        b'{"\\ud800":1}',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'{"\xc3":1}',
        b'"\x00"',
        b'"\x1f"',
        b'"\n"',
        b"[1,/* c */2]",
        b"1 // c",
        b"{'a':1}",
        b"[1,]",
        b'{"a":1,}',
        b"{1:2}",
        b'"\\x41"',
        b"01",
        b"+1",
        b"1.",
        b".5",
        b"0x10",
        b"True",
        b"",
        b" ",
        b"1 2",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
    ids=repr,
)
def test_c12_what_is_not_quite_json_is_refused(body: bytes) -> None:
    assert json_refuses(body).startswith("body is not JSON: ")


@pytest.mark.parametrize("value", [None, True, 7, "text", [], {}], ids=repr)
def test_c17_any_json_value_may_be_a_body(value: Any) -> None:
    for codec in (JSON, MSGPACK):
        assert codec.decode(codec.encode(value)) == value


def test_c14_200_000_keys_and_32_mib_of_escapes_are_served() -> None:
    keys = {f"k{number}": number for number in range(200_000)}
    assert JSON.decode(json.dumps(keys).encode()) == keys
    escapes = b'"' + b"\\u0041" * (32 * MIB // 6) + b'"'
    with measured() as cost:
        assert len(JSON.decode(escapes)) == 32 * MIB // 6
    assert cost.peak < 10 * len(escapes)


@given(wire.json_values(), st.booleans())
def test_the_guard_lets_every_ordinary_body_pass(value: Any, is_ascii: bool) -> None:
    check_json_body(json.dumps(value, ensure_ascii=is_ascii).encode())


@given(st.lists(st.sampled_from([b"[", b"{", b"]", b"}", b'"', b"\\", b",", b":", b"1", b" ", b'"a"']), max_size=400))
def test_what_the_guard_passes_never_exhausts_the_decoder(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    try:
        JSON.decode(body)
    except DeserializationError as exc:
        assert not isinstance(exc.__cause__, RecursionError)
