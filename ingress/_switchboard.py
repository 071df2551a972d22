"""Where all pushes of a worker arrive: each gets the handler of its endpoint, a task of its own, and an ack."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._admission import Admission
from ._context import OpenRequests
from ._dialback import DialBacks
from ._failures import refusal_text
from ._handler import PushHandler
from ._legacy import LegacyTeller
from ._life import Life, Phase
from ._text import RateLimitedLogger, named, printable
from ._token import TokenGuard
from ._tracing import Tracer
from .abc import Engine, IngressDispatch, Push
from .errors import IngressError, Unavailable
from .metrics import WorkerMetrics
from .wire.records import EndpointId

logger = logging.getLogger("ingress.worker")


class Switchboard:
    """Connects the pushes of one worker with its handlers, one for each engine."""

    start_request: Callable[..., None]
    """Starts a task, as the ``start_soon`` of a nursery does; set before the first push."""

    def __init__(
        self,
        instance_id: int,
        engines: Mapping[EndpointId, Engine],
        shapes: Sequence[IngressDispatch[Any]],
        *,
        life: Life,
        dial_backs: DialBacks,
        metrics: WorkerMetrics,
        labels: Mapping[EndpointId, Mapping[str, str]],
        admission: Admission,
        open_requests: OpenRequests,
        token_guard: TokenGuard | None,
        stop_grace: float,
        tracer: Tracer | None,
    ) -> None:
        self.handlers = {
            endpoint_id: PushHandler(
                endpoint_id,
                engine,
                shapes,
                dial_backs=dial_backs,
                metrics=metrics.endpoint(endpoint_id, labels.get(endpoint_id)),
                admission=admission,
                open_requests=open_requests,
                token_guard=token_guard,
                stop_grace=stop_grace,
                tracer=None if tracer is None else tracer.endpoint(endpoint_id, instance_id),
            )
            for endpoint_id, engine in engines.items()
        }
        self.by_path = {_push_path(instance_id, endpoint_id): each for endpoint_id, each in self.handlers.items()}
        """The handlers by what callers name them, as the records tell."""
        self._life = life
        self._metrics = metrics
        self._legacy = LegacyTeller(shapes, dial_backs, admission.request_memory)
        self._wants_tokens = token_guard is not None
        self._log = RateLimitedLogger(logger)

    def receive(self, push: Push) -> str:
        """Take a push over and return its ack text; the plane calls this for every frame."""
        try:
            handler = self._handler_of(push.path)
            admitted = handler.gate.admit(push)
        except IngressError as exc:
            return self._refuse(push, exc)
        self.start_request(handler.handle_payload, admitted, handler.open(admitted))
        return ""

    def _handler_of(self, path: str | None) -> PushHandler:
        handler = self.by_path.get(path) if self._life.is_accepting and path else None
        if handler is None:
            self._metrics.count_unrouted("draining" if self._life.is_draining else "unknown_endpoint")
            if path is None:
                complaint = shown = "invalid endpoint path"
            else:
                complaint, shown = f"unknown endpoint {printable(path)}", f"unknown endpoint {named(path)}"
            self._log.log(logging.WARNING, "no such endpoint", "push refused: %s", shown)
            raise Unavailable(complaint)
        return handler

    def _refuse(self, push: Push, error: IngressError) -> str:
        text = refusal_text(error)
        # While closing there is no time left to tell anybody anything; and where tokens are wanted, nobody is dialled
        # without one.
        may_tell = self._life.phase is not Phase.CLOSING and not self._wants_tokens
        if may_tell and (told := self._legacy.plan(push, error)) is not None:
            self.start_request(self._legacy.tell, told, text)
            return ""
        return text


def _push_path(instance_id: int, endpoint_id: EndpointId) -> str:
    return f"{instance_id:x}/{endpoint_id.namespace}/{endpoint_id.component}/{endpoint_id.endpoint}"
