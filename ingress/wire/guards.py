"""What a peer's bytes may cost, told before anything is decoded.

Each guard is linear in its input and allocates less than the decoder would. None of them says that its input is well
formed: that stays with the decoder. Source: docs/wire.md §3.3.
"""

from __future__ import annotations

import datetime
from itertools import accumulate
from math import isfinite
from typing import Any

from ..errors import DeserializationError

# Deeper bodies are refused. Released JSON clients give up at 128 levels too, envelope included.
MAX_BODY_DEPTH = 128

# 32 MiB of "[]," or of the msgpack byte 0x90 would decode to gigabytes: one empty container costs 56 bytes and more.
MAX_BODY_NODES = 1_000_000

# Bodies meant to exhaust a parser nest from the start; so much of them is enough to tell.
_HEAD = 16 * 1024


# -- JSON ------------------------------------------------------------------------------------------------------------


def check_json_body(body: bytes) -> None:
    """Refuse a JSON body that is too deep or has too many values.

    Values are counted as commas and opening brackets outside strings.

    Raises:
        DeserializationError: above ``MAX_BODY_DEPTH`` levels or ``MAX_BODY_NODES`` values.
    """
    opened = body.count(b"[") + body.count(b"{")
    counted = opened + body.count(b",")
    if opened <= MAX_BODY_DEPTH and counted <= MAX_BODY_NODES:
        return  # already with the brackets and commas of its strings; nearly every body ends here
    if opened > MAX_BODY_DEPTH and exceeds_depth(body[:_HEAD], MAX_BODY_DEPTH):
        raise DeserializationError(f"request too deeply nested: more than {MAX_BODY_DEPTH} levels")
    structure = _outside_strings(body, counted)
    if counted > MAX_BODY_NODES and _count_any(structure, b"[{,") > MAX_BODY_NODES:
        raise DeserializationError(f"request too large: more than {MAX_BODY_NODES} values")
    if opened > MAX_BODY_DEPTH and _depth(structure) > MAX_BODY_DEPTH:
        raise DeserializationError(f"request too deeply nested: more than {MAX_BODY_DEPTH} levels")


def exceeds_depth(raw: bytes, limit: int) -> bool:
    """Tell whether JSON nests deeper than ``limit``; brackets inside strings do not count."""
    opened = raw.count(b"[") + raw.count(b"{")
    return opened > limit and _depth(_outside_strings(raw, opened + raw.count(b","))) > limit


def _outside_strings(body: bytes, counted: int) -> bytes:
    # The obvious regular expression for a JSON string is quadratic on quotes and backslashes that never close
    # (64 KiB took 23 s); these are four passes of memchr. With the escaped backslashes and then the escaped quotes
    # gone, the quotes left are those that open and close strings. A backslash outside a string would mislead this, but
    # only from there on, and the decoder stops there.
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 4 * min(counted, MAX_BODY_NODES) + 2:
        # Between two values stands a comma or a bracket, and a value has at most a key and itself as strings.
        raise DeserializationError("request too large or no JSON: more strings than places for them")
    return b"".join(text.split(b'"')[::2])


def _count_any(text: bytes, wanted: bytes) -> int:
    return len(text) - len(text.translate(None, wanted))


_STEPS = bytes(1 if char in b"[{" else 0xFF if char in b"]}" else 0 for char in range(256))
_NO_BRACKETS = bytes(char for char in range(256) if char not in b"[]{}")


def _depth(structure: bytes) -> int:
    steps = structure.translate(_STEPS, _NO_BRACKETS)
    if len(steps) > 2 * steps.count(1):
        raise DeserializationError("not JSON: more brackets close than open")
    return max(accumulate(memoryview(steps).cast("b")), default=0)


# -- msgpack ---------------------------------------------------------------------------------------------------------


def check_msgpack_size(body: bytes, *, max_nodes: int = MAX_BODY_NODES) -> None:
    """Refuse a msgpack body of too many values.

    A value takes at least a byte, so only bodies of more than ``max_nodes`` bytes are looked at, value by value and no
    further than the limit: 0.1 to 0.2 µs a value. What strings hold is stepped over.

    Raises:
        DeserializationError: more than ``max_nodes`` values, map keys included.
    """
    size = len(body)
    if size <= max_nodes:
        return
    position = nodes = 0
    steps = _MSGPACK_STEPS
    try:
        while position < size:
            first = body[position]
            if step := steps[first]:
                position += step
            elif first == 0xD9 or first == 0xC4:  # by far the commonest of those with a length
                position += 2 + body[position + 1]
            else:
                width, extra = _MSGPACK_LONG[first]
                start = position + 1
                position = start + width + extra + int.from_bytes(body[start : start + width])
            nodes += 1
            if nodes > max_nodes:
                raise DeserializationError(f"request too large: more than {max_nodes} values")
    except IndexError:
        return  # the body ends within a length, and the decoder will say so


def _msgpack_steps() -> list[int]:
    """Return the bytes to the next value after each first byte; 0 where a length follows it."""
    steps = [1] * 256  # small integers, null, booleans, small maps and arrays
    for first in range(0xA0, 0xC0):
        steps[first] = 1 + (first & 0x1F)
    for firsts, step in (
        (b"\xcc\xd0", 2),
        (b"\xcd\xd1\xdc\xde\xd4", 3),
        (b"\xd5", 4),
        (b"\xca\xce\xd2\xdd\xdf", 5),
        (b"\xd6", 6),
        (b"\xcb\xcf\xd3", 9),
        (b"\xd7", 10),
        (b"\xd8", 18),
        (bytes(_MSGPACK_LONG), 0),
    ):
        for first in firsts:
            steps[first] = step
    return steps


# First byte -> bytes of its length field, and bytes beside what the length counts (the type of an extension).
_MSGPACK_LONG = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
}
_MSGPACK_STEPS = _msgpack_steps()


def check_msgpack_value(value: Any) -> None:
    """Refuse in a decoded msgpack body what JSON could not have carried either, and nesting.

    That is NaN and infinities, timestamps, arrays as keys.

    Raises:
        DeserializationError: one of them, or more than ``MAX_BODY_DEPTH`` levels.
    """
    _check_items((value,), MAX_BODY_DEPTH)


def _check_key(key: Any) -> None:
    if isinstance(key, tuple):
        raise DeserializationError("body is not msgpack as we take it: array as key")
    if isinstance(key, datetime.datetime) or (isinstance(key, float) and not isfinite(key)):
        raise DeserializationError("body is not msgpack as we take it: NaN, infinity or timestamp as key")


def _check_items(container: Any, levels_left: int) -> None:
    if type(container) is dict:
        for key in container:
            if type(key) is not str:
                _check_key(key)
        container = container.values()
    for item in container:
        kind = type(item)
        if kind is str or kind is int:
            continue
        if kind is dict or kind is list:
            if not levels_left:
                raise DeserializationError(f"request too deeply nested: more than {MAX_BODY_DEPTH} levels")
            if item:
                _check_items(item, levels_left - 1)
        elif kind is float:
            if not isfinite(item):
                raise DeserializationError("body is not msgpack as we take it: NaN or infinity")
        elif kind is datetime.datetime:
            raise DeserializationError("body is not msgpack as we take it: timestamp")
