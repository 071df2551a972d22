"""Signals: who handles them for a time, what Ctrl-C raises, and the end at once that they may ask for."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT)

# What the end at once gives the log and the standard output to take the last lines.
_LAST_WORDS_TIME = 0.4

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def signals_handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Have signals handled while inside, in the main thread, which alone may enter; then as before.

    A handler runs between two steps of Python, also where an event loop is stuck in its engine.
    """
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_for_now(number: int, frame: FrameType | None) -> None:
    """Do nothing yet, as a signal that means something later; SIG_IGN is what children of an engine would inherit."""


def is_ctrl_c(exc: BaseException) -> bool:
    """Tell whether Ctrl-C has raised this: only Python's own handler raises anything, code may do so at any time."""
    return isinstance(exc, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def leave_now(exit_code: int, last_words: Callable[[], None] = lambda: None) -> NoReturn:
    """End the process without waiting for anything, but a moment for the last words and what is in buffers.

    In any thread or signal handler: what is said and written is so by a thread of its own, for the interrupted code may
    hold the lock of a log handler, and nobody may read.
    """

    def say_and_flush() -> None:
        with suppress(Exception):
            last_words()
        with suppress(Exception):  # it may be half imported
            sys.modules["logging"].shutdown()
        with suppress(Exception):
            sys.stdout.flush()

    with suppress(RuntimeError):  # the system has no more threads
        speaker = threading.Thread(target=say_and_flush, name="ingress last words", daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_TIME)
    os._exit(exit_code)
