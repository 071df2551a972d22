"""The end of a process whose event loop, or whose engines, do not end: a thread that waits for nothing but time."""

from __future__ import annotations

import logging
import math
import queue
import sys
import threading
import time

import trio

from ._handler import GOODBYE_TIMEOUT
from ._signals import leave_now
from ._text import named
from ._worker import CLOSING_TIME, Worker
from .status._loop import describe_stack

logger = logging.getLogger("ingress.worker")

EXIT_CANCELLED_BY_DRAIN = 4

# What has been cancelled is given this long to end before the process does.
FORCED_EXIT_TIME = 0.75

# A loop that runs answers within milliseconds; one that does not for so long after the drain's last bound is stuck.
_ANSWER_TIME = 0.25

# From there on the loop keeps to its bounds by itself, as long as it runs, which is looked at again so often.
_LOOK_AGAIN = 1.0


def longest_end(worker: Worker) -> float:
    """Return the seconds from the beginning of a drain to the end of the process at the latest."""
    return worker.linger + worker.drain_budget + GOODBYE_TIMEOUT + CLOSING_TIME + FORCED_EXIT_TIME


class LastResort:
    """Ends the process when it is time, whatever its loop does. Entered in the loop's thread, as a context manager.

    Told by signal handlers, which may interrupt one another, and by threads; who first asks for an end at once has it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._token = trio.lowlevel.current_trio_token()
        self._loop_thread = threading.get_ident()
        # Its put, unlike Event.set, may be interrupted by another put in the same thread.
        self._orders: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        self._is_over = False

    def __enter__(self) -> LastResort:
        threading.Thread(target=self._run, name="ingress last resort", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over = True
        self._orders.put((0.0, 0))

    def expect_drained(self) -> None:
        """Have the process end with 4 if the loop is stuck when the bounds of a drain that begins now are over."""
        self._orders.put((longest_end(self._worker) - _ANSWER_TIME, EXIT_CANCELLED_BY_DRAIN))

    def expect_forced(self, number: int) -> None:
        """Have it end within a second as by that signal, if it has not ended by itself."""
        self._orders.put((FORCED_EXIT_TIME, 128 + number))

    def _run(self) -> None:
        end_at, exit_code = math.inf, 0
        while True:
            try:
                seconds, code = self._orders.get(timeout=max(end_at - time.monotonic(), 0) if exit_code else None)
            except queue.Empty:
                does_loop_run = self._does_loop_run()
                if self._is_over:
                    return
                if not (does_loop_run and exit_code == EXIT_CANCELLED_BY_DRAIN):
                    self.leave(exit_code, does_loop_run=does_loop_run)
                end_at += _LOOK_AGAIN
            else:
                if self._is_over:
                    return
                if exit_code in (0, EXIT_CANCELLED_BY_DRAIN):
                    end_at, exit_code = min(end_at, time.monotonic() + seconds), code

    def _does_loop_run(self) -> bool:
        answered = threading.Event()
        try:
            self._token.run_sync_soon(answered.set)
        except trio.RunFinishedError:
            return False
        return answered.wait(_ANSWER_TIME)

    def leave(self, exit_code: int, *, does_loop_run: bool = True) -> None:
        """Leave at once, naming whom the process does not wait for. Does not return."""

        def last_words() -> None:
            if not does_loop_run:
                stack = describe_stack(sys._current_frames().get(self._loop_thread))
                logger.error("event loop stuck, leaving without it: %s", stack)
            stuck = ", ".join(named(context.id, 64) for context in list(self._worker.open_requests)[:20])
            if self._worker.releasing.is_set():
                logger.error("engines have not released what they hold in the time of the drain, leaving without them")
            else:
                logger.error("engines do not end when cancelled, leaving without them: %s", stuck or "none known")

        leave_now(exit_code, last_words)
