"""What a check looks for when a request is over: sockets, tasks, and the steps in between at which it was cut."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

# -- sockets ---------------------------------------------------------------------------------------------------------


def open_sockets() -> dict[int, socket.socket]:
    """Return every open socket of this process that Python knows, by the id of its object."""
    return {
        id(thing): thing
        for thing in gc.get_objects()
        if isinstance(thing, socket.socket) and thing.fileno() >= 0  # a type's own check, not a proxy's
    }


_IMPURE = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "urllib.")
_touched: list[str] | None = None
_is_hooked = False


@contextmanager
def touching_nothing() -> Iterator[list[str]]:
    """Yield a list that says which sockets and processes were touched while inside."""
    global _touched, _is_hooked
    if not _is_hooked:  # an audit hook stays for the life of the process; it costs one comparison an event
        _is_hooked = True
        sys.addaudithook(_notice)
    before, _touched = _touched, []
    try:
        yield _touched
    finally:
        _touched = before


def _notice(event: str, arguments: Any) -> None:
    if _touched is not None and event.startswith(_IMPURE):
        _touched.append(event)


# -- tasks and steps -------------------------------------------------------------------------------------------------


class TaskWatch(trio.abc.Instrument):
    """Keeps the tasks that were spawned while it was installed, except those below the nursery of the check."""

    def __init__(self, own: trio.Nursery) -> None:
        self._own = own
        self._tasks: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)

    def left(self) -> list[str]:
        """The names of the tasks that still run."""
        return sorted(task.name for task in self._tasks if not self._is_own(task))

    def _is_own(self, task: trio.lowlevel.Task) -> bool:
        nursery = task.parent_nursery
        while nursery is not None:
            if nursery is self._own:
                return True
            nursery = nursery.parent_task.parent_nursery
        return False


class StepTrigger(trio.abc.Instrument):
    """Counts the steps of all tasks, and acts just before one of them: between any two awaits of any of the tasks."""

    def __init__(self, at: int | None = None, action: Callable[[], object] = lambda: None) -> None:
        self.steps = 0
        self._at = at
        self._action = action

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._action()


@contextmanager
def instrument(watching: trio.abc.Instrument) -> Iterator[None]:
    """Install an instrument while inside."""
    trio.lowlevel.add_instrument(watching)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(watching)
