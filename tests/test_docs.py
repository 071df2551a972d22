"""Every Python block in the documents is a whole program, and prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n(?P<program>.*?)```\n(?:\n```\n(?P<output>.*?)```)?", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def programs() -> list[object]:
    return [
        pytest.param(
            match["program"], match["output"] or "", id=f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"
        )
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in BLOCK.finditer(text)
        if "__main__" not in match["program"]  # a program that serves until it is told to stop
    ]


@pytest.mark.parametrize(("program", "output"), programs())
def test_the_program_prints_what_the_page_shows(program: str, output: str, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
