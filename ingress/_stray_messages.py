"""What Python else prints to standard error by itself, as log lines: there a text of a caller's could begin a line."""

from __future__ import annotations

import logging
import queue
import sys
import threading

from ._failures import describe_failure
from ._text import quoted

logger = logging.getLogger("ingress.python")

# A flood of them says no more than these do.
_MOST_WAITING = 100


def log_stray_messages() -> None:
    """Log warnings, and failures that nobody can catch: of threads and of finalizers. For a process of one's own."""
    logging.captureWarnings(True)
    # A finalizer may run anywhere, also where a log handler holds its lock: a thread says what it raises.
    unraisable: queue.SimpleQueue[tuple[str, str, str]] = queue.SimpleQueue()

    def note(failed: sys.UnraisableHookArgs) -> None:
        what = getattr(failed.object, "__qualname__", type(failed.object).__qualname__)
        failure = "" if failed.exc_value is None else describe_failure(failed.exc_value)
        if unraisable.qsize() < _MOST_WAITING:
            unraisable.put((failed.err_msg or "exception ignored in", str(what), failure))

    sys.unraisablehook = note
    threading.excepthook = _log_thread_failure
    threading.Thread(target=_log_unraisable, args=(unraisable,), name="ingress stray messages", daemon=True).start()


def _log_thread_failure(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:
        name = "?" if failed.thread is None else quoted(failed.thread.name)
        logger.error("thread %s failed", name, exc_info=failed.exc_value)


def _log_unraisable(unraisable: queue.SimpleQueue[tuple[str, str, str]]) -> None:
    while True:
        said, what, failure = unraisable.get()
        logger.error("%s %s: %s", quoted(said, 100), quoted(what, 100), quoted(failure, 400))
