"""About how many bytes a chunk will have on the wire, without encoding it."""

from __future__ import annotations

from typing import Any

from .wire.messages import Annotated

# Looking at more of its parts than these would cost as much as encoding it.
_MAX_PARTS = 10_000
_SIZE_OF_A_PART = 16


def estimate_size(chunk: Any) -> int:
    """Estimate the bytes of a chunk on the wire: exact for text and bytes, a constant for each number and name."""
    if type(chunk) is not dict:
        return _size_of_parts([chunk])
    size = _SIZE_OF_A_PART * (1 + len(chunk))
    for value in chunk.values():  # the usual chunk: a text, some tokens, some numbers
        kind = type(value)
        if kind is str:
            size += len(value)
        elif kind is list and value and type(value[0]) is int:
            size += 8 * len(value)
        elif kind is not int and value is not None:
            size += _size_of_parts([value])
    return size


def _size_of_parts(heap: list[Any]) -> int:
    size, parts = 0, 0
    while heap and parts < _MAX_PARTS:
        part = heap.pop()
        kind = type(part)
        parts += 1
        size += _SIZE_OF_A_PART
        if kind is str or kind is bytes or kind is bytearray:
            size += len(part)
        elif kind is dict:
            size += _SIZE_OF_A_PART * len(part)
            heap += part.values()
        elif kind is list or kind is tuple:
            if part and type(part[0]) in (int, float):
                size += 8 * len(part)
            else:
                heap += part[: _MAX_PARTS - parts]
        elif kind is Annotated:
            heap.append(part.data)
    return size
