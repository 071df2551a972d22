"""What a check-up finds: one line each, with a verdict and what to do about it."""

from __future__ import annotations

import enum

from attrs import frozen


class Verdict(enum.Enum):
    """How bad it is; the order is that of the badness."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    """A worker cannot start like this, or not be found, or not be trusted."""


@frozen
class Finding:
    """One thing that was looked at."""

    verdict: Verdict
    topic: str
    text: str
    remedy: str = ""
    """What to do; empty where nothing is to be done."""

    @property
    def is_failure(self) -> bool:
        return self.verdict is Verdict.FAIL


def ok(topic: str, text: str) -> Finding:
    return Finding(Verdict.OK, topic, text)


def warn(topic: str, text: str, remedy: str) -> Finding:
    return Finding(Verdict.WARN, topic, text, remedy)


def fail(topic: str, text: str, remedy: str) -> Finding:
    return Finding(Verdict.FAIL, topic, text, remedy)
