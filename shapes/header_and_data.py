"""The unary shape: one two-part frame whose header is the control message and whose body is the request."""

from __future__ import annotations

from typing import Any

from ingress.abc import Dialer, IngressDispatch, ParsedRequest
from ingress.bodies import parse_body
from ingress.errors import InvalidMessage
from ingress.wire.messages import RequestControlMessage
from ingress.wire.two_part import MessageKind, body_of, decode_two_part, header_of, header_of_start, kind_of


class HeaderAndData(IngressDispatch[Any]):
    """A request with header and data, answered by many chunks on one response stream.

    The request is whatever the body holds: an object, a list, text, a number. Source: docs/wire.md §3.
    """

    def __init__(self, *, verify_checksum: bool = False) -> None:
        self._verify_checksum = verify_checksum

    def accepts(self, payload: bytes) -> bool:
        return kind_of(payload) is MessageKind.HEADER_AND_DATA

    def read_control(self, payload: bytes) -> RequestControlMessage:
        if self._verify_checksum:
            decode_two_part(payload, verify_checksum=True)
        return RequestControlMessage.decode(header_of(payload))

    def read_control_of_start(self, start: bytes) -> RequestControlMessage | None:
        header = header_of_start(start)
        return None if header is None else RequestControlMessage.decode(header)

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[Any]:
        body = body_of(payload)
        if not body:
            raise InvalidMessage("expected a request body, got none")
        return await parse_body(control, body)
