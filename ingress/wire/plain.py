"""Values of engines made plain: what the encoders cannot take as it is, or would take and write wrongly.

The codecs come here only with a value their fast way refuses. The rules are those of a released 1.6.1 worker, with one
extension: instances of attrs classes and dataclasses become maps, keys in the order of their definition (msgspec itself
writes the slots of attrs classes backwards and leaves out names with an underscore). Source: docs/wire.md §4.4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

# A released worker writes 128 bits as JSON digits. As msgpack it would turn whatever exceeds 64 bits into 16 raw bytes,
# which no caller can tell from bytes.
_JSON_INTEGERS = range(-(2**127), 2**128)
_MSGPACK_INTEGERS = range(-(2**63), 2**64)


def to_json_plain(value: Any) -> Any:
    """Return the value as None, bool, int, float, str, list and dict, for a JSON encoder.

    Raises:
        ValueError: it holds what JSON as released workers write it cannot.
    """
    return _plain(value, is_json=True)


def to_msgpack_plain(value: Any) -> Any:
    """Return the value as None, bool, int, float, str, bytes, list and dict, for a msgpack encoder.

    Raises:
        ValueError: it holds what msgpack as released workers write it cannot.
    """
    return _plain(value, is_json=False)


def _plain(value: Any, *, is_json: bool) -> Any:
    # Text and numbers first, also of subclasses: np.str_, np.float64, IntEnum and StrEnum count as what they are.
    if value is None or isinstance(value, (bool, str, int, float)):
        return _plain_scalar(value, is_json=is_json)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return list(bytes(value)) if is_json else bytes(value)
    # dict and list stand before their abstract classes, whose checks cost 0.3 µs each.
    if isinstance(value, (dict, Mapping)):
        return {_plain_key(key, is_json=is_json): _plain(item, is_json=is_json) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, Sequence)):
        return [_plain(item, is_json=is_json) for item in value]
    if not isinstance(value, type) and (attrs.has(type(value)) or dataclasses.is_dataclass(value)):
        return {name: _plain(getattr(value, name), is_json=is_json) for name in _field_names(value)}
    raise ValueError(f"unsupported type {type(value).__name__}")


def _plain_scalar(value: bool | str | int | float | None, *, is_json: bool) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # str(value) would give "Colour.RED" for a member of a str enum
    if isinstance(value, float):
        return float.__float__(value)
    number = int.__index__(value)
    if number not in (_JSON_INTEGERS if is_json else _MSGPACK_INTEGERS):
        raise ValueError(f"integer of {number.bit_length()} bits exceeds {128 if is_json else 64} bits")
    return number


def _plain_key(key: Any, *, is_json: bool) -> Any:
    if is_json:
        if isinstance(key, bool):
            return "true" if key else "false"
        if isinstance(key, float) and not math.isfinite(key):
            raise ValueError("a key must be finite")
        if isinstance(key, (str, int, float)):
            return _plain_scalar(key, is_json=True)  # the encoder writes numbers as text
        raise ValueError(f"a key must be text or a number, not {type(key).__name__}")
    if isinstance(key, tuple):
        return tuple(_plain_key(part, is_json=False) for part in key)
    if key is None or isinstance(key, (bool, str, int, float)):
        return _plain_scalar(key, is_json=False)
    if isinstance(key, bytes):
        return bytes(key)
    raise ValueError(f"unsupported type {type(key).__name__} as a key")


def _field_names(value: Any) -> Iterator[str]:
    if attrs.has(type(value)):
        return (field.name for field in attrs.fields(type(value)))
    return (field.name for field in dataclasses.fields(value))
