"""What was measured, and how it is told. Seconds are those of the loop's clock."""

from __future__ import annotations

from attrs import define, frozen


@define
class Tally:
    """What was seen of an answer, and when."""

    began: float
    first: float | None = None
    ended: float = 0.0
    items: int = 0
    instance_id: int = 0

    def count(self, now: float) -> None:
        self.items += 1
        if self.first is None:
            self.first = now

    def summary(self) -> str:
        """``58 chunks · first 3.1 ms · 41,900 chunks/s · instance 3f…``, of what was measured only."""
        parts = [f"{self.items:,} chunk{'' if self.items == 1 else 's'}"]
        if self.first is not None:
            parts.append(f"first {(self.first - self.began) * 1000:.1f} ms")
            parts.append(f"{self.ended - self.began:.2f} s")
        if self.items > 1 and self.ended > self.began:
            parts.append(f"{self.items / (self.ended - self.began):,.0f} chunks/s")
        return " · ".join([*parts, f"instance {self.instance_id:x}"])


@define
class Ending:
    """How one answer ended, at the engine."""

    words: int = 0
    is_cancelled: bool = False
    failure: Exception | None = None
    at: float = 0.0


@frozen
class Figures:
    """What was measured; seconds."""

    chunks: int
    first: float
    burst_chunks: int
    burst: float
    stopped_after: float | None
    cancelled: int

    def __str__(self) -> str:
        rate = f"{self.burst_chunks / self.burst:,.0f} chunks/s unpaced" if self.burst > 0 else ""
        left = f"{self.cancelled} cancelled"
        if self.stopped_after is not None:
            left += f" in {self.stopped_after * 1000:.1f} ms"
        return " · ".join([f"{self.chunks} chunks", f"first {self.first * 1000:.1f} ms", rate, left])
