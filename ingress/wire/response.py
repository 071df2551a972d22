"""The conversation on a response stream, as one state machine with two roles.

::

    handshake → prologue → item* → final → sentinel → closed
                  └ error ────────────────→ sentinel → closed

The worker is the :class:`ResponseSender`, the caller the :class:`ResponseReceiver`. Against the stream's direction only
control words travel (:class:`ControlWordReader`). Source: docs/wire.md §4 and §5, captures ``response-*``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import frozen

from ..errors import DeserializationError, LocalProtocolError, RemoteProtocolError, StreamIncomplete
from .codec import PayloadCodec
from .messages import Annotated, CallHomeHandshake, ControlWord, ErrorEvent, Prologue, StreamType
from .two_part import DEFAULT_MAX_MESSAGE_SIZE, PREFIX, MessageKind, TwoPartDecoder, encode_two_part

# A control word has 34 bytes; a peer that announces more than this is not speaking the protocol.
MAX_CONTROL_FRAME = 64 * 1024


class ResponseState(enum.Enum):
    """What may come next on the stream."""

    HANDSHAKE = "handshake"
    PROLOGUE = "prologue"
    ITEMS = "items"
    SENTINEL = "sentinel"
    DONE = "done"


# What is looked up for each item, at a fifth of what it costs to ask the enumeration and the packer.
_ITEMS = ResponseState.ITEMS
_SHORT = 512
_SHORT_PREFIXES = [PREFIX.pack(0, size, 0) for size in range(_SHORT)]


class ResponseSender:
    """The worker's role: turns what happens into bytes, and refuses what may not come now.

    Every method returns the bytes to write and raises LocalProtocolError when called out of order.
    """

    __slots__ = ("_codec", "body_bytes", "state")

    def __init__(self, codec: PayloadCodec) -> None:
        self.state = ResponseState.HANDSHAKE
        self.body_bytes = 0
        """Sum of the bodies of data frames so far, as ``dynamo_component_response_bytes_total`` counts them."""
        self._codec = codec

    def handshake(self, subject: str, stream_type: StreamType = "response") -> bytes:
        self._advance(ResponseState.HANDSHAKE, ResponseState.PROLOGUE, "a handshake")
        return encode_two_part(CallHomeHandshake(subject, stream_type).encode())

    def prologue(self) -> bytes:
        self._advance(ResponseState.PROLOGUE, ResponseState.ITEMS, "a prologue")
        return _PROLOGUE_OK

    def error_prologue(self, message: str, error: ErrorEvent | None = None) -> bytes:
        """Refuse the request: prologue and sentinel, nothing between them."""
        self._advance(ResponseState.PROLOGUE, ResponseState.DONE, "an error prologue")
        return encode_two_part(Prologue(message, error).encode()) + _SENTINEL

    def item(self, value: object) -> bytes:
        """One item; raises GenerateError when the codec cannot hold it, and the stream then goes on."""
        if self.state is not _ITEMS:
            raise LocalProtocolError(f"an item may not be sent in state {self.state.value}")
        body = self._codec.encode_item(value)
        size = len(body)
        self.body_bytes += size
        return (_SHORT_PREFIXES[size] if size < _SHORT else PREFIX.pack(0, size, 0)) + body

    def final(self) -> bytes:
        """The end of a whole answer: the final frame and the sentinel."""
        self._advance(ResponseState.ITEMS, ResponseState.DONE, "the final frame")
        self.body_bytes += len(self._codec.final)
        return encode_two_part(body=self._codec.final) + _SENTINEL

    def _advance(self, expected: ResponseState, following: ResponseState, what: str) -> None:
        if self.state is not expected:
            raise LocalProtocolError(f"{what} may not be sent in state {self.state.value}")
        self.state = following


_PROLOGUE_OK = encode_two_part(Prologue().encode())
_SENTINEL = encode_two_part(ControlWord.SENTINEL.encode())


@frozen
class HandshakeReceived:
    """The worker said which stream this is."""

    handshake: CallHomeHandshake


@frozen
class PrologueReceived:
    """The engine took the request, or ``prologue.error`` says why not."""

    prologue: Prologue


@frozen
class ItemReceived:
    """One item."""

    annotated: Annotated


@frozen
class FinalReceived:
    """The answer is whole; nothing after it matters."""


ResponseEvent = HandshakeReceived | PrologueReceived | ItemReceived | FinalReceived


class ResponseReceiver:
    """The caller's role: bytes in, events out; for one connection and one task."""

    def __init__(self, codec: PayloadCodec, *, max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE) -> None:
        self.state = ResponseState.HANDSHAKE
        self._codec = codec
        self._decoder = TwoPartDecoder(max_message_size=max_message_size, what="response frame")

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the worker."""
        self._decoder.receive_data(data)

    def receive_eof(self) -> None:
        """Tell that the worker closed its side.

        Raises:
            StreamIncomplete: it did so before the final frame.
        """
        if self.state not in (ResponseState.SENTINEL, ResponseState.DONE):
            raise StreamIncomplete(f"response stream ended in state {self.state.value}, before its final frame")

    def __iter__(self) -> Iterator[ResponseEvent]:
        """Yield the events that are complete.

        Raises:
            RemoteProtocolError: a frame that may not come now.
            DeserializationError: a frame whose content cannot be read.
            InvalidMessage: broken framing, or a frame above the limit.
        """
        for message in self._decoder:
            match message.kind, self.state:
                case MessageKind.EMPTY, _:
                    continue  # real callers skip it, wherever it comes
                case _, ResponseState.DONE:
                    raise RemoteProtocolError("frame after the sentinel")
                case MessageKind.HEADER_ONLY, ResponseState.HANDSHAKE:
                    self.state = ResponseState.PROLOGUE
                    yield HandshakeReceived(CallHomeHandshake.decode(message.header))
                case MessageKind.HEADER_ONLY, ResponseState.PROLOGUE:
                    prologue = Prologue.decode(message.header)
                    self.state = ResponseState.ITEMS if prologue.error is None else ResponseState.SENTINEL
                    yield PrologueReceived(prologue)
                case MessageKind.HEADER_ONLY, ResponseState.ITEMS:
                    if ControlWord.decode(message.header) is not ControlWord.SENTINEL:
                        raise RemoteProtocolError(f"control word {message.header[:40]!r} on a response stream")
                    raise StreamIncomplete("sentinel before the final frame")
                case MessageKind.HEADER_ONLY, ResponseState.SENTINEL:
                    self.state = ResponseState.DONE
                case MessageKind.DATA_ONLY, ResponseState.ITEMS:
                    yield from self._item_events(message.body)
                case kind, state:
                    raise RemoteProtocolError(f"{kind.value} frame in state {state.value} of a response stream")

    def _item_events(self, body: bytes) -> Iterator[ResponseEvent]:
        item = self._codec.decode_item(body)
        if item.annotated is not None:
            yield ItemReceived(item.annotated)
        elif not item.complete_final:
            raise DeserializationError("response item without data and without complete_final")
        if item.complete_final:
            self.state = ResponseState.SENTINEL
            yield FinalReceived()


class ControlWordReader:
    """The worker's ear on a response stream: bytes in, control words out; for one connection and one task."""

    def __init__(self) -> None:
        self._decoder = TwoPartDecoder(max_message_size=MAX_CONTROL_FRAME, what="control frame")

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the caller."""
        self._decoder.receive_data(data)

    def __iter__(self) -> Iterator[ControlWord]:
        """Yield stop and kill.

        Raises:
            RemoteProtocolError: any other word or frame; released workers take it for a kill.
            InvalidMessage: a frame that announces more than ``MAX_CONTROL_FRAME``.
        """
        for message in self._decoder:
            word = ControlWord.decode(message.header) if message.kind is MessageKind.HEADER_ONLY else None
            if word not in (ControlWord.STOP, ControlWord.KILL):
                raise RemoteProtocolError(f"expected stop or kill, got {message.kind.value} {message.header[:40]!r}")
            yield word
