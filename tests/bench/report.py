"""The machine, the table, and which targets are met."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from attrs import frozen
from rich.table import Table

from .rows import HIGHER_IS_BETTER, OURS, Figures, Row

Measured = Mapping[str, Figures]
"""The medians of one row, by worker."""


def machine() -> dict[str, object]:
    """Return what a reader needs to know of the machine, taken before the load."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("ingress-dispatch", "trio", "msgspec")},
        "load_average": round(os.getloadavg()[0], 2),
    }


def machine_line(facts: Mapping[str, object]) -> str:
    """The same as one line."""
    packages = facts["packages"]
    assert isinstance(packages, dict)
    return " · ".join(
        (
            f"{facts['cpu']}, {facts['cores']} cores",
            f"python {facts['python']}",
            *(f"{name} {number}" for name, number in packages.items()),
            f"load average at the start {facts['load_average']}",
        )
    )


def ratio(figure: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    if figure in HIGHER_IS_BETTER:
        return ours / theirs if theirs else float("inf")
    return theirs / ours if ours else float("inf")


def table(rows: Mapping[Row, Measured], names: list[str]) -> Table:
    """One line a figure, one column a worker; in brackets how many times better ours is."""
    drawn = Table(title="medians; in brackets how many times better ours is", title_justify="left")
    drawn.add_column("load", no_wrap=True)
    drawn.add_column("figure", no_wrap=True)
    for name in names:
        drawn.add_column(name, justify="right", no_wrap=True)
    for row, measured in rows.items():
        for i, figure in enumerate(row.figures):
            cells = [_cell(figure, name, measured) for name in names]
            drawn.add_row(row.name if i == 0 else "", figure, *cells, end_section=i == len(row.figures) - 1)
    return drawn


def _cell(figure: str, name: str, measured: Measured) -> str:
    if name not in measured:
        return "–"
    value = measured[name][figure]
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    if name == OURS or OURS not in measured:
        return text
    return f"{text} ({ratio(figure, measured[OURS][figure], value):.2g}×)"


@frozen
class Verdict:
    """Whether one target is met, and by how much."""

    row: str
    what: str
    reached: float
    wanted: float
    is_met: bool

    def __str__(self) -> str:
        return f"{'met   ' if self.is_met else 'MISSED'}  {self.row}: {self.what}; reached {self.reached:.3g}"


def verdicts(rows: Mapping[Row, Measured]) -> list[Verdict]:
    """Judge every target whose two sides were measured."""
    judged = []
    for row, measured in rows.items():
        for target in row.targets:
            if OURS not in measured or (target.against is not None and target.against not in measured):
                continue
            ours = measured[OURS][target.figure]
            if target.against is None:
                what = f"{target.figure} at most {target.factor:g}"
                judged.append(Verdict(row.name, what, ours, target.factor, ours <= target.factor))
                continue
            reached = ratio(target.figure, ours, measured[target.against][target.figure])
            what = f"{target.figure} at least {target.factor:g}× better than {target.against}"
            if target.factor < 1:
                what = f"{target.figure} at most {1 / target.factor:g}× that of the {target.against}"
            judged.append(Verdict(row.name, what, reached, target.factor, reached >= target.factor))
    return judged
