"""What peers send, made fit for log lines, acks and error texts."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import re
import unicodedata

import trio

CLIP = 200


def safe_str(value: object) -> str:
    """Return the text of anything; what says nothing of itself must not cost others their answers and lines."""
    try:
        return str.__str__(str(value))  # a subclass of str may do anything
    except BaseException:
        return "(its text cannot be shown)"


def printable(text: object, limit: int = CLIP) -> str:
    """Return the text with control, bidi and separator characters escaped, clipped with its length named.

    The limit holds for what comes out, in bytes: one escaped character may be ten long.
    """
    raw = str(text)
    shown = escaped(raw[:limit])
    kept = beginning(shown, limit)
    return shown if len(raw) <= limit and kept == shown else f"{kept}…({len(raw)} characters)"


def escaped(text: str) -> str:
    """Return the whole text with what :func:`printable` escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: object, limit: int = CLIP) -> str:
    """Return the text printable, and in quotes where a part of it might be taken for a field of the log line."""
    shown = printable(text, limit)
    return json.dumps(shown, ensure_ascii=False) if "=" in shown else shown


def named(text: object, limit: int = CLIP) -> str:
    """Return what a caller calls something: in quotes unless it is one plain word, so that it shows where it ends."""
    raw = str(text)
    if len(raw) <= limit and _WORD.fullmatch(raw) and escaped(raw) == beginning(raw, limit):
        return raw
    shown = escaped(json.dumps(raw[:limit], ensure_ascii=False))  # by JSON a backslash of theirs is none of ours
    if len(raw) <= limit and shown == beginning(shown, limit + 2):
        return shown
    return f'{beginning(shown[:-1], limit + 1)}…"({len(raw)} characters)'


def beginning(text: str, limit: int) -> str:
    """Return as much of a text as takes so many bytes."""
    text = text[:limit]
    return text if text.isascii() else text.encode(errors="replace")[:limit].decode(errors="ignore")


_WORD = re.compile(r"[\w.:/+@%~-]+")


def _is_harmless(character: str) -> bool:
    # Cc and Cf hold control and bidi characters, Zl and Zp the line separators, Cs lone surrogates.
    return character not in _BLANK and unicodedata.category(character) not in _HARMFUL


_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})

# Letters and marks that show nothing: the fillers of Hangul, an unseen joiner, inherent vowels of Khmer.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code)  # what selects a variant of the character before
    for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for code in range(first, last + 1)
}


_MOST_REASONS = 256


class RateLimitedLogger:
    """Logs at most ``per_second`` lines a second for each reason, and at the end of the second how many it left out.

    Called from tasks of an event loop. Reasons are words of the code, or class names of what an engine raises.
    """

    def __init__(self, logger: logging.Logger, per_second: int = 10) -> None:
        self._logger = logger
        self._per_second = per_second
        self._windows: dict[str, _Window] = {}

    def log(self, level: int, reason: str, message: str, *arguments: object) -> None:
        now = trio.current_time()
        if len(self._windows) >= _MOST_REASONS and reason not in self._windows:
            reason = "others"
        window = self._windows.get(reason)
        if window is None or not 0.0 <= now - window.start < 1.0:  # a loop's clock may start below the one before
            if window is not None:
                contextvars.Context().run(window.tell)  # of other requests than the present one
            window = self._windows[reason] = _Window(self._logger, level, reason, now)
        if window.shown < self._per_second:
            window.shown += 1
            self._logger.log(level, message, *arguments)
            return
        window.left_out += 1
        if window.left_out == 1:
            # Of no request, and without a nursery: whoever logs has none. It ends with the second, or with the loop;
            # where that is ending already, the next line tells.
            with contextlib.suppress(RuntimeError):
                trio.lowlevel.spawn_system_task(window.tell_at_its_end)


class _Window:
    """One second of one reason."""

    def __init__(self, logger: logging.Logger, level: int, reason: str, start: float) -> None:
        self.start = start
        self.shown = 0
        self.left_out = 0
        self._logger = logger
        self._level = level
        self._reason = reason

    async def tell_at_its_end(self) -> None:
        try:
            await trio.sleep_until(self.start + 1.0)
        finally:
            self.tell()

    def tell(self) -> None:
        if self.left_out:
            self._logger.log(self._level, "%s: %d more", self._reason, self.left_out)
            self.left_out = 0
