"""msgpack values: how many a body has, and what they may be."""

from __future__ import annotations

import datetime
from math import isfinite
from typing import Any

from ...errors import DeserializationError
from ._limits import MAX_BODY_DEPTH, MAX_BODY_NODES, OF_CONTAINER, OF_KEY
from ._msgpack_layout import LONG, STEPS


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
    steps, weights = STEPS, _WEIGHTS
    try:
        while position < size:
            first = body[position]
            nodes += weights[first]
            if step := steps[first]:
                position += step
            elif first == 0xDE or first == 0xDF:
                width = 2 if first == 0xDE else 4
                nodes += OF_KEY * int.from_bytes(body[position + 1 : position + 1 + width])
                position += 1 + width
            elif first == 0xD9 or first == 0xC4:  # by far the commonest of those with a length
                position += 2 + body[position + 1]
            else:
                width, extra = LONG[first]
                start = position + 1
                position = start + width + extra + int.from_bytes(body[start : start + width])
            if nodes > max_nodes:
                raise DeserializationError(f"body too large: more than {max_nodes} values")
    except IndexError:
        return  # the body ends within a length, and the decoder will say so


_WEIGHTS = [
    1 + OF_CONTAINER + OF_KEY * (first & 0x0F if first < 0x90 else 0)
    if 0x80 <= first < 0xA0 or 0xDC <= first < 0xE0
    else 1
    for first in range(256)
]


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
