"""What a worker says at its start of doors that stand open, and the limit of open files that it gives itself."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ingress
from ingress import DialPolicy, TokenKeys
from ingress._descriptors import ENOUGH_DESCRIPTORS, reachable_descriptors
from ingress.status import StatusOptions


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


async def warnings_of(caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    async with ingress.serving(echo, discovery=ingress.MemoryDiscovery(), linger=0.0, drain_budget=0.0, **options):
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_a_worker_on_loopback_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    assert await warnings_of(caplog, status=StatusOptions(port=0)) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"host": "0.0.0.0"},
            "listening on 0.0.0.0: whoever reaches the port can send requests, and nothing is encrypted",
        ),
        (
            {"host": "0.0.0.0", "token_keys": TokenKeys.parse(f"k:{'ab' * 32}")},
            "listening on 0.0.0.0: nothing is encrypted",
        ),
        (
            {"dial_policy": DialPolicy("any")},
            "dial policy any: whoever sends a request chooses where this worker connects to",
        ),
        (
            {"status": StatusOptions(port=0, host="0.0.0.0")},
            "status server on 0.0.0.0: whoever reaches the port reads metrics and health",
        ),
    ],
    ids=["plain", "tokens", "any", "status"],
)
async def test_an_open_door_is_one_line_from_python_as_from_the_command(
    options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await warnings_of(caplog, **options) == [said]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from ingress._descriptors import raise_descriptor_limit
limit = raise_descriptor_limit(*map(int, sys.argv[3:]))
print(limit, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "enough", "expected"),
    [(100, 200, [], 200), (200, 200, [], 200), (100, 200, [150], 150), (180, 200, [150], 180)],
)
def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one_or_to_enough(
    soft: int, hard: int, enough: list[int], expected: int
) -> None:
    arguments = map(str, (soft, hard, *enough))
    ran = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(expected), str(expected), str(hard)]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_no_more_than_enough_is_taken_and_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for limits, expected in (
        ((1024, 1 << 20), ENOUGH_DESCRIPTORS),
        ((1024, resource.RLIM_INFINITY), ENOUGH_DESCRIPTORS),
        ((1 << 20, 1 << 20), 1 << 20),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limits=limits: limits)
        assert reachable_descriptors() == expected
