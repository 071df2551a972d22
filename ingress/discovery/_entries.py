"""What a directory tells about a file without reading it, and which files are refused for that.

Pure: no system call is made here.
"""

from __future__ import annotations

import errno
import os
import stat

from attrs import frozen

from ..errors import DeserializationError
from ..wire.records import MAX_RECORD_SIZE

# What opening answers when the name stands for something that is no readable file: a symbolic link, a socket, mode 000.
_NOT_OURS = {
    errno.ELOOP: "kind",
    errno.EMLINK: "kind",
    errno.ENXIO: "kind",
    errno.EACCES: "unreadable",
    errno.EPERM: "unreadable",
}


@frozen
class Refusal:
    """Why a file must not be opened."""

    reason: str
    """One of :data:`ingress._tallies.RECORD_SKIPS`."""

    text: str

    def __str__(self) -> str:
        return self.text


class RefusedFile(DeserializationError):
    """A file that is none which a worker of this user writes."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.reason = refusal.reason


@frozen
class Entry:
    """What the directory tells about a file without opening it; equal entries, equal content."""

    mtime_ns: int
    size: int
    inode: int
    refusal: Refusal | None = None


def refusal_of(status: os.stat_result) -> Refusal | None:
    """Return why a file of this status must not be opened, or None."""
    if not stat.S_ISREG(status.st_mode):
        return Refusal("kind", f"not a regular file ({stat.filemode(status.st_mode)})")
    me = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
    if status.st_uid != me:
        return Refusal("owner", f"owned by user {status.st_uid} and not by {me}")
    if status.st_size > MAX_RECORD_SIZE:
        return Refusal("size", f"{status.st_size} bytes exceed the limit of {MAX_RECORD_SIZE} bytes")
    return None


def refusal_to_open(exc: OSError) -> Refusal | None:
    """Return what an error of opening says about the file, or None where it is about the file system."""
    reason = _NOT_OURS.get(exc.errno or 0)
    return None if reason is None else Refusal(reason, f"cannot be opened: {exc.strerror}")
