"""Objects of which each trio run has one: what its tasks share, and no other thread's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class PerRun(Generic[T]):
    """Makes the object of a run when it is first asked for."""

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._variable: trio.lowlevel.RunVar[T] = trio.lowlevel.RunVar(name)
        self._make = make

    def get(self) -> T:
        """Return the object of the present run."""
        try:
            return self._variable.get()
        except LookupError:
            made = self._make()
            self._variable.set(made)
            return made
