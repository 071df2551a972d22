"""The table of the workers side by side, for eyes and for the page, and which targets are met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen
from rich.table import Table

from .rows import HIGHER_IS_BETTER, OURS, Figures, Row, Target

Measured = Mapping[str, Figures]
"""The medians of one row, by worker."""


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


def markdown_table(rows: Mapping[Row, Measured], names: Sequence[str]) -> str:
    """Return the same table for docs/benchmarks.md."""
    lines = [f"| load | figure | {' | '.join(names)} |", "| --- | --- |" + " ---: |" * len(names)]
    for row, measured in rows.items():
        for i, figure in enumerate(row.figures):
            cells = [row.name if i == 0 else "", figure, *(_cell(figure, name, measured) for name in names)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def markdown_targets(rows: Iterable[Row]) -> str:
    """Return what each row is to reach, for docs/benchmarks.md."""
    lines = ["| load | what is measured | target |", "| --- | --- | --- |"]
    for row in rows:
        wanted = "; ".join(_wanted(target) for target in row.targets)
        lines.append(f"| {row.name} | {', '.join(row.figures)} | {wanted} |")
    return "\n".join(lines) + "\n"


def _wanted(target: Target) -> str:
    if target.against is None:
        return f"{target.figure} at most {target.factor:g}"
    if target.factor < 1:
        return f"{target.figure} at most {1 / target.factor:g}× that of the {target.against}"
    return f"{target.figure} at least {target.factor:g}× better than {target.against}"


def read_medians(document: Mapping[str, Any], rows: Iterable[Row]) -> dict[Row, dict[str, Figures]]:
    """Return the medians of a ``bench.json``, of the rows and figures that there still are."""
    found = {}
    for row in rows:
        by_name: Mapping[str, Figures] = document["medians"].get(row.key, {})
        whole = {name: dict(each) for name, each in by_name.items() if each.keys() >= set(row.figures)}
        if whole:
            found[row] = whole
    return found


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
                judged.append(Verdict(row.name, _wanted(target), ours, target.factor, ours <= target.factor))
                continue
            reached = ratio(target.figure, ours, measured[target.against][target.figure])
            judged.append(Verdict(row.name, _wanted(target), reached, target.factor, reached >= target.factor))
    return judged


def markdown_verdicts(judged: Sequence[Verdict]) -> str:
    """Return how many targets are met, and those that are not, for docs/benchmarks.md."""
    missed = [each for each in judged if not each.is_met]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets are met{'; missed:' if missed else '.'}"]
    if missed:
        lines += ["", *(f"- {each.row}: {each.what}; reached {each.reached:.3g}" for each in missed)]
    return "\n".join(lines) + "\n"
