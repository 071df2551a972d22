"""The bidirectional shape: the push carries a control message only, and the worker dials in for the requests."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import Any

from msgspec import UNSET

from ingress.abc import Context, Dialer, Engine, IngressDispatch, ParsedRequest
from ingress.errors import DeserializationError
from ingress.wire.codec import codec_named
from ingress.wire.messages import RequestControlMessage, StreamAddress
from ingress.wire.two_part import MessageKind, decode_two_part, kind_of


class HeaderOnly(IngressDispatch[AsyncIterable[Any]]):
    """A stream of requests answered by a stream of chunks, each on a socket the worker dialled.

    The engine gets an async iterable of whatever the frames hold. Source: docs/wire.md §6.
    """

    def __init__(self, *, verify_checksum: bool = False) -> None:
        self._verify_checksum = verify_checksum

    def accepts(self, payload: bytes) -> bool:
        return kind_of(payload) is MessageKind.HEADER_ONLY

    def can_serve(self, engine: Engine) -> bool:
        return engine.is_bidirectional

    def read_control(self, payload: bytes) -> RequestControlMessage:
        frame = decode_two_part(payload, verify_checksum=self._verify_checksum)
        control = RequestControlMessage.decode(frame.header)
        if control.request_type != "many_in":
            raise DeserializationError(f"expected request type many_in, got {control.request_type}")
        self.request_streams(control)
        return control

    def request_streams(self, control: RequestControlMessage) -> Sequence[StreamAddress]:
        if control.request_stream_connection_info is UNSET:
            raise DeserializationError("control message has no request_stream_connection_info")
        return [control.request_stream_connection_info]

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[AsyncIterable[Any]]:
        (stream,) = self.request_streams(control)
        requests = await dialer.open_request_stream(stream, codec_named(control.codec_name).decode)
        return ParsedRequest(requests, control, weight=0)  # its frames are counted as they come

    def invoke(self, engine: Engine, request: AsyncIterable[Any], context: Context) -> AsyncIterable[Any]:
        return engine.generate_bidirectional(request, context)
