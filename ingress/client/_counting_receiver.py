"""An answer whose items are counted and not decoded: a microsecond each, where reading them takes twenty.

No I/O, as :mod:`ingress.wire.response`, which gets every frame that is not plainly an item.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import IngressError
from ..wire.codec import codec_named
from ..wire.messages import Annotated, CodecName, ErrorEvent
from ..wire.response import FinalReceived, ItemReceived, PrologueReceived, ResponseReceiver, ResponseState
from ..wire.two_part import DEFAULT_MAX_MESSAGE_SIZE, PREFIX
from ._response_stream import prologue_failure

# What we and released workers write around an item that has data, and that has nothing else: JSON tells the latter not
# in its first bytes, but no released worker puts data and an error into one item.
_PLAIN: Mapping[CodecName, tuple[bytes, bytes]] = {
    "json": (b'{"data":{"data":', b',"complete_final":false}'),
    "msgpack": (b"\x82\xa4data\x81\xa4data", b"\xaecomplete_final\xc2"),
}

# The length of the header, as the prefix begins with it.
_NO_HEADER = bytes(8)


class CountingReceiver:
    """Bytes in, a count out; for one connection and one task."""

    def __init__(self, codec_name: CodecName, *, max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE) -> None:
        self.is_whole = False
        """True once the final frame has come."""

        self.failure: IngressError | None = None
        """What the worker said is wrong; the sentinel still follows it."""

        self._beginning, self._ending = _PLAIN[codec_name]
        self._receiver = ResponseReceiver(codec_named(codec_name), max_message_size=max_message_size)
        self._max_message_size = max_message_size
        self._buffer = bytearray()

    @property
    def is_done(self) -> bool:
        """True once the sentinel has come."""
        return self._receiver.state is ResponseState.DONE

    def receive_data(self, data: bytes | bytearray) -> int:
        """Add bytes from the worker and return how many items they completed.

        Raises:
            RemoteProtocolError, DeserializationError, InvalidMessage, StreamIncomplete: as :class:`ResponseReceiver`.
        """
        buffer = self._buffer
        buffer += data
        position = items = 0
        while (end := self._end_of_frame(position)) is not None:
            if self._is_plain(position, end):
                items += 1
            else:
                items += self._read(bytes(buffer[position:end]))
            position = end
        del buffer[:position]
        return items

    def _end_of_frame(self, position: int) -> int | None:
        """Return where the frame ends, or None where it is not whole yet."""
        if len(self._buffer) - position < PREFIX.size:
            return None
        header, body, _ = PREFIX.unpack_from(self._buffer, position)
        size = PREFIX.size + header + body
        if size > self._max_message_size:
            return position + PREFIX.size  # the receiver sees from the prefix that it must refuse
        end = position + int(size)
        return end if end <= len(self._buffer) else None

    def _is_plain(self, position: int, end: int) -> bool:
        buffer = self._buffer
        return (
            self._receiver.state is ResponseState.ITEMS
            and buffer.startswith(_NO_HEADER, position)
            and buffer.startswith(self._beginning, position + PREFIX.size)
            and buffer.endswith(self._ending, position, end)
        )

    def _read(self, frame: bytes) -> int:
        items = 0
        self._receiver.receive_data(frame)
        for event in self._receiver:
            match event:
                case ItemReceived(Annotated(error=None)):
                    items += 1
                case ItemReceived(Annotated(error=ErrorEvent() as error)):
                    self.failure = error.to_exception()
                case PrologueReceived(prologue) if prologue.error is not None:
                    self.failure = prologue_failure(prologue)
                case FinalReceived():
                    self.is_whole = True
        return items
