"""How the requests of an endpoint ended: each is counted once, logged once, and its span ends with the same words."""

from __future__ import annotations

import logging

from ._context import RequestContext
from ._failures import class_name, describe_failure, is_a, sole_exception, text_of
from ._logging import TRACE
from ._request_log import RequestLog
from ._response import Response
from ._text import RateLimitedLogger, named, quoted
from ._tracing import RequestEnd, end_span
from .errors import DialsPending, IngressError, Overloaded, PolicyFailed, TokenRefused
from .metrics import ERROR_TYPES, OUTCOMES, RequestGuard, WorkHandlerMetrics, cancelled_by
from .wire.records import EndpointId

logger = logging.getLogger("ingress.handler")

QUEUE_DEADLINE, OVERLOADED = "queue_deadline", "overloaded"


class Ledger:
    """Counts and logs the refusals, failures and ends of one endpoint's requests."""

    def __init__(self, endpoint_id: EndpointId, metrics: WorkHandlerMetrics) -> None:
        self._endpoint_id = endpoint_id
        self._metrics = metrics
        self._log = RateLimitedLogger(logger)
        self.request_log = RequestLog(endpoint_id)

    def refused(self, error: IngressError, reason: str, size: int) -> None:
        """Note a push that is refused in its ack; the log has so many lines a second for one ``reason``."""
        self._metrics.count_outcome("refused", _reason_of(error))
        # Those that find no room are no requests of the handler's.
        if isinstance(error, DialsPending) or not isinstance(error, (Overloaded, PolicyFailed)):
            with self._metrics.request_in_flight(size):
                if error.error_type is not None:
                    self._metrics.count_error(error_type_of(error))
        self._log.log(logging.WARNING, reason, "push to %s refused: %s", self._endpoint_id, quoted(text_of(error), 600))

    def refused_late(self, response: Response, context: RequestContext, error: Exception, reason: str) -> None:
        """Note a request that was acked and is refused after all: by its place in line, or by what it turned out to be.

        Args:
            reason: ``QUEUE_DEADLINE`` or ``OVERLOADED``.
        """
        self._log.log(logging.WARNING, reason, "request %s refused: %s", named(context.id), quoted(text_of(error), 600))
        response.error_type = reason

    def failed(self, response: Response, context: RequestContext, failure: BaseException, error_type: str) -> None:
        """Note one failure of a request, unless it is only the echo of its cancellation."""
        if context.ending is not None or response.error_type is not None:
            # The first failure is the request's; that it could not be told, for one, is not a second one.
            logger.debug("request %s: after its end: %s", named(context.id), describe_failure(failure))
            return
        response.error_type = error_type
        self._metrics.count_error(error_type)
        self._log.log(
            logging.WARNING,
            class_name(sole_exception(failure)),
            "request %s of %s failed: %s",
            named(context.id),
            self._endpoint_id,
            describe_failure(failure),
        )
        # The causes of our own errors quote what could not be read, and payloads stand on trace lines only.
        level = TRACE if is_a(failure, IngressError) else logging.DEBUG
        logger.log(level, "request %s: traceback", named(context.id), exc_info=failure)

    def settle(self, context: RequestContext, response: Response, guard: RequestGuard) -> None:
        """Note how the request ended: by the first that happened to it, and by that alone."""
        size = response.sender.body_bytes
        self._metrics.add_response_bytes(size)
        outcome, reason = "completed", "ok"
        if response.error_type is not None:
            is_refused = response.error_type in (QUEUE_DEADLINE, OVERLOADED)
            outcome, reason = "refused" if is_refused else "failed", response.error_type
        elif response.publish_error is not None:
            self._metrics.count_error(response.publish_error)
            outcome, reason = "failed", response.publish_error
        elif context.ending is not None and not (response.is_whole and response.is_clean_end):
            self._metrics.count_cancellation()
            outcome, reason = "cancelled", cancelled_by(context.ending.value, context.kill_reason)
        elif not response.is_whole:
            outcome, reason = "failed", "internal"
        self._metrics.count_outcome(outcome, reason)
        seconds = guard.end()
        self.request_log.completed(
            context.id,
            status=outcome,
            reason=reason,
            chunks=response.progress.chunks,
            size=size,
            seconds=seconds,
            trace_id=context.trace_id,
        )
        if context.span is not None:
            chunks, first_at = response.progress.chunks, response.progress.first_flush_at
            first = None if not chunks else seconds if first_at is None else first_at - guard.started
            end_span(context.span, RequestEnd(outcome, reason, chunks, size, first))
            context.span = None


def error_type_of(failure: BaseException) -> str:
    """Return the label to count a shape's failure under; a third party's errors may have labels that nobody knows."""
    label = getattr(failure, "error_type", None)
    return label if label in ERROR_TYPES else "deserialization"


def _reason_of(refusal: IngressError) -> str:
    """Return the ``refused`` reason of :data:`ingress.metrics.OUTCOMES` for what an ack refuses."""
    if isinstance(refusal, Overloaded):
        return "overloaded"
    if isinstance(refusal, PolicyFailed):
        return "policy"
    if isinstance(refusal, TokenRefused):
        return "token"
    label = error_type_of(refusal)
    return label if label in OUTCOMES["refused"] else "deserialization"
