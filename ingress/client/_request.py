"""A request as a 1.6.1 client writes it. Source: docs/wire.md §1.1 and §3."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from .._token import TOKEN_HEADER, TokenKeys
from ..errors import GenerateError, MessageTooLarge
from ..wire.messages import ConnectionInfo, RequestControlMessage
from ..wire.request_frame import encode_request_frame
from ..wire.two_part import encode_two_part
from ._routing import Target


def encode_body(target: Target, request: Any) -> bytes:
    """Encode the request in the codec of the instance.

    Raises:
        TypeError: the codec cannot hold it.
    """
    try:
        return target.codec.encode(request)
    except (GenerateError, TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise TypeError(f"request cannot be encoded as {target.codec_name}: {exc}") from exc


def request_frame(
    target: Target,
    control: RequestControlMessage,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    max_message_size: int,
    token_keys: TokenKeys | None = None,
) -> bytes:
    """Return the whole frame; ``headers`` are those of the caller's own, such as ``traceparent``.

    Args:
        token_keys: where given, the first of them signs the request.

    Raises:
        MessageTooLarge: above ``max_message_size``. Told here, because a worker that is told by the length fields
            closes the connection, on which other requests may wait for their acks.
        InvalidMessage: a header does not fit its length field.
    """
    own_headers = {
        "x-endpoint-path": target.path,
        "request-id": control.id,
        # The one reading of the wall clock: workers on other machines compare it with theirs.
        "x-frontend-send-ts-ns": str(time.time_ns()),
    }
    payload = encode_two_part(control.encode(), body)
    if token_keys is not None:
        address = ConnectionInfo.from_address(control.connection_info).address
        own_headers[TOKEN_HEADER] = token_keys.sign(target.path, control.id, address, payload)
    frame = encode_request_frame(target.path, {**(headers or {}), **own_headers}, payload)
    if len(frame) > max_message_size:
        raise MessageTooLarge(
            f"request of {len(frame)} bytes exceeds max_message_size of {max_message_size} bytes",
            size=len(frame),
            limit=max_message_size,
        )
    return frame
