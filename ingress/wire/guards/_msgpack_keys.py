"""msgpack keys that can be chosen to collide."""

from __future__ import annotations

import re

from ...errors import DeserializationError
from ._msgpack_layout import LONG, STEPS, end_of_long

# Keys that are numbers, or anything but text and bytes. Python's hashes of those are no secret, so that they can be
# chosen to collide: 165,000 of them in 1 MB took the decoder 26 s in one piece. So many take it 0.06 s. Maps of few
# entries are not counted; the worst that they can do is 0.05 s in all.
MAX_NUMBER_KEYS = 8192
_FEW_ENTRIES = 255


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
                    raise DeserializationError(f"body too large: more than {max_keys} keys that are no text")
            elif first in LONG:
                position = end_of_long(body, position)
            else:
                return  # the body ends within a value, and the decoder will say so
    except IndexError:
        return  # likewise


def _end_of_run(body: bytes, position: int) -> int:
    found = _RUN.match(body, position)
    return found.end() if found is not None else position


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
            position += STEPS[first] or end_of_long(body, position) - position
        if values:
            open_values.append(values)
            open_is_large.append(bool(is_large))
    return position, wanted


_TEXT = frozenset({*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})


def _run_pattern() -> bytes:
    """Return a pattern for values whose length their first byte tells, and for the beginnings of small maps."""
    by_step: dict[int, bytes] = {}
    for first, step in enumerate(STEPS):
        if step:
            by_step[step] = by_step.get(step, b"") + re.escape(bytes([first]))
    values = [b"[%b].{%d}" % (firsts, step - 1) for step, firsts in sorted(by_step.items())]
    return b"(?s:" + b"|".join([*values, rb"\xde\0.", rb"\xdf\0\0\0."]) + b")*+"


_RUN = re.compile(_run_pattern())
