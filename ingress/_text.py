"""What peers send, made fit for log lines, acks and error texts."""

from __future__ import annotations

import logging
import unicodedata

import trio

CLIP = 200


def printable(text: object, limit: int = CLIP) -> str:
    """Return the text with control, bidi and separator characters escaped, clipped with its length named.

    The limit holds for what comes out: one escaped character may be ten long.
    """
    raw = str(text)
    shown = raw[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown if len(raw) <= limit and len(shown) <= limit else f"{shown[:limit]}…({len(raw)} characters)"


def _is_harmless(character: str) -> bool:
    # Cc and Cf hold control and bidi characters, Zl and Zp the line separators, Cs lone surrogates.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")


class RateLimitedLogger:
    """Logs at most ``per_second`` lines a second for each reason, and says how many it left out.

    For one event loop; reasons are fixed strings of the code, so the table is small.
    """

    def __init__(self, logger: logging.Logger, per_second: int = 10) -> None:
        self._logger = logger
        self._per_second = per_second
        self._windows: dict[str, list[float]] = {}

    def log(self, level: int, reason: str, message: str, *arguments: object) -> None:
        now = trio.current_time()
        window = self._windows.setdefault(reason, [now, 0.0, 0.0])
        if not 0.0 <= now - window[0] < 1.0:  # a loop's clock may start below that of the loop before
            if window[2]:
                self._logger.log(level, "%s: %d more", reason, int(window[2]))
            window[:] = [now, 0.0, 0.0]
        if window[1] < self._per_second:
            window[1] += 1
            self._logger.log(level, message, *arguments)
        else:
            window[2] += 1
