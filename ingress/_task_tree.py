"""The tree of tasks, for the log: who runs, of which request, and where each of them waits.

    tasks: 9 in all, of 2 requests
      __main__.main  at _serve.py:104 serve_until_signalled
        …handle_payload [r-17]  at hello.py:12 generate < _handler.py:231 _answer < _handler.py:158 _handle

The innermost call comes first and trio's own are left out, as in the report of a blocked loop.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import trio

from ._logging import request_id_in
from ._pump import resume_under_way
from ._signals import ignore_for_now
from ._text import printable

logger = logging.getLogger("ingress.tasks")

# What a dump may take: of the log, which holds 1,000 lines that wait to be written, and of the loop, some 10 µs a task.
MAX_LINES = 200
MAX_TASKS = 5000

# Of siblings that wait at the same place, which are the many requests of a busy worker.
MAX_ALIKE = 3

_MAX_FRAMES = 4
_MAX_DEPTH = 20

# A signal sent in a loop must not become a log in a loop.
_PAUSE = 1.0


async def dump_tasks_on_signal(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Log the tree at every SIGUSR1, at most once a second, until cancelled.

    Does nothing where the system has no such signal, or the program already does something else with it.
    """
    number = getattr(signal, "SIGUSR1", None)
    # None is a handler that was not set from Python, as that of faulthandler.
    if number is None or signal.getsignal(number) not in (signal.SIG_DFL, ignore_for_now):
        task_status.started()
        return
    with trio.open_signal_receiver(number) as signals:
        task_status.started()
        async for _ in signals:
            log_tasks()
            await trio.sleep(_PAUSE)


def log_tasks() -> None:
    """Log the tree of the running loop as warnings, so that it is seen wherever anything is."""
    for line in describe_tasks():
        logger.warning("%s", line)


def describe_tasks(root: trio.lowlevel.Task | None = None) -> list[str]:
    """Return at most ``MAX_LINES`` + 2 lines about a task, by default the root of all, and those below it."""
    tree = _Tree()
    start = root if root is not None else trio.lowlevel.current_root_task()
    if start is not None:
        tree.add([start], 1)
    requests = f", of {len(tree.requests)} request{'' if len(tree.requests) == 1 else 's'}" if tree.requests else ""
    cut = [f"  … {tree.left_out} more do not fit"] if tree.left_out else []
    return [f"tasks: {tree.seen}{'' if tree.is_whole else ' or more'} in all{requests}", *tree.lines, *cut]


class _Tree:
    """Gathers lines, depth first."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen = 0
        self.left_out = 0
        self.is_whole = True
        self.requests: set[str] = set()

    def add(self, siblings: list[trio.lowlevel.Task], depth: int) -> None:
        """Add tasks and what is below them; what is like its siblings is counted and not shown."""
        alike: dict[tuple[str, str], int] = {}
        for task in siblings:
            if self.seen >= MAX_TASKS:
                self.is_whole = False
                return
            self.seen += 1
            request_id = request_id_in(task.context)
            if request_id is not None:
                self.requests.add(request_id)
            kind = task.name, describe_suspension(task)
            alike[kind] = alike.get(kind, 0) + 1
            if alike[kind] <= MAX_ALIKE:
                self._show(kind, request_id, depth)
            children = [child for nursery in task.child_nurseries for child in sorted_by_name(nursery.child_tasks)]
            if depth < _MAX_DEPTH and alike[kind] <= MAX_ALIKE:
                self.add(children, depth + 1)
            else:
                self._count(children, request_id)
        for (name, place), count in alike.items():
            if count > MAX_ALIKE:
                self._write(f"{'  ' * depth}… and {count - MAX_ALIKE} more like {printable(name, 100)}  at {place}")

    def _show(self, kind: tuple[str, str], request_id: str | None, depth: int) -> None:
        name, place = kind
        of_request = "" if request_id is None else f" [{printable(request_id, 64)}]"
        self._write(f"{'  ' * depth}{printable(name, 100)}{of_request}  at {place}")

    def _write(self, line: str) -> None:
        if len(self.lines) < MAX_LINES:
            self.lines.append(line)
        else:
            self.left_out += 1

    def _count(self, tasks: list[trio.lowlevel.Task], request_id: str | None) -> None:
        """Count what is not shown; without recursion, for a tree may be deeper than Python's stack."""
        waiting = list(tasks)
        while waiting:
            if self.seen >= MAX_TASKS:
                self.is_whole = False
                return
            task = waiting.pop()
            self.seen += 1
            waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def sorted_by_name(tasks: frozenset[trio.lowlevel.Task]) -> list[trio.lowlevel.Task]:
    # A nursery keeps its children as a set; two dumps are easier to compare in an order.
    return sorted(tasks, key=lambda task: task.name)


def describe_suspension(task: trio.lowlevel.Task) -> str:
    """Return where the task waits, innermost call first: ``echo.py:12 generate < _handler.py:231 _answer``."""
    frames = [frame for frame in _frames(task.coro) if not _is_of_trio(frame)]
    shown = [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        for frame in frames[: -_MAX_FRAMES - 1 : -1]
    ]
    return " < ".join(shown) or "(trio)"


def _is_of_trio(frame: FrameType) -> bool:
    return "/trio/" in frame.f_code.co_filename


def _frames(awaitable: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, outermost first, also across async generators and our pump."""
    while awaitable is not None:
        if hasattr(awaitable, "cr_frame"):
            frame, awaitable = awaitable.cr_frame, awaitable.cr_await
        elif hasattr(awaitable, "ag_frame"):
            frame, awaitable = awaitable.ag_frame, awaitable.ag_await
        elif hasattr(awaitable, "gi_frame"):
            frame = awaitable.gi_frame
            awaitable = (
                resume_under_way(frame)
                if frame is not None and awaitable.gi_yieldfrom is None
                else (awaitable.gi_yieldfrom)
            )
        else:
            # The steps of an async generator and the wrappers of coroutines show what they drive to the collector only.
            inner = [
                each for each in gc.get_referents(awaitable) if hasattr(each, "ag_frame") or hasattr(each, "cr_frame")
            ]
            frame, awaitable = None, inner[0] if inner else None
        if frame is not None:
            yield frame
