"""What decoded bodies weigh, against what they really take."""

from __future__ import annotations

import struct
from collections.abc import Callable
from sys import getsizeof
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress._weight import weigh_in_steps, worst_weight
from ingress.wire.codec import codec_named


def taken_by(value: Any) -> int:
    """The same sum, one value after the other."""
    if isinstance(value, dict):
        return getsizeof(value) + sum(taken_by(key) + taken_by(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return getsizeof(value) + sum(map(taken_by, value))
    return getsizeof(value)


def weigh(value: Any, size: int) -> int:
    return list(weigh_in_steps(value, size))[-1]


def an_array(count: int, of: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + of * count


# Each is the densest of its kind that we know: what a byte becomes is told by 5 to 105.
DENSE: dict[str, Callable[[], bytes]] = {
    "empty maps": lambda: an_array(20_000, b"\x80"),
    "empty lists": lambda: an_array(20_000, b"\x90"),
    "maps in maps": lambda: an_array(300, b"\x81\x00" * 100 + b"\x80"),
    "maps of one entry": lambda: an_array(10_000, b"\x81\xa0\x00"),
    "short texts with a wide letter": lambda: an_array(10_000, b"\xa4\xf0\x9f\x98\x80"),
    "a long text with a wide letter": lambda: b"\xdb" + struct.pack(">I", 50_004) + b"x" * 50_000 + b"\xf0\x9f\x98\x80",
    "large integers": lambda: an_array(10_000, b"\xcf" + b"\xff" * 8),
    "large bodies of short texts": lambda: an_array(900_000, b"\xa4\xf0\x9f\x98\x80"),
}


@pytest.mark.parametrize("name", DENSE)
def test_l08_no_body_takes_more_memory_than_its_worst(name: str) -> None:
    body = DENSE[name]()
    value = codec_named("msgpack").decode(body)
    taken = taken_by(value)
    assert taken > 3 * len(body), "no dense one"
    assert taken <= worst_weight(len(body))
    assert taken <= weigh(value, len(body)) <= worst_weight(len(body))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=6),
    max_leaves=60,
)


@given(VALUES)
def test_what_is_weighed_is_what_it_takes_or_more(value: Any) -> None:
    for name in ("json", "msgpack"):
        body = codec_named(name).encode(value)
        decoded = codec_named(name).decode(body)
        assert weigh(decoded, len(body)) >= min(taken_by(decoded), worst_weight(len(body)))


@pytest.mark.parametrize(
    ("value", "most"),
    [
        ({"messages": [{"role": "user", "content": "word " * 4000}] * 3, "model": "m"}, 1.1),
        ({"token_ids": list(range(1000, 9000))}, 15),
        ({"image": "A" * 1_000_000, "size": [640, 480]}, 1.1),
    ],
    ids=["texts", "tokens", "an image"],
)
def test_what_honest_callers_send_counts_little_more_than_its_length(value: Any, most: float) -> None:
    body = msgspec.msgpack.encode(value)
    assert weigh(msgspec.msgpack.decode(body), len(body)) <= most * len(body)


def test_a_long_list_is_looked_at_in_steps_and_a_dense_one_only_as_far_as_needed() -> None:
    texts = ["a text of forty letters, all of them plain"] * 20_000
    assert len(list(weigh_in_steps(texts, 42 * 20_000))) > 4
    dense: list[dict[str, int]] = [{} for _ in range(200_000)]
    steps = list(weigh_in_steps(dense, 200_000))
    assert steps[-1] == worst_weight(200_000)
    assert len(steps) < 200_000 / 4096 / 2


@pytest.mark.parametrize("wrap", [lambda own: own, lambda own: {"inner": [own]}])
def test_an_object_of_a_shapes_own_counts_the_worst(wrap: Callable[[object], object]) -> None:
    class Request:
        def __sizeof__(self) -> int:
            raise RuntimeError("asked an object for its size")

    assert weigh(wrap(Request()), 5000) == worst_weight(5000)
