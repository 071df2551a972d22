"""docs/reliability.md is what the rows and the tests say, and no row is without a test or a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from .reliability.table import PAGE, FoundTest, Row, all_groups, figures_of, find_tests, ids_of, read_groups, write

GROUPS = all_groups()
ORDER = [row.id for group in GROUPS for row in group.rows]
TESTS = list(find_tests(ORDER))
TESTED = {name for test in TESTS for name in test.ids}


@pytest.mark.parametrize("row", [row for group in GROUPS for row in group.rows], ids=lambda row: row.id)
def test_a_row_has_a_test_or_a_reason_and_not_both(row: Row) -> None:
    assert (row.id in TESTED) != bool(row.reason)


def test_every_id_of_a_test_is_a_row() -> None:
    assert TESTED - set(ORDER) == set()


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == write(page), "python -m tests.reliability writes it anew"


def test_every_figure_that_a_row_names_is_measured() -> None:
    named = {row.measured for group in GROUPS for row in group.rows if row.measured}
    assert named - figures_of(PAGE.read_text(encoding="utf-8")).keys() == set()


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("test_c07_d03_an_address", {"C07", "D03"}),
        ("test_c01_to_c03_what", {"C01", "C02", "C03"}),
        ("test_a_thing", set()),
        ("test_e04_x_f01", {"E04"}),
    ],
)
def test_ids_stand_at_the_beginning_of_a_name(name: str, ids: set[str]) -> None:
    assert ids_of(name, ORDER) == ids


def test_tests_are_found_in_classes_and_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "test_x.py").write_text(
        "class TestX:\n    async def test_f01_x(self): ...\ndef test_y(): ...\n"
    )
    assert list(find_tests(ORDER, tmp_path)) == [FoundTest("deep/test_x.py", "test_f01_x", frozenset({"F01"}))]


def test_a_reason_for_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows of these ids: Z99"):
        read_groups('[a]\ntitle = "A"\nF01 = ["", "", ""]\n[unmet]\nZ99 = "x"\n')
