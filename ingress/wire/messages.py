"""The messages inside the frames, as attrs classes, each with the order of keys that released peers write.

Decoding is typed and tolerant of unknown fields; encoding is compact JSON. Source: docs/wire.md §3 and §4, captures
``request-*`` and ``response-*``.
"""

from __future__ import annotations

import enum
from typing import Any, Literal, TypeVar

import msgspec
from attrs import field, frozen
from msgspec import UNSET, UnsetType

from ..errors import DeserializationError
from .error_event import ErrorEvent as ErrorEvent
from .error_event import encodable, text_or_none
from .guards import exceeds_depth as exceeds_depth

MAX_CONTROL_MESSAGE = 256 * 1024
MAX_REQUEST_ID = 1024
MAX_METADATA_ENTRIES = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_SUBJECT = 256

# Deeper than any control message has reason to be, shallower than any decoder minds.
MAX_CONTROL_DEPTH = 32

# Released peers send five at most. Measuring the depth of so many takes 0.3 ms, that of 60,000 5 ms.
MAX_CONTROL_OBJECTS = 4096

# What is meant to exhaust a parser nests from the start; so much of it is enough to tell.
_HEAD = 4096

CodecName = Literal["json", "msgpack"]
StreamType = Literal["request", "response"]
MessageT = TypeVar("MessageT")


class ControlWord(enum.Enum):
    """The header-only words: the caller sends the first two, the sentinel ends a stream."""

    STOP = "stop"
    KILL = "kill"
    SENTINEL = "sentinel"

    def encode(self) -> bytes:
        return f'"{self.value}"'.encode()

    @classmethod
    def decode(cls, header: bytes) -> ControlWord | None:
        """Return the word, or None for anything else: what an unknown word means depends on the stream."""
        return _CONTROL_WORDS.get(header)


_CONTROL_WORDS = {word.encode(): word for word in ControlWord}


@frozen
class StreamAddress:
    """Where and how one stream is to be opened: a ``connection_info`` of the control message."""

    transport: str
    """``tcp_server``; anything else is a transport this worker does not speak."""

    info: str
    """A :class:`ConnectionInfo` as JSON, inside a string."""

    def to_wire(self) -> dict[str, str]:
        return {"transport": self.transport, "info": self.info}


@frozen
class ConnectionInfo:
    """What ``info`` of a :class:`StreamAddress` says."""

    address: str
    """``host:port``; IPv6 with brackets, or bare and split at the last colon (PEERS: released peers write both)."""

    subject: str
    """Names the stream at the caller's listener; repeated in the handshake."""

    context: str
    """The request id."""

    stream_type: str
    """``response`` or ``request``."""

    def to_address(self) -> StreamAddress:
        wire = {
            "address": self.address,
            "subject": self.subject,
            "context": self.context,
            "stream_type": self.stream_type,
        }
        return StreamAddress("tcp_server", msgspec.json.encode(wire).decode())

    @classmethod
    def from_address(cls, address: StreamAddress) -> ConnectionInfo:
        """Decode the JSON string inside ``address``.

        Raises:
            DeserializationError: it is not a ConnectionInfo.
        """
        return _decode(_CONNECTION_INFO, address.info.encode(errors="surrogatepass"), "connection info")


@frozen
class RequestControlMessage:
    """The header of a request payload: who asks, in which codec, and where the answer goes. Always JSON."""

    id: str
    request_type: Literal["single_in", "many_in"]
    response_type: Literal["single_out", "many_out"]
    connection_info: StreamAddress
    payload_codec: CodecName | UnsetType = UNSET
    """Absent up to 1.2.1, always present from 1.3.1 on."""

    request_stream_connection_info: StreamAddress | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    frontend_send_ts_ns: int | UnsetType = UNSET

    @property
    def codec_name(self) -> CodecName:
        return "json" if self.payload_codec is UNSET else self.payload_codec

    @property
    def is_from_legacy_caller(self) -> bool:
        """True for callers up to 1.2.1, which take every ack text for success."""
        return self.payload_codec is UNSET

    def encode(self) -> bytes:
        """Return the JSON, with the keys in the order of released clients."""
        request_stream = self.request_stream_connection_info
        fields: dict[str, Any] = {
            "id": self.id,
            "request_type": self.request_type,
            "response_type": self.response_type,
            "payload_codec": self.payload_codec,
            "connection_info": self.connection_info.to_wire(),
            "request_stream_connection_info": UNSET if request_stream is UNSET else request_stream.to_wire(),
            "metadata": self.metadata or UNSET,
            "frontend_send_ts_ns": self.frontend_send_ts_ns,
        }
        return msgspec.json.encode({key: value for key, value in fields.items() if value is not UNSET})

    @classmethod
    def decode(cls, header: bytes) -> RequestControlMessage:
        """Decode and check a control message.

        Raises:
            DeserializationError: not JSON, a missing or wrong field, or larger than a limit of this module.
        """
        control = _decode(_CONTROL_MESSAGE, header, "control message")
        try:
            control.check_limits()
        except ValueError as exc:
            raise DeserializationError(str(exc)) from None
        return control

    def check_limits(self) -> None:
        """Return where no worker would refuse it for its size; raises ValueError, naming size and limit."""
        if (size := _size(self.id)) > MAX_REQUEST_ID:
            raise ValueError(f"request id of {size} bytes exceeds {MAX_REQUEST_ID}")
        if self.metadata is not UNSET and (
            len(self.metadata) > MAX_METADATA_ENTRIES
            or sum(_size(k) + _size(v) for k, v in self.metadata.items()) > MAX_METADATA_BYTES
        ):
            raise ValueError(
                f"metadata of {len(self.metadata)} entries exceeds {MAX_METADATA_ENTRIES} entries "
                f"or {MAX_METADATA_BYTES} bytes"
            )


@frozen
class CallHomeHandshake:
    """The first frame on a dialled stream: which stream this is."""

    subject: str
    stream_type: StreamType

    def encode(self) -> bytes:
        return msgspec.json.encode({"subject": self.subject, "stream_type": self.stream_type})

    @classmethod
    def decode(cls, header: bytes) -> CallHomeHandshake:
        """Decode a handshake.

        Raises:
            DeserializationError: it is none.
        """
        return _decode(_HANDSHAKE, header, "call-home handshake")


@frozen
class Prologue:
    """The second frame on a response stream: the engine took the request, or why it did not."""

    error: str | None = None
    typed_error: ErrorEvent | None = None

    def encode(self) -> bytes:
        wire: dict[str, Any] = {"error": None if self.error is None else encodable(self.error)}
        if self.typed_error is not None:
            wire["typed_error"] = self.typed_error.to_wire()
        return msgspec.json.encode(wire)

    @classmethod
    def decode(cls, header: bytes) -> Prologue:
        """Decode a prologue; ``{}`` counts as success, as real clients take it.

        Raises:
            DeserializationError: it is no JSON object, or ``error`` is neither text nor null.
        """
        wire = _decode(_PROLOGUE, header, "prologue")
        typed = wire.get("typed_error")
        error = wire.get("error")
        if error is not None and not isinstance(error, str):
            raise DeserializationError(f"prologue: expected text or null as error, got {type(error).__name__}")
        return cls(error, ErrorEvent.from_wire(typed) if typed is not None else None)


@frozen
class Annotated:
    """One response item with its envelope; an engine yields it to set more than the data.

    A plain value that is yielded goes home under ``data`` untouched, also a dict that looks like this.
    """

    data: Any = UNSET
    id: str | None = None
    event: str | None = None
    comment: list[str] | None = None
    error: ErrorEvent | None = field(default=None)

    @property
    def is_error(self) -> bool:
        return self.event == "error" or self.error is not None

    def to_wire(self) -> dict[str, Any]:
        """Return the envelope with its unset keys left out, in the order of released workers."""
        wire = {
            "data": self.data,
            "id": self.id,
            "event": self.event,
            "comment": self.comment,
            "error": None if self.error is None else self.error.to_wire(),
        }
        return {key: value for key, value in wire.items() if value is not (UNSET if key == "data" else None)}

    @classmethod
    def from_wire(cls, wire: object) -> Annotated:
        """Read an envelope: any subset of the keys in any order, unknown ones ignored.

        Raises:
            DeserializationError: it is no object.
        """
        if not isinstance(wire, dict):
            raise DeserializationError(f"annotated envelope: expected an object, got {type(wire).__name__}")
        comment = wire.get("comment")
        comments = [str(line) for line in comment] if isinstance(comment, list) else None
        event = text_or_none(wire.get("event"))
        has_error = event == "error" or wire.get("error") is not None
        return cls(
            data=wire.get("data", UNSET),
            id=text_or_none(wire.get("id")),
            event=event,
            comment=comments,
            error=ErrorEvent.from_wire(wire.get("error"), comment=comments) if has_error else None,
        )

    @classmethod
    def from_error(cls, error: ErrorEvent) -> Annotated:
        """Build the error event that carries ``error``."""
        return cls(event="error", error=error)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _decode(decoder: msgspec.json.Decoder[MessageT], raw: bytes, what: str) -> MessageT:
    # A stream's own limit is that of an item, far too much for the small objects that are decoded here.
    if len(raw) > MAX_CONTROL_MESSAGE:
        raise DeserializationError(f"{what} of {len(raw)} bytes exceeds {MAX_CONTROL_MESSAGE} bytes")
    has_too_many = len(raw) > MAX_CONTROL_OBJECTS and raw.count(b"{") + raw.count(b"[") > MAX_CONTROL_OBJECTS
    if exceeds_depth(raw[:_HEAD] if has_too_many else raw, MAX_CONTROL_DEPTH):
        raise DeserializationError(f"{what}: nested deeper than {MAX_CONTROL_DEPTH} levels")
    if has_too_many:
        raise DeserializationError(f"{what}: more than {MAX_CONTROL_OBJECTS} objects and lists")
    try:
        if not raw.isascii():
            raw.decode()  # the decoder skips what it does not know, and would not see that it is no text
        return decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise DeserializationError(f"{what}: {exc}") from exc


_CONTROL_MESSAGE = msgspec.json.Decoder(RequestControlMessage)
_CONNECTION_INFO = msgspec.json.Decoder(ConnectionInfo)
_HANDSHAKE = msgspec.json.Decoder(CallHomeHandshake)
_PROLOGUE = msgspec.json.Decoder(dict[str, Any])
