"""Checks of settings at start. Zero is never "no limit": where there may be none, None says so.

The names are those of the arguments, so that a message names what has to be changed.
"""

from __future__ import annotations

import math
import threading

from attrs import Attribute

# A thread waits no longer; a part of it, for what is waited for may be the sum of several settings.
LONGEST_WAIT = float(int(threading.TIMEOUT_MAX) // 4)


def check_seconds(name: str, value: float) -> None:
    """Raise ValueError unless the value is a duration that may be nothing."""
    _check(name, "finite seconds, 0 or more", value, is_good=_is_number(value) and math.isfinite(value) and value >= 0)
    _check(name, f"seconds, at most {LONGEST_WAIT:.0f}", value, is_good=value <= LONGEST_WAIT)


def check_deadline(name: str, value: float) -> None:
    """Raise ValueError unless the value is a time that a peer can be waited for."""
    _check(name, "finite seconds, more than 0", value, is_good=_is_number(value) and 0 < value < math.inf)


def check_count(name: str, value: int, *, most: int | None = None) -> None:
    """Raise ValueError unless the value is a limit of things or bytes, which lets at least one pass."""
    expected = "a whole number, 1 or more" if most is None else f"a whole number from 1 to {most}"
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    _check(name, expected, value, is_good=is_whole and value >= 1 and (most is None or value <= most))


def a_duration(_: object, attribute: Attribute[float], value: float) -> None:
    """:func:`check_seconds` as a validator of attrs."""
    check_seconds(attribute.name, value)


def a_deadline(_: object, attribute: Attribute[float], value: float) -> None:
    """:func:`check_deadline` as a validator of attrs."""
    check_deadline(attribute.name, value)


def a_count(_: object, attribute: Attribute[int], value: int) -> None:
    """:func:`check_count` as a validator of attrs."""
    check_count(attribute.name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(name: str, expected: str, value: object, *, is_good: bool) -> None:
    if not is_good:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
