"""The two-part frame, which carries every message in both directions.

All integers are big-endian and unsigned::

    0         8         16        24          24+H       24+H+B
    | H: u64  | B: u64  | sum: u64 | header: H | body: B |

H and B are byte counts. ``sum`` is 0 or xxh3-64 of header and body; released peers write 0 and read any value.
Source: docs/wire.md §2, captures ``req-ok-*`` and ``ack-checksum-*``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

from attrs import frozen

from ..errors import InvalidMessage, MessageTooLarge

PREFIX = struct.Struct(">QQQ")

# No limit exists on the wire: a real peer passed an item of 40 MB. Ours is the request plane's default, so that one
# number bounds what a peer can make us hold (docs/wire.md §2).
DEFAULT_MAX_MESSAGE_SIZE = 32 * 1024 * 1024


class MessageKind(enum.Enum):
    """Which of its two parts a message has."""

    EMPTY = "empty"
    HEADER_ONLY = "header-only"
    DATA_ONLY = "data-only"
    HEADER_AND_DATA = "header-and-data"


@frozen
class TwoPartMessage:
    """One decoded frame."""

    header: bytes = b""
    body: bytes = b""

    @property
    def kind(self) -> MessageKind:
        if self.header:
            return MessageKind.HEADER_AND_DATA if self.body else MessageKind.HEADER_ONLY
        return MessageKind.DATA_ONLY if self.body else MessageKind.EMPTY


def checksum_of(header: bytes, body: bytes) -> int:
    """Return xxh3-64 of header and body.

    Raises:
        ModuleNotFoundError: the ``xxhash`` extra is not installed.
    """
    try:
        import xxhash
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "checksums need the xxhash package: pip install 'ingress-dispatch[xxhash]'", name="xxhash"
        ) from exc

    digest = xxhash.xxh3_64(header)
    digest.update(body)
    return int(digest.intdigest())


def encode_two_part(header: bytes = b"", body: bytes = b"", *, checksum: bool = False) -> bytes:
    """Return the frame's bytes; the checksum field is 0, as released peers write it, unless asked for."""
    value = checksum_of(header, body) if checksum else 0
    return PREFIX.pack(len(header), len(body), value) + header + body


def decode_two_part(payload: bytes, *, verify_checksum: bool = False) -> TwoPartMessage:
    """Decode a payload that holds one whole frame; bytes after the frame are ignored, as real workers do.

    Raises:
        InvalidMessage: the payload is shorter than its lengths say, or the checksum is wrong and verified.
    """
    split, end, checksum = _bounds(payload)
    message = TwoPartMessage(payload[PREFIX.size : split], payload[split:end])
    if verify_checksum:
        _verify(message, checksum)
    return message


def header_of(payload: bytes) -> bytes:
    """Return the header of a payload that holds one whole frame, without a copy of its body; raises InvalidMessage."""
    return payload[PREFIX.size : _bounds(payload)[0]]


def body_of(payload: bytes) -> bytes:
    """Return the body of a payload that holds one whole frame; raises InvalidMessage."""
    split, end, _ = _bounds(payload)
    return payload[split:end]


def _bounds(payload: bytes) -> tuple[int, int, int]:
    if len(payload) < PREFIX.size:
        raise InvalidMessage(f"two-part frame needs {PREFIX.size} bytes of prefix, got {len(payload)}")
    header_len, body_len, checksum = PREFIX.unpack_from(payload)
    split = PREFIX.size + header_len
    end = split + body_len
    if end > len(payload):
        raise InvalidMessage(
            f"two-part frame announces {header_len} + {body_len} bytes, payload holds {len(payload) - PREFIX.size}"
        )
    return split, end, checksum


def header_of_start(start: bytes) -> bytes | None:
    """Return the header of a frame of which only the beginning is there, or None where that does not hold it whole."""
    if len(start) < PREFIX.size:
        return None
    end = PREFIX.size + int(PREFIX.unpack_from(start)[0])
    return start[PREFIX.size : end] if end <= len(start) else None


def kind_of(payload: bytes) -> MessageKind | None:
    """Tell the kind from the two length fields alone, or None where there is no whole prefix."""
    if len(payload) < PREFIX.size:
        return None
    header_len, body_len, _ = PREFIX.unpack_from(payload)
    if header_len:
        return MessageKind.HEADER_AND_DATA if body_len else MessageKind.HEADER_ONLY
    return MessageKind.DATA_ONLY if body_len else MessageKind.EMPTY


class TwoPartDecoder:
    """Bytes in, messages out; for one connection and one task.

    Call :meth:`receive_data` with whatever arrived, then iterate. The announced sizes are checked before anything is
    kept for them, so the decoder never holds more than ``max_message_size`` and one read. After an error it holds
    nothing, takes nothing, and raises the same error again.
    """

    def __init__(
        self, *, max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE, verify_checksum: bool = False, what: str = "message"
    ) -> None:
        self._buffer = bytearray()
        self._max_message_size = max_message_size
        self._verify_checksum = verify_checksum
        self._what = what
        self._failure: InvalidMessage | None = None

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the peer."""
        if self._failure is None:
            self._buffer += data

    @property
    def is_idle(self) -> bool:
        """True between messages: end of stream is clean here and a truncation anywhere else."""
        return not self._buffer

    @property
    def held_bytes(self) -> int:
        """Bytes that are kept of messages that are not complete, or not yielded yet."""
        return len(self._buffer)

    @property
    def announced_size(self) -> int:
        """Bytes of the message that has begun, as far as it has said; 0 before it has."""
        if len(self._buffer) < PREFIX.size:
            return 0
        header_len, body_len, _ = PREFIX.unpack_from(self._buffer)
        return PREFIX.size + int(header_len) + int(body_len)

    def __iter__(self) -> Iterator[TwoPartMessage]:
        """Yield the messages that are complete.

        Raises:
            MessageTooLarge: the length fields announce more than ``max_message_size``.
            InvalidMessage: the checksum is wrong, and verification is on.
        """
        while (message := self._next_message()) is not None:
            yield message

    def _fail(self, failure: InvalidMessage) -> InvalidMessage:
        self._failure = failure
        self._buffer = bytearray()
        return failure

    def _next_message(self) -> TwoPartMessage | None:
        if self._failure is not None:
            raise self._failure
        buffer = self._buffer
        if len(buffer) < PREFIX.size:
            return None
        header_len, body_len, checksum = PREFIX.unpack_from(buffer)
        size = PREFIX.size + header_len + body_len
        if size > self._max_message_size:
            text = f"{self._what} of {size} bytes exceeds the limit of {self._max_message_size} bytes"
            raise self._fail(MessageTooLarge(text, size=size, limit=self._max_message_size))
        if len(buffer) < size:
            return None
        split = PREFIX.size + header_len
        with memoryview(buffer) as view:  # one copy a part; a slice of the bytearray would be a second one
            message = TwoPartMessage(bytes(view[PREFIX.size : split]), bytes(view[split:size]))
        del buffer[:size]
        if self._verify_checksum:
            try:
                _verify(message, checksum)
            except InvalidMessage as exc:
                raise self._fail(exc) from None
        return message


def _verify(message: TwoPartMessage, checksum: int) -> None:
    # 0 means "none written": every released peer writes it, so it passes even where checksums are verified.
    if checksum and checksum != (actual := checksum_of(message.header, message.body)):
        raise InvalidMessage(f"checksum {checksum:#018x} does not match xxh3-64 {actual:#018x} of header and body")
