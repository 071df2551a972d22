"""What a forked child has of this process: none of its sockets, and no way back into its event loop.

Engines fork, by themselves or by multiprocessing. The child would hold every connection and listener: callers would
wait for the end of a stream, and a port would stay open, for as long as it lives. And a child that comes back from its
engine would go on as a second worker on the same epoll descriptor, where it takes the events of the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Collection
from typing import NoReturn, Protocol
from weakref import ref

import trio

logger = logging.getLogger("ingress.worker")

# How a child ends that comes back from the engine that has forked it.
EXIT_FORKED = 5

# What its log line may take; a lock that another thread held at the fork is held for ever.
_LAST_WORDS_TIME = 0.4


class Socket(Protocol):
    """Anything with a descriptor, of trio or of Python."""

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""


class Origin:
    """The process that something was made in, as :func:`present_origin` had it."""

    __slots__ = ("is_left",)

    def __init__(self) -> None:
        self.is_left = False
        """True in the children that it forked since."""


_origin = Origin()
_is_child = False
_is_guarded: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("ingress fork guard", False)
_forking = threading.local()

# This costs a request 17 opcodes; a WeakSet would cost it 49.
_sockets: set[ref[Socket]] = set()
_forget = _sockets.discard


def hide_from_children(socket: Socket) -> None:
    """Have children that are forked from now on have the null device in its place, as long as it is open here."""
    _sockets.add(ref(socket, _forget))


def present_origin() -> Origin:
    """Return the one of this process, for what must not be used by its children."""
    return _origin


def guard_run() -> None:
    """Have every child end that comes back into the present trio run.

    Where a socket is hidden any run is guarded; this is for a worker that has none yet.
    """
    _is_guarded.set(True)


def leave_child() -> None:
    """End this process where it is a forked child, with one line in the log; otherwise do nothing.

    What is in buffers is the parent's, who writes it.
    """
    if _is_child:
        _leave()


def _leave(*_: object, **__: object) -> NoReturn:
    try:
        speaker = threading.Thread(target=_say_why, name="ingress last words", daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_TIME)
    finally:
        os._exit(EXIT_FORKED)


def _say_why() -> None:
    logger.error(
        "child process %d came back from the engine that forked it, ended with %d: it has to leave by os._exit",
        os.getpid(),
        EXIT_FORKED,
    )
    for handler in logging.getLogger().handlers:
        handler.flush()


class _Door(trio.abc.Instrument):
    """Ends the child with the step that it was forked in, before it waits for anything or another task runs."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        _leave()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        _leave()

    def before_io_wait(self, timeout: float) -> None:
        _leave()


# -- at a fork, in the thread that forks -------------------------------------------------------------------------------


def _before_fork() -> None:
    """Note which asyncio loop and task this is in: in the child asyncio says that it is in none."""
    try:
        _forking.loop, _forking.task = asyncio.get_running_loop(), asyncio.current_task()
    except RuntimeError:
        _after_fork_in_parent()


def _after_fork_in_parent() -> None:
    _forking.loop = _forking.task = None


def _after_fork_in_child() -> None:
    global _origin, _is_child
    _is_child = True
    _origin.is_left = True
    _origin = Origin()
    numbers = {socket.fileno() for each in _sockets.copy() if (socket := each()) is not None} - {-1}
    _sockets.clear()  # the child may have some of its own
    try:
        if trio.lowlevel.in_trio_run() and (numbers or _is_guarded.get()):
            trio.lowlevel.add_instrument(_Door())
        if numbers and (loop := getattr(_forking, "loop", None)) is not None:
            _bar(loop, _forking.task)
    finally:
        _put_nowhere(numbers)


def _bar(loop: asyncio.AbstractEventLoop, task: asyncio.Task[object] | None) -> None:
    """End this child when it comes back into an asyncio loop.

    What is called soon is enough for asyncio's own. uvloop looks first for what has happened, and where it took a
    wake-up of the parent's, which happened in one of a hundred forks, no call from another thread ever reached the
    parent's loop again. A cancelled task cancels what it would wait for, and that calls ``call_soon`` within its step.
    """
    with contextlib.suppress(RuntimeError):  # closed
        loop.call_soon(_leave)
    with contextlib.suppress(AttributeError):  # it takes no attributes
        loop.call_soon = _leave  # type: ignore[method-assign]
    if task is not None:
        task.cancel()


def _put_nowhere(numbers: Collection[int]) -> None:
    """Put the null device in their places.

    Closing would free numbers that objects will close once more, when they may be others'. Nobody is told of it: what
    is taken out of an epoll descriptor here is taken out of the parent's.
    """
    if not numbers:
        return
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
    except OSError:  # no descriptor is left: one of them makes room, and is what is opened
        os.close(min(numbers))
        nowhere = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        if number != nowhere:
            os.dup2(nowhere, number, inheritable=False)
    if nowhere not in numbers:
        os.close(nowhere)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
