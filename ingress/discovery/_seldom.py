"""Log lines that would otherwise repeat."""

from __future__ import annotations


class Seldom:
    """Lets one log line per key and period through; used by one task.

    Keys may come from hostile neighbours, so only ``max_keys`` are remembered. While all of them are younger than the
    period, further keys are held back: a directory of 10^5 junk files costs 1000 lines an hour, not 10^5.
    """

    def __init__(self, period: float, *, max_keys: int = 1000) -> None:
        self._period = period
        self._max_keys = max_keys
        self._said_at: dict[str, float] = {}  # oldest first

    def is_due(self, key: str, now: float) -> bool:
        """Tell whether to log about ``key`` now, and remember that it was done."""
        said_at = self._said_at.get(key)
        if said_at is not None:
            if now - said_at < self._period:
                return False
            del self._said_at[key]
        elif len(self._said_at) >= self._max_keys:
            oldest = next(iter(self._said_at))
            if now - self._said_at[oldest] < self._period:
                return False
            del self._said_at[oldest]
        self._said_at[key] = now
        return True
