"""The event loop seen from outside: how late it is, and what Python code holds it up.

A thread asks the loop for a sign of life ten times a second, and takes down the loop thread's stack when none comes.
No task and no timer of trio's is involved, so that a mock clock has nothing to jump to.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import trio

from ..metrics import WorkerMetrics

logger = logging.getLogger("ingress.loop")

DEFAULT_STALL_LIMIT = 1.0
_INTERVAL = 0.1

# The part of a lag in which the process must have used a processor to be the one to blame; on a busy machine it has to
# share.
_BUSY = 1 / 8

# What fits on a log line; the innermost frames tell the most.
_MAX_FRAMES = 12


@contextmanager
def watch_loop(metrics: WorkerMetrics, *, stall_limit: float = DEFAULT_STALL_LIMIT) -> Iterator[None]:
    """Sample the loop's lag while inside, and report what blocks it for longer than ``stall_limit`` seconds.

    One report a blockage: a warning with the stack when the limit is reached, another line when the loop is back.
    """
    watch = _Watch(metrics, stall_limit)
    thread = threading.Thread(target=watch.run, name="ingress loop watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.stop()
        thread.join()


class _Watch:
    def __init__(self, metrics: WorkerMetrics, stall_limit: float) -> None:
        self._metrics = metrics
        self._stall_limit = stall_limit
        self._token = trio.lowlevel.current_trio_token()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._answered = threading.Event()
        self._is_reported = False

    def stop(self) -> None:
        self._stopped.set()
        self._answered.set()

    def run(self) -> None:
        """The thread: ask, wait for the answer, sleep, ask again."""
        while True:
            # As of when this thread should have asked: what lets no other thread run holds it up with the loop.
            due, cpu_before = time.monotonic() + _INTERVAL, time.process_time()
            if self._stopped.wait(_INTERVAL):
                return
            self._answered.clear()
            self._is_reported = False
            if self._stopped.is_set():  # stop() may have set both just before the clear
                return
            try:
                self._token.run_sync_soon(self._answer, due, cpu_before)
            except trio.RunFinishedError:
                return
            self._await_answer()

    def _answer(self, due: float, cpu_before: float) -> None:
        """In the loop's thread."""
        lag = max(time.monotonic() - due, 0.0)
        self._metrics.loop_lag.observe(lag)
        self._answered.set()
        if lag < self._stall_limit or self._is_reported:
            return
        # Where the thread has seen nothing, either nothing of the process ran, as with SIGSTOP and suspend, or one call
        # kept the interpreter to itself; the processor knows.
        if time.process_time() - cpu_before >= lag * _BUSY:
            self._metrics.loop_stalls.inc()
            logger.warning("event loop blocked for %.1f s by a call that let no other thread run", lag)

    def _await_answer(self) -> None:
        asked_at = time.monotonic()
        # In steps: where one takes much longer than it should, the whole process was held (SIGSTOP, suspend, a C
        # extension that keeps the interpreter), and what the stack then shows is innocent; the loop itself tells.
        step = self._stall_limit / 4
        waited = 0.0
        while waited < self._stall_limit:
            before = time.monotonic()
            if self._answered.wait(step):
                return
            took = time.monotonic() - before
            waited += took if took < 2 * step + _INTERVAL else 0.0
        self._is_reported = True
        self._metrics.loop_stalls.inc()
        stack = describe_stack(sys._current_frames().get(self._loop_thread))
        logger.warning("event loop blocked for %.1f s in: %s", time.monotonic() - asked_at, stack)
        self._answered.wait()
        if not self._stopped.is_set():
            logger.warning("event loop runs again after %.1f s", time.monotonic() - asked_at)


def describe_stack(frame: FrameType | None) -> str:
    """Return the stack on one line, innermost call first: ``time_it.py:7 nap < echo.py:12 generate``."""
    shown: list[str] = []
    while frame is not None and len(shown) < _MAX_FRAMES:
        code = frame.f_code
        if "/trio/" not in code.co_filename:
            shown.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(shown) or "(no Python code)"
