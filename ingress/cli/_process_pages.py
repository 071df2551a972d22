"""The status pages of several processes as one: each is asked for its own, on a port that only this parent is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import trio
from attrs import define, field
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..metrics import PROCESS_LABEL
from ..status._app import EngineRoute
from ..status._combine import ProcessState, combine_health, combine_progress
from ..status._exposition import iter_families
from ..status._merge import MergedMetrics, parse_page
from ._child import Child
from ._scrape import ScrapeError, StatusAddress, fetch
from ._status_options import StatusFlags
from ._supervisor import Slot

Answers = Mapping[Child, bytes | ScrapeError]
"""What each process that serves answered to one question."""


class ProcessPages:
    """Implements the status server's pages by asking every process; for the parent's event loop."""

    def __init__(self, slots: Sequence[Slot], flags: StatusFlags) -> None:
        self.health_path = flags.health_path
        self.live_path = flags.live_path
        self.engine_routes: Mapping[str, EngineRoute] = {}
        self._slots = slots
        self._flags = flags
        self._began = time.monotonic()
        self._merged = MergedMetrics()
        self._metrics = _Question(slots, "/metrics")
        self._health = _Question(slots, "/health?verbose")
        self._progress = _Question(slots, "/progress")

    def retire(self, number: int) -> None:
        """Keep what a process has counted, now that it has ended."""
        self._merged.retire(str(number))

    async def health(self, *, is_verbose: bool) -> tuple[int, Any]:
        shown = combine_health(
            self._states(await self._health.ask()), uptime=time.monotonic() - self._began, is_verbose=is_verbose
        )
        if self._flags.starting_health == "ready" and all(slot.latest is None for slot in self._slots):
            shown["status"] = "ready"
        return 200 if shown["status"] == "ready" else 503, shown

    async def live(self, *, is_verbose: bool) -> tuple[int, Any]:
        """200 as long as every process that serves answers; those that start or are away have nothing to answer."""
        code, shown = await self.health(is_verbose=is_verbose)
        if self._flags.compat_live:
            return code, shown
        answers = self._health.answers
        is_stuck = any(
            slot.child is not None and isinstance(answers.get(slot.child), ScrapeError) for slot in self._slots
        )
        return 503 if is_stuck else 200, shown

    async def progress(self) -> tuple[int, Any]:
        shown = combine_progress(self._states(await self._progress.ask()), self._flags.stall_threshold)
        return 503 if shown["status"] == "stalled" else 200, shown

    async def metrics(self, *, openmetrics: bool) -> bytes:
        answers = await self._metrics.ask()
        answering = set()
        for slot in self._slots:
            await trio.lowlevel.checkpoint()  # a page takes a while to read, and signals are not to wait for all
            # Who has ended since is retired already, with what he had said before.
            answer = answers.get(slot.child) if slot.child is not None else None
            if isinstance(answer, bytes):
                with contextlib.suppress(ValueError):
                    self._merged.update(str(slot.number), parse_page(answer.decode(errors="replace")))
                    answering.add(str(slot.number))
        families = [*self._merged.families(answering), *process_families(self._slots)]
        return b"".join(iter_families(families, openmetrics=openmetrics))

    def _states(self, answers: Answers) -> list[ProcessState]:
        return [_state_of(slot, answers) for slot in self._slots]


def _state_of(slot: Slot, answers: Answers) -> ProcessState:
    child = slot.child
    serving = None if child is None else child.started
    answer = None if child is None else answers.get(child)
    page: object = {}
    trouble: str | None = slot.trouble
    if isinstance(answer, ScrapeError):
        trouble = f"does not answer: {answer}"
    elif answer is not None and serving is not None:
        try:
            page, trouble = msgspec.json.decode(answer), None
        except (msgspec.MsgspecError, RecursionError):
            trouble = "its answer cannot be read"
    return ProcessState(
        number=slot.number,
        pid=None if child is None else child.pid,
        instance="" if serving is None else serving.instance,
        restarts=slot.restarts,
        trouble=trouble,
        is_running=serving is not None,
        page=page if isinstance(page, dict) else {},
    )


def process_families(slots: Iterable[Slot]) -> list[Metric]:
    """Return what the parent itself counts."""
    up = GaugeMetricFamily("ingress_process_up", "1 while a worker process serves", labels=[PROCESS_LABEL])
    restarts = CounterMetricFamily(
        "ingress_process_restarts_total", "Times a worker process was started again", labels=[PROCESS_LABEL]
    )
    for slot in slots:
        up.add_metric([str(slot.number)], float(slot.child is not None and slot.child.started is not None))
        restarts.add_metric([str(slot.number)], slot.restarts)
    return [up, restarts]


@define(eq=False)
class _Question:
    """One page that every process is asked for: one round at a time, and whoever came before its start shares it."""

    _slots: Sequence[Slot]
    _path: str
    answers: Answers = field(factory=dict, init=False)
    """Of the last round."""

    _turn: trio.Lock = field(factory=trio.Lock, init=False)
    _begun: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)

    async def ask(self) -> Answers:
        """Return the answers of a round that began after this was called."""
        wanted = self._begun + 1
        async with self._turn:
            if self._done < wanted:
                self._begun += 1
                number = self._begun
                self.answers = await self._ask_all()
                self._done = number
            return self.answers

    async def _ask_all(self) -> Answers:
        answers: dict[Child, bytes | ScrapeError] = {}

        async def ask(child: Child, address: StatusAddress) -> None:
            try:
                _, answers[child] = await fetch(address, self._path)
            except ScrapeError as exc:
                answers[child] = exc

        async with trio.open_nursery() as nursery:
            for slot in self._slots:
                if (child := slot.child) is not None and child.started is not None and child.started.status is not None:
                    nursery.start_soon(ask, child, StatusAddress(*child.started.status))
        return answers
