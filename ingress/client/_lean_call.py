"""Calls for a load generator: the answer's items are counted and not decoded, and a call has no helpers of its own.

:meth:`Client.stream` watches four things at once while it waits for an answer, and decodes each item. Under load that
costs more than the worker does: 1,420 µs a one-chunk request and 25 µs a chunk, where this takes 850 and 4 and the
worker 900 and 7 (one slow core). What it does not watch for, as a worker that vanishes, ends with the bound that its
caller puts around it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import trio

from ..errors import StreamIncomplete
from ..wire.messages import CodecName
from ..wire.records import EndpointId
from ._call_home import DialIn
from ._client import Client
from ._counting_receiver import CountingReceiver
from ._request import encode_body
from ._response_stream import ENDING_TIMEOUT
from ._routing import Routing, Target

Seen = Callable[[int, int], None]
"""Is told of each read: how many items it completed, and its bytes."""


class LeanCaller:
    """Sends one request again and again, from any number of tasks, to the instances of an endpoint in turn."""

    def __init__(
        self,
        client: Client,
        endpoint: str,
        request: Any,
        *,
        instance_id: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._endpoint = EndpointId.parse(endpoint)
        self._request = request
        self._instance_id = instance_id
        self._metadata = metadata
        self._bodies: dict[CodecName, bytes] = {}

    def check(self) -> None:
        """Find out now what no call could do.

        Raises:
            NoInstances: nobody to call.
            TypeError: the codec cannot hold the request.
        """
        self._target_and_body()

    async def call(self, seen: Seen) -> float:
        """Make one call, and return when its final frame had come, by the loop's clock. The caller bounds it.

        Raises:
            IngressError: what :meth:`Client.stream` and the iteration of its stream raise.
        """
        client = self._client
        target, body = self._target_and_body()
        request_id = str(uuid.uuid4())
        async with client._call_home.appointment("response") as appointment:
            control = client._control(target, request_id, self._metadata, appointment)
            frame = client._frame(target, control, body)
            await client._connections.push(target.address, frame)
            dial_in = await appointment.kept()
            receiver = CountingReceiver(target.codec_name, max_message_size=client._max_message_size)
            return await _read(dial_in, receiver, seen)

    def _target_and_body(self) -> tuple[Target, bytes]:
        routing: Routing = "round_robin" if self._instance_id is None else "direct"
        target = self._client._pick(self._endpoint, routing, self._instance_id)
        if (body := self._bodies.get(target.codec_name)) is None:
            body = self._bodies[target.codec_name] = encode_body(target, self._request)
        return target, body


async def _read(dial_in: DialIn, receiver: CountingReceiver, seen: Seen) -> float:
    """Read an answer to its sentinel, so that the worker counts no cancellation; return when it was whole."""
    data: bytes | bytearray = dial_in.received
    whole_at: float | None = None
    missing = "its final frame"
    with trio.CancelScope() as patience:
        while data:
            seen(receiver.receive_data(data), len(data))
            if receiver.is_whole and whole_at is None:
                whole_at = trio.current_time()
                patience.deadline = whole_at + ENDING_TIMEOUT
            if receiver.is_done:
                break
            try:
                data = await dial_in.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                missing += ", by a reset"
                break
    if receiver.failure is not None:
        raise receiver.failure
    if whole_at is None:
        raise StreamIncomplete(f"response stream ended before {missing}")
    return whole_at
