"""The directory of records on disk: every system call of file discovery, and the threads they run in.

Whatever lies in the directory may have been put there by someone else. Nothing is followed, waited for or read whole
before it is known to be a small regular file of our own user (docs/wire.md §7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar, TypeVarTuple

import trio
from attrs import frozen

from ..errors import DeserializationError
from ..wire.records import MAX_RECORD_SIZE, InstanceRecord

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Above the buckets.
VERSION = "v1"
INSTANCES = Path(VERSION, InstanceRecord.bucket)

# A call that takes longer counts as failed. Three of them and a pause still fit into the 10 s after which others take a
# record for dead.
CALL_TIMEOUT = 3.0

# Windows can neither open a directory nor name a file relative to one: there ``_fd`` is None and ``_at`` joins paths.
_HAS_DIR_FD = os.open in os.supports_dir_fd
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_BLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)

# What opening answers when the name stands for something that is no readable file: a symbolic link, a socket, mode 000.
_NOT_OURS = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EACCES, errno.EPERM)
_CANNOT_SYNC_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


@frozen
class Entry:
    """What the directory tells about a file without opening it; equal entries, equal content."""

    mtime_ns: int
    size: int
    inode: int
    refusal: str | None = None
    """Why the file must not be opened, or None."""


class RecordDirectory:
    """``<base>/v1/instances``, or another bucket's, opened once; every name is resolved relative to that descriptor.

    Used by one thread at a time. All methods block, and raise OSError where the file system fails.
    """

    def __init__(self, base: Path, *, create: bool, bucket: str = InstanceRecord.bucket) -> None:
        self.path = base / VERSION / bucket
        if create:
            _make_directories(self.path)
        self._fd = _open_directory(self.path)

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

    def scan(self) -> dict[str, Entry]:
        """List what lies here, dot-files left out: those are records somebody is still writing."""
        entries = {}
        with os.scandir(self.path if self._fd is None else self._fd) as found:
            for item in found:
                if item.name.startswith("."):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = item.stat(follow_symlinks=False)
                    entries[item.name] = Entry(status.st_mtime_ns, status.st_size, status.st_ino, _refusal(status))
        return entries

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DeserializationError: it is not a small regular file of this user.
        """
        with self._open(name) as file:
            return file.read(MAX_RECORD_SIZE + 1)

    def write(self, name: str, content: bytes) -> None:
        """Put a file here so that nobody, not even after a power cut, sees a part of it.

        On failure the name holds what it held before, or the whole of the new content.
        """
        # The leading dot matters: released peers list any other name and never lose it again (docs/wire.md §7).
        temporary = f".tmp_{secrets.token_hex(8)}"
        try:
            self._create(temporary, content)
            self._replace(temporary, name)
        except OSError:
            with contextlib.suppress(OSError):
                self._unlink(temporary)
            raise
        self._sync()

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
        except (FileNotFoundError, DeserializationError):
            return False

    def remove(self, name: str, content: bytes) -> bool:
        """Remove the file if it still has this content; tell whether it had."""
        try:
            if self.read(name) != content:
                return False
            self._unlink(name)
        except (FileNotFoundError, DeserializationError):
            return False
        return True

    def _at(self, name: str) -> str:
        return str(self.path / name) if self._fd is None else name

    def _open(self, name: str) -> BinaryIO:
        flags = os.O_RDONLY | _NO_FOLLOW | _NO_BLOCK | _BINARY
        try:
            fd = os.open(self._at(name), flags, dir_fd=self._fd)
        except OSError as exc:
            if exc.errno in _NOT_OURS:
                raise DeserializationError(f"cannot be opened: {exc.strerror}") from exc
            raise
        try:
            refusal = _refusal(os.fstat(fd))
            if refusal is not None:
                raise DeserializationError(refusal)
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
        self.bucket = bucket
        # Of one: while a call hangs in the kernel the next one waits here instead of taking another thread, and nothing
        # closes or reuses the descriptor under the one that hangs.
        self._limiter = trio.CapacityLimiter(1)

    def open_directory(self, *, create: bool) -> RecordDirectory:
        return RecordDirectory(self.base, create=create, bucket=self.bucket)

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


def _refusal(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return f"not a regular file ({stat.filemode(status.st_mode)})"
    me = os.geteuid() if hasattr(os, "geteuid") else status.st_uid
    if status.st_uid != me:
        return f"owned by user {status.st_uid} and not by {me}"
    if status.st_size > MAX_RECORD_SIZE:
        return f"{status.st_size} bytes exceed the limit of {MAX_RECORD_SIZE} bytes"
    return None


def _make_directories(path: Path) -> None:
    # Path.mkdir(parents=True) gives the parents the default mode; ours are private from the first on.
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)


def _open_directory(path: Path) -> int | None:
    if _HAS_DIR_FD:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW)
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return None
