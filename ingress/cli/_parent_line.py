"""A worker process's line to the process that started it: what is reported, what is ordered, and what its end means.

Both ends speak lines. The worker says once how its start went, ``{"started": …}`` or ``{"failed": …}``. The parent says
``drain``, ``force 15`` for the end at once, and of each listener of its own and of the other processes, ``keep-from 1.0
40123 127.0.0.1``: no request may have it dialled. End of file is the death of the parent, however it died.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager

import msgspec
import trio
from attrs import evolve, frozen

from .._forks import hide_from_children
from .._last_resort import EXIT_CANCELLED_BY_DRAIN, FORCED_EXIT_TIME, LastResort
from .._signals import leave_now
from .._worker import CLOSING_TIME, Worker
from ..errors import StartupError
from ._errors import EXIT_CLEAN, CommandError, startup_error
from ._start import LINE_VARIABLE
from ._started import StartedWorker
from ._status_options import StatusFlags
from ._worker_flags import WorkerFlags

logger = logging.getLogger("ingress.cli")

# For engines too: which of the processes of one machine theirs is, to choose a device by.
NUMBER_VARIABLE = "INGRESS_PROCESS"

MAX_ORDER = 128

KEEP_FROM = "keep-from"

# Beyond the drain's own bounds: what cancelled requests, engines and the last spans may take.
ENDING_MARGIN = 10.0


@frozen
class StartFailure:
    """Why a process could not start, as its parent will tell it."""

    what: str
    why: str
    remedy: str
    exit_code: int


@frozen
class Report:
    """How a start went: one of the two."""

    started: StartedWorker | None = None
    failed: StartFailure | None = None


def drain_time(options: WorkerFlags) -> float:
    """Return the seconds after which a process that was told to drain must have ended, whatever its engines do."""
    from .._handler import GOODBYE_TIMEOUT

    bounds = options.grace + options.drain_budget + GOODBYE_TIMEOUT + CLOSING_TIME
    return bounds + FORCED_EXIT_TIME + ENDING_MARGIN


class ParentLine:
    """The worker's end of the line; a thread listens, so that the parent's death is noticed by a stuck loop too."""

    def __init__(self, number: int, line: socket.socket) -> None:
        self.number = number
        self._line = line
        self._lock = threading.Lock()
        self._hear: Callable[[str], str] = str
        self._obey: Callable[[str], None] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._drain_time = 0.0
        self._is_reported = False
        self._early: list[str] = []

    @classmethod
    def find(cls, environ: MutableMapping[str, str]) -> ParentLine | None:
        """Return the line of a process that was started by another, None for one that was started by anybody else.

        The variable that names the line is taken away: it is no business of what this process starts in turn.
        """
        descriptor = environ.pop(LINE_VARIABLE, "")
        try:
            line = socket.socket(fileno=int(descriptor))
            number = int(environ[NUMBER_VARIABLE])
        except (ValueError, OSError, KeyError):
            return None
        line.set_inheritable(False)
        hide_from_children(line)
        found = cls(number, line)
        threading.Thread(target=found._listen, name="ingress parent line", daemon=True).start()
        return found

    def own_options(self, worker: WorkerFlags, status: StatusFlags) -> tuple[WorkerFlags, StatusFlags]:
        """Return the options of this process: a port of its own, and a status server for the parent alone."""
        self._drain_time = drain_time(worker)
        return (
            evolve(worker, port=worker.port + self.number if worker.port else 0),
            evolve(
                status,
                status_port=-1 if status.status_port < 0 else 0,
                status_host="127.0.0.1",
                health_path="/health",
                live_path="/live",
                compat_live=False,
            ),
        )

    # -- reports -------------------------------------------------------------------------------------------------------

    def report_started(self, worker: StartedWorker) -> None:
        self._report(Report(started=worker))

    @contextmanager
    def failures_reported(self) -> Iterator[None]:
        """Leave by ``SystemExit`` where the start fails: the parent tells why, once for all processes.

        A worker that fails later logs why itself.
        """
        try:
            yield
        except (CommandError, StartupError) as exc:
            error = startup_error(exc) if isinstance(exc, StartupError) else exc
            if self._is_reported:
                logger.error("%s: %s", error.what, error.why)
            self._report(Report(failed=StartFailure(error.what, error.why, error.remedy, error.exit_code)))
            raise SystemExit(error.exit_code) from exc

    def _report(self, report: Report) -> None:
        self._is_reported = True
        with contextlib.suppress(OSError):  # the parent is gone, which the listening thread sees to
            self._line.sendall(msgspec.json.encode(report) + b"\n")

    # -- orders --------------------------------------------------------------------------------------------------------

    async def serve(self, worker: Worker, force: Callable[[int], None], last_resort: LastResort) -> None:
        """Obey until cancelled."""

        def obey(order: str) -> None:
            word, _, rest = order.partition(" ")
            if word == "drain" and not worker.is_draining:
                logger.info("draining: told by the parent process")
                worker.drain()
            elif word == "orphaned" and not worker.is_draining:
                logger.warning("draining: the parent process is gone")
                worker.drain()
            elif word == "force" and rest.isdigit():
                force(int(rest))
            elif word == KEEP_FROM:
                neighbour, port, host = rest.split(" ", 2)
                worker.keep_from(neighbour, (host, int(port)))

        def hear(order: str) -> str:
            """In the thread: tell the last resort, and return what the loop shall obey, once it runs."""
            word, _, rest = order.partition(" ")
            if word in ("drain", "orphaned"):
                if worker.is_loading:
                    return hear(f"force {signal.SIGTERM:d}")
                last_resort.expect_drained()
            elif word == "force" and rest.isdigit():
                last_resort.expect_forced(int(rest))
            return order

        with self._lock:
            self._hear, self._obey, self._token = hear, obey, trio.lowlevel.current_trio_token()
            for order in self._early:
                obey(order)
        await trio.sleep_forever()

    def _listen(self) -> None:
        pending = b""
        while received := self._receive():
            *orders, pending = (pending + received).split(b"\n")
            for order in orders:
                self._deliver(order.decode("ascii", "replace"))
            pending = pending[-MAX_ORDER:]
        self._deliver("orphaned")
        time.sleep(self._drain_time)
        leave_now(EXIT_CANCELLED_BY_DRAIN)

    def _receive(self) -> bytes:
        try:
            return self._line.recv(MAX_ORDER)
        except OSError:
            return b""

    def _deliver(self, order: str) -> None:
        with self._lock:
            obey, token = self._obey, self._token
            if obey is None or token is None:
                if order.startswith(KEEP_FROM):
                    self._early.append(order)
                    return
                os._exit(EXIT_CLEAN)  # whatever the order: nothing has been announced yet
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(obey, self._hear(order))
