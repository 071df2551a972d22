"""What a check says: properties that hold, and one exception for those that do not."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from attrs import frozen

from .._failures import describe_failure


class PropertyFailed(AssertionError):
    """A property of the kit does not hold; the text names it, what was expected, what came, and the seed.

    Raised by :func:`check_shape`, :func:`check_engine` and :func:`check_codec`, and by nothing else of theirs.
    """

    def __init__(self, *, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got
        self.subject = ""
        """What was checked."""
        self.property = ""
        """The name of the property, as ``ingress check`` prints it."""
        self.seed = 0
        """The check fails again in the same way with ``seed=…``."""

    def __str__(self) -> str:
        return (
            f"{self.subject}: {self.property}\n  expected  {self.expected}\n  got       {self.got}\n"
            f"  seed      {self.seed}"
        )


def fail(expected: str, got: str) -> NoReturn:
    """End the property that is being checked."""
    raise PropertyFailed(expected=expected, got=got)


@frozen
class Outcome:
    """One property that was checked."""

    name: str
    failure: PropertyFailed | None
    seconds: float
    """Real time that the check took."""


OnOutcome = Callable[[Outcome], None]


class Checker:
    """Checks one subject's properties one after the other, each with random numbers of its own.

    Args:
        on_outcome: is told of each. Where it is given a failure ends nothing; without it the first one is raised.
    """

    def __init__(self, subject: str, seed: int, on_outcome: OnOutcome | None) -> None:
        self.subject = subject
        self.seed = seed
        self._on_outcome = on_outcome

    async def check(self, name: str, property_: Callable[[random.Random], Awaitable[None]]) -> None:
        """Check one property.

        Raises:
            PropertyFailed: it does not hold, and nobody is told otherwise.
        """
        started, failure = time.perf_counter(), None
        try:
            # By its name, so that a property sees the same numbers whichever others run before it.
            await property_(random.Random(f"{self.seed}/{name}"))  # noqa: S311 - test data
        except Exception as exc:
            failure = _failure_in(exc)
            if failure is None:
                failure = PropertyFailed(expected="the check to come to its end", got=describe_failure(exc))
                failure.__cause__ = exc
            failure.subject, failure.property, failure.seed = self.subject, name, self.seed
        if self._on_outcome is not None:
            self._on_outcome(Outcome(name, failure, time.perf_counter() - started))
        elif failure is not None:
            raise failure from failure.__cause__


def _failure_in(exc: BaseException) -> PropertyFailed | None:
    """Find the failure inside the groups that nurseries make."""
    if isinstance(exc, PropertyFailed):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return next((found for inner in exc.exceptions if (found := _failure_in(inner)) is not None), None)
    return None


def show(value: object, limit: int = 160) -> str:
    """A value for a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…({len(text)} characters)"
