"""A histogram of seconds whose buckets grow with the value: its memory is bounded, and so is its error.

The idea is that of HdrHistogram (hdrhistogram.org): 128 buckets for each doubling of the value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import frozen

_SUB_BITS = 7
_EXACT = 1 << (_SUB_BITS + 1)

# Thirteen days in nanoseconds; what is longer is counted as that.
_LONGEST = (1 << 50) - 1

# A value is told as the upper end of its bucket: at most this much above what it was.
RELATIVE_ERROR = 1 / (1 << _SUB_BITS)


@frozen
class Summary:
    """What is told of a histogram; seconds. All zero where nothing was counted."""

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


@frozen
class Span:
    """How many values there are above ``low`` up to ``high``; seconds."""

    low: float
    high: float
    count: int


class LogHistogram:
    """Counts durations in nanoseconds; a few microseconds a quantile, half of one a value, 45 kB for ever."""

    def __init__(self) -> None:
        self._counts = [0] * (_index(_LONGEST) + 1)
        self.count = 0
        self._min = _LONGEST
        self._max = 0
        self._sum = 0

    def record(self, seconds: float, times: int = 1) -> None:
        """Count a duration; one below zero, which clocks of two threads can make, is none."""
        value = min(max(int(seconds * 1e9 + 0.5), 0), _LONGEST)
        self._counts[_index(value)] += times
        self.count += times
        self._sum += value * times
        if value < self._min:
            self._min = value
        if value > self._max:
            self._max = value

    def quantile(self, share: float) -> float:
        """Return the least duration that at least this share of all did not exceed, at most 0.8 % too long."""
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(share * self.count - 1e-9))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_upper(index), self._max) / 1e9
        raise AssertionError("the counts do not add up")  # pragma: no cover

    def summary(self) -> Summary:
        if not self.count:
            return Summary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99, p99_9 = (self.quantile(share) for share in (0.5, 0.9, 0.99, 0.999))
        mean = self._sum / self.count / 1e9
        return Summary(self.count, self._min / 1e9, mean, p50, p90, p99, p99_9, self._max / 1e9)

    def spans(self, rows: int) -> list[Span]:
        """Divide what lies between the least and the greatest into rows of the same ratio, fewer where it is narrow."""
        if not self.count:
            return []
        low, high = max(self._min, 1), max(self._max, 1)
        rows = min(rows, max(1, math.ceil(math.log(high / low) / math.log1p(2 * RELATIVE_ERROR))))
        edges = [low * (high / low) ** (row / rows) for row in range(1, rows)] + [float(_LONGEST)]
        counts, row = [0] * rows, 0
        for upper, count in self._buckets():
            while min(upper, high) > edges[row]:
                row += 1
            counts[row] += count
        bounds = [float(self._min), *edges[:-1], float(self._max)]
        return [Span(bounds[i] / 1e9, bounds[i + 1] / 1e9, counts[i]) for i in range(rows)]

    def _buckets(self) -> Iterator[tuple[int, int]]:
        return ((_upper(index), count) for index, count in enumerate(self._counts) if count)


def _index(value: int) -> int:
    if value < _EXACT:
        return value
    shift = value.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value >> shift)


def _upper(index: int) -> int:
    """Return the greatest value that the bucket holds."""
    if index < _EXACT:
        return index
    shift = (index >> _SUB_BITS) - 1
    return ((index - (shift << _SUB_BITS) + 1) << shift) - 1
