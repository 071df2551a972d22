"""What the command does before anything else: it takes the standard descriptors, and what signals mean to a worker.

Light, for it comes before all that takes time to import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .._signals import ENDING, Handler, ignore_for_now, leave_now, signals_handled

# Names the line to the process that has started this one; see _parent_line.py.
LINE_VARIABLE = "INGRESS_PROCESS_LINE"


def take_standard_descriptors() -> None:
    """Open the null device for each of 0, 1 and 2 that is closed.

    Else the next that are opened are these, a listener perhaps, and get what a library prints, or a child inherits.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free is this one
            os.set_inheritable(opened, True)


@contextlib.contextmanager
def signals_from_the_start() -> Iterator[None]:
    """While inside, where nobody else handles them, SIGTERM and SIGINT end the process at once and SIGHUP does nothing.

    As long as a worker loads there is nobody to drain for. Left to the system, the first process of a container would
    hear no SIGTERM, and any would end by SIGHUP, which asks to read again what has not been read yet. A process of
    several leaves its end to its parent: it has not failed to start where all are told to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Handler] = dict.fromkeys(ENDING, ignore_for_now if LINE_VARIABLE in os.environ else _leave)
    for name in ("SIGHUP", "SIGUSR1"):  # which a worker that serves reads its files by, and tells what it does
        if (number := getattr(signal, name, None)) is not None:
            handlers[number] = ignore_for_now
    with signals_handled(handlers):
        yield


def _leave(number: int, frame: FrameType | None) -> None:
    leave_now(128 + number)
