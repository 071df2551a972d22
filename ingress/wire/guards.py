"""What a peer's bytes may cost, told before anything is decoded.

Each guard is linear in its input and allocates less than the decoder would. None of them says that its input is well
formed: that stays with the decoder. Source: docs/wire.md §3.3.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from contextvars import ContextVar
from itertools import accumulate
from math import isfinite
from typing import Any

from ..errors import DeserializationError

# Deeper bodies are refused. Released JSON clients give up at 128 levels too, envelope included.
MAX_BODY_DEPTH = 128

# 32 MiB of "[]," or of the msgpack byte 0x90 would decode to gigabytes: one empty container costs 56 bytes and more.
MAX_BODY_NODES = 1_000_000

# What a container and a key count beside their value. With that the dearest million that pass, whatever they are, take
# the decoders 0.2 s (0.12 µs a list, 0.75 µs a key, on the machine of docs/reliability.md), in which nothing else runs.
_OF_CONTAINER, _OF_KEY = 3, 3

# Nothing counts more than three a byte.
_NEVER_HEAVY = MAX_BODY_NODES // 3

# Keys that are numbers, or anything but text and bytes. Python's hashes of those are no secret, so that they can be
# chosen to collide: 165,000 of them in 1 MB took the decoder 26 s in one piece. So many take it 0.06 s. Maps of few
# entries are not counted; the worst that they can do is 0.05 s in all.
MAX_NUMBER_KEYS = 8192
_FEW_ENTRIES = 255

# Bodies meant to exhaust a parser nest from the start; so much of them is enough to tell.
_HEAD = 16 * 1024


between_steps: ContextVar[Callable[[], None] | None] = ContextVar("between_steps", default=None)
"""What is called between the steps of a large body, each of which lets no other thread run; by default nothing."""


def end_step() -> None:
    """Have others run, where somebody has seen to that."""
    if (call := between_steps.get()) is not None:
        call()


# -- JSON ------------------------------------------------------------------------------------------------------------


def check_json_body(body: bytes) -> bool:
    """Refuse a JSON body that is too deep or would take too long; tell whether it may hold floats with exponents.

    Counted is outside strings: a comma once, an opening bracket and a colon three times, long numbers by their digits.

    Raises:
        DeserializationError: above ``MAX_BODY_DEPTH`` levels or ``MAX_BODY_NODES`` values.
    """
    opened = body.count(b"[")
    end_step()
    opened += body.count(b"{")
    if len(body) <= _NEVER_HEAVY:
        if opened > MAX_BODY_DEPTH:
            _check_structure(body, opened, 0)
        return has_exponent(body)
    end_step()
    signs = body.translate(_NUMBER_SIGNS)
    end_step()
    commas = body.count(b",")
    end_step()
    weight = commas + _OF_CONTAINER * opened + _OF_KEY * body.count(b":")
    end_step()
    weight += _weigh_numbers(signs, commas)
    end_step()
    if opened > MAX_BODY_DEPTH or weight > MAX_BODY_NODES:  # perhaps by what its strings hold
        _check_structure(body, opened, weight)
    return b"0e" in signs and has_exponent(body)


def _check_structure(body: bytes, opened: int, weight: int) -> None:
    if opened > MAX_BODY_DEPTH and exceeds_depth(body[:_HEAD], MAX_BODY_DEPTH):
        raise DeserializationError(f"request too deeply nested: more than {MAX_BODY_DEPTH} levels")
    # No value and no key is without one of these.
    structure = _outside_strings(body, body.count(b",") + opened)
    end_step()
    if weight > MAX_BODY_NODES:
        commas = structure.count(b",")
        end_step()
        weight = commas + _OF_CONTAINER * _count_any(structure, b"[{")
        end_step()
        weight += _OF_KEY * structure.count(b":")
        end_step()
        signs = structure.translate(_NUMBER_SIGNS)
        end_step()
        weight += _weigh_numbers(signs, commas)
        end_step()
        if weight > MAX_BODY_NODES:
            raise DeserializationError(f"request too large: more than {MAX_BODY_NODES} values")
    if opened > MAX_BODY_DEPTH and _depth(structure) > MAX_BODY_DEPTH:
        raise DeserializationError(f"request too deeply nested: more than {MAX_BODY_DEPTH} levels")


# msgspec's own reading of a float with an exponent takes up to 30 µs, so a megabyte of them stops the loop for seconds;
# Python's takes 0.4 to 0.7 µs, and more than msgspec's where there is none (docs/wire.md §3).
_EXPONENT = re.compile(rb"[0-9][eE][+-]?[0-9]")
# A search costs 20 ns a byte, so half a second for the largest body; two passes over its bytes alone cost a tenth.
_LARGE = 64 * 1024
_NUMBER_SIGNS = bytes(0x30 if chr(char) in "0123456789" else 0x65 if char == 0x45 else char for char in range(256))


def has_exponent(body: bytes) -> bool:
    """Tell whether JSON may hold floats with exponents; what its strings hold may deceive."""
    if len(body) > _LARGE and b"0e" not in body.translate(_NUMBER_SIGNS):
        return False
    return _EXPONENT.search(body) is not None


# Digits and exponents cost by the number: 31 digits as much as two short ones, 300 as much as 15, 4,300 as much as 800,
# for their cost is quadratic; one exponent as much as two values.
_SOME_DIGITS, _OF_SOME_DIGITS = b"0" * 20, 2
_MANY_DIGITS, _OF_MANY_DIGITS = b"0" * 500, 100


def _weigh_numbers(signs: bytes, commas: int) -> int:
    """Weigh what numbers cost beside being values, given JSON whose digits are all zeros."""
    runs = signs.count(_SOME_DIGITS)
    weight = _OF_SOME_DIGITS * runs
    end_step()
    if runs:
        weight += _OF_MANY_DIGITS * signs.count(_MANY_DIGITS)
    if 2 * commas >= MAX_BODY_NODES:  # there are no more exponents than values
        weight += signs.count(b"0e")
    return weight


def exceeds_depth(raw: bytes, limit: int) -> bool:
    """Tell whether JSON nests deeper than ``limit``; brackets inside strings do not count."""
    opened = raw.count(b"[") + raw.count(b"{")
    return opened > limit and _depth(_outside_strings(raw, opened + raw.count(b","))) > limit


def _outside_strings(body: bytes, counted: int) -> bytes:
    # The obvious regular expression for a JSON string is quadratic on quotes and backslashes that never close
    # (64 KiB took 23 s); these are four passes of memchr. With the escaped backslashes and then the escaped quotes
    # gone, the quotes left are those that open and close strings. A backslash outside a string would mislead this, but
    # only from there on, and the decoder stops there.
    text = body.replace(b"\\\\", b"")
    end_step()
    text = text.replace(b'\\"', b"")
    end_step()
    if text.count(b'"') > min(4 * counted, 2 * MAX_BODY_NODES) + 2:
        # Between two values stands a comma or a bracket, and a value has at most a key and itself as strings.
        raise DeserializationError("request too large or no JSON: more strings than places for them")
    pieces = text.split(b'"')[::2]
    end_step()
    return b"".join(pieces)


def _count_any(text: bytes, wanted: bytes) -> int:
    return len(text) - len(text.translate(None, wanted))


_STEPS = bytes(1 if char in b"[{" else 0xFF if char in b"]}" else 0 for char in range(256))
_NO_BRACKETS = bytes(char for char in range(256) if char not in b"[]{}")


def _depth(structure: bytes) -> int:
    steps = structure.translate(_STEPS, _NO_BRACKETS)
    end_step()
    if len(steps) > 2 * steps.count(1):
        raise DeserializationError("not JSON: more brackets close than open")
    return max(accumulate(memoryview(steps).cast("b")), default=0)


# -- msgpack ---------------------------------------------------------------------------------------------------------


def check_msgpack_size(body: bytes, *, max_nodes: int = MAX_BODY_NODES) -> None:
    """Refuse a msgpack body of too many values.

    Only bodies that are large enough to be heavy are looked at, value by value and no further than the limit: 0.1 to
    0.2 µs a value. What strings hold is stepped over. Containers count three more, and so do keys, those that a map
    claims to have.

    Raises:
        DeserializationError: more than ``max_nodes`` values, map keys included.
    """
    size = len(body)
    if size <= max_nodes // 4:
        return
    position = nodes = 0
    steps, weights = _MSGPACK_STEPS, _MSGPACK_WEIGHTS
    try:
        while position < size:
            first = body[position]
            nodes += weights[first]
            if step := steps[first]:
                position += step
            elif first == 0xDE or first == 0xDF:
                width = 2 if first == 0xDE else 4
                nodes += _OF_KEY * int.from_bytes(body[position + 1 : position + 1 + width])
                position += 1 + width
            elif first == 0xD9 or first == 0xC4:  # by far the commonest of those with a length
                position += 2 + body[position + 1]
            else:
                width, extra = _MSGPACK_LONG[first]
                start = position + 1
                position = start + width + extra + int.from_bytes(body[start : start + width])
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
        (b"\xcd\xd1\xdc\xd4", 3),
        (b"\xd5", 4),
        (b"\xca\xce\xd2\xdd", 5),
        (b"\xd6", 6),
        (b"\xcb\xcf\xd3", 9),
        (b"\xd7", 10),
        (b"\xd8", 18),
        (bytes(_MSGPACK_LONG) + b"\xde\xdf", 0),
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
_MSGPACK_WEIGHTS = [
    1 + _OF_CONTAINER + _OF_KEY * (first & 0x0F if first < 0x90 else 0)
    if 0x80 <= first < 0xA0 or 0xDC <= first < 0xE0
    else 1
    for first in range(256)
]


def check_msgpack_keys(body: bytes, *, max_keys: int = MAX_NUMBER_KEYS) -> None:
    """Refuse a msgpack body whose large maps have many keys that are neither text nor bytes.

    Bodies without large maps are stepped through at 40 ns a value at most, text at the speed of a search for one byte.

    Raises:
        DeserializationError: more than ``max_keys`` such keys.
    """
    size, position, left = len(body), 0, max_keys
    # No key and its value have less than two bytes.
    if size <= 2 * max_keys or not (0xDE in body or 0xDF in body):
        return
    try:
        while (position := _end_of_run(body, position)) < size:
            first = body[position]
            if first == 0xDE or first == 0xDF:
                position, left = _count_keys(body, position, left)
                if left < 0:
                    raise DeserializationError(f"request too large: more than {max_keys} keys that are no text")
            elif first in _MSGPACK_LONG:
                position = _end_of_long(body, position)
            else:
                return  # the body ends within a value, and the decoder will say so
    except IndexError:
        return  # likewise


def _end_of_run(body: bytes, position: int) -> int:
    found = _RUN.match(body, position)
    return found.end() if found is not None else position


def _end_of_long(body: bytes, position: int) -> int:
    width, extra = _MSGPACK_LONG[body[position]]
    start = position + 1
    return start + width + extra + int.from_bytes(body[start : start + width])


def _count_keys(body: bytes, position: int, wanted: int) -> tuple[int, int]:
    """Count down for each key that is no text, in the large map at ``position`` and those within it.

    Returns the end of the map, and what is left; stops below 0.
    """
    open_values, open_is_large = [1], [False]  # values still to come, of each container that is open
    while open_values:
        if not open_values[-1]:
            del open_values[-1], open_is_large[-1]
            continue
        open_values[-1] -= 1
        first = body[position]
        if open_is_large[-1] and open_values[-1] & 1 and first not in _TEXT:
            wanted -= 1
            if wanted < 0:
                break
        values = is_large = 0
        if 0x80 <= first < 0xA0:
            values = 2 * (first & 0x0F) if first < 0x90 else first & 0x0F
            position += 1
        elif 0xDC <= first <= 0xDF:  # arrays and maps with a count of two bytes or four
            width = 4 if first & 1 else 2
            values = int.from_bytes(body[position + 1 : position + 1 + width])
            if first >= 0xDE:
                is_large = values > _FEW_ENTRIES
                values *= 2
            position += 1 + width
        else:
            position += _MSGPACK_STEPS[first] or _end_of_long(body, position) - position
        if values:
            open_values.append(values)
            open_is_large.append(bool(is_large))
    return position, wanted


_TEXT = frozenset({*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})


def _run_pattern() -> bytes:
    """Return a pattern for values whose length their first byte tells, and for the beginnings of small maps."""
    by_step: dict[int, bytes] = {}
    for first, step in enumerate(_MSGPACK_STEPS):
        if step:
            by_step[step] = by_step.get(step, b"") + re.escape(bytes([first]))
    values = [b"[%b].{%d}" % (firsts, step - 1) for step, firsts in sorted(by_step.items())]
    return b"(?s:" + b"|".join([*values, rb"\xde\0.", rb"\xdf\0\0\0."]) + b")*+"


_RUN = re.compile(_run_pattern())


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
