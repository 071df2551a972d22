"""The frames of the TCP request connection: requests in, acks out.

Request, all integers big-endian::

    0        2          2+P         4+P           4+P+H            8+P+H
    | P: u16 | path: P  | H: u16    | headers: H  | N: u32         | payload: N |

Ack::

    0        4
    | N: u32 | text: N |        N = 0 means accepted

Source: docs/wire.md §1, captures ``request-*`` and ``ack-*``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec
from attrs import frozen

from ..errors import InvalidMessage, MessageTooLarge

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

# Dynamo's default of DYN_TCP_MAX_MESSAGE_SIZE; it compares the whole frame, so do we (docs/wire.md §1).
DEFAULT_MAX_FRAME_SIZE = 32 * 1024 * 1024

# A path is "<instance id>/<namespace>/<component>/<endpoint>"; names are at most 128 characters each.
MAX_PATH_LENGTH = 1024

# Headers carry tracing only; longer ones are skipped unread, never refused (docs/wire.md §1).
MAX_PARSED_HEADERS = 16 * 1024

# Acks carry one short sentence; a longer one is no ack.
MAX_ACK_LENGTH = 64 * 1024


@frozen
class RequestFrame:
    """One pushed request, its path and headers still as they came."""

    raw_path: bytes
    raw_headers: bytes
    payload: bytes

    @property
    def path(self) -> str:
        """The path as text.

        Raises:
            InvalidMessage: it is not UTF-8.
        """
        try:
            return self.raw_path.decode()
        except UnicodeDecodeError as exc:
            raise InvalidMessage(f"endpoint path is not UTF-8: {exc}") from exc

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers as a mapping of strings; empty where they are absent or unusable: nothing in them is required."""
        if not self.raw_headers or len(self.raw_headers) > MAX_PARSED_HEADERS:
            return _NO_HEADERS
        try:
            return _HEADERS.decode(self.raw_headers)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return _NO_HEADERS


_HEADERS = msgspec.json.Decoder(dict[str, str])
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def encode_request_frame(path: str, headers: Mapping[str, str], payload: bytes) -> bytes:
    """Return a request frame's bytes.

    Raises:
        InvalidMessage: a part does not fit its length field.
    """
    raw_path, raw_headers = path.encode(), msgspec.json.encode(dict(headers))
    if len(raw_path) > 0xFFFF or len(raw_headers) > 0xFFFF or len(payload) > 0xFFFF_FFFF:
        raise InvalidMessage(
            f"request frame parts of {len(raw_path)}, {len(raw_headers)} and {len(payload)} bytes exceed u16, u16, u32"
        )
    return b"".join(
        (_U16.pack(len(raw_path)), raw_path, _U16.pack(len(raw_headers)), raw_headers, _U32.pack(len(payload)), payload)
    )


class RequestFrameDecoder:
    """Bytes of a request connection in, :class:`RequestFrame` out; for one connection and one task.

    Lengths are checked as soon as they are there, so it never holds more than ``max_frame_size`` and one read. After an
    error it holds no more than :attr:`oversized`, takes nothing, and raises the same error again.
    """

    def __init__(self, *, max_frame_size: int = DEFAULT_MAX_FRAME_SIZE) -> None:
        self._buffer = bytearray()
        self._max_frame_size = max_frame_size
        self._failure: InvalidMessage | None = None
        self._frames = 0
        self._announced_size = 0
        self._oversized: RequestFrame | None = None

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the peer."""
        if self._failure is None:
            self._buffer += data

    @property
    def is_idle(self) -> bool:
        """True between frames."""
        return not self._buffer

    @property
    def held_bytes(self) -> int:
        """Bytes of the frame that has begun, as far as they have arrived."""
        return len(self._buffer)

    def discard(self, keep: int = 0) -> RequestFrame | None:
        """Let go of the frame that has begun; whoever calls this wants no more of the connection.

        Returns:
            the frame, with ``keep`` bytes of its payload at most; None where its payload has not begun.
        """
        buffer, self._buffer = self._buffer, bytearray()
        if not self._announced_size:
            return None
        path_end = _U16.size + _U16.unpack_from(buffer)[0]
        headers_start = path_end + _U16.size
        headers_end = headers_start + _U16.unpack_from(buffer, path_end)[0]
        start = headers_end + _U32.size
        if len(buffer) < start:
            return None
        return RequestFrame(
            bytes(buffer[_U16.size : path_end]),
            bytes(buffer[headers_start:headers_end]),
            bytes(buffer[start : start + keep]),
        )

    @property
    def oversized(self) -> RequestFrame | None:
        """The frame whose payload is too large, with as much of it as came in the same read; None where none was."""
        return self._oversized

    @property
    def frames(self) -> int:
        """How many frames were complete so far."""
        return self._frames

    @property
    def announced_size(self) -> int:
        """Bytes of the frame that has begun, as far as its length fields have arrived; 0 before any has."""
        return self._announced_size

    def __iter__(self) -> Iterator[RequestFrame]:
        """Yield the frames that are complete.

        Raises:
            MessageTooLarge: the length fields announce a larger frame than allowed.
            InvalidMessage: the path is longer than any path can be.
        """
        while (frame := self._next_frame()) is not None:
            yield frame

    def _fail(self, failure: InvalidMessage) -> InvalidMessage:
        self._failure = failure
        self._buffer = bytearray()
        return failure

    def _next_frame(self) -> RequestFrame | None:
        if self._failure is not None:
            raise self._failure
        buffer = self._buffer
        received = len(buffer)
        # 1. The path's length, which alone can condemn the frame.
        if received < _U16.size:
            return None
        path_end = _U16.size + _U16.unpack_from(buffer)[0]
        if path_end > _U16.size + MAX_PATH_LENGTH:
            text = f"endpoint path of {path_end - _U16.size} bytes exceeds {MAX_PATH_LENGTH} bytes"
            raise self._fail(InvalidMessage(text))
        # 2. The headers' length.
        headers_start = path_end + _U16.size
        if received < headers_start:
            return None
        headers_end = headers_start + _U16.unpack_from(buffer, path_end)[0]
        payload_start = headers_end + _U32.size
        if payload_start > self._max_frame_size or received < payload_start:
            self._check_size(payload_start)
            return None
        # 3. The payload's length, checked before a byte of it is waited for.
        size: int = payload_start + _U32.unpack_from(buffer, headers_end)[0]
        if self._max_frame_size >= size > received:
            self._announced_size = size
            return None
        with memoryview(buffer) as view:  # one copy a part; a slice of the bytearray would be a second one
            frame = RequestFrame(
                bytes(view[_U16.size : path_end]),
                bytes(view[headers_start:headers_end]),
                bytes(view[payload_start:size]),
            )
        if size > self._max_frame_size:
            self._oversized = frame
            self._check_size(size)
        del buffer[:size]
        self._frames += 1
        self._announced_size = 0
        return frame

    def _check_size(self, size: int) -> None:
        self._announced_size = size
        if size > self._max_frame_size:
            text = f"message too large: {size} bytes (max: {self._max_frame_size} bytes)"
            raise self._fail(MessageTooLarge(text, size=size, limit=self._max_frame_size))


# The only two beginnings that callers from 1.3.1 on take as a refusal. Every other text counts as success, and the
# caller then waits for ever (docs/wire.md §1).
UNAVAILABLE_PREFIX = "Server unavailable: "
OVERLOADED_PREFIX = "Server overloaded: "


def encode_ack(text: str = "") -> bytes:
    """Return the ack's bytes: accepted when ``text`` is empty, else a refusal."""
    raw = text.encode(errors="replace")  # a refusal must go out even when its text holds a lone surrogate
    return _U32.pack(len(raw)) + raw


class AckDecoder:
    """Bytes of a request connection in, ack texts out; the caller's end. Fails for good, as the frame decoders do."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._failure: MessageTooLarge | None = None

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the peer."""
        if self._failure is None:
            self._buffer += data

    def __iter__(self) -> Iterator[str]:
        """Yield the texts of complete acks, in order.

        Raises:
            MessageTooLarge: an ack announces more than ``MAX_ACK_LENGTH``.
        """
        if self._failure is not None:
            raise self._failure
        while len(self._buffer) >= _U32.size:
            (length,) = _U32.unpack_from(self._buffer)
            if length > MAX_ACK_LENGTH:
                self._buffer = bytearray()
                text = f"ack of {length} bytes exceeds {MAX_ACK_LENGTH} bytes"
                self._failure = MessageTooLarge(text, size=length, limit=MAX_ACK_LENGTH)
                raise self._failure
            if len(self._buffer) < _U32.size + length:
                return
            text = bytes(self._buffer[_U32.size : _U32.size + length]).decode(errors="replace")
            del self._buffer[: _U32.size + length]
            yield text
