"""Keeps N worker processes alive, and ends them together."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Collection

import trio
from attrs import define

from .._last_resort import EXIT_CANCELLED_BY_DRAIN, FORCED_EXIT_TIME
from ._child import Child
from ._errors import EXIT_CLEAN, EXIT_FAILED, EXIT_STARTUP, CommandError
from ._started import StartedWorker

logger = logging.getLogger("ingress.cli")

# Seconds before a process that has crashed is started again: doubled by each crash, as long as none lives for a minute.
FIRST_DELAY = 0.5
MAX_DELAY = 30.0
LIFE_THAT_FORGIVES = 60.0

# A forced worker leaves by itself within FORCED_EXIT_TIME and its last words; what is left then is killed.
FORCED_MARGIN = 1.0

# Of several exit codes the worst is the parent's; all others are failures.
_SEVERITY = (EXIT_CLEAN, EXIT_CANCELLED_BY_DRAIN, EXIT_FAILED)

OpenChild = Callable[[int], Awaitable[Child]]


@define(eq=False)
class Slot:
    """One of the N places: the process in it, and what became of those before."""

    number: int
    child: Child | None = None
    restarts: int = 0
    trouble: str = "starting"
    """Why nobody serves in it; meaningful while nobody does."""

    latest: StartedWorker | None = None
    """The last worker that served in it."""

    _served_since: float | None = None
    _delay: float = FIRST_DELAY

    @property
    def name(self) -> str:
        return f"process {self.number}"

    def note_started(self, worker: StartedWorker) -> None:
        self.latest = worker
        self._served_since = trio.current_time()

    def next_delay(self) -> float:
        """Return how long to wait before the next start, after a life has ended."""
        lived = 0.0 if self._served_since is None else trio.current_time() - self._served_since
        delay = FIRST_DELAY if lived >= LIFE_THAT_FORGIVES else self._delay
        self._delay = min(delay * 2, MAX_DELAY)
        self._served_since = None
        return delay


class Supervisor:
    """Runs N processes until told to end; for one trio program.

    Args:
        open_child: starts the process of that number.
        drain_time: seconds after which a process that was told to drain is killed.
        passed_on: signals that go to every process as they are.
        on_serving: told of each process that serves, by its number.
        on_ended: told of each process that has ended, by its number.
    """

    def __init__(
        self,
        count: int,
        open_child: OpenChild,
        *,
        drain_time: float,
        passed_on: Collection[int] = (),
        on_serving: Callable[[int, StartedWorker], None] = lambda number, worker: None,
        on_ended: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.slots = [Slot(number) for number in range(count)]
        self._open_child = open_child
        self._drain_time = drain_time
        self._passed_on = passed_on
        self._on_serving = on_serving
        self._on_ended = on_ended
        self._all_started = trio.Event()
        self._ending = trio.Event()
        self._patience = trio.CancelScope()
        self._forced: int | None = None
        self._failure: CommandError | None = None
        self._codes: list[int] = []

    async def serve(self, on_started: Callable[[], None]) -> int:
        """Serve until told to end by a signal; return the exit code. No process outlives it.

        Raises:
            CommandError: a process could not start for the first time; all have been ended.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._tell_started, on_started)
            with self._patience:
                async with trio.open_nursery() as children:
                    for slot in self.slots:
                        children.start_soon(self._keep, slot)
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        if self._forced is not None:
            return 128 + self._forced
        return max(self._codes, key=_SEVERITY.index, default=EXIT_CLEAN)

    # -- one slot ------------------------------------------------------------------------------------------------------

    async def _keep(self, slot: Slot) -> None:
        """Have a process in the slot until told to end."""
        while not self._ending.is_set():
            error = await self._live(slot)
            if self._ending.is_set():
                return
            if slot.latest is None:
                self._abandon(error)
                return
            delay = slot.next_delay()
            what = f"{slot.name}: {error.what}{_because(error)}"
            slot.trouble = f"{error.what}; started again after {delay:g} s"
            logger.warning("%s; starting it again in %g s", what, delay)
            with trio.move_on_after(delay):
                await self._ending.wait()
            slot.restarts += not self._ending.is_set()

    async def _live(self, slot: Slot) -> CommandError:
        """Run one process to its end, and return what became of it."""
        try:
            child = await self._open_child(slot.number)
        except OSError as exc:
            return CommandError("no process can be started", str(exc), exit_code=EXIT_STARTUP)
        slot.child = child
        slot.trouble = "starting" if slot.latest is None else "starting again"
        if self._ending.is_set():  # meanwhile
            child.drain()

        def on_started(worker: StartedWorker) -> None:
            if slot.latest is not None:
                logger.info("%s serves again: instance %s", slot.name, worker.instance)
            slot.note_started(worker)
            self._on_serving(slot.number, worker)
            if all(each.latest is not None for each in self.slots):
                self._all_started.set()

        try:
            await child.run(on_started)
        finally:
            slot.child = None
            slot.trouble = child.ending()
            self._note_code(child)
            self._on_ended(slot.number)
        return child.error()

    def _note_code(self, child: Child) -> None:
        """Take an exit code into account, where it is how the process ended when all were told to."""
        if not self._ending.is_set() or child.started is None:  # who has not started has lost nobody's request
            return
        if child.exit_code in _SEVERITY:
            self._codes.append(child.exit_code)
        else:
            self._codes.append(EXIT_CANCELLED_BY_DRAIN if self._patience.cancel_called else EXIT_FAILED)

    # -- all of them ---------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Have all processes drain at the same time, and start none any more."""
        self._ending.set()
        self._patience.deadline = trio.current_time() + self._drain_time
        for child in self._children():
            child.drain()

    def _force(self, number: int) -> None:
        self._forced = number
        patience = trio.current_time() + FORCED_EXIT_TIME + FORCED_MARGIN
        self._patience.deadline = min(self._patience.deadline, patience)
        for child in self._children():
            child.force(number)

    def _abandon(self, error: CommandError) -> None:
        """End everything, because of what makes a first start fail; those that load have nobody to wait for."""
        self._failure = error
        logger.error("no process may fail to start the first time, all end: %s%s", error.what, _because(error))
        self._drain()
        for child in self._children():
            if child.started is None:
                child.kill()

    def _children(self) -> list[Child]:
        return [slot.child for slot in self.slots if slot.child is not None]

    async def _tell_started(self, on_started: Callable[[], None]) -> None:
        await self._all_started.wait()
        on_started()

    async def _obey_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *self._passed_on) as signals:
            task_status.started()
            async for number in signals:
                if number in self._passed_on:
                    for child in self._children():
                        child.pass_on(number)
                elif self._ending.is_set():
                    self._force(number)
                elif all(slot.latest is None for slot in self.slots):
                    logger.info("%s: nobody serves yet, all end", signal.Signals(number).name)
                    self._forced = number
                    self._drain()
                else:
                    logger.info("%s: draining; a second signal ends at once", signal.Signals(number).name)
                    self._drain()


def _because(error: CommandError) -> str:
    return f", {error.why}" if error.why else ""
