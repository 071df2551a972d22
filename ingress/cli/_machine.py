"""The machine that figures come from, as one line: they mean little without it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ._targets import OWN_DISTRIBUTION

_PACKAGES = (OWN_DISTRIBUTION, "trio", "msgspec")


def machine_facts() -> dict[str, Any]:
    """Return what a reader of figures needs to know; to be asked before the load, which the load average would show."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    return facts


def machine_line(facts: Mapping[str, Any]) -> str:
    parts = [
        f"{facts['cpu']}, {facts['cores']} core{'' if facts['cores'] == 1 else 's'}",
        facts["system"],
        f"python {facts['python']}",
        *(f"{name} {number}" for name, number in facts["packages"].items()),
    ]
    if "load_average" in facts:
        parts.append(f"load average at the start {facts['load_average']}")
    return " · ".join(parts)


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
