"""What a push passes before its ack: the shape that reads it, its token, its addresses, and a slot or a place in line.

Nothing here waits, and whatever is refused has been counted and logged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, evolve, field
from msgspec import UNSET, UnsetType

from ._admission import Admission, Slot
from ._dial_guard import DialGuard, DialTarget
from ._failures import class_name, describe_failure, must_pass
from ._ledger import Ledger
from ._shares import caller_of
from ._token import TOKEN_HEADER, TokenGuard
from .abc import Arrival, IngressDispatch, Push
from .errors import DeserializationError, IngressError, InvalidMessage, MessageTooLarge, Overloaded
from .wire.messages import ConnectionInfo, RequestControlMessage
from .wire.records import EndpointId


@define
class AdmittedPush:
    """A push whose control message was read, whose addresses passed, and for which there is room; of its own task."""

    payload: bytes = field(repr=False)
    """Nothing any more once it has been parsed, for the answer may take much longer."""

    size: int
    """Bytes of the payload."""

    headers: Mapping[str, str]
    peer_host: str | None
    shape: IngressDispatch[Any]
    control: RequestControlMessage
    info: ConnectionInfo
    address: DialTarget
    slot: Slot = field(repr=False)

    failure: IngressError | None = None
    """What the caller is told instead of an answer."""

    def drop_payload(self) -> None:
        """Hold the payload no longer: nobody will read it."""
        self.payload = b""
        if (held := self.slot.held_memory) is not None:
            held.drop_payload()

    @property
    def sent_at_ns(self) -> int | None:
        """When a frontend says that it has sent the request, in nanoseconds since 1970; None where none says so."""
        header = self.headers.get("x-frontend-send-ts-ns", "")
        stamp: int | UnsetType = self.control.frontend_send_ts_ns
        if header.isascii() and header.isdigit() and len(header) < 21 and 0 < (sent := int(header)) < 2**64:
            stamp = sent
        return stamp if stamp is not UNSET and 0 < stamp < 2**64 else None


class PushGate:
    """Admits the pushes of one endpoint, or refuses them; what it says is the ack."""

    def __init__(
        self,
        endpoint_id: EndpointId,
        shapes: Sequence[IngressDispatch[Any]],
        *,
        admission: Admission,
        dial_guard: DialGuard,
        token_guard: TokenGuard | None,
        ledger: Ledger,
    ) -> None:
        self._endpoint_id = endpoint_id
        self._shapes = shapes
        self._admission = admission
        self._dial_guard = dial_guard
        self._token_guard = token_guard
        self._ledger = ledger

    def admit(self, push: Push) -> AdmittedPush:
        """Read the control message, check where it wants to be dialled, take a slot or a place in line.

        Raises:
            IngressError: refused, and already counted and logged.
        """
        size = len(push.payload)
        try:
            if push.refusal is not None and (self._token_guard is not None or isinstance(push.refusal, Overloaded)):
                # Its token is of the whole payload, and nobody is dialled without. And what another worker may have
                # room for is refused in the ack, so that its caller asks there.
                raise push.refusal
            shape, control = read_push(self._shapes, push)
            if self._token_guard is not None:
                self._token_guard.check(push, control)
            if TOKEN_HEADER in push.headers:  # whoever forwards headers must not forward this one
                headers = {name: value for name, value in push.headers.items() if name != TOKEN_HEADER}
                push = evolve(push, headers=headers)
            info, address = self._dial_guard.check(push.peer_host, control.id, control.connection_info, "response")
            streams = 1
            for stream in shape.request_streams(control):
                self._dial_guard.check(push.peer_host, control.id, stream, "request")
                streams += 1
            arrival = None
            if self._admission.has_policy:
                announced = push.refusal.size if isinstance(push.refusal, MessageTooLarge) else size
                arrival = Arrival(self._endpoint_id, announced, control, push.headers, push.peer_host)
            peer = None if push.peer_host is None else caller_of(push.peer_host)
            slot = self._admission.admit(arrival, peer=peer, size=size, streams=streams)
            return AdmittedPush(
                push.payload,
                size,
                push.headers,
                push.peer_host,
                shape,
                control,
                info,
                address,
                slot,
                push.refusal,
            )
        except BaseException as exc:
            if must_pass(exc):
                raise
            # A shape's bug must not cost the connection its other acks, so it is refused like what cannot be read.
            error = (
                exc if isinstance(exc, IngressError) else DeserializationError(f"shape failed: {describe_failure(exc)}")
            )
            self._ledger.refused(error, class_name(exc), size)
            try:
                raise error from (None if error is exc else exc)
            finally:
                del error  # or its traceback keeps the payload until the garbage collector comes by


def read_push(shapes: Sequence[IngressDispatch[Any]], push: Push) -> tuple[IngressDispatch[Any], RequestControlMessage]:
    """Return the shape of a push and its control message, of one that was not taken whole as far as it goes.

    Raises:
        IngressError: no shape accepts it, or the message cannot be read.
    """
    if push.refusal is None:
        shape = select_shape(shapes, push.payload)
        return shape, shape.read_control(push.payload)
    for shape in shapes:
        with contextlib.suppress(IngressError):
            if shape.accepts(push.payload) and (control := shape.read_control_of_start(push.payload)) is not None:
                return shape, control
    raise push.refusal


def select_shape(shapes: Sequence[IngressDispatch[Any]], payload: bytes) -> IngressDispatch[Any]:
    """Return the first shape that accepts the payload.

    Raises:
        InvalidMessage: none does.
    """
    for shape in shapes:
        if shape.accepts(payload):
            return shape
    names = ", ".join(type(shape).__name__ for shape in shapes)
    raise InvalidMessage(f"no shape accepts this payload of {len(payload)} bytes; tried {names}")
