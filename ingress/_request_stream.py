"""The caller's frames on a request stream, read ahead a little, for a bidirectional engine.

Data-only frames are bare values; the sentinel ends the input and cancels nothing; stop and kill mean what they mean
on a response stream, and whatever else comes is a kill. Source: docs/wire.md §6.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

import trio

from ._context import RequestContext
from ._text import RateLimitedLogger, quoted
from .bodies import LARGE_BODY, run_decoder
from .errors import RemoteProtocolError
from .wire.messages import ControlWord
from .wire.two_part import DEFAULT_MAX_MESSAGE_SIZE, MessageKind, TwoPartDecoder, TwoPartMessage

logger = logging.getLogger("ingress.dialback")
_log = RateLimitedLogger(logger)

InputT = TypeVar("InputT")

# Above either the reader stops reading, and TCP holds the caller back.
MAX_QUEUED_FRAMES = 64
MAX_QUEUED_BYTES = 256 * 1024

_READ_SIZE = 16 * 1024


class RequestInput(Generic[InputT]):
    """An async iterator over the decoded frames; one task reads the socket, one iterates.

    Frames are decoded when they arrive, so that one that cannot be decoded kills the request at once; a large one in a
    thread, while the next ones stay unread. A caller whose
    engine is behind is not read, so a word it sends behind its frames waits with them; its response stream is the
    place for words that hurry.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        context: RequestContext,
        decode: Callable[[bytes], InputT],
        *,
        max_frame_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    ) -> None:
        self._stream = stream
        self._max_frame_size = max_frame_size
        self._context = context
        self._decode = decode
        self._items: deque[tuple[InputT, int]] = deque()
        self._queued_bytes = 0
        self._is_ended = False
        self._changed = trio.Event()

    def __aiter__(self) -> AsyncIterator[InputT]:
        return self

    async def __anext__(self) -> InputT:
        # First of all: an input that was cut short must not look to the engine like one that has ended.
        await trio.lowlevel.checkpoint_if_cancelled()
        # With a stop grace an engine outlives the stop, and what was sent before the stop is wanted no more than it.
        while not self._items or self._context.is_stopped:
            if self._is_ended or self._context.is_stopped:
                raise StopAsyncIteration
            await self._changed.wait()
        item, size = self._items.popleft()
        self._queued_bytes -= size
        self._wake()
        return item

    async def read(self) -> None:
        """Read until the input ends, in a task of its own; every way but the sentinel ends the request too.

        Raises nothing but cancellation, which ends the input where it stands.
        """
        try:
            await self._read()
        except trio.ClosedResourceError:
            pass  # closed by us: the answer is over
        except trio.BrokenResourceError:
            self._context.kill("caller reset the request stream")
        except Exception as exc:  # also what a decode function did not mean to raise
            _log.log(
                logging.WARNING,
                "input",
                "request %s: %s; taken for a kill",
                quoted(self._context.id),
                quoted(exc, 600),
            )
            self._context.kill("protocol error on the request stream")
        finally:
            self._is_ended = True
            self._wake()

    async def _read(self) -> None:
        decoder = TwoPartDecoder(max_message_size=self._max_frame_size, what="request stream frame")
        while data := await self._stream.receive_some(_READ_SIZE):
            decoder.receive_data(data)
            for message in decoder:
                if message.kind is not MessageKind.DATA_ONLY:
                    self._obey(message)
                    return
                await self._take(message.body)
            self._wake()
            await self._room()
        self._context.kill("request stream ended before its sentinel")

    async def _take(self, body: bytes) -> None:
        if len(body) > LARGE_BODY:
            self._wake()  # for what came before it: this one takes its time, in a thread
        self._items.append((await run_decoder(self._decode, body), len(body)))
        self._queued_bytes += len(body)

    def _obey(self, message: TwoPartMessage) -> None:
        word = ControlWord.decode(message.header) if message.kind is MessageKind.HEADER_ONLY else None
        match word:
            case ControlWord.SENTINEL:
                pass
            case ControlWord.STOP:
                self._context.stop()
            case ControlWord.KILL:
                self._context.kill("kill from the caller")
            case None:
                raise RemoteProtocolError(
                    f"expected data, stop, kill or sentinel, got {message.kind.value} {message.header[:40]!r}"
                )

    async def _room(self) -> None:
        while len(self._items) >= MAX_QUEUED_FRAMES or self._queued_bytes >= MAX_QUEUED_BYTES:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
