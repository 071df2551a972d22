"""``ingress serve --processes N``: N worker processes on one machine, supervised, with one status endpoint."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable

import trio

from .._hosts import join_host_port
from .._last_resort import EXIT_CANCELLED_BY_DRAIN
from .._log_writer import LineWriter
from .._open_doors import warn_of_open_doors
from .._serve import single_exceptions_unwrapped
from ..status._app import make_app
from ..status._server import serve_status
from ._child import Child, open_child
from ._command_line import command_line
from ._errors import EXIT_CLEAN, EXIT_FAILED, usage
from ._options import DiscoveryOptions, OutputOptions
from ._parent_line import drain_time
from ._process_pages import ProcessPages
from ._started import StartedWorker, announce
from ._status_options import StatusFlags
from ._supervisor import Supervisor
from ._worker_flags import WorkerFlags

logger = logging.getLogger("ingress.cli")

# More than any machine has use for; each is asked at every scrape.
MAX_PROCESSES = 256

_HIGHEST_PORT = 65535

_ENDINGS = {
    EXIT_CLEAN: "drained, every request was answered",
    EXIT_CANCELLED_BY_DRAIN: "drained, some requests were cancelled by the budget, or a process did not end",
    EXIT_FAILED: "at least one failed while it drained",
}


def serve_processes(
    count: int,
    worker: WorkerFlags,
    status: StatusFlags,
    discovery: DiscoveryOptions,
    output: OutputOptions,
    log_writer: LineWriter,
) -> int:
    """Start the same command ``count`` times, serve the status of all, and return the worst of their exit codes.

    Raises:
        CommandError: the options or the system do not go with several processes, or one could not start.
        StartupError: the status port is taken.
    """
    if sys.platform == "win32":
        raise usage("--processes cannot be used", "it needs signals and sockets as POSIX has them", "--processes 1")
    check_addresses(count, worker)
    opened = discovery.open_shared()
    # Each process warns of its own doors.
    status_host = status.status_host if status.status_port >= 0 else None
    warn_of_open_doors([], tls=None, has_tokens=False, dial_policy="", status_host=status_host)
    fleet = _Fleet(count, worker, status)

    def on_started(status_url: str | None) -> None:
        started = [slot.latest for slot in fleet.supervisor.slots if slot.latest is not None]
        announce(started, status_url, status.health_path, worker, discovery, opened, output, log_writer)

    code = trio.run(fleet.serve, on_started)
    logger.info("stopped: %d processes, %s", count, _ENDINGS.get(code, "ended at once by a signal"))
    return code


def check_addresses(count: int, worker: WorkerFlags) -> None:
    """Raise CommandError where several processes cannot have an address each.

    A fixed port is that of the first; the others have those that follow, so that a firewall can know them.
    """
    if worker.port and worker.port + count - 1 > _HIGHEST_PORT:
        why = f"process {count - 1} would listen on {worker.port + count - 1}, and ports end at {_HIGHEST_PORT}"
        raise usage(f"--port {worker.port} leaves no room for {count} processes", why, "a lower --port, or --port 0")
    host, colon, port = (worker.advertise or "").rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.endswith("]")):
        why = f"it names one port, and each of {count} processes has its own"
        raise usage(
            f"--advertise {worker.advertise} cannot be used", why, f"--advertise {host}, with or without --port"
        )


def child_command() -> list[str]:
    """Return the command of a worker process: this one's, which the line to its parent makes a single worker.

    It imports from where the console script does: a file beside the engine is not to hide a module of the library.
    """
    return [sys.executable, "-P", "-m", "ingress", *command_line()]


class _Fleet:
    """The supervised processes and the status server before them."""

    def __init__(self, count: int, worker: WorkerFlags, status: StatusFlags) -> None:
        self._status = status
        self._command = child_command()
        self.supervisor = Supervisor(
            count,
            self._open_child,
            drain_time=drain_time(worker),
            passed_on=(signal.SIGUSR1, signal.SIGHUP),
            on_serving=self._keep_others_from,
            on_ended=self._on_ended,
        )
        self._own_address: tuple[str, int] | None = None
        self._pages = ProcessPages(self.supervisor.slots, status)

    async def _open_child(self, number: int) -> Child:
        child = await open_child(self._command, number)
        if self._own_address is not None:
            child.keep_from("parent", self._own_address)
        for slot in self.supervisor.slots:
            if slot.number != number and slot.latest is not None:
                _keep_from(child, slot.number, slot.latest)
        return child

    def _keep_others_from(self, number: int, worker: StartedWorker) -> None:
        """Have no process dial another: a request that one would refuse is as unwelcome by way of its neighbour."""
        for slot in self.supervisor.slots:
            if slot.number != number and slot.child is not None:
                _keep_from(slot.child, number, worker)

    def _on_ended(self, number: int) -> None:
        self._pages.retire(number)

    async def serve(self, on_started: Callable[[str | None], None]) -> int:
        with single_exceptions_unwrapped():
            async with trio.open_nursery() as nursery:
                url = None
                if self._status.status_port >= 0:  # first: processes that load for minutes are live all the while
                    address = await nursery.start(self._serve_pages)
                    self._own_address = address
                    url = f"http://{join_host_port(*address)}"
                code = await self.supervisor.serve(lambda: on_started(url))
                nursery.cancel_scope.cancel()
        return code

    async def _serve_pages(self, *, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
        status = self._status
        await serve_status(
            make_app(self._pages), host=status.status_host, port=status.status_port, task_status=task_status
        )


def _keep_from(child: Child, number: int, neighbour: StartedWorker) -> None:
    for place, address in enumerate(neighbour.listening):
        child.keep_from(f"{number}.{place}", address)
