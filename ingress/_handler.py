"""The shared handler: the only place that knows the whole order of a request.

guard → slot → parse → transit time → dial back → generate → prologue → pump → final → sentinel → the caller's FIN.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import trio

from ._admission import Admission
from ._context import Ending, OpenRequests, RequestContext
from ._dialback import DialBacks
from ._engine_run import DEFAULT_CLEANUP_TIMEOUT, EngineRuns
from ._failures import error_event_of, is_a, is_cancellation, must_pass
from ._fair_line import working_for
from ._ledger import OVERLOADED, QUEUE_DEADLINE, Ledger, error_type_of
from ._logging import request_scope
from ._push_gate import AdmittedPush, PushGate
from ._response import Response
from ._shares import caller_of
from ._text import named, quoted
from ._token import TokenGuard
from ._tracing import EndpointTracer, RequestEnd, RequestStart, end_span, start_span
from .abc import Engine, IngressDispatch
from .bodies import is_wait_expected
from .errors import (
    GenerateError,
    Overloaded,
    PublishError,
    QueueDeadlinePassed,
    RequestMemoryExhausted,
    ResponseStreamError,
    StartupError,
)
from .metrics import RequestGuard, WorkHandlerMetrics
from .wire.messages import ErrorEvent
from .wire.records import EndpointId
from .wire.trace_context import read_trace_context

logger = logging.getLogger("ingress.handler")

# What a caller that is being left is given to take the goodbye: frames of a few bytes, which one that reads takes at
# once. With what follows in the drain it makes less than three seconds.
GOODBYE_TIMEOUT = 1.25

_NO_METADATA: Mapping[str, str] = MappingProxyType({})

# What a request is decoded in that need not wait for others.
_AT_ONCE = nullcontext()

HealthNotifier = Callable[[], None]


class PushHandler:
    """Answers the pushes of one endpoint; shared by all its requests.

    Its :attr:`gate` decides what the ack says; :meth:`handle_payload` is a request's task.
    """

    def __init__(
        self,
        endpoint_id: EndpointId,
        engine: Engine,
        shapes: Sequence[IngressDispatch[Any]],
        *,
        dial_backs: DialBacks,
        metrics: WorkHandlerMetrics,
        admission: Admission,
        open_requests: OpenRequests | None = None,
        tracer: EndpointTracer | None = None,
        token_guard: TokenGuard | None = None,
        stop_grace: float = 0.0,
        cleanup_timeout: float = DEFAULT_CLEANUP_TIMEOUT,
    ) -> None:
        self.endpoint_id = endpoint_id
        self.metrics = metrics
        self.open_requests = OpenRequests() if open_requests is None else open_requests
        self._tracer = tracer
        can_serve = [shape for shape in shapes if shape.can_serve(engine)]
        if not can_serve:
            names = ", ".join(type(shape).__name__ for shape in shapes) or "none"
            raise StartupError(f"endpoint {endpoint_id}: no shape can serve {engine!r}; installed: {names}")
        self._dial_backs = dial_backs
        self._stop_grace = stop_grace
        self._notify_health: HealthNotifier | None = None
        self._ledger = Ledger(endpoint_id, metrics)
        max_chunk = dial_backs.limits.max_response_chunk
        self._engine_runs = EngineRuns(engine, metrics, self._notify, max_chunk, cleanup_timeout)
        self.gate = PushGate(
            endpoint_id,
            can_serve,
            admission=admission,
            dial_guard=dial_backs.guard,
            token_guard=token_guard,
            ledger=self._ledger,
        )

    def set_health_notifier(self, notify: HealthNotifier) -> None:
        """Have ``notify`` called after chunks that are no error and at each clean end.

        Raises:
            ValueError: there is one already.
        """
        if self._notify_health is not None:
            raise ValueError(f"endpoint {self.endpoint_id} already has a health-check notifier")
        self._notify_health = notify

    def open(self, admitted: AdmittedPush) -> RequestContext:
        """Begin an admitted request, in the moment of its ack: a drain waits for it from here on.

        It is closed by :meth:`handle_payload`, and here where this raises.
        """
        try:
            context = self._context_of(admitted)
        except BaseException:
            admitted.slot.close()
            raise
        self.open_requests.add(context)
        return context

    @trio.lowlevel.enable_ki_protection  # a Ctrl-C belongs to the main task and not to the engine that happens to run
    async def handle_payload(self, admitted: AdmittedPush, context: RequestContext) -> None:
        """Answer one request that was opened. Raises nothing but cancellation, and frees whatever it took."""
        control = admitted.control
        working_for.set(caller_of(admitted.peer_host or ""))
        try:
            with request_scope(control.id, context.trace_id, context.span_id):
                self._ledger.request_log.received(control.id, admitted.size, control.codec_name, context.trace_id)
                await self._handle(admitted, context)
        except BaseException as exc:  # the wall round every request: what comes here is a bug of ours, and ends here
            if is_cancellation(exc):
                raise
            logger.exception("request %s of %s: internal error", named(control.id), self.endpoint_id)
        finally:
            if context.span is not None:  # a request that has ended has none
                end_span(context.span, RequestEnd(outcome="failed", reason="internal"))
            self.open_requests.discard(context)
            admitted.slot.close()

    def _context_of(self, admitted: AdmittedPush) -> RequestContext:
        control, headers = admitted.control, admitted.headers
        parent = read_trace_context(headers)
        span = None
        if self._tracer is not None:
            of_frontend = headers.get("x-request-id")
            start = RequestStart(control.id, control.codec_name, admitted.size, parent, of_frontend)
            span = start_span(self._tracer, start)
        return RequestContext(
            request_id=control.id,
            endpoint=self.endpoint_id,
            metadata=control.metadata or _NO_METADATA,
            headers=headers,
            trace=parent,
            span=span,
            stop_grace=self._stop_grace,
        )

    async def _handle(self, admitted: AdmittedPush, context: RequestContext) -> None:
        slot = admitted.slot
        dial_back = self._dial_backs.of_request(context, admitted.peer_host, slot.open_memory, slot.dialling)
        async with dial_back:
            response = Response(
                dial_back,
                context,
                admitted.control,
                admitted.info,
                admitted.address,
                self.metrics,
            )
            with self.metrics.request_in_flight(admitted.size) as guard:
                try:
                    with context.scope:
                        await self._answer(admitted, context, response, guard)
                    if context.ending is Ending.SHUT_DOWN and not response.is_whole:
                        await self._say_goodbye(response)
                except ResponseStreamError as exc:
                    self._ledger.failed(response, context, exc, "response_stream")
                except PublishError as exc:
                    # Where the caller has left it is no failure, and the request's own line says so.
                    level = logging.DEBUG if response.publish_error is None else logging.INFO
                    logger.log(level, "request %s: %s", named(context.id), quoted(exc, 600))
                except BaseException as exc:  # an engine's own nursery may raise a group while it is being cancelled
                    if is_cancellation(exc):
                        context.kill("the worker was cancelled")
                        raise
                    self._ledger.failed(response, context, exc, "generate")
                finally:
                    self._ledger.settle(context, response, guard)
                    response.let_go()
            slot.release()
            self.open_requests.discard(context)
            if response.is_whole:
                dial_back.let_caller_close_first()

    async def _answer(
        self, admitted: AdmittedPush, context: RequestContext, response: Response, guard: RequestGuard
    ) -> None:
        """The steps of an answer; cancelled as a whole when the caller wants no more."""
        # 1. The slot.
        # What is told, and not the exception itself: with its traceback it would keep the payload in a cycle.
        event: ErrorEvent | None = None
        request: Any = None
        if admitted.slot.is_granted:
            self.metrics.observe_permit_wait(0.0)
        else:
            event = await self._wait_in_line(admitted, context, response)
            self.metrics.observe_permit_wait(trio.current_time() - guard.started)
        # 2. Parse. A body that cannot be read is told to the caller, once there is a stream to tell it on. Where it has
        #    to wait for others the stream comes first: a caller that leaves meanwhile is heard, and holds nothing.
        decoding: AbstractContextManager[None] = _AT_ONCE
        if is_wait_expected(admitted.size):
            await response.open()
            response.writer.flush()
            decoding = admitted.slot.decoding()
        try:
            if event is None:
                with decoding:
                    request = await self._parse(admitted, response)
        except Overloaded as exc:
            admitted.drop_payload()
            event = error_event_of(exc)
            self._ledger.refused_late(response, context, exc, OVERLOADED)
        except BaseException as exc:  # also what a shape did not mean to raise: the caller is told all the same
            if must_pass(exc):
                raise
            event = error_event_of(exc)
            self._ledger.failed(response, context, exc, error_type_of(exc))
        # 3. How long the push was on its way.
        if (sent_at := admitted.sent_at_ns) is not None:
            self.metrics.observe_network_transit(sent_at)
        # 4. Dial back.
        await response.open()
        # 5. Generate and pump.
        if event is None:
            event = await self._generate(admitted.shape, request, context, response, guard)
        else:
            response.send_prologue()
        # 6. The error event, if any, the final frame and the sentinel; none of them where an engine has swallowed its
        #    cancellation.
        await trio.lowlevel.checkpoint_if_cancelled()
        if event is not None:
            response.send_error(event)
        await response.send_final()
        if event is None and response.progress.error_chunks:
            self._ledger.failed(response, context, GenerateError("engine yielded an error event"), "generate")
        elif event is None:
            self._notify()

    async def _wait_in_line(
        self, admitted: AdmittedPush, context: RequestContext, response: Response
    ) -> ErrorEvent | None:
        """Wait for the slot; returns what to tell where it does not come in time."""
        try:
            await admitted.slot.wait_granted()
        except QueueDeadlinePassed as exc:
            admitted.drop_payload()
            self._ledger.refused_late(response, context, exc, QUEUE_DEADLINE)
            return error_event_of(exc)
        return None

    async def _parse(self, admitted: AdmittedPush, response: Response) -> Any:
        """Return the request for the engine.

        A function of its own, so that what finds no memory goes with its locals.
        """
        if admitted.failure is not None:
            failure, admitted.failure, admitted.payload = admitted.failure, None, b""
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame
        parsed = await admitted.shape.parse_and_build_request(admitted.payload, admitted.control, response.dial_back)
        admitted.slot.check()  # the shape may have caught what told it so
        admitted.payload = b""
        if (held := admitted.slot.held_memory) is not None:
            await held.settle(parsed.request, admitted.size, parsed.weight)
        return parsed.request

    async def _generate(
        self,
        shape: IngressDispatch[Any],
        request: Any,
        context: RequestContext,
        response: Response,
        guard: RequestGuard,
    ) -> ErrorEvent | None:
        """Ask the engine and pump its chunks out; returns what to tell of its failure."""
        failure = await self._engine_runs.run(shape, request, context, response, guard)
        if failure is None:
            return None
        try:
            if is_a(failure, PublishError) and response.writer.failure is not None:
                raise failure
            if is_cancellation(failure):
                await trio.lowlevel.checkpoint_if_cancelled()
                # Still here: what was cancelled is a scope of the engine's own, left open across a yield.
                failure = GenerateError("engine was cancelled by a cancel scope or nursery of its own")
            if is_a(failure, RequestMemoryExhausted):
                self._ledger.refused_late(response, context, failure, OVERLOADED)
            else:
                self._ledger.failed(response, context, failure, "generate")
            return error_event_of(failure)
        finally:
            del failure  # its traceback holds this frame, and what the engine held

    async def _say_goodbye(self, response: Response) -> None:
        """Tell a caller that the worker leaves, where its stream still takes it."""
        with trio.move_on_after(GOODBYE_TIMEOUT):
            await response.open()
            response.say_goodbye()
            await response.send_final()

    def _notify(self) -> None:
        if self._notify_health is not None:
            self._notify_health()
