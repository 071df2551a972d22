"""One worker process as its parent has it: from its start to its exit code, and never longer than the parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence

import msgspec
import trio

from .._forks import hide_from_children
from ._errors import EXIT_STARTUP, CommandError
from ._parent_line import KEEP_FROM, NUMBER_VARIABLE, Report
from ._start import LINE_VARIABLE
from ._started import StartedWorker

# The report names every endpoint and model.
MAX_REPORT = 1024 * 1024

# For the last report of a process that has ended.
_REPORT_TIME = 1.0

# What the kernel needs for an end that nothing can refuse.
_KILL_TIME = 5.0


class Child:
    """One life of one worker process; for the task that runs it, but for the orders, which any task may give."""

    def __init__(self, process: trio.Process, line: socket.socket) -> None:
        self.started: StartedWorker | None = None
        self.failure: CommandError | None = None
        """Why it could not start, in its own words."""

        self._process = process
        self._line = line
        self._is_read = trio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As subprocess has it: negative for a signal, None while it runs."""
        return self._process.returncode

    async def run(self, on_started: Callable[[StartedWorker], None]) -> None:
        """Wait until the process has ended; cancelled, kill it first. It is reaped in either case."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_report, on_started)
                await self._process.wait()
                with trio.move_on_after(_REPORT_TIME):
                    await self._is_read.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                with trio.move_on_after(_KILL_TIME, shield=True):
                    await self._process.wait()
            self._line.close()

    async def _read_report(self, on_started: Callable[[StartedWorker], None]) -> None:
        received = bytearray()
        while b"\n" not in received and len(received) < MAX_REPORT:
            await trio.lowlevel.wait_readable(self._line)
            try:
                piece = self._line.recv(65536)
            except OSError:
                break
            if not piece:
                break
            received += piece
        with contextlib.suppress(msgspec.MsgspecError):
            report = msgspec.json.decode(received.partition(b"\n")[0], type=Report)
            if (failed := report.failed) is not None:
                self.failure = CommandError(failed.what, failed.why, failed.remedy, exit_code=failed.exit_code)
            self.started = report.started
        self._is_read.set()
        if self.started is not None:
            on_started(self.started)

    # -- orders --------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Have it drain; nothing happens where it does so already, or has ended. One that has not started yet ends."""
        self._order(b"drain\n")

    def force(self, number: int) -> None:
        """Have it end at once, as by a second signal of that number."""
        self._order(b"force %d\n" % number)

    def keep_from(self, neighbour: str, address: tuple[str, int]) -> None:
        """Have it never dial that listener of another process, also before it has started."""
        host, port = address
        self._order(f"{KEEP_FROM} {neighbour} {port} {host}\n".encode("ascii", "replace"))

    def _order(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            self._line.send(line)

    def pass_on(self, number: int) -> None:
        """Send it a signal, once it has started: before, it would die of one that it will listen to later."""
        if self.started is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def ending(self) -> str:
        """``exited with 1``, ``was ended by SIGKILL``."""
        code = self._process.returncode
        if code is None:
            return "cannot be ended"
        if code >= 0:
            return f"exited with {code}"
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"

    def error(self) -> CommandError:
        """Return how it ended, in its own words where it could not start and had any."""
        if self.failure is not None:
            return self.failure
        what = f"worker process {self.pid} {self.ending()}"
        if self.started is not None:
            return CommandError(what)
        return CommandError(what, "it had not started to serve", "--processes 1 shows it alone", exit_code=EXIT_STARTUP)


async def open_child(command: Sequence[str], number: int) -> Child:
    """Start a process.

    It gets no standard input, and a process group of its own: Ctrl-C is for the parent, which gives orders.

    Raises:
        OSError: the system has no more processes or descriptors.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await trio.lowlevel.open_process(
                list(command),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
                env={**os.environ, NUMBER_VARIABLE: str(number), LINE_VARIABLE: str(theirs.fileno())},
            )
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    hide_from_children(ours)
    return Child(process, ours)
