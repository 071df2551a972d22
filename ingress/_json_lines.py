"""Log lines as JSON that are no longer than they may be, whatever stands on them: one object a line, pure ASCII."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TRACEBACK = "traceback"
"""The field that has two shares of a line."""

# A text that is too long is cut to no less, and has this at the cut.
_LEAST_SHARE = 64
_CUT_SIZE = len(json.dumps("…"))


def fitted(fields: dict[str, Any], size: int) -> str:
    """Return the object as a line of less than ``size`` bytes.

    What is longer than its share of them is cut: texts in their middle, for both ends say something, and tracebacks,
    which have two shares, at their head; but those of groups in their middle, for their members come last.
    """
    for key, value in fields.items():
        if isinstance(value, str) and not value.isascii():
            fields[key] = value.encode(errors="backslashreplace").decode()  # lone surrogates are no JSON text
    line = json.dumps(fields, separators=(",", ":"))
    while len(line) >= size:
        sizes = {key: len(json.dumps(value)) for key, value in fields.items() if isinstance(value, str)}
        share = _share_of(sizes, size - 1 - len(line) + sum(sizes.values()))
        if share < _LEAST_SHARE:  # there are too many: the last ones go
            fields.popitem()
        else:
            for key in (each for each, taken in sizes.items() if taken > share * _shares_of(each)):
                fields[key] = _cut(fields[key], share * _shares_of(key) - _CUT_SIZE, is_traceback=key == TRACEBACK)
        line = json.dumps(fields, separators=(",", ":"))
    return line


def _share_of(sizes: Mapping[str, int], room: int) -> int:
    """Return how many bytes a share has; texts that need less of theirs leave it to the others."""
    shares = sum(map(_shares_of, sizes))
    for key in sorted(sizes, key=lambda each: sizes[each] / _shares_of(each)):
        if sizes[key] > room // shares * _shares_of(key):
            return room // shares
        room -= sizes[key]
        shares -= _shares_of(key)
    return room


def _shares_of(key: str) -> int:
    return 2 if key == TRACEBACK else 1


def _cut(text: str, room: int, *, is_traceback: bool) -> str:
    is_end_enough = is_traceback and not is_group(text)
    head = "" if is_end_enough else json_beginning(text, room // 2)
    tail = json_beginning(text[::-1], room if is_end_enough else room // 2)[::-1]
    return f"{head}…{tail}"


def is_group(traceback: str) -> bool:
    """Tell whether a traceback, or a line of it, is that of a group of exceptions."""
    return "+ Exception Group Traceback" in traceback


def json_beginning(text: str, room: int) -> str:
    """Return as much of a text as takes so many bytes of JSON; an escaped character may take twelve."""
    for at, character in enumerate(text):
        room -= len(json.dumps(character)) - 2
        if room < 0:
            return text[:at]
    return text
