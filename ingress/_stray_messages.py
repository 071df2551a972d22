"""What Python else prints to standard error by itself, as log lines: there a text of a caller's could begin a line."""

from __future__ import annotations

import logging
import sys
import threading

from ._text import quoted

logger = logging.getLogger("ingress.python")


def log_stray_messages() -> None:
    """Log warnings, and failures that nobody can catch: of threads and of finalizers. For a process of one's own."""
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_failure
    sys.unraisablehook = _log_unraisable


def _log_thread_failure(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_type is not SystemExit:
        name = "?" if failed.thread is None else quoted(failed.thread.name)
        logger.error("thread %s failed", name, exc_info=failed.exc_value)


def _log_unraisable(failed: sys.UnraisableHookArgs) -> None:
    what = quoted(repr(failed.object), 200)
    logger.error("%s: %s", failed.err_msg or "exception ignored in", what, exc_info=failed.exc_value)
