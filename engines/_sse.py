"""Server-sent events: bytes in, events out, no I/O.

The format of the WHATWG HTML standard §9.2: lines that end in CR, LF or CR LF, ``field: value`` in each, and an empty
line after each event. What fills no field that is asked for here is passed over, as the standard says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import frozen

from ingress.errors import GenerateError

# One event holds a few tokens and their log probabilities, or the answer to a prompt that was not streamed after all.
DEFAULT_MAX_EVENT = 4 * 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@frozen
class ServerSentEvent:
    """One event; ``event`` is empty where the server gave no type."""

    event: str
    data: bytes


class SseDecoder:
    """Takes bytes as they arrive, cut anywhere, and gives the events that are whole.

    ``max_event`` bounds, in bytes, what is kept of an event that is not whole.
    """

    def __init__(self, max_event: int = DEFAULT_MAX_EVENT) -> None:
        self.max_event = max_event
        self._buffer = bytearray()
        self._searched = 0  # up to here the buffer holds no end of a line
        self._is_at_start = True
        self._follows_cr = False  # the last line ended in CR; an LF right behind it is of the same end
        self._event = ""
        self._data: list[bytes] = []
        self._size = 0

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes; iterate afterwards."""
        self._buffer += data

    def __iter__(self) -> Iterator[ServerSentEvent]:
        """Yield the events that are whole.

        Raises:
            GenerateError: an event exceeds ``max_event``.
        """
        while (line := self._next_line()) is not None:
            if line:
                self._take(line)
            elif self._data:
                event = ServerSentEvent(self._event, b"\n".join(self._data))
                self._forget()
                yield event
            else:
                self._forget()

    def _next_line(self) -> bytes | None:
        buffer = self._buffer
        if self._is_at_start:
            if len(buffer) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(bytes(buffer)):
                return None
            self._is_at_start = False
            if buffer.startswith(_BYTE_ORDER_MARK):
                del buffer[: len(_BYTE_ORDER_MARK)]
        if self._follows_cr and buffer:
            self._follows_cr = False
            if buffer.startswith(b"\n"):
                del buffer[:1]
        end = _LINE_END.search(buffer, self._searched)
        if end is None:
            self._searched = len(buffer)
            self._check_size(len(buffer))
            return None
        line = bytes(buffer[: end.start()])
        # An event is not held back for what may follow its CR.
        self._follows_cr = end.group() == b"\r"
        del buffer[: end.end()]
        self._searched = 0
        self._check_size(len(line))
        return line

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif field == b"event":
            self._event = value.decode(errors="replace")
        elif field == b"error":  # no field of the standard: llama.cpp has told failures so
            self._event = "error"
            self._data.append(value)
            self._size += len(value) + 1

    def _forget(self) -> None:
        self._event, self._data, self._size = "", [], 0

    def _check_size(self, more: int) -> None:
        if self._size + more > self.max_event:
            raise GenerateError(f"upstream sent an event of more than {self.max_event} bytes")
