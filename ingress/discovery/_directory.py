"""The directory of records on disk: every system call of file discovery, and the threads they run in.

Whatever lies in the directory may have been put there by someone else. Nothing is followed, waited for or read whole
before it is known to be a small regular file of our own user (docs/wire.md §7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, TypeVarTuple

import trio

from ..wire.records import MAX_RECORD_SIZE, InstanceRecord
from ._entries import Entry, RefusedFile, refusal_of, refusal_to_open

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Above the buckets.
VERSION = "v1"
INSTANCES = Path(VERSION, InstanceRecord.bucket)

# A call that takes longer counts as failed. Three of them and a pause still fit into the 10 s after which others take a
# record for dead.
CALL_TIMEOUT = 3.0

# Twice the fleet that a directory is made for, so that what lies in it costs a reader at most some 20 MiB.
MAX_FILES = 20_000

# What ``write`` calls its files before they are whole; released peers do likewise.
_UNFINISHED = re.compile(r"\.tmp_[0-9a-f]{16}")
_MAX_UNFINISHED = 1000

# Windows can neither open a directory nor name a file relative to one: there ``_fd`` is None and ``_at`` joins paths.
_HAS_DIR_FD = os.open in os.supports_dir_fd
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_BLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)

_CANNOT_SYNC_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class RecordDirectory:
    """``<base>/v1/instances``, or another bucket's, opened once; every name is resolved relative to that descriptor.

    None of the three may be a symbolic link, so that nobody who can remove them leads a worker to another place. Used
    by one thread at a time. All methods block, and raise OSError where the file system fails.
    """

    def __init__(self, base: Path, *, create: bool, bucket: str = InstanceRecord.bucket) -> None:
        self.path = base / VERSION / bucket
        self._fd = _open_directory(base, (VERSION, bucket), create=create)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def is_current(self) -> bool:
        """Tell whether the path still leads here; it does not once the directory was removed or moved away."""
        if self._fd is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def scan(self, known: Collection[str] = ()) -> dict[str, Entry]:
        """List what lies here, dot-files left out: those are records somebody is still writing.

        At most ``MAX_FILES``, and of those that are ``known`` all.
        """
        return self._list(lambda name: not name.startswith("."), MAX_FILES, known)

    def unfinished(self) -> dict[str, Entry]:
        """List files whose writer has not come to an end, or has come to a bad one."""
        listed = self._list(lambda name: _UNFINISHED.fullmatch(name) is not None, _MAX_UNFINISHED)
        return {name: entry for name, entry in listed.items() if entry.refusal is None}

    def remove_unfinished(self, listed: Mapping[str, Entry]) -> int:
        """Remove those that nobody has touched since they were listed; return how many."""
        still = self.unfinished()
        dead = [name for name, entry in listed.items() if still.get(name) == entry]
        removed = 0
        for name in dead:
            with contextlib.suppress(FileNotFoundError):
                self._unlink(name)
                removed += 1
        return removed

    def exposure(self) -> str | None:
        """Return how others can interfere with the files here, or None."""
        status = self.path.stat() if self._fd is None else os.fstat(self._fd)
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            return f"it belongs to user {status.st_uid}"
        if status.st_mode & 0o022 and os.name == "posix":
            return f"its mode is {stat.S_IMODE(status.st_mode):o}"
        return None

    def _list(self, is_wanted: Callable[[str], bool], limit: int, known: Collection[str] = ()) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        with os.scandir(self.path if self._fd is None else self._fd) as found:
            for item in found:
                if not is_wanted(item.name) or (len(entries) >= limit and item.name not in known):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = item.stat(follow_symlinks=False)
                    entries[item.name] = Entry(status.st_mtime_ns, status.st_size, status.st_ino, refusal_of(status))
        return entries

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            RefusedFile: it is not a small regular file of this user.
        """
        with self._open(name) as file:
            return file.read(MAX_RECORD_SIZE + 1)

    def write(self, name: str, content: bytes) -> str | None:
        """Put a file here so that nobody, not even after a power cut, sees a part of it.

        A directory of that name gives way: it is removed if it is empty, and renamed otherwise. On failure the name
        holds what it held before, or the whole of the new content, or nothing where it held a directory.

        Returns:
            The new name of a directory that was in the way.
        """
        aside = None
        # The leading dot matters: released peers list any other name and never lose it again (docs/wire.md §7).
        temporary = f".tmp_{secrets.token_hex(8)}"
        try:
            self._create(temporary, content)
            try:
                self._replace(temporary, name)
            except IsADirectoryError:
                aside = self._make_way(name)
                self._replace(temporary, name)
        except OSError:
            with contextlib.suppress(OSError):
                self._unlink(temporary)
            raise
        self._sync()
        return aside

    def _make_way(self, name: str) -> str | None:
        try:
            os.rmdir(self._at(name), dir_fd=self._fd)
            return None
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # With a leading dot, as above. What is in it belongs to others.
        aside = f".aside_{secrets.token_hex(8)}"
        os.rename(self._at(name), self._at(aside), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return aside

    def touch(self, name: str, content: bytes) -> bool:
        """Move the file's mtime on if it still has this content; tell whether it had."""
        try:
            with self._open(name) as file:
                if file.read(MAX_RECORD_SIZE + 1) != content:
                    return False
                # Through the descriptor, so that what was compared is what is touched. Without a time of our own: the
                # file server's clock is the one that its other readers compare with.
                os.utime(file.fileno() if os.utime in os.supports_fd else self._at(name))
                return True
        except (FileNotFoundError, RefusedFile):
            return False

    def remove(self, name: str, content: bytes) -> bool:
        """Remove the file if it still has this content; tell whether it had."""
        try:
            if self.read(name) != content:
                return False
            self._unlink(name)
        except (FileNotFoundError, RefusedFile):
            return False
        return True

    def _at(self, name: str) -> str:
        return str(self.path / name) if self._fd is None else name

    def _open(self, name: str) -> BinaryIO:
        flags = os.O_RDONLY | _NO_FOLLOW | _NO_BLOCK | _BINARY
        try:
            fd = os.open(self._at(name), flags, dir_fd=self._fd)
        except OSError as exc:
            refusal = refusal_to_open(exc)
            if refusal is None:
                raise
            raise RefusedFile(refusal) from exc
        try:
            refusal = refusal_of(os.fstat(fd))
            if refusal is not None:
                raise RefusedFile(refusal)
            return os.fdopen(fd, "rb")
        except BaseException:
            os.close(fd)
            raise

    # The four steps that change something, each one system call or nearly so: tests fail and cut them one by one.

    def _create(self, name: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _BINARY
        with os.fdopen(os.open(self._at(name), flags, 0o600, dir_fd=self._fd), "wb") as file:
            file.write(content)
            file.flush()
            self._sync_file(file.fileno())

    def _sync_file(self, fd: int) -> None:
        os.fsync(fd)

    def _replace(self, source: str, target: str) -> None:
        os.replace(self._at(source), self._at(target), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _unlink(self, name: str) -> None:
        os.unlink(self._at(name), dir_fd=self._fd)

    def _sync(self) -> None:
        if self._fd is None:
            return
        try:
            os.fsync(self._fd)
        except OSError as exc:
            if exc.errno not in _CANNOT_SYNC_DIRECTORIES:
                raise


class FileAccess:
    """How one task reaches its record directory: one call at a time, in a thread, and not for ever.

    The calls take microseconds on a local disk, where a direct call would be cheaper than the hop (some 100 µs, at most
    ten times a second). But the directory is often shared over NFS, where the same calls hang for as long as the server
    is away; on the loop that would stop every stream of the worker. So: a thread, given up after ``CALL_TIMEOUT``.
    """

    def __init__(self, base: Path, bucket: str = InstanceRecord.bucket) -> None:
        self.base = base
        self._is_resolved = False
        self.bucket = bucket
        # Of one: while a call hangs in the kernel the next one waits here instead of taking another thread, and nothing
        # closes or reuses the descriptor under the one that hangs.
        self._limiter = trio.CapacityLimiter(1)

    def open_directory(self, *, create: bool) -> RecordDirectory:
        # The user may have named a link; what it led to at first is where we stay, whoever puts another one there.
        base = self.base if self._is_resolved else self.base.resolve()
        directory = RecordDirectory(base, create=create, bucket=self.bucket)
        self.base, self._is_resolved = base, True
        return directory

    def wall_time(self) -> float:
        """Seconds since 1970, for comparison with mtimes."""
        return time.time()

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a blocking function.

        A call that is cancelled or timed out goes on in its thread; later calls are made after it has ended.

        Raises:
            TimeoutError: no answer within ``CALL_TIMEOUT``; it is an OSError like every other failure here.
        """
        with trio.move_on_after(CALL_TIMEOUT):
            return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self._limiter)
        raise TimeoutError(errno.ETIMEDOUT, f"the file system did not answer within {CALL_TIMEOUT:g} s")


def _make_directories(path: Path) -> None:
    # Path.mkdir(parents=True) gives the parents the default mode; ours are private from the first on.
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)


def _open_directory(base: Path, inner: Sequence[str], *, create: bool) -> int | None:
    """Open ``base`` and what is in it, each relative to the one before; make what is missing where that is wanted."""
    if create:
        _make_directories(base if _HAS_DIR_FD else base.joinpath(*inner))
    if not _HAS_DIR_FD:
        if not (path := base.joinpath(*inner)).is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return None
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW)
    try:
        for name in inner:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
            outer, fd = fd, os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=fd)
            os.close(outer)
    except BaseException:
        os.close(fd)
        raise
    return fd
