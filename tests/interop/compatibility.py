"""The table of docs/compatibility.md: written from what tests saw, and held against it ever after."""

from __future__ import annotations

import json
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
BEGIN, END = "<!-- observed: begin -->", "<!-- observed: end -->"

Cells = dict[str, dict[str, list[str]]]

_seen: Cells = {}


def note(scenario: str, pair: str, what: str) -> None:
    """Remember one observation of this session."""
    cell = _seen.setdefault(scenario, {}).setdefault(pair, [])
    if what not in cell:
        cell.append(what)


def finish(*, write: bool) -> None:
    """Merge the session into the document, or fail where it contradicts the document."""
    if not _seen:
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    block, _, after = rest.partition(END)
    written = _read(block)
    if write:
        for scenario, pairs in _seen.items():
            for pair, what in pairs.items():
                written.setdefault(scenario, {})[pair] = sorted(what)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{_table(written)}{END}{after}", encoding="utf-8")
        return
    for scenario, pairs in _seen.items():
        for pair, what in pairs.items():
            expected = written.get(scenario, {}).get(pair, [])
            missing = sorted(set(what) - set(expected))
            if missing:
                raise AssertionError(
                    f"docs/compatibility.md, row {scenario!r}, {pair}: says {expected}, seen {missing}; "
                    "write it anew with `make compatibility`"
                )


def _table(cells: Cells) -> str:
    pairs = sorted({pair for row in cells.values() for pair in row}, key=lambda pair: (pair.split()[0], pair))
    lines = ["", "| scenario | " + " | ".join(pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for scenario in sorted(cells):
        row = cells[scenario]
        lines.append(f"| {scenario} | " + " | ".join("<br>".join(row.get(pair, ["–"])) for pair in pairs) + " |")
    return "\n".join(lines) + "\n\n<!-- " + json.dumps(cells, sort_keys=True) + " -->\n"


def _read(block: str) -> Cells:
    _, _, rest = block.rpartition("<!-- ")
    raw, _, _ = rest.partition(" -->")
    return dict(json.loads(raw)) if raw.startswith("{") else {}
