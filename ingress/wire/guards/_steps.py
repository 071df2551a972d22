"""The steps that a large body is looked at and decoded in: between two of them others may run."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

between_steps: ContextVar[Callable[[], None] | None] = ContextVar("between_steps", default=None)
"""What is called between the steps of a large body, each of which lets no other thread run; by default nothing."""


def end_step() -> None:
    """Have others run, where somebody has seen to that."""
    if (call := between_steps.get()) is not None:
        call()
