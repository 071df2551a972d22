"""What a request, a chunk and an open stream may cost in opcodes and blocks: `python -m tests.bench.budget`.

Measures the figures of this minor version of Python and stores them in `budget.json`, for `tests/test_budget.py`, and
in docs/benchmarks.md. They are counts, the same on every machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
from attrs import Factory, frozen

from . import page
from .blocks import FINISHED_REQUEST, GARBAGE, OPEN_STREAM, SENT_CHUNK, measure_blocks
from .lockstep import FrozenClock, open_lockstep
from .opcodes import GIVES_WAY, NEVER_AWAITS, OURS, REQUEST, ROOT, OpcodeCount, measure_opcodes

PATH = Path(__file__).with_name("budget.json")

# How far a figure may be above the budget, as a share of it; measuring again changes it by less than a tenth of that.
TOLERANCE = 0.03

# A figure so far below it is no longer guarded by it.
MOST_BELOW = 0.10

# What may be above it besides: figures that are nothing have some noise all the same. One block left for good by each
# request, or by each chunk, is more.
SLACK = {OPEN_STREAM: 0.0, FINISHED_REQUEST: 0.5, SENT_CHUNK: 0.1, GARBAGE: 0.5}

# What executes opcodes below our frames. msgspec executes none, its version is for the reader.
PACKAGES_BELOW = ("trio", "attrs", "prometheus-client")
PACKAGES = (*PACKAGES_BELOW, "msgspec")

# Functions below this share of a count are not stored, so that the file stays readable.
_LEAST_SHARE = 0.003
_MOST_CHANGED = 5

RENEW = "where that is worth it, renew the budget with `make budget` and say why in the commit"


@frozen
class Figures:
    """One measurement."""

    versions: Mapping[str, str]
    opcodes: Mapping[str, OpcodeCount]
    blocks: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "versions": dict(self.versions),
            "blocks": {unit: max(0.0, round(self.blocks[unit], 1)) for unit in SLACK},
            "opcodes": {
                unit: {"all": round(count.total, 1), "ours": round(count.ours, 1), "functions": _largest(count)}
                for unit, count in self.opcodes.items()
            },
        }


def _largest(count: OpcodeCount) -> dict[str, float]:
    kept = ((name, round(n, 1)) for name, n in sorted(count.functions.items()) if n >= count.total * _LEAST_SHARE)
    return dict(kept)


def current_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def minor_version() -> str:
    return "{}.{}".format(*sys.version_info)


def measure() -> Figures:
    """Measure in this process, which is to have done nothing else."""
    clock = FrozenClock()
    gc.collect()
    gc.disable()
    opcodes, blocks = trio.run(_measure, clock, clock=clock)
    return Figures(current_versions(), opcodes, blocks)


async def _measure(clock: FrozenClock) -> tuple[dict[str, OpcodeCount], dict[str, float]]:
    async with open_lockstep(clock) as caller:
        return await measure_opcodes(caller), await measure_blocks(caller)


# -- against the budget ------------------------------------------------------------------------------------------------


@frozen
class Comparison:
    """One figure beside its budget."""

    what: str
    measured: float
    budget: float
    slack: float = 0.0
    changes: Mapping[str, tuple[float, float]] = Factory(dict)
    """By function: what it had, and what it has."""

    @property
    def limit(self) -> float:
        return self.budget * (1 + TOLERANCE) + self.slack

    @property
    def complaint(self) -> str | None:
        """What is wrong and what to do, or None."""
        more = self.measured - self.budget
        if self.measured > self.limit:
            text = (
                f"{self.what}: {self.measured:,.1f}; the budget is {self.budget:,.1f}, the limit {self.limit:,.1f}: "
                f"{more:,.1f} more than the budget{self._percent(more)}; {RENEW}"
            )
        elif -more > self.budget * MOST_BELOW + self.slack:
            text = (
                f"{self.what}: {self.measured:,.1f}; the budget is {self.budget:,.1f}: "
                f"{-more:,.1f} less{self._percent(more)}, better than stored: "
                "run `make budget`, or the next loss is not seen"
            )
        else:
            return None
        return "\n".join([text, *self._most_changed()])

    def _percent(self, more: float) -> str:
        return f" ({more / self.budget:+.1%})" if self.budget else ""

    def _most_changed(self) -> Iterator[str]:
        by_size = sorted(self.changes.items(), key=lambda change: -abs(change[1][1] - change[1][0]))
        for name, (before, now) in by_size[:_MOST_CHANGED]:
            if abs(now - before) > self.budget * _LEAST_SHARE:  # less may only have crossed the bound of what is stored
                yield f"  {now - before:+8.1f}  {name}: {before:,.1f} → {now:,.1f}"


def compare_opcodes(budget: Mapping[str, Any], measured: Mapping[str, Any], which: str) -> list[Comparison]:
    """Compare the counts of two measurements as JSON.

    Args:
        which: ``ours``, or ``all`` with what our frames call.
    """
    where = " and ".join(OURS) if which == "ours" else f"{', '.join(OURS)} and what they call"
    return [
        Comparison(
            f"opcodes a {unit}, in {where}",
            measured["opcodes"][unit][which],
            count[which],
            changes=_changes(count["functions"], measured["opcodes"][unit]["functions"], which),
        )
        for unit, count in budget["opcodes"].items()
    ]


def _changes(before: Mapping[str, float], now: Mapping[str, float], which: str) -> dict[str, tuple[float, float]]:
    names = (name for name in before.keys() | now.keys() if which == "all" or name.startswith(OURS))
    return {name: (before.get(name, 0.0), now.get(name, 0.0)) for name in sorted(names)}


def compare_blocks(budget: Mapping[str, Any], measured: Mapping[str, Any], *units: str) -> list[Comparison]:
    return [_compare_blocks(budget["blocks"], measured["blocks"], unit) for unit in units]


def _compare_blocks(budget: Mapping[str, float], measured: Mapping[str, float], unit: str) -> Comparison:
    return Comparison(_blocks_of(unit), measured[unit], budget[unit], SLACK[unit])


def _blocks_of(unit: str) -> str:
    return unit if unit == GARBAGE else f"blocks, {unit}"


def other_versions(budget: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """Name what executes opcodes or allocates below our frames and is not what the budget was measured with."""
    return [
        f"{name} {measured['versions'][name]} (budget: {budget['versions'][name]})"
        for name in ("python", *PACKAGES_BELOW)
        if measured["versions"][name] != budget["versions"][name]
    ]


# -- the file ----------------------------------------------------------------------------------------------------------


def read_budgets(path: Path = PATH) -> dict[str, Any]:
    """Return what is stored, by minor version of Python."""
    budgets: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return budgets


def store(minor: str, figures: Mapping[str, Any], path: Path = PATH) -> None:
    """Store one version's figures, and leave the others as they are."""
    budgets = (read_budgets(path) if path.exists() else {}) | {minor: figures}
    in_order = dict(sorted(budgets.items(), key=lambda item: [int(part) for part in item[0].split(".")]))
    path.write_text(json.dumps(in_order, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def markdown_of(budgets: Mapping[str, Any]) -> str:
    """Return the table of docs/benchmarks.md."""
    rows = [["figure", *(f"CPython {minor}" for minor in budgets)], ["---", *("---:" for _ in budgets)]]
    for unit in (REQUEST, NEVER_AWAITS, GIVES_WAY):
        counts = [budget["opcodes"][unit] for budget in budgets.values()]
        rows.append([f"opcodes a {unit}", *(f"{count['all']:,.0f}" for count in counts)])
        rows.append(["of these in our files", *(f"{count['ours']:,.0f}" for count in counts)])
    for unit in SLACK:
        blocks = [budget["blocks"][unit] for budget in budgets.values()]
        rows.append([_blocks_of(unit), *(f"{count:,.0f}" for count in blocks)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.budget", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures instead of storing them")
    arguments = parser.parse_args()
    figures = measure().to_json()
    if arguments.json:
        print(json.dumps(figures))
        return 0
    before = read_budgets().get(minor_version(), figures) if PATH.exists() else figures
    for each in (
        *compare_opcodes(before, figures, "all"),
        *compare_opcodes(before, figures, "ours"),
        *compare_blocks(before, figures, *figures["blocks"]),
    ):
        was = "" if each.measured == each.budget else f"; it was {each.budget:,.1f}"
        print(f"{each.measured:>9,.1f}  {each.what}{was}")
    store(minor_version(), figures)
    page.write("budget", markdown_of(read_budgets()))
    print(f"stored as the budget of {minor_version()} in {PATH.relative_to(ROOT)} and docs/benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
