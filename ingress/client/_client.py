"""The caller's half: find an instance, send it a request, read the answer."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from msgspec import UNSET

from .._text import printable
from .._token import TokenKeyring, TokenKeys
from ..abc import InstanceView
from ..errors import IngressError, LocalProtocolError, NoDialBack, NoInstances
from ..wire.messages import CodecName, ErrorEvent, RequestControlMessage
from ..wire.records import EndpointId, InstanceRecord
from ._bidirectional import BidirectionalStream
from ._call_home import Appointment, CallHome, DialIn
from ._nurseries import first_of
from ._request import encode_body, request_frame
from ._request_connections import RequestConnections
from ._response_stream import ResponseStream
from ._routing import Router, Routing, Target, readable_targets

logger = logging.getLogger("ingress.client")

# Released callers wait for ever. A worker may queue an accepted request before it dials back, so this is not short.
DEFAULT_DIAL_BACK_TIMEOUT = 30.0

# A worker that shuts down withdraws its record first and then still serves what it has accepted, so a dial-back may be
# on its way when the record goes. Released callers give up in the same instant (docs/wire.md §5).
VANISHED_GRACE = 1.0

# The request stream of a bidirectional call is dialled before the response stream, and so is there when that begins;
# only its handshake may still be on its way.
REQUEST_STREAM_TIMEOUT = 5.0


class Client:
    """Calls workers; made by :func:`open_client`, for any number of tasks, until its block is left."""

    def __init__(
        self,
        *,
        view: InstanceView,
        call_home: CallHome,
        connections: RequestConnections,
        router: Router,
        codec: CodecName | None,
        dial_back_timeout: float,
        max_message_size: int,
        token_keys: TokenKeys | None = None,
    ) -> None:
        self._view = view
        self._call_home = call_home
        self._connections = connections
        self._router = router
        self._codec = codec
        self._dial_back_timeout = dial_back_timeout
        self._max_message_size = max_message_size
        self._token_keyring = None if token_keys is None else TokenKeyring(token_keys)
        self._streams: set[ResponseStream | BidirectionalStream] = set()
        self._closing = trio.Event()

    @property
    def address(self) -> str:
        """The ``host:port`` that workers call home to."""
        return self._call_home.address

    def instances(self, endpoint: EndpointId | str | None = None) -> tuple[InstanceRecord, ...]:
        """Return the instances that discovery knows now, of one endpoint or of all; those set aside are among them."""
        return tuple(self._view.instances(None if endpoint is None else _endpoint_id(endpoint)))

    async def wait_for_instances(
        self, endpoint: EndpointId | str, count: int = 1, *, timeout: float = 10.0
    ) -> tuple[InstanceRecord, ...]:
        """Wait until discovery knows at least ``count`` instances that can be called, and return them.

        Raises:
            NoInstances: it did not within ``timeout`` seconds.
        """
        endpoint_id = _endpoint_id(endpoint)
        with trio.move_on_after(timeout):
            while len(targets := self._targets(endpoint_id)) < count:
                await self._view.wait_changed()
            return tuple(target.record for target in targets)
        found = len(self._targets(endpoint_id))
        raise NoInstances(f"waited {timeout:g} s for {count} instances of {endpoint_id}, found {found}")

    @asynccontextmanager
    async def stream(
        self,
        endpoint: EndpointId | str,
        request: Any,
        *,
        routing: Routing = "round_robin",
        instance_id: int | None = None,
        request_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ResponseStream]:
        """Call an endpoint and iterate its answer inside; leaving early cancels the worker's engine.

        Entering waits for the prologue, that is until an engine has taken the request. Nothing is sent twice: whoever
        wants another instance tried enters again, safely so after NotAccepted, NoInstances and Overloaded.

        Args:
            endpoint: ``namespace.component.endpoint``.
            request: any value the codec can hold.
            routing: ``round_robin``, ``random``, or ``direct`` together with ``instance_id``.
            request_id: a UUID when not given.
            metadata: reaches the engine as ``context.metadata``.
            headers: ``traceparent`` and the like, forwarded as they are.

        Raises:
            NoInstances: nobody to call.
            Overloaded: the worker has no room, or all workers had none a moment ago.
            NotAccepted: no connection, or the request was refused; it has not run.
            NoDialBack: accepted, and then no answer began; it may have run.
            Unavailable: no ack, or the instance could not serve.
            RemoteError: the worker refused this request.
            MessageTooLarge: the request is above this client's limit or the worker's.
            TypeError: the codec cannot hold the request.
            ValueError: no endpoint name, a routing that cannot be, or an id or metadata above a worker's limit.
        """
        target, request_id = self._begin(endpoint, routing, instance_id, request_id)
        async with self._call_home.appointment("response") as appointment:
            control = self._control(target, request_id, metadata, appointment)
            async with self._answer(target, control, encode_body(target, request), headers, appointment) as responses:
                yield responses

    @asynccontextmanager
    async def open_bidirectional(
        self,
        endpoint: EndpointId | str,
        *,
        routing: Routing = "round_robin",
        instance_id: int | None = None,
        request_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[BidirectionalStream]:
        """Call a bidirectional endpoint: send requests and iterate responses inside; leaving early cancels the engine.

        Takes and raises what :meth:`stream` does, but for the request. Whoever sends more than the two sides can hold
        must iterate at the same time, in another task: an engine that is not read takes no more input.
        """
        target, request_id = self._begin(endpoint, routing, instance_id, request_id)
        async with (
            self._call_home.appointment("request") as requests,
            self._call_home.appointment("response") as responses_at,
        ):
            control = self._control(target, request_id, metadata, responses_at, requests)
            async with self._answer(target, control, b"", headers, responses_at) as responses:
                dial_in = await self._request_dial_in(target, requests, responses)
                call = BidirectionalStream(
                    dial_in.stream, responses, target.codec, max_message_size=self._max_message_size
                )
                self._streams.add(call)
                try:
                    yield call
                finally:
                    self._streams.discard(call)

    # -- one call ------------------------------------------------------------------------------------------------------

    def _begin(
        self, endpoint: EndpointId | str, routing: Routing, instance_id: int | None, request_id: str | None
    ) -> tuple[Target, str]:
        if self._closing.is_set():
            raise LocalProtocolError("the client is closed")
        target = self._pick(_endpoint_id(endpoint), routing, instance_id)
        return target, str(uuid.uuid4()) if request_id is None else request_id

    def _control(
        self,
        target: Target,
        request_id: str,
        metadata: Mapping[str, str] | None,
        responses: Appointment,
        requests: Appointment | None = None,
    ) -> RequestControlMessage:
        """Return a control message that leads the worker to the appointments; with ``requests`` of a call both ways."""
        control = RequestControlMessage(
            request_id,
            "single_in" if requests is None else "many_in",
            "many_out",
            self._call_home.stream_address(responses, request_id),
            target.codec_name,
            request_stream_connection_info=(
                UNSET if requests is None else self._call_home.stream_address(requests, request_id)
            ),
            metadata=dict(metadata or {}),
        )
        control.check_limits()  # else the worker would refuse what it cannot name, and be set aside for it
        return control

    def _frame(
        self, target: Target, control: RequestControlMessage, body: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the request as it is pushed: within this client's limit, and signed where it has keys."""
        return request_frame(
            target,
            control,
            body,
            headers,
            max_message_size=self._max_message_size,
            token_keys=None if self._token_keyring is None else self._token_keyring.current(),
        )

    @asynccontextmanager
    async def _answer(
        self,
        target: Target,
        control: RequestControlMessage,
        body: bytes,
        headers: Mapping[str, str] | None,
        appointment: Appointment,
    ) -> AsyncIterator[ResponseStream]:
        """Push the request and read its answer inside; what both kinds of calls share."""
        frame = self._frame(target, control, body, headers)
        responses = ResponseStream(
            appointment,
            target.codec,
            request_id=control.id,
            instance_id=target.record.instance_id,
            on_failure=partial(self._set_aside, target),
            max_message_size=self._max_message_size,
        )
        self._streams.add(responses)
        try:
            async with responses:
                await self._open(target, frame, responses)
                yield responses
        finally:
            self._streams.discard(responses)

    async def _request_dial_in(self, target: Target, requests: Appointment, responses: ResponseStream) -> DialIn:
        """Return the other stream of a bidirectional call; workers dial it before the response stream.

        Raises:
            RemoteError: the worker could not dial, and says why on the response stream.
            NoDialBack: it did not, and says nothing.
        """
        with trio.move_on_after(REQUEST_STREAM_TIMEOUT):
            return await requests.kept()
        with trio.move_on_after(REQUEST_STREAM_TIMEOUT):
            async for _ in responses:
                pass
        raise NoDialBack(f"{target} did not dial back to {self.address} for the request stream")

    def _targets(self, endpoint_id: EndpointId) -> list[Target]:
        return readable_targets(self._view.instances(endpoint_id), self._codec)[0]

    def _pick(self, endpoint_id: EndpointId, routing: Routing, instance_id: int | None) -> Target:
        targets, complaints = readable_targets(self._view.instances(endpoint_id), self._codec)
        if complaints and not targets:
            raise NoInstances(f"no instance of {endpoint_id} can be called: {printable(complaints[0])}")
        return self._router.pick(
            endpoint_id, targets, now=trio.current_time(), routing=routing, instance_id=instance_id
        )

    async def _open(self, target: Target, frame: bytes, responses: ResponseStream) -> None:
        """Send the request and wait until its answer begins; the dial-back may well come before the ack."""
        outcome: ResponseStream | IngressError | None = None
        with trio.move_on_after(self._dial_back_timeout):
            outcome = await first_of(
                partial(_opened, responses),
                partial(self._pushed, target, frame, responses),
                partial(self._vanished, target),
                partial(self._closed, target),
            )
        if outcome is responses:
            return
        failure = outcome if isinstance(outcome, IngressError) else self._no_dial_back(target, responses)
        self._set_aside(target, failure)
        raise failure

    async def _pushed(self, target: Target, frame: bytes, responses: ResponseStream) -> IngressError | None:
        try:
            await self._connections.push(target.address, frame)
        except IngressError as exc:
            # A worker that has called home has the request, whatever became of the ack.
            return None if responses.has_dialled_in else exc
        return None

    async def _vanished(self, target: Target) -> IngressError:
        while True:
            while self._knows(target.record):
                await self._view.wait_changed()
            await trio.sleep(VANISHED_GRACE)
            if not self._knows(target.record):  # a worker whose record was deleted by others writes it again
                return NoDialBack(f"{target} disappeared from discovery before its response stream began")

    def _knows(self, record: InstanceRecord) -> bool:
        return any(known.instance_id == record.instance_id for known in self._view.instances(record.endpoint_id))

    async def _closed(self, target: Target) -> IngressError:
        await self._closing.wait()
        return NoDialBack(f"the client was closed before the response stream of {target} began")

    def _no_dial_back(self, target: Target, responses: ResponseStream) -> NoDialBack:
        did = "dialled back but sent no prologue" if responses.has_dialled_in else "did not dial back"
        return NoDialBack(f"{target} {did} to {self.address} within {self._dial_back_timeout:g} s")

    def _set_aside(self, target: Target, failure: ErrorEvent | IngressError) -> None:
        if self._router.set_aside(target.record, failure, now=trio.current_time()):
            text = failure.message if isinstance(failure, ErrorEvent) else failure
            logger.info("%s set aside: %s", target, printable(text))

    async def aclose(self) -> None:
        """Take no more calls and leave every stream, as :func:`open_client` does at its end; bounded."""
        self._closing.set()
        with trio.CancelScope(shield=True):  # each aclose has its bounds
            async with trio.open_nursery() as nursery:
                for responses in self._streams:
                    nursery.start_soon(responses.aclose)


async def _opened(responses: ResponseStream) -> ResponseStream | IngressError:
    try:
        await responses.open()
    except IngressError as exc:
        return exc
    return responses


def _endpoint_id(endpoint: EndpointId | str) -> EndpointId:
    return EndpointId.parse(endpoint) if isinstance(endpoint, str) else endpoint
