"""Callers up to 1.2.1 take every ack text for success; a refusal is told to them by an error prologue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from attrs import frozen

from ._context import RequestContext
from ._dial_guard import DialTarget
from ._dialback import DialBacks
from ._failures import must_pass
from ._push_gate import read_push
from ._request_memory import RequestMemory
from ._response import Response
from ._shares import caller_of
from ._text import named, quoted
from .abc import IngressDispatch, Push
from .errors import IngressError, PublishError, ResponseStreamError
from .wire.messages import ConnectionInfo, RequestControlMessage
from .wire.records import EndpointId

logger = logging.getLogger("ingress.handler")

# A flood of refusals must not become a flood of connections; above it the refusal ack has to do.
MAX_PENDING = 256

_ENDPOINT_OF_NOBODY = EndpointId("refused", "refused", "refused")


@frozen
class LegacyRefusal:
    """A refused push whose caller can be dialled."""

    peer_host: str | None
    control: RequestControlMessage
    info: ConnectionInfo
    address: DialTarget


class LegacyTeller:
    """Dials refused legacy callers back; one a worker."""

    def __init__(
        self, shapes: Sequence[IngressDispatch[Any]], dial_backs: DialBacks, request_memory: RequestMemory
    ) -> None:
        self._shapes = shapes
        self._dial_backs = dial_backs
        self._descriptors = dial_backs.streams.descriptors
        self._request_memory = request_memory
        self._pending = 0

    def plan(self, push: Push, error: IngressError) -> LegacyRefusal | None:
        """Return how the caller is told, or None where the refusal ack is understood or all there is."""
        if isinstance(error, ResponseStreamError) or self._pending >= MAX_PENDING:
            return None
        if not self._descriptors.has_room_for_refusal:
            return None
        try:
            _, control = read_push(self._shapes, push)
            if not control.is_from_legacy_caller:
                return None
            info, address = self._dial_backs.guard.check(
                push.peer_host, control.id, control.connection_info, "response"
            )
        except BaseException as exc:  # whatever it is, it has been counted and logged with the refusal itself
            if must_pass(exc):
                raise
            return None
        self._pending += 1
        self._descriptors.held += 1
        return LegacyRefusal(push.peer_host, control, info, address)

    async def tell(self, refusal: LegacyRefusal, text: str) -> None:
        """Dial back, send the error prologue and the sentinel. Raises nothing but cancellation."""
        context = RequestContext(request_id=refusal.control.id, endpoint=_ENDPOINT_OF_NOBODY, metadata={}, headers={})
        try:
            open_memory = partial(self._request_memory.open, caller_of(refusal.peer_host or ""))
            async with self._dial_backs.of_request(context, refusal.peer_host, open_memory) as dial_back:
                response = Response(
                    dial_back,
                    context,
                    refusal.control,
                    refusal.info,
                    refusal.address,
                )
                with context.scope:
                    try:
                        await response.open()
                        response.refuse(text)
                        await response.send_final()
                    except (ResponseStreamError, PublishError) as exc:
                        logger.info("refusal of %s not told: %s", named(context.id), quoted(exc, 600))
                if response.is_whole:
                    dial_back.let_caller_close_first()
        except BaseException as exc:  # the wall, as round every request
            if must_pass(exc):
                raise
            logger.exception("refusal of %s: internal error", named(context.id))
        finally:
            self._pending -= 1
            self._descriptors.held -= 1
