"""Where the next msgpack value begins, told by the first byte of this one."""

from __future__ import annotations

# First byte -> bytes of its length field, and bytes beside what the length counts (the type of an extension).
LONG = {
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


def _steps_by_first_byte() -> list[int]:
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
        (bytes(LONG) + b"\xde\xdf", 0),
    ):
        for first in firsts:
            steps[first] = step
    return steps


STEPS = _steps_by_first_byte()


def end_of_long(body: bytes, position: int) -> int:
    """Return where the value at ``position`` ends, whose length follows its first byte."""
    width, extra = LONG[body[position]]
    start = position + 1
    return start + width + extra + int.from_bytes(body[start : start + width])
