"""docs/security.md against the code: its table of limits, its variables and its flags."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from .serve_options import known_variables, serve_options

TEXT = (Path(__file__).parent.parent / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = TEXT.partition("<!-- limits: begin -->")[2].partition("<!-- limits: end -->")[0]
ROWS = re.findall(r"^\| (.+?) \| ([\d,]+) \| (`--[a-z-]+`)? ?\| `([\w.]+):(\w+)` \|$", LIMITS, re.MULTILINE)

PREFIX = "DYN_TCP_TLS_"


def test_the_table_of_limits_is_read_whole() -> None:
    assert len(ROWS) == LIMITS.count("\n|") - 2 > 20


@pytest.mark.parametrize(("what", "value", "flag", "module", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_a_limit_is_what_the_code_enforces(what: str, value: str, flag: str, module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    assert found == int(value.replace(",", ""))
    if flag:
        [option] = [option for option in serve_options() if flag.strip("`") in option.flags]
        assert option.default == found


def test_every_variable_and_flag_that_the_page_names_exists() -> None:
    tls = {
        f"DYN_TCP_TLS_{name}"
        for name in re.findall(r"`([A-Z_]+)`", TEXT.partition("## TLS")[2].partition("- TLS 1.2")[0])
    }
    named = set(re.findall(r"\b(?:DYN|INGRESS)_[A-Z_]+\b", TEXT)) | tls
    assert len(tls) > 8
    assert named - {PREFIX} <= known_variables()
    flags = {flag for option in serve_options() for flag in option.flags}
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= flags
