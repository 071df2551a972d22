"""One run of an engine: it is asked, its chunks are pumped out, and whatever it leaves behind is ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import AsyncGeneratorType
from typing import Any

import trio

from ._context import Ending, RequestContext
from ._engine import as_async_generator
from ._engine_end import end_engine
from ._failures import describe_failure, is_cancellation
from ._pump import pump_response_stream
from ._response import Response
from ._text import RateLimitedLogger, named
from .abc import Engine, IngressDispatch
from .errors import GenerateError, LocalProtocolError, PublishError
from .metrics import RequestGuard, WorkHandlerMetrics

logger = logging.getLogger("ingress.handler")
_log = RateLimitedLogger(logger)

# An engine's cleanup may await this long after its request has ended; then it is cut.
DEFAULT_CLEANUP_TIMEOUT = 5.0


class EngineRuns:
    """Runs the engine of one endpoint, each time in the request's own task.

    Args:
        notify: called after chunks that are no error.
        max_chunk: bytes of the largest chunk, as it is on the wire.
        cleanup_timeout: seconds that an engine's cleanup may await.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: WorkHandlerMetrics,
        notify: Callable[[], None],
        max_chunk: int,
        cleanup_timeout: float,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._notify = notify
        self._max_chunk = max_chunk
        self._cleanup_timeout = cleanup_timeout

    async def run(
        self,
        shape: IngressDispatch[Any],
        request: Any,
        context: RequestContext,
        response: Response,
        guard: RequestGuard,
    ) -> BaseException | None:
        """Ask the engine, pump its chunks out and end it; returns what it, or the pump, has raised."""
        chunks: AsyncGeneratorType[Any, None] | None = None
        failure: BaseException | None = None
        try:
            # Entered before the engine can enter scopes of its own, so that theirs end inside it, whatever was cut.
            with trio.CancelScope() as cleanup:
                try:
                    try:
                        chunks = as_async_generator(shape.invoke(self._engine, request, context))
                    finally:
                        response.send_prologue()
                        self._metrics.observe_first_response(trio.current_time() - guard.started)
                    await pump_response_stream(
                        chunks,
                        response.sender,
                        response.writer,
                        response.progress,
                        self._notify,
                        self._max_chunk,
                    )
                except BaseException as exc:
                    failure = exc
                if chunks is not None and chunks.ag_frame is not None:
                    cleanup.shield = True
                    cleanup.deadline = trio.current_time() + self._cleanup_timeout
                    if context.ending in (Ending.STOPPED, Ending.KILLED):
                        await response.dial_back.close()  # the caller does not wait for the cleanup
                error, left = await end_engine(chunks)
                is_own = context.ending is None and (failure is None or is_cancellation(failure))
                if left is not None and is_own:
                    failure = left
                elif error is not None and is_own and failure is not None:
                    failure = error  # its own nursery had cancelled the pump, and says only now why
                elif error is not None:
                    _log_cleanup(context, error)
        except RuntimeError:  # of trio, as our scope ends: what the engine raises does not come here
            if failure is None:
                failure = GenerateError("engine left a cancel scope open")
        if cleanup.cancel_called:
            text = "request %s: engine's cleanup cut after %g s"
            _log.log(logging.WARNING, "cleanup cut", text, named(context.id), self._cleanup_timeout)
        if context.scope.cancel_called and failure is not None and not _is_of_ending(failure, context):
            _log_cleanup(context, failure)  # raised where it was cancelled; whoever asked has gone
        try:
            return failure
        finally:
            del failure  # its traceback holds this frame


def _is_of_ending(failure: BaseException, context: RequestContext) -> bool:
    if isinstance(failure, LocalProtocolError):  # it yields after the goodbye, in the pass in which it is cancelled
        return context.ending is Ending.SHUT_DOWN
    return isinstance(failure, PublishError) or is_cancellation(failure)


def _log_cleanup(context: RequestContext, error: BaseException) -> None:
    text = "request %s: engine failed while cleaning up: %s"
    _log.log(logging.WARNING, "cleanup failed", text, named(context.id), describe_failure(error))
