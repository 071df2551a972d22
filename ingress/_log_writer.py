"""A log handler that never waits and never raises: a thread writes, and what nobody takes is dropped and counted."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

# Lines that may wait for a slow or blocked reader. Some 200 KiB; more would only be older news.
QUEUE_LINES = 1000

# What the end of a process gives a blocked reader to take the last lines.
CLOSE_TIMEOUT = 1.0

_BATCH = 100

# What a pipe takes as one piece (PIPE_BUF of Linux; POSIX promises 512): lines of several processes do not mix in it.
_ATOMIC = 4096

# A line may be this late. Without it the thread would fight the event loop for the interpreter at every line, which
# made a line three times as dear.
_NAP = 0.01


class LineWriter(logging.Handler):
    """Writes formatted records to a stream, a batch at a time, and whatever else is to stand in order with them.

    A stream with a descriptor is written by a thread, past Python's own buffer, whose lock a blocked write would keep
    to the end of the process; where other processes write to it too (``is_shared``), no line gets into another. A
    stream in memory is written at once. None, as ``sys.stderr`` is where it was closed before the start, takes nothing.
    May be used from any thread and after a fork.
    """

    def __init__(self, stream: IO[str] | None, *, capacity: int = QUEUE_LINES, is_shared: bool = False) -> None:
        super().__init__()
        self._plain: tuple[logging.Formatter | None, list[object], int] | None = None
        self.mark = ""
        """What their text begins with."""
        self._stream = stream
        self._is_shared = is_shared
        self._capacity = capacity
        self._lines: deque[str] = deque()
        self._rejected = 0
        self._unwritten = 0
        self._reported = 0
        self._is_closing = False
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._has_descriptor = _descriptor(stream) is not None
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._process = os.getpid()

    @property
    def dropped(self) -> int:
        """Lines that were lost: no room in the queue, or the stream took none."""
        return self._rejected + self._unwritten

    @property
    def waiting(self) -> int:
        """Lines that the thread has not taken yet."""
        return len(self._lines)

    def mark_plain(self) -> None:
        """Have its present formatter and filters make the lines of :func:`ingress._logging.plain_line`."""
        self._plain = self.formatter, list(self.filters), self.level

    @property
    def is_plain(self) -> bool:
        """True while nobody has set another formatter, filter or level since."""
        return self._plain == (self.formatter, self.filters, self.level)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # an argument whose __str__ fails, or a message that does not fit its arguments
            line = self.format(_note(logging.ERROR, "log line of %s:%d cannot be shown", record.module, record.lineno))
        self.write_line(line)

    def write_line(self, line: str, end: str = "\n") -> None:
        """Take a line that has its form already; a text for people too, of any number of lines with their ends."""
        if not self._has_descriptor:
            self._write_in_memory(line + end)
            return
        if self._process != os.getpid():
            with self._starting:
                self._begin_anew_after_fork()
        if len(self._lines) >= self._capacity or self._is_closing:
            self._rejected += 1
            return
        self._lines.append(line + end)
        if not self._wanted.is_set():
            with self._starting:  # lines come from several threads, and two writers would be at odds
                try:
                    self._keep_thread()
                except RuntimeError:  # none to be had: the next line tries again, and this one waits
                    return
            self._wanted.set()

    def flush(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait until everything has been written, but not for long."""
        deadline = time.monotonic() + timeout
        while (self._lines or self._wanted.is_set()) and self._is_writing() and time.monotonic() < deadline:
            time.sleep(0.002)

    def close(self) -> None:
        self.flush()
        self._is_closing = True
        self._wanted.set()
        super().close()

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_in_memory(self, text: str) -> None:
        try:
            if self._stream is not None:
                self._stream.write(text)
                return
        except (OSError, ValueError):
            pass
        self._unwritten += 1

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin_anew_after_fork(self) -> None:
        """The lines are the parent's, and its thread has stayed there."""
        if self._process == os.getpid():  # another thread was faster
            return
        self._process = os.getpid()
        self._lines.clear()
        self._wanted = threading.Event()

    def _keep_thread(self) -> None:
        if self._is_writing():
            return
        self._thread = threading.Thread(target=self._run, name="ingress log writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closing:
            self._wanted.wait()
            time.sleep(_NAP)
            while self._lines:
                self._write_batch([self._lines.popleft() for _ in range(min(len(self._lines), _BATCH))])
            # Cleared only when all is written, which flush relies on; what came in between is seen by the next look.
            self._wanted.clear()
            if self._lines:
                self._wanted.set()

    def _write_batch(self, lines: list[str]) -> None:
        missing = self.dropped - self._reported
        if missing:
            note = _note(logging.WARNING, "%d log lines were dropped before this one", missing)
            lines = [f"{self.format(note)}\n", *lines]
        try:
            text = "".join(lines)  # a record with a traceback has several lines
            raw = [line.encode(self._encoding, "backslashreplace") for line in text.splitlines(keepends=True)]
            for piece in self._pieces(raw):
                self._write_all(piece)
        except (OSError, ValueError):  # the disk is full, nobody reads, the stream was closed
            self._unwritten += len(lines) - bool(missing)
        else:
            self._reported += missing

    def _pieces(self, lines: list[bytes]) -> Iterator[bytes]:
        """Yield what is written at a time: all, or, where others write too, whole lines that fit in one piece."""
        start = size = 0
        for position, line in enumerate(lines):
            if self._is_shared and position > start and size + len(line) > _ATOMIC:
                yield b"".join(lines[start:position])
                start, size = position, 0
            size += len(line)
        yield b"".join(lines[start:])

    def _write_all(self, data: bytes) -> None:
        descriptor = _descriptor(self._stream)
        if descriptor is None:
            raise ValueError("the stream has been closed")
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:  # somebody made it non-blocking, and it is full
                if self._is_closing:
                    raise
                time.sleep(0.02)


def _descriptor(stream: IO[str] | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _note(level: int, message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("ingress.log", level, __file__, 0, message, arguments, None)
