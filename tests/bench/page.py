"""docs/benchmarks.md: the parts between markers that the benchmarks write where INGRESS_WRITE_DOCS is set."""

from __future__ import annotations

import os
import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks.md"
IMAGES = DOCS / "images"

_MARKED = re.compile(r"<!-- (?P<name>[a-z]+) -->\n(?P<text>.*?)<!-- end -->\n", re.DOTALL)


def is_to_be_written() -> bool:
    return "INGRESS_WRITE_DOCS" in os.environ


def write(name: str, text: str) -> None:
    """Put the text into the page between its markers.

    Raises:
        ValueError: the page has none of that name.
    """
    PAGE.write_text(with_block(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def with_block(page: str, name: str, text: str) -> str:
    """Return the page with the text between the markers ``<!-- name -->`` and ``<!-- end -->``."""
    if name not in {match["name"] for match in _MARKED.finditer(page)}:
        raise ValueError(f"no <!-- {name} --> … <!-- end --> in the page")
    return _MARKED.sub(lambda m: f"<!-- {name} -->\n{text}<!-- end -->\n" if m["name"] == name else m[0], page)


def block_of(page: str, name: str) -> str:
    return next(match["text"] for match in _MARKED.finditer(page) if match["name"] == name)
