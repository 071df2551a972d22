"""What the command does before anything else: it takes the standard descriptors, and what signals mean to a worker.

Light, for it comes before all that takes time to import.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from .._signals import ENDING, Handler, ignore_for_now, leave_now, signals_handled

# For threads of engines to end after the worker has.
_LEFT_BEHIND_TIME = 1.0

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


def take_closed_streams() -> None:
    """Let what is written to a closed standard output fail, as somebody misses it. Errors are lost."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


@contextlib.contextmanager
def signals_from_the_start(*, to_the_end: bool = False) -> Iterator[None]:
    """While inside, where nobody else handles them, SIGTERM and SIGINT end the process at once and SIGHUP does nothing.

    As long as a worker loads there is nobody to drain for. Left to the system, the first process of a container would
    hear no SIGTERM, and any would end by SIGHUP, which asks to read again what has not been read yet. A process of
    several leaves its end to its parent: it has not failed to start where all are told to end.

    Args:
        to_the_end: the process ends with this, and SIGHUP and SIGUSR1 do nothing either after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Handler] = dict.fromkeys(ENDING, ignore_for_now if LINE_VARIABLE in os.environ else _leave)
    for name in ("SIGHUP", "SIGUSR1"):  # which a worker that serves reads its files by, and tells what it does
        if (number := getattr(signal, name, None)) is not None:
            handlers[number] = ignore_for_now
            if to_the_end:
                signal.signal(number, signal.SIG_IGN)
    with signals_handled(handlers):
        yield


def end_soon(exit_code: int) -> None:
    """Have the process end within a second of its main thread, whatever threads engines have left behind."""

    def last_words() -> None:
        import logging

        left = [thread.name for thread in threading.enumerate() if not (thread.daemon or thread is main)]
        logging.getLogger("ingress.cli").warning("leaving without threads that engines have left behind: %s", left)

    def wait() -> None:
        main.join()  # until the interpreter waits for the others
        time.sleep(_LEFT_BEHIND_TIME)
        leave_now(exit_code, last_words)

    main = threading.main_thread()
    with contextlib.suppress(RuntimeError):  # no thread to be had, and so hardly any left behind
        threading.Thread(target=wait, name="ingress end", daemon=True).start()


def _leave(number: int, frame: FrameType | None) -> None:
    leave_now(128 + number)
