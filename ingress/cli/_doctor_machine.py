"""The check-up of the process's own surroundings: Python, libraries, clock, descriptors, plug-ins."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from .._descriptors import DescriptorBudget, StreamDescriptors, reachable_descriptors, share_descriptors
from .._dialled import MAX_LINGERING
from ._findings import Finding, fail, ok, warn
from ._plugins import find_plugins
from ._targets import OWN_DISTRIBUTION

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)")
_CLAUSE = re.compile(r"(>=|<=|==|!=|<|>|~=)\s*([0-9][0-9.]*)")

# A clock that stands before this project's beginnings was never set.
_EARLIEST = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
_LATEST = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)

# A bidirectional request dials back twice.
_DESCRIPTORS_A_REQUEST = 2


def check_python() -> list[Finding]:
    topic, found = "python", platform.python_version()
    needed = metadata(OWN_DISTRIBUTION)["Requires-Python"] or ""
    if not satisfies(found, needed):
        return [fail(topic, f"{found}, needs {needed}", "a newer Python, and a new virtual environment made with it")]
    if platform.python_implementation() != "CPython":
        name = platform.python_implementation()
        return [warn(topic, f"{name} {found}: only CPython is tested", "CPython")]
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return [warn(topic, f"{found} without its global lock: not tested", "the ordinary build of CPython")]
    return [ok(topic, f"{found} (needs {needed})")]


def check_libraries() -> list[Finding]:
    """Hold what is installed against what this distribution declares."""
    topic, findings, found = "libraries", [], []
    for text in requires(OWN_DISTRIBUTION) or []:
        if ";" in text and "extra" in text.partition(";")[2]:
            continue
        match = _REQUIREMENT.match(text)
        assert match is not None  # noqa: S101 - it was written by a packaging tool
        name, needed = match[1], match[2].strip()
        try:
            installed = version(name)
        except PackageNotFoundError:
            findings.append(fail(topic, f"{name} is not installed", f"pip install '{name}{needed}'"))
            continue
        if not satisfies(installed, needed):
            findings.append(fail(topic, f"{name} {installed}, needs {needed}", f"pip install '{name}{needed}'"))
        found.append(f"{name} {installed}")
    if findings:
        return findings
    if not found:
        return [warn(topic, "it is not known what is needed", f"pip install {OWN_DISTRIBUTION}")]
    return [ok(topic, ", ".join(found))]


def satisfies(found: str, needed: str) -> bool:
    """Tell whether a version meets clauses as ``>=0.18,<0.19``; by its numbers, as far as those are named."""
    numbers = _numbers(found)
    for operator, text in _CLAUSE.findall(needed):
        bound = _numbers(text)
        width = max(len(numbers), len(bound))
        mine = numbers + (0,) * (width - len(numbers))
        other = bound + (0,) * (width - len(bound))
        holds = {
            ">=": mine >= other,
            "<=": mine <= other,
            "==": mine == other,
            "!=": mine != other,
            "<": mine < other,
            ">": mine > other,
            "~=": mine >= other and numbers[: len(bound) - 1] == bound[:-1],
        }
        if not holds[operator]:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def check_clock() -> list[Finding]:
    """A wall clock that is right within reason; how it compares with the record directory's is checked there."""
    now = datetime.datetime.now(datetime.UTC)
    text = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if not _EARLIEST < now < _LATEST:
        return [fail("clock", f"{text} cannot be right", "set the clock, and keep it set with NTP")]
    return [ok("clock", text)]


def check_descriptors(
    engine_request_limit: int, request_queue_limit: int = 0, max_connections: int | None = None
) -> list[Finding]:
    """Hold the limit of open files that a worker can give itself against what it needs when it is full."""
    topic = "descriptors"
    limit = reachable_descriptors()
    if limit is None:
        return [ok(topic, "no limit")]
    budget = share_descriptors(limit, max_connections)
    requests = engine_request_limit + request_queue_limit
    needed = requests * _DESCRIPTORS_A_REQUEST
    text = (
        f"a limit of {limit}: up to {budget.connections} connections, and {budget.streams} for answers, "
        f"of which {requests} requests at once need up to {needed}, beside those that linger"
    )
    fitting = _requests_that_fit(budget)
    if fitting >= requests and budget.connections == (max_connections or budget.connections):
        return [ok(topic, text)]
    remedy = f"LimitNOFILE={_limit_needed(requests, max_connections)} in its unit"
    if fitting < 1:
        return [fail(topic, text, remedy)]
    if fitting < requests and fitting > request_queue_limit:
        remedy += f", or --engine-request-limit {fitting - request_queue_limit}"
    return [warn(topic, text, remedy)]


def _requests_that_fit(budget: DescriptorBudget) -> int:
    streams = StreamDescriptors(budget.streams)
    return (streams.limit - min(MAX_LINGERING, streams.most_lingering)) // _DESCRIPTORS_A_REQUEST


def _limit_needed(requests: int, max_connections: int | None) -> int:
    """Return the smallest limit of open files under which so many requests and connections fit, in steps of 64."""
    limit = 64
    while True:
        budget = share_descriptors(limit, max_connections)
        if _requests_that_fit(budget) >= requests and budget.connections == (max_connections or budget.connections):
            return limit
        limit += 64


def check_plugins() -> list[Finding]:
    """Load each of them, as a worker that names it would."""
    found = find_plugins(check=True)
    broken = [
        fail("plug-ins", f"{each.group} {each.point.name}: {each.problem}", "mend or uninstall its distribution")
        for each in found
        if each.problem is not None
    ]
    return broken or [ok("plug-ins", f"{len(found)} load")]
