"""The table of ``docs/reliability.md``: the rows, joined with the tests that have their ids in their names."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

TESTS = Path(__file__).parents[1]
ROWS = Path(__file__).with_name("rows.toml")
PAGE = TESTS.parent / "docs" / "reliability.md"

_IDS = re.compile(r"(?:[a-z]\d\d_(?:to_)?)+")
_WORD = re.compile(r"[a-z]\d\d|to")

MARKED = re.compile(r"<!-- (?P<name>rows|figures) -->\n(?P<text>.*?)<!-- end -->\n", re.DOTALL)


@frozen
class Row:
    """One fault, and what must come of it."""

    id: str
    done: str
    outcome: str
    bound: str
    reason: str = ""
    """Why there is no test; empty where there is one."""

    measured: str = ""
    """The figure of the soak that measures it; empty where none does."""


@frozen
class Group:
    """The rows of one part of a worker."""

    title: str
    rows: Sequence[Row]


@frozen
class FoundTest:
    """A test function with the ids in its name."""

    file: str
    name: str
    ids: frozenset[str]


def read_groups(text: str) -> list[Group]:
    """Return the groups of ``rows.toml`` in its order.

    Raises:
        ValueError: a reason or a figure is given for a row that there is not.
    """
    data = tomllib.loads(text)
    unmet, measured = data.pop("unmet", {}), data.pop("measured", {})
    groups = []
    for group in data.values():
        title = group.pop("title")
        rows = [
            Row(name, done, outcome, bound, unmet.get(name, ""), measured.get(name, ""))
            for name, (done, outcome, bound) in group.items()
        ]
        groups.append(Group(title, rows))
    known = {row.id for group in groups for row in group.rows}
    if strangers := (unmet.keys() | measured.keys()) - known:
        raise ValueError(f"no rows of these ids: {', '.join(sorted(strangers))}")
    return groups


def all_groups() -> list[Group]:
    return read_groups(ROWS.read_text(encoding="utf-8"))


def ids_of(name: str, order: Sequence[str]) -> frozenset[str]:
    """Return the ids at the beginning of a test's name; ``c08_to_c13`` stands for all between."""
    match = _IDS.match(name.removeprefix("test_"))
    words = [word.upper() for word in _WORD.findall(match[0])] if match else []
    found = {word for word in words if word != "TO"}
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        if word == "TO" and {before, after} <= set(order):
            found |= set(order[order.index(before) : order.index(after) + 1])
    return frozenset(found)


def find_tests(order: Sequence[str], root: Path = TESTS) -> Iterator[FoundTest]:
    """Yield every test whose name begins with ids, from the sources alone."""
    for path in sorted(root.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (ids := ids_of(node.name, order)):
                yield FoundTest(path.relative_to(root).as_posix(), node.name, ids)


def rows_table(groups: Sequence[Group], tests: Sequence[FoundTest], figures: Mapping[str, str]) -> str:
    """Return the tables of all groups, with the files that hold each row's tests."""
    lines = []
    for group in groups:
        lines += ["", f"### {group.title}", "", "| id | what is done | outcome | bound | measured | tested in |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for row in group.rows:
            counts: dict[str, int] = {}
            for test in tests:
                if row.id in test.ids:
                    counts[test.file] = counts.get(test.file, 0) + 1
            shown = ", ".join(f"`{file}`" + (f" ({count})" if count > 1 else "") for file, count in counts.items())
            where = shown or f"not met: {row.reason}"
            cells = (row.id, row.done, row.outcome, row.bound, figures.get(row.measured, ""), where)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n\n"


def figures_of(page: str) -> dict[str, str]:
    """Return the figures that the last written soak left on the page, by name."""
    found = {}
    for match in MARKED.finditer(page):
        if match["name"] == "figures":
            for line in match["text"].splitlines()[2:]:
                name, measured, *_ = (cell.strip() for cell in line.strip("|").split("|"))
                found[name] = measured
    return found


def write(page: str, figures: str | None = None) -> str:
    """Return the page with its rows as they should be, and with new figures where some are given."""
    if figures is not None:
        page = _with(page, "figures", figures)
    groups = all_groups()
    tests = list(find_tests([row.id for group in groups for row in group.rows]))
    return _with(page, "rows", rows_table(groups, tests, figures_of(page)))


def _with(page: str, name: str, text: str) -> str:
    return MARKED.sub(lambda m: f"<!-- {name} -->\n{text}<!-- end -->\n" if m["name"] == name else m[0], page)
