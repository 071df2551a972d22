"""What a request, a chunk and an open stream cost in opcodes and blocks, beside the budget that is stored.

A regression is seen on every machine, however fast or busy it is. The figures come of a process of their own, so that
neither earlier tests nor whoever traces this one have a part in them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .bench import budget as budgets
from .bench import page
from .bench.blocks import FINISHED_REQUEST, GARBAGE, OPEN_STREAM, SENT_CHUNK
from .bench.budget import Comparison, compare_blocks, compare_opcodes, minor_version, other_versions, read_budgets
from .bench.opcodes import ROOT

MEASURE = [sys.executable, "-m", "tests.bench.budget", "--json"]


@pytest.fixture(scope="module")
def budget() -> Any:
    """What is stored for this Python."""
    if sys.platform != "linux" or sys.implementation.name != "cpython":
        pytest.skip(f"budgets are of CPython on Linux, this is {sys.implementation.name} on {sys.platform}")
    if (stored := read_budgets().get(minor_version())) is None:
        pytest.skip(f"no budget is stored for Python {minor_version()}; `make budget` under it stores one")
    return stored


@pytest.fixture(scope="module")
def measured(budget: Any) -> Any:
    """What is measured now."""
    ran = subprocess.run(MEASURE, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def complaints(comparisons: Sequence[Comparison]) -> str:
    return "\n\n".join(filter(None, (each.complaint for each in comparisons)))


def skip_under_other_versions(budget: Any, measured: Any) -> None:
    if others := other_versions(budget, measured):
        pytest.skip(f"counts that only the versions of the budget repeat; here are {', '.join(others)}")


# -- the budget --------------------------------------------------------------------------------------------------------


def test_our_files_execute_the_opcodes_of_the_budget(budget: Any, measured: Any) -> None:
    found = complaints(compare_opcodes(budget, measured, "ours"))
    assert not found, f"\n{found}"


def test_our_files_and_what_they_call_execute_the_opcodes_of_the_budget(budget: Any, measured: Any) -> None:
    skip_under_other_versions(budget, measured)
    found = complaints(compare_opcodes(budget, measured, "all"))
    assert not found, f"\n{found}"


def test_an_open_stream_holds_the_blocks_of_the_budget(budget: Any, measured: Any) -> None:
    skip_under_other_versions(budget, measured)
    found = complaints(compare_blocks(budget, measured, OPEN_STREAM))
    assert not found, f"\n{found}"


def test_what_has_ended_leaves_behind_no_more_than_the_budget(budget: Any, measured: Any) -> None:
    found = complaints(compare_blocks(budget, measured, FINISHED_REQUEST, SENT_CHUNK, GARBAGE))
    assert not found, f"\n{found}"


def test_the_page_shows_the_budget_that_is_stored() -> None:
    assert page.block_of(page.PAGE.read_text(encoding="utf-8"), "budget") == budgets.markdown_of(read_budgets())


# -- what is said of a figure ------------------------------------------------------------------------------------------

PUMP, HANDLER, TRIO = "ingress/_pump.py pump", "ingress/_handler.py handle", "trio/_core/_run.py checkpoint"


def figures(*, pump: float = 50, handler: float = 50, trio: float = 100, **blocks: float) -> dict[str, Any]:
    functions = {PUMP: pump, HANDLER: handler, TRIO: trio}
    return {
        "versions": {"python": "3.11.7", "trio": "0.35.0", "attrs": "26.1.0", "prometheus-client": "0.26.0"},
        "opcodes": {"chunk": {"all": pump + handler + trio, "ours": pump + handler, "functions": functions}},
        "blocks": {OPEN_STREAM: 100.0, FINISHED_REQUEST: 0.0, SENT_CHUNK: 0.0, GARBAGE: 0.0, **blocks},
    }


def test_a_figure_near_its_budget_is_not_told_of() -> None:
    for pump in (41, 50, 53):
        assert complaints(compare_opcodes(figures(), figures(pump=pump), "ours")) == ""


def test_a_figure_above_its_limit_is_told_with_the_functions_that_changed_and_how_to_renew() -> None:
    assert complaints(compare_opcodes(figures(), figures(pump=62, handler=49, trio=999), "ours")) == (
        "opcodes a chunk, in ingress/ and shapes/: 111.0; the budget is 100.0, the limit 103.0: "
        "11.0 more than the budget (+11.0%); "
        "where that is worth it, renew the budget with `make budget` and say why in the commit\n"
        f"     +12.0  {PUMP}: 50.0 → 62.0\n"
        f"      -1.0  {HANDLER}: 50.0 → 49.0"
    )


def test_opcodes_below_our_frames_count_where_all_are_compared() -> None:
    assert f"    +100.0  {TRIO}: 100.0 → 200.0" in complaints(compare_opcodes(figures(), figures(trio=200), "all"))


def test_a_figure_far_below_its_budget_asks_for_a_new_one() -> None:
    assert complaints(compare_opcodes(figures(), figures(pump=39), "ours")).splitlines() == [
        "opcodes a chunk, in ingress/ and shapes/: 89.0; the budget is 100.0: 11.0 less (-11.0%), better than stored: "
        "run `make budget`, or the next loss is not seen",
        f"     -11.0  {PUMP}: 50.0 → 39.0",
    ]


@pytest.mark.parametrize(("unit", "left"), [(FINISHED_REQUEST, 1.0), (SENT_CHUNK, 1.0), (GARBAGE, 2.0)])
def test_anything_left_behind_each_time_is_told_of(unit: str, left: float) -> None:
    assert f"{unit}: {left:.1f}; the budget is 0.0" in complaints(
        compare_blocks(figures(), figures(**{unit: left}), unit)
    )
    assert complaints(compare_blocks(figures(), figures(**{unit: left / 20}), unit)) == ""


def test_other_versions_below_our_frames_are_named() -> None:
    here = figures()
    here["versions"] = {**here["versions"], "trio": "0.36.0"}
    assert other_versions(figures(), here) == ["trio 0.36.0 (budget: 0.35.0)"]
    assert other_versions(figures(), figures()) == []


def test_storing_one_versions_figures_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    for minor, pump in (("3.11", 1), ("3.9", 2), ("3.11", 3)):
        budgets.store(minor, figures(pump=pump), path)
    assert read_budgets(path) == {"3.9": figures(pump=2), "3.11": figures(pump=3)}
    assert list(read_budgets(path)) == ["3.9", "3.11"]
