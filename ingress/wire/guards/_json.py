"""JSON bodies: their depth, and what their values, keys and numbers would cost."""

from __future__ import annotations

import re
from itertools import accumulate

from ...errors import DeserializationError
from ._limits import MAX_BODY_DEPTH, MAX_BODY_NODES, OF_CONTAINER, OF_KEY
from ._steps import end_step

# Nothing counts more than three a byte.
_NEVER_HEAVY = MAX_BODY_NODES // 3

# Bodies meant to exhaust a parser nest from the start; so much of them is enough to tell.
_HEAD = 16 * 1024


def check_json_body(body: bytes, *, max_depth: int | None = MAX_BODY_DEPTH) -> bool:
    """Refuse a JSON body that is too deep or would take too long; tell whether it may hold floats with exponents.

    Counted is outside strings: a comma once, an opening bracket and a colon three times, long numbers by their digits.

    Args:
        max_depth: None where the decoder's own limit of some 1,000 levels will do.

    Raises:
        DeserializationError: above ``max_depth`` levels or ``MAX_BODY_NODES`` values.
    """
    most_opened = len(body) if max_depth is None else max_depth
    opened = body.count(b"[")
    end_step()
    opened += body.count(b"{")
    if len(body) <= _NEVER_HEAVY:
        if opened > most_opened:
            _check_structure(body, opened, 0, most_opened)
        return has_exponent(body)
    end_step()
    signs = body.translate(_NUMBER_SIGNS)
    end_step()
    commas = body.count(b",")
    end_step()
    weight = commas + OF_CONTAINER * opened + OF_KEY * body.count(b":")
    end_step()
    weight += _weigh_numbers(signs, commas)
    end_step()
    if opened > most_opened or weight > MAX_BODY_NODES:  # perhaps by what its strings hold
        _check_structure(body, opened, weight, most_opened)
    return b"0e" in signs and has_exponent(body)


def _check_structure(body: bytes, opened: int, weight: int, max_depth: int) -> None:
    if opened > max_depth and exceeds_depth(body[:_HEAD], max_depth):
        raise DeserializationError(f"request too deeply nested: more than {max_depth} levels")
    # No value and no key is without one of these.
    structure = _outside_strings(body, body.count(b",") + opened)
    end_step()
    if weight > MAX_BODY_NODES:
        commas = structure.count(b",")
        end_step()
        weight = commas + OF_CONTAINER * _count_any(structure, b"[{")
        end_step()
        weight += OF_KEY * structure.count(b":")
        end_step()
        signs = structure.translate(_NUMBER_SIGNS)
        end_step()
        weight += _weigh_numbers(signs, commas)
        end_step()
        if weight > MAX_BODY_NODES:
            raise DeserializationError(f"body too large: more than {MAX_BODY_NODES} values")
    if opened > max_depth and _depth(structure) > max_depth:
        raise DeserializationError(f"request too deeply nested: more than {max_depth} levels")


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
        raise DeserializationError("body too large or no JSON: more strings than places for them")
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
