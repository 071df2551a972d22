"""An engine under observation: where it waits, what it yields, how it ends; and ends that are put in its way."""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator
from typing import Any

import trio
from attrs import define, field

from .._engine import as_async_generator
from .._engine_end import close_engine
from ..abc import Context, Engine
from ..errors import GenerateError

# An engine that is cancelled may await things in its finally blocks, each of which is cancelled in turn, or is a sleep
# under a shield, which also ends with a cancellation.
MAX_SWALLOWED = 500

# What is kept of an answer to look at.
MAX_KEPT = 1000


INJECTED = "failure that was asked for"


@define(eq=False)
class Run:
    """One answer of the engine."""

    context: Context = field(repr=False)
    chunks: list[Any] = field(factory=list)
    suspensions: int = 0
    """How often it waited for something."""

    swallowed: int = 0
    """How many cancellations it has caught and gone on after."""

    is_stubborn: bool = False
    """True where it was given up."""

    has_failed: bool = False
    """True where the check has made it fail."""

    is_over: bool = False
    cleanup_error: BaseException | None = None
    ended_by_check_at: float | None = None
    over_at: float = 0.0

    @property
    def is_ended(self) -> bool:
        """True once it has been cancelled from outside; its own timeouts are cancellations too."""
        nursery = trio.lowlevel.current_task().parent_nursery
        scopes = (getattr(self.context, "scope", None), nursery and nursery.cancel_scope)
        return any(scope is not None and scope.cancel_called for scope in scopes)


OnSuspend = Callable[[Run], object]
"""Is called each time an engine is about to wait."""


class WatchedEngine(Engine):
    """Passes everything on to the engine inside."""

    def __init__(self, engine: Engine) -> None:
        self.runs: list[Run] = []
        self.on_suspend: OnSuspend | None = None
        self.fail_after: int | None = None
        """Fail in place of the chunk after so many."""
        self._engine = engine

    @property
    def is_unary(self) -> bool:
        return self._engine.is_unary

    @property
    def is_bidirectional(self) -> bool:
        return self._engine.is_bidirectional

    def generate(self, request: Any, context: Context) -> AsyncIterable[Any]:
        return self._watch(lambda: self._engine.generate(request, context), context)

    def generate_bidirectional(self, requests: AsyncIterable[Any], context: Context) -> AsyncIterable[Any]:
        return self._watch(lambda: self._engine.generate_bidirectional(requests, context), context)

    async def _watch(self, start: Callable[[], AsyncIterable[Any]], context: Context) -> AsyncGenerator[Any, None]:
        run = Run(context)
        self.runs.append(run)
        chunks = None
        try:
            chunks = as_async_generator(start())
            while True:
                try:
                    chunk = await _step(chunks.__anext__(), run, self.on_suspend)
                except StopAsyncIteration:
                    return
                if len(run.chunks) == self.fail_after:
                    run.has_failed = True
                    raise GenerateError(INJECTED)
                if len(run.chunks) < MAX_KEPT:
                    run.chunks.append(chunk)
                yield chunk
        finally:
            if chunks is not None and not run.is_stubborn:
                run.cleanup_error = await close_engine(chunks)
            run.is_over, run.over_at = True, trio.current_time()


@types.coroutine
def _step(step: Any, run: Run, on_suspend: OnSuspend | None) -> Generator[Any, Any, Any]:
    """Drive one ``__anext__`` by hand, and see each time it suspends."""
    try:
        trap = step.send(None)
        while True:
            run.suspensions += 1
            if on_suspend is not None:
                on_suspend(run)
            try:
                sent = yield trap
            except BaseException as exc:
                trap = step.throw(exc)
                continue
            cancelled = getattr(sent, "error", None)  # trio sends outcomes, also of a wait that was cancelled
            if not (isinstance(cancelled, trio.Cancelled) and run.is_ended):
                trap = step.send(sent)
            elif run.swallowed < MAX_SWALLOWED:
                trap = step.send(sent)
                run.swallowed += 1
            else:
                _give_up(step, run)
                raise cancelled
    except StopIteration as stop:
        return stop.value


def _give_up(step: Any, run: Run) -> None:
    """Unwind an engine that cannot be cancelled, so that the check can end and say so."""
    run.is_stubborn = True
    for _ in range(MAX_SWALLOWED):
        try:
            step.throw(GeneratorExit())
        except BaseException:
            return
