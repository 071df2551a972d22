"""Keeps libraries from filling the log with one complaint: it is shown once a minute, and the rest are counted.

Our own code limits its lines where it writes them (:class:`ingress._text.RateLimitedLogger`); this is for loggers that
know no limit, such as those of the OpenTelemetry SDK while its collector is away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

REPEAT_WINDOW = 60.0

# Kinds of lines that are kept apart; those above it are let through.
_MAX_KINDS = 20

_Kind = tuple[str, int, str]


class RepeatFilter(logging.Filter):
    """Lets through one line of a kind per window; a kind is a logger, a level and a message without its arguments.

    What was held back is told at the end of the window, whether or not another line follows. For a handler, and for
    any thread.

    Args:
        handler: takes the lines that tell the counts.
        libraries: the loggers that are limited, with all below them; from WARNING on.
        window: seconds.
    """

    def __init__(self, handler: logging.Handler, libraries: Collection[str], window: float = REPEAT_WINDOW) -> None:
        super().__init__()
        self._handler = handler
        self._prefixes = tuple(f"{name}." for name in libraries)
        self._window = window
        self._held_back: dict[_Kind, int] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or not f"{record.name}.".startswith(self._prefixes):
            return True
        kind = (record.name, record.levelno, str(record.msg))
        with self._lock:
            if kind in self._held_back:
                self._held_back[kind] += 1
                return False
            if len(self._held_back) < _MAX_KINDS:
                self._held_back[kind] = 0
                self._tell_later(kind)
        return True

    def _tell_later(self, kind: _Kind) -> None:
        timer = threading.Timer(self._window, self._tell, [kind])
        timer.daemon = True
        timer.start()

    def _tell(self, kind: _Kind) -> None:
        with self._lock:
            count = self._held_back.pop(kind)
        if count:
            name, level, message = kind
            arguments = (count, self._window, message)
            told = logging.LogRecord(name, level, __file__, 0, "%d more in %g s: %s", arguments, None)
            self._handler.acquire()
            try:
                self._handler.emit(told)
            finally:
                self._handler.release()
