"""Canaries: requests that a worker puts to its own engine while nobody else does, to learn whether it still answers.

Nothing of it is on the wire, and nothing is counted as traffic. Source: docs/wire.md §9 and the timings measured there:
after ``wait`` seconds without a good chunk one canary, then another every ``wait`` seconds.
"""

from __future__ import annotations

import copy
import logging
import uuid
from collections.abc import AsyncIterable, AsyncIterator
from types import AsyncGeneratorType
from typing import Any

import trio

from .._context import RequestContext
from .._engine import as_async_generator
from .._engine_end import end_engine
from .._failures import describe_failure, is_cancellation
from .._text import printable
from ..abc import Engine
from ..wire.messages import Annotated
from ._health import EndpointHealth

logger = logging.getLogger("ingress.status.canary")

DEFAULT_CANARY_WAIT = 10.0
DEFAULT_CANARY_TIMEOUT = 3.0

# As for a request: what an engine's cleanup may await.
_CLEANUP_TIMEOUT = 5.0

_NOTHING = object()


class Canary:
    """Probes one endpoint; for one task.

    Args:
        payload: the request that is put to the engine, as it would arrive decoded. Every canary gets a copy.
        wait: seconds of silence before a canary, and between two.
        timeout: seconds for the first item. What follows it is drained for as long again, then cut.
    """

    def __init__(
        self,
        engine: Engine,
        payload: Any,
        health: EndpointHealth,
        *,
        wait: float = DEFAULT_CANARY_WAIT,
        timeout: float = DEFAULT_CANARY_TIMEOUT,
    ) -> None:
        if not (wait > 0 and timeout > 0):
            raise ValueError(f"canary wait and timeout must be more than 0 seconds, got {wait:g} and {timeout:g}")
        self._engine = engine
        self._payload = payload
        self.health = health
        self._wait = wait
        self._timeout = timeout

    @trio.lowlevel.enable_ki_protection  # as for requests: a Ctrl-C belongs to the main task
    async def serve(self) -> None:
        """Send canaries in silence, one at a time, until cancelled. An engine's misbehaviour never ends it."""
        last = trio.current_time()
        while True:
            due = max(last, self.health.active_at) + self._wait
            if trio.current_time() < due:
                await trio.sleep_until(due)
                continue  # to see whether there was traffic meanwhile
            await self.probe()
            last = trio.current_time()

    async def probe(self) -> None:
        """Send one canary, judge the endpoint by its first item, and return when the engine has let go of it."""
        probe = _Probe(self.health, self._timeout)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe.give_up_in_time)
                await self._ask(probe)
                nursery.cancel_scope.cancel()
        except BaseException as exc:  # scopes and nurseries that the engine left open
            if is_cancellation(exc):
                raise
            probe.judge(describe_failure(exc))
            logger.debug("canary of %s: traceback", self.health.endpoint_id, exc_info=exc)

    async def _ask(self, probe: _Probe) -> None:
        chunks: AsyncGeneratorType[Any, None] | None = None
        failure: BaseException | None = None
        own = len(trio.lowlevel.current_task().child_nurseries)
        # Entered before the engine can enter scopes of its own, as for requests.
        with trio.CancelScope() as cleanup:
            try:
                with probe.context.scope:
                    chunks = as_async_generator(self._invoke(probe.context))
                    probe.judge(_problem_of(await anext(chunks, _NOTHING)))
                    async for _ in chunks:
                        await trio.lowlevel.checkpoint()  # an engine that never waits must not have the loop to itself
            except BaseException as exc:
                failure = exc
            if chunks is not None:
                cleanup.shield = True
                cleanup.deadline = trio.current_time() + _CLEANUP_TIMEOUT
            _, left = await end_engine(chunks, own)
            failure = failure or left
        if failure is None:
            return
        if is_cancellation(failure):
            await trio.lowlevel.checkpoint_if_cancelled()
        probe.judge(describe_failure(failure))

    def _invoke(self, context: RequestContext) -> AsyncIterable[Any]:
        payload = copy.deepcopy(self._payload)
        if self._engine.is_unary:
            return self._engine.generate(payload, context)
        return self._engine.generate_bidirectional(_once(payload), context)


class _Probe:
    """One canary on its way: its context, its deadline, and its verdict, which is given once."""

    def __init__(self, health: EndpointHealth, timeout: float) -> None:
        self.context = RequestContext(
            request_id=str(uuid.uuid4()), endpoint=health.endpoint_id, metadata={}, headers={}
        )
        self._health = health
        self._timeout = timeout
        self._timer = trio.CancelScope(deadline=trio.current_time() + timeout)
        self._sent_at = trio.current_time()
        self._is_judged = False

    async def give_up_in_time(self) -> None:
        """End the canary in the engine when its time is over."""
        with self._timer:
            await trio.sleep_forever()
        # Now, and not when the engine has let go: it may never do so.
        self.judge(f"no item within {self._timeout:g} s")
        self.context.kill("the health check timed out")

    def judge(self, problem: str | None) -> None:
        """Draw the conclusion, unless it has been drawn; None is a good answer."""
        if self._is_judged:
            return
        self._is_judged = True
        self._timer.deadline = trio.current_time() + self._timeout
        health, was_ready = self._health, self._health.is_ready
        if problem is None:
            health.record_activity()
            if not was_ready:
                logger.info("endpoint %s is ready: a canary was answered", health.endpoint_id)
        elif health.active_at < self._sent_at:  # a caller that was answered meanwhile knows better
            health.mark_not_ready(f"canary failed: {printable(problem)}")
            level = logging.WARNING if was_ready else logging.DEBUG
            logger.log(level, "endpoint %s is not ready: canary failed: %s", health.endpoint_id, printable(problem))


def _problem_of(first: object) -> str | None:
    if first is _NOTHING:
        return "the engine answered without an item"
    if isinstance(first, Annotated) and first.is_error:
        return f"error item: {first.error.message if first.error is not None else '; '.join(first.comment or ())}"
    return None


async def _once(payload: Any) -> AsyncIterator[Any]:
    yield payload
