"""The two ways in: :func:`serving` inside a trio program, :func:`run` for a whole process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any, Protocol

import trio

from ._descriptors import raise_descriptor_limit
from ._last_resort import EXIT_CANCELLED_BY_DRAIN, FORCED_EXIT_TIME, LastResort, longest_end
from ._process_memory import exempt_what_stays, give_back_freed_memory, give_back_large_blocks
from ._signals import ENDING, signals_handled
from ._task_tree import dump_tasks_on_signal
from ._worker import CLOSING_TIME, EngineLike, Worker
from ._worker_options import WorkerOptions
from .discovery import FileDiscovery, default_directory
from .errors import StartupError

logger = logging.getLogger("ingress.worker")

DEFAULT_ENDPOINT = "demo.backend.generate"

EXIT_CLEAN = 0


def make_worker(
    engine: EngineLike | Mapping[str, EngineLike], *, endpoint: str | None = None, **options: Any
) -> Worker:
    """Build a worker from one engine and its endpoint, or from a mapping of endpoints to engines.

    Args:
        endpoint: ``namespace.component.endpoint`` of a single engine.
        options: those of :class:`WorkerOptions`; without ``discovery`` the file store that ``DYN_FILE_KV`` names.

    Raises:
        StartupError: an engine, a name or an option cannot be used.
    """
    if isinstance(engine, Mapping):
        if endpoint is not None:
            raise StartupError("give either one engine with endpoint=…, or a mapping of endpoints to engines")
        endpoints = dict(engine)
    else:
        endpoints = {endpoint or DEFAULT_ENDPOINT: engine}
    options.setdefault("discovery", FileDiscovery(default_directory(os.environ)))
    try:
        return Worker(endpoints, WorkerOptions(**options))
    except ValueError as exc:
        raise StartupError(str(exc)) from exc


@asynccontextmanager
async def serving(
    engine: EngineLike | Mapping[str, EngineLike], *, endpoint: str | None = None, **options: Any
) -> AsyncIterator[Worker]:
    """Serve while inside; leaving the block drains the worker, an exception or cancellation ends it at once.

    Takes what :func:`make_worker` takes. Callers can find the endpoints when the block is entered.

    Raises:
        StartupError: the worker cannot start.
    """
    worker = make_worker(engine, endpoint=endpoint, **options)
    with single_exceptions_unwrapped():
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.serve)
            yield worker
            worker.drain()


def run(
    engine: EngineLike | Mapping[str, EngineLike],
    *,
    endpoint: str | None = None,
    on_started: Callable[[Worker], None] | None = None,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return; a second signal ends at once, and one before it serves does.

    The process is taken to be the worker's: its soft limit of open files is raised.

    Takes what :func:`make_worker` takes. Leaves by ``SystemExit`` with 4 when the drain budget cut requests short, and
    with 130 or 143 when a signal has ended it at once. Where the event loop is stuck, the process ends all the same.

    Raises:
        StartupError: the worker cannot start.
    """
    raise_descriptor_limit()
    give_back_large_blocks()
    exit_code = trio.run(_run, engine, endpoint, on_started, options)
    if exit_code != EXIT_CLEAN:
        sys.exit(exit_code)


async def _run(
    engine: EngineLike | Mapping[str, EngineLike],
    endpoint: str | None,
    on_started: Callable[[Worker], None] | None,
    options: dict[str, Any],
) -> int:
    def started(worker: Worker) -> None:
        exempt_what_stays()
        if on_started is not None:
            on_started(worker)

    return await serve_until_signalled(make_worker(engine, endpoint=endpoint, **options), started)


class Supervision(Protocol):
    """Another process, which tells this one when to end."""

    async def serve(self, worker: Worker, force: Callable[[int], None], last_resort: LastResort) -> None:
        """Until cancelled, drain the worker when told to, and ``force`` the end as a signal of that number would.

        The last resort is told as soon as the other process has told, for the loop may be stuck.
        """


async def serve_until_signalled(
    worker: Worker,
    on_started: Callable[[Worker], None] | None = None,
    *,
    beside: Callable[[Worker], Awaitable[None]] | None = None,
    supervision: Supervision | None = None,
) -> int:
    """Serve until told to end by a signal; return the exit code.

    The first signal drains; a second ends at once, and so does one that comes while there is nobody to drain for.

    Args:
        beside: runs from the start to the end of the worker, and is cancelled then; its failures are only logged.
        supervision: tells the worker to end too, and alone tells it to end at once: who signals a whole group of
            processes, as a terminal and systemd do, signals the supervisor and each of its workers, once.

    Raises:
        StartupError: the worker cannot start.
    """
    with single_exceptions_unwrapped(), LastResort(worker) as last_resort:
        async with trio.open_nursery() as nursery:
            ending = _Ending(worker, last_resort, nursery.cancel_scope, is_supervised=supervision is not None)
            with signals_handled(dict.fromkeys(ENDING, ending.hear)):
                if supervision is not None:
                    nursery.start_soon(supervision.serve, worker, ending.force, last_resort)
                nursery.start_soon(_leave_when_stuck, worker, last_resort)
                nursery.start_soon(give_back_freed_memory)
                if hasattr(signal, "SIGHUP"):
                    await nursery.start(_reload_on_hangup, worker)
                await nursery.start(dump_tasks_on_signal)
                if beside is not None:
                    nursery.start_soon(_run_beside, beside, worker)
                async with trio.open_nursery() as worker_nursery:
                    await worker_nursery.start(worker.serve)
                    if on_started is not None:
                        on_started(worker)
                nursery.cancel_scope.cancel()
    if ending.forced_by is not None:
        return 128 + ending.forced_by
    return EXIT_CANCELLED_BY_DRAIN if worker.cancelled_by_drain else EXIT_CLEAN


class _Ending:
    """How a worker is told to end: by one signal, which drains, and by another, or a supervisor, which ends at once.

    Args:
        scope: what is cancelled to end at once.
        is_supervised: only the supervisor ends at once.
    """

    def __init__(
        self, worker: Worker, last_resort: LastResort, scope: trio.CancelScope, *, is_supervised: bool
    ) -> None:
        self.forced_by: int | None = None
        """The signal that ended at once."""
        self._worker = worker
        self._last_resort = last_resort
        self._scope = scope
        self._is_supervised = is_supervised
        self._is_heard = False
        self._token = trio.lowlevel.current_trio_token()

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: decided here, once, for the loop and for the last resort; the loop may be what is stuck."""
        if not (self._is_heard or self._worker.is_draining or self._worker.is_loading):
            self._is_heard = True
            self._last_resort.expect_drained()
            self._token.run_sync_soon(self._drain, number)
        elif not self._is_supervised:
            self._last_resort.expect_forced(number)
            self._token.run_sync_soon(self.force, number)

    def force(self, number: int) -> None:
        """End at once; from the loop only."""
        if self.forced_by is None:
            self.forced_by = number
        self._scope.cancel()
        self._last_resort.expect_forced(number)

    def _drain(self, number: int) -> None:
        logger.info("%s: draining; a second signal ends at once", signal.Signals(number).name)
        self._worker.drain()


async def _run_beside(beside: Callable[[Worker], Awaitable[None]], worker: Worker) -> None:
    try:
        await beside(worker)
    except Exception:  # what only looks on must not cost a stream
        logger.exception("internal error beside the worker")


async def _reload_on_hangup(worker: Worker, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Take a hangup for what it means to a service, also where there is nothing to read again: it never ends one."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            logger.info("SIGHUP: reading certificates and keys again, as far as there are any")
            worker.reload()


async def _leave_when_stuck(worker: Worker, last_resort: LastResort) -> None:
    """End the process when engines hold it up, by what outlives its cancellation or while they release what they hold.

    For that they have what is left of the time that a drain may take.
    """
    await worker.wait_draining()
    latest = trio.current_time() + longest_end(worker)
    await worker.closing.wait()
    ends_at = trio.current_time() + CLOSING_TIME + FORCED_EXIT_TIME
    with trio.move_on_at(ends_at):
        await worker.releasing.wait()
        ends_at = max(ends_at, latest)
    await trio.sleep_until(ends_at)
    last_resort.leave(EXIT_CANCELLED_BY_DRAIN)


@contextmanager
def single_exceptions_unwrapped() -> Iterator[None]:
    """Raise what one task raised as it is: groups of one say nothing to a reader."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
