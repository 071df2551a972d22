"""The reference tables of docs/operating.md, from the command and from a worker's registry.

    python -m tests.reference_tables

writes them into the page, between the comments that name them; tests/test_operating.py holds the page against them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from ingress import make_worker
from ingress.discovery import MemoryDiscovery
from ingress.metrics import ERROR_TYPES, OUTCOMES, UNROUTED_REASONS

from .serve_options import serve_options

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operating.md"
MARKED = re.compile(r"<!-- table: (?P<name>\w+) -->\n(?P<table>.*?)<!-- end -->\n", re.DOTALL)

ENDPOINT_LABELS = ["dynamo_namespace", "dynamo_component", "dynamo_endpoint", "worker_id"]


async def _engine(request: Any) -> AsyncIterator[Any]:
    yield request


def settings_table() -> str:
    """Every flag of ``ingress serve``, its variables and its default."""
    rows = []
    for option in serve_options():
        flags = ", ".join(f"`{flag}`" for flag in reversed(option.flags))
        variables = ", ".join(f"`{name}`" for name in option.variables)
        help_text = re.sub(r"\s+\[default: .*\]", "", option.help)
        rows.append((flags, variables, _default(option.default), help_text))
    return _table(("flag", "variable", "default", "what"), rows)


def metrics_table() -> str:
    """Every family of the page; ``(endpoint)`` stands for the four labels of an endpoint."""
    worker = make_worker({"demo.backend.generate": _engine}, discovery=MemoryDiscovery())
    worker.metrics.endpoints[0].count_error("generate")  # a released worker has no error series either before the first
    rows = []
    for family in sorted(worker.metrics.registry.collect(), key=lambda family: family.name):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = list(dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le"))
        if set(ENDPOINT_LABELS) <= set(labels):
            labels = ["(endpoint)", *(label for label in labels if label not in ENDPOINT_LABELS)]
        shown = ", ".join(f"`{label}`" if label[0] != "(" else label for label in labels)
        rows.append((f"`{name}`", family.type, shown, family.documentation))
    return _table(("family", "type", "labels", "what"), rows)


def outcomes_table() -> str:
    """Every outcome of a request and its reasons."""
    reasons = {outcome: list(found) for outcome, found in OUTCOMES.items()}
    reasons["refused"] += UNROUTED_REASONS
    return _table(
        ("outcome", "reasons"),
        [(f"`{outcome}`", ", ".join(f"`{reason}`" for reason in found)) for outcome, found in reasons.items()],
    )


def error_types() -> str:
    return ", ".join(f"`{name}`" for name in ERROR_TYPES) + "\n"


TABLES = {"settings": settings_table, "metrics": metrics_table, "outcomes": outcomes_table, "errors": error_types}


def tables_of(page: str) -> Iterator[tuple[str, str]]:
    """The name and the text of each marked table of a page."""
    for match in MARKED.finditer(page):
        yield match["name"], match["table"]


def write(page: str) -> str:
    """Return the page with its tables as they should be."""
    return MARKED.sub(lambda match: f"<!-- table: {match['name']} -->\n{TABLES[match['name']]()}<!-- end -->\n", page)


def _default(value: object) -> str:
    if value is None or value is False:
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
