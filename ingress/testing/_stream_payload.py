"""Calling a worker with a payload of any shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from ..client import Client
from ..client._response_stream import ResponseStream
from ..wire.messages import RequestControlMessage
from ..wire.records import EndpointId
from ..wire.request_frame import encode_request_frame


@asynccontextmanager
async def stream_payload(
    client: Client,
    endpoint: EndpointId | str,
    encode: Callable[[RequestControlMessage], bytes],
    *,
    metadata: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[ResponseStream]:
    """Push a payload of your own making and iterate the answer inside; for shapes that :meth:`Client.stream` has not.

    It raises what ``stream`` raises; leaving early cancels the engine as there.

    Args:
        encode: builds the payload around a control message that leads back to the client.
    """
    target, request_id = client._begin(endpoint, "round_robin", None, None)
    async with client._call_home.appointment("response") as appointment:
        control = client._control(target, request_id, metadata, appointment)
        frame = encode_request_frame(target.path, headers or {}, encode(control))
        responses = ResponseStream(
            appointment,
            target.codec,
            request_id=request_id,
            instance_id=target.record.instance_id,
            on_failure=partial(client._set_aside, target),
        )
        async with responses:
            await client._open(target, frame, responses)
            yield responses
