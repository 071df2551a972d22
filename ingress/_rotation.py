"""Files that are rotated under a process: certificates, keys.

What was made from them is made again when one has changed, or when told to. New files that cannot be used, half of a
rotation among them, change nothing: the old ones go on, a line says so, and they are tried again. While they stay as
they are, the line comes again now and then only, for whoever looks at the end of a log. They are read by the event
loop, which is why nothing is opened that might wait for somebody.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import trio

from ._text import printable
from .errors import StartupError

# How often files are looked at, and only when what they make is asked for: a few microseconds each.
CHECK_INTERVAL = 1.0

# When a line on files that are as bad as before comes again: each time after twice as long, up to the second of these.
FIRST_REMINDER = 60.0
LONGEST_REMINDER = 3600.0

# Bundles of all authorities of the web have a quarter of it.
MAX_FILE_SIZE = 1024 * 1024

T = TypeVar("T")

_Fingerprint = tuple[tuple[int, int, int, int] | None, ...]


def check_file(path: Path) -> None:
    """Refuse what would hold up whoever reads it: all but regular files of some size, links to them allowed.

    Raises:
        OSError: it is none, or there is none.
    """
    _check_status(path, path.stat())


def read_file(path: Path) -> bytes:
    """Read a file without waiting for anybody.

    Raises:
        OSError: it cannot be read, or is none that :func:`check_file` lets pass.
    """
    check_file(path)  # a device may do something when it is opened
    # Between the two looks it may have become a FIFO, which would wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_status(path, os.fstat(file.fileno()))
        return file.read(MAX_FILE_SIZE)


def _check_status(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file")
    if found.st_size > MAX_FILE_SIZE:
        raise OSError(f"{path} of {found.st_size} bytes exceeds {MAX_FILE_SIZE} bytes")


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
        self._told: tuple[_Fingerprint, str] | None = None
        self._told_again_at = 0.0
        self._reminder = FIRST_REMINDER
        self._fingerprint = _fingerprint_of(files)  # before the files are read: a change in between is seen later
        self._made = load()
        self._checked_at: float | None = None

    def current(self) -> T:
        """Return what the files make, as they were up to :data:`CHECK_INTERVAL` ago."""
        now = trio.current_time()
        if self._checked_at is None or not 0.0 <= now - self._checked_at < CHECK_INTERVAL:
            self._checked_at = now
            if _fingerprint_of(self._files) != self._fingerprint:
                self._read_again()
        return self._made

    @property
    def loaded(self) -> T:
        """What was loaded last, without a look at the files."""
        return self._made

    def reload(self) -> bool:
        """Read every file again, whether it changed or not; tell whether that worked. Raises nothing."""
        self._told = None  # whoever asked gets an answer
        return self._read_again()

    def _read_again(self) -> bool:
        fingerprint = _fingerprint_of(self._files)
        try:
            self._made = self._load()
        except StartupError as exc:
            self._tell(fingerprint, str(exc))
            return False
        self._fingerprint = fingerprint
        self._told = None
        self._logger.info("%s read again", self._what)
        return True

    def _tell(self, fingerprint: _Fingerprint, why: str) -> None:
        """Log that the files cannot be used, once for each state of theirs, and again after a while."""
        now = trio.current_time()
        if self._told != (fingerprint, why):
            self._told = (fingerprint, why)
            self._reminder = FIRST_REMINDER
        elif now < self._told_again_at:
            return
        else:
            self._reminder = min(2 * self._reminder, LONGEST_REMINDER)
        self._told_again_at = now + self._reminder
        self._logger.error("%s cannot be read again, the old ones go on: %s", self._what, printable(why))


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
