"""What the benchmarks say of their figures: curves, verdicts, and the page they write."""

from __future__ import annotations

from pathlib import Path

import pytest

from .bench import page
from .bench.curves import STEEPEST, Curve, cost_text, markdown_of, verdict, x_text
from .bench.growth import PLOTS, SIZES, Growth, frame_size
from .bench.report import markdown_table, markdown_targets, markdown_verdicts, read_medians, verdicts
from .bench.rows import CPU, DYNAMO, FIRST, OURS, ROWS


def curve(*costs: float, is_judged: bool = True) -> Curve:
    xs = tuple(4**i for i in range(len(costs)))
    return Curve("streams", "more streams", "streams", "µs a chunk", xs, costs, is_judged=is_judged)


# -- growth -----------------------------------------------------------------------------------------------------------


def test_a_cost_that_stays_or_falls_is_not_super_linear() -> None:
    assert curve(5, 5 * STEEPEST, 4, 4.1).steep_steps == []
    assert verdict([curve(5, 4)]) == [
        "no step is super-linear: nowhere does the cost of one grow by more than 1.5× to the next point"
    ]


def test_a_step_that_is_too_steep_is_named_with_its_ends() -> None:
    assert verdict([curve(5, 5), curve(4, 4, 16, 20)]) == ["super-linear: µs a chunk from 4 to 16 streams: 4 to 16, 4×"]


def test_what_has_to_grow_is_not_judged() -> None:
    assert curve(1, 1000, is_judged=False).steep_steps == []


def test_a_quadratic_cost_is_found_at_every_distance_of_the_points() -> None:
    growth = Growth(is_quick=True)
    for rounds in (growth.streams, growth.sizes, growth.endpoints):
        for x, costs in rounds.items():
            costs.append(1e-9 * x * x)
    steep = [step for curves in growth.curves.values() for each in curves for step in each.steep_steps]
    assert len(steep) == len(growth.streams) + len(growth.sizes) + len(growth.endpoints) - 3


def test_a_linear_cost_of_bytes_is_not_super_linear() -> None:
    growth = Growth(is_quick=True)
    for rounds in (growth.streams, growth.sizes, growth.endpoints):
        for x, costs in rounds.items():
            costs += [1e-5 + 1e-9 * x, 1.0, 0.0]  # the median of the rounds counts
    (chunk, byte) = growth.curves["growth-sizes"]
    assert chunk.costs[-1] > 10 * chunk.costs[0] and chunk.steep_steps == []
    assert byte.costs[-1] < byte.costs[0] and byte.steep_steps == []


def test_numbers_are_told_as_people_write_them() -> None:
    assert [x_text(x) for x in (1, 2000, 16, 4096, 65536, 1 << 20)] == ["1", "2,000", "16", "4 Ki", "64 Ki", "1 Mi"]
    assert [cost_text(cost) for cost in (0.12345, 45.678, 12345.6)] == ["0.123", "45.7", "12,346"]


def test_the_table_of_a_curve_has_a_column_a_point() -> None:
    assert markdown_of([curve(5, 7.5)]) == ("| streams | 1 | 4 |\n| --- | ---: | ---: |\n| µs a chunk | 5 | 7.5 |\n\n")


def test_a_frame_is_as_large_as_its_text_and_the_same_for_all() -> None:
    assert [frame_size(size) - size for size in SIZES] == [frame_size(0)] * len(SIZES)


def test_the_same_curves_give_the_same_small_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the bench extra draws plots; `make benchmarks` installs it")
    from .bench.plots import draw

    for name in ("a.svg", "b.svg"):
        draw([curve(40, 38, 42), curve(2000, 10, 1)], tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert "more streams" in drawn and len(drawn) < 60_000


# -- the workers side by side -----------------------------------------------------------------------------------------

TIGHT = ROWS[0]
MEDIANS = {TIGHT: {OURS: {CPU: 5.0, FIRST: 1.0}, DYNAMO: {CPU: 250.0, FIRST: 0.5}}}


def test_the_table_of_the_page_has_ratios_in_brackets() -> None:
    assert markdown_table(MEDIANS, [OURS, DYNAMO]).splitlines() == [
        "| load | figure | ours | Dynamo 1.6.1 |",
        "| --- | --- | ---: | ---: |",
        "| 1 stream, engine never awaits | CPU µs/chunk | 5.00 | 250.0 (50×) |",
        "| | first chunk p50 ms | 1.00 | 0.50 (0.5×) |",
    ]


def test_verdicts_say_what_was_wanted_and_reached() -> None:
    judged = {each.what: each for each in verdicts(MEDIANS)}
    assert judged["CPU µs/chunk at least 40× better than Dynamo 1.6.1"].reached == 50
    assert not judged["first chunk p50 ms at least 1× better than Dynamo 1.6.1"].is_met
    assert len(judged) == 2, "what was not measured is not judged"
    assert markdown_verdicts(list(judged.values())) == (
        "1 of 2 targets are met; missed:\n\n"
        "- 1 stream, engine never awaits: first chunk p50 ms at least 1× better than Dynamo 1.6.1; reached 0.5\n"
    )


def test_a_document_gives_its_medians_back_but_for_rows_that_lack_figures() -> None:
    document = {"medians": {TIGHT.key: {OURS: {CPU: 5.0, FIRST: 1.0}, DYNAMO: {CPU: 250.0}}, "gone": {}}}
    assert read_medians(document, ROWS) == {TIGHT: {OURS: {CPU: 5.0, FIRST: 1.0}}}


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_block_of_the_page_is_replaced_and_nothing_else() -> None:
    before = "a\n<!-- growth -->\nold\n<!-- end -->\nb\n<!-- peers -->\nkept\n<!-- end -->\n"
    after = page.with_block(before, "growth", "new\n\n")
    assert after == before.replace("old\n", "new\n\n")
    assert page.block_of(after, "growth") == "new\n\n"
    with pytest.raises(ValueError, match="no <!-- other -->"):
        page.with_block(before, "other", "")


def test_the_page_says_what_the_rows_are_to_reach() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.block_of(text, "targets") == markdown_targets(ROWS), "python -m tests.bench --targets writes it anew"


def test_the_page_shows_every_plot() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert all(f"(images/{name}.svg)" in text for name in PLOTS)
