"""How costs grow: the curves, and which of their steps are steeper than they should be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from attrs import frozen

# Between neighbours the cost of one chunk, request or byte may grow by this factor before the step counts as
# super-linear. Medians of quiet rounds differ by some 15 %; a cost that grows with the number of streams would, from
# point to point, grow fourfold.
STEEPEST = 1.5


@frozen
class Curve:
    """The cost of one unit at growing values of ``x``."""

    key: str
    title: str
    x_name: str
    y_name: str
    xs: tuple[int, ...]
    costs: tuple[float, ...]
    is_judged: bool = True
    """False where the cost of a unit has to grow, as that of a chunk with its bytes."""

    @property
    def steep_steps(self) -> list[str]:
        """Say where the cost of a unit grows too much; empty where it nowhere does."""
        if not self.is_judged:
            return []
        return [
            f"{self.y_name} from {x_text(a)} to {x_text(b)} {self.x_name}: {before:.3g} to {after:.3g}, "
            f"{after / before:.2g}×"
            for (a, before), (b, after) in pairwise(zip(self.xs, self.costs, strict=True))
            if after > STEEPEST * before
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "x": self.x_name,
            "cost": self.y_name,
            "points": [{"x": x, "cost": cost} for x, cost in zip(self.xs, self.costs, strict=True)],
            "steep_steps": self.steep_steps,
        }


def x_text(value: int) -> str:
    """Return 1,000 as it is and 4,096 as 4 KiB, for sizes are powers of two."""
    for unit, size in (("Mi", 1 << 20), ("Ki", 1 << 10)):
        if value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value:,}"


def cost_text(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


def verdict(curves: Sequence[Curve]) -> list[str]:
    """Return a line for each steep step, or one that says that there is none."""
    steep = [step for curve in curves for step in curve.steep_steps]
    if steep:
        return [f"super-linear: {step}" for step in steep]
    return [f"no step is super-linear: nowhere does the cost of one grow by more than {STEEPEST:g}× to the next point"]


def markdown_of(curves: Sequence[Curve]) -> str:
    """Return a table a curve."""
    parts = []
    for curve in curves:
        parts += [
            f"| {curve.x_name} | " + " | ".join(x_text(x) for x in curve.xs) + " |",
            "| --- |" + " ---: |" * len(curve.xs),
            f"| {curve.y_name} | " + " | ".join(cost_text(cost) for cost in curve.costs) + " |",
            "",
        ]
    return "\n".join(parts) + "\n"
