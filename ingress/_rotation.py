"""Files that are rotated under a process: certificates, keys.

What was made from them is made again when one has changed, or when told to. New files that cannot be used, half of a
rotation among them, change nothing: the old ones go on, a line says so, and they are tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import trio

from ._text import RateLimitedLogger, printable
from .errors import StartupError

# How often files are looked at, and only when what they make is asked for: a few microseconds each.
CHECK_INTERVAL = 1.0

T = TypeVar("T")

_Fingerprint = tuple[tuple[int, int, int, int] | None, ...]


class Rotated(Generic[T]):
    """What ``load`` makes of files; for one event loop.

    Args:
        what: names it in log lines, in the plural.

    Raises:
        StartupError: as ``load`` does.
    """

    def __init__(self, files: tuple[Path, ...], load: Callable[[], T], what: str, logger: logging.Logger) -> None:
        self._files = files
        self._load = load
        self._what = what
        self._logger = logger
        self._log = RateLimitedLogger(logger, per_second=1)
        self._fingerprint = _fingerprint_of(files)  # before the files are read: a change in between is seen later
        self._made = load()
        self._checked_at: float | None = None

    def current(self) -> T:
        """Return what the files make, as they were up to :data:`CHECK_INTERVAL` ago."""
        now = trio.current_time()
        if self._checked_at is None or not 0.0 <= now - self._checked_at < CHECK_INTERVAL:
            self._checked_at = now
            if _fingerprint_of(self._files) != self._fingerprint:
                self.reload()
        return self._made

    @property
    def loaded(self) -> T:
        """What was loaded last, without a look at the files."""
        return self._made

    def reload(self) -> bool:
        """Read every file again, whether it changed or not; tell whether that worked. Raises nothing."""
        fingerprint = _fingerprint_of(self._files)
        try:
            self._made = self._load()
        except StartupError as exc:
            self._log.log(
                logging.ERROR, "reload", "%s cannot be read again, the old ones go on: %s", self._what, printable(exc)
            )
            return False
        self._fingerprint = fingerprint
        self._logger.info("%s read again", self._what)
        return True


def _fingerprint_of(files: tuple[Path, ...]) -> _Fingerprint:
    """What changes when a file is written, replaced, or a symbolic link on the way to it is turned."""
    marks: list[tuple[int, int, int, int] | None] = []
    for path in files:
        try:
            found = path.stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(marks)
