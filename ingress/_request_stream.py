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
from attrs import frozen

from ._context import RequestContext
from ._failures import must_pass
from ._heavy_work import LARGE_BODY, SECONDS_A_COPIED_BYTE, SECONDS_A_READ_BYTE, heavy_work
from ._patience import read_until
from ._request_memory import HeldMemory
from ._stream_limits import DEFAULT_STREAM_LIMITS, FRAME_BYTES_PER_SECOND, StreamLimits
from ._text import RateLimitedLogger, named, quoted
from .bodies import SECONDS_A_BYTE, SMALL_BODY, decode_body
from .errors import RemoteProtocolError, RequestMemoryExhausted
from .wire.messages import ControlWord
from .wire.two_part import MessageKind, TwoPartDecoder, TwoPartMessage

logger = logging.getLogger("ingress.dialback")
_log = RateLimitedLogger(logger)

InputT = TypeVar("InputT")

# Above either the reader stops reading, and TCP holds the caller back.
MAX_QUEUED_FRAMES = 64
MAX_QUEUED_BYTES = 256 * 1024

# What a frame takes beside its bytes: a read of 16 KiB may hold 655 of them.
SECONDS_A_FRAME = 1e-5

_READ_SIZE = 16 * 1024


@frozen(slots=True)
class _Item(Generic[InputT]):
    """A decoded frame that the engine has not asked for yet."""

    value: InputT
    size: int
    """Bytes of the frame."""

    weight: int
    """Bytes of memory that it counts."""


class RequestInput(Generic[InputT]):
    """An async iterator over the decoded frames; one task reads the socket, one iterates.

    Frames are decoded when they arrive, so that one that cannot be decoded kills the request at once; a large one in a
    thread, while the next ones stay unread. A caller whose engine is behind is not read, so a word it sends behind its
    frames waits with them; its response stream is the place for words that hurry.

    Tasks that share one iterator share its account: a frame counts until the next is taken, by whomever.

    Where there is no memory for a frame, the engine is told by
    :class:`~ingress.errors.RequestMemoryExhausted` when it has taken those before it.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        context: RequestContext,
        decode: Callable[[bytes], InputT],
        memory: HeldMemory,
        limits: StreamLimits = DEFAULT_STREAM_LIMITS,
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._context = context
        self._decode = decode
        self._memory = memory
        self._work = heavy_work()
        self._items: deque[_Item[InputT]] = deque()
        self._queued_bytes = 0
        self._taken: _Item[InputT] | None = None
        self._raw = 0
        """Bytes that count as held of what is not decoded yet."""
        self._is_ended = self._is_closed = False
        self._overload = ""
        self._changed = trio.Event()

    def __aiter__(self) -> AsyncIterator[InputT]:
        return self

    async def __anext__(self) -> InputT:
        # First of all: an input that was cut short must not look to the engine like one that has ended.
        await trio.lowlevel.checkpoint_if_cancelled()
        # With a stop grace an engine outlives the stop, and what was sent before the stop is wanted no more than it.
        while not self._items or self._context.is_stopped:
            if self._overload and not self._context.is_stopped:
                raise RequestMemoryExhausted(self._overload)
            if self._is_ended or self._context.is_stopped:
                raise StopAsyncIteration
            await self._changed.wait()
        item = self._items.popleft()
        if self._taken is not None:  # as long as it waits, an engine's loop holds the last one
            self._memory.give_back(self._taken.weight)
        self._taken = item
        self._queued_bytes -= item.size
        self._wake()
        return item.value

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
        except RequestMemoryExhausted as exc:
            _log.log(
                logging.WARNING, "overload", "request %s: no more of its input: %s", named(self._context.id), str(exc)
            )
            self._overload = str(exc)
        except BaseException as exc:  # also what a decode function did not mean to raise
            if must_pass(exc):
                raise
            _log.log(
                logging.WARNING,
                "input",
                "request %s: %s; taken for a kill",
                named(self._context.id),
                quoted(exc, 600),
            )
            self._context.kill("protocol error on the request stream")
        finally:
            self._is_ended = True
            self._count_raw(0)
            self._wake()

    def close(self) -> None:
        """The request has ended: leave what it still holds to be freed."""
        self._is_closed = True
        if self._taken is not None:
            self._memory.keep(self._taken.value, self._taken.weight)
            self._taken = None
        while self._items:
            item = self._items.popleft()
            self._memory.keep(item.value, item.weight)

    async def _read(self) -> None:
        decoder = TwoPartDecoder(max_message_size=self._limits.max_frame_size, what="request stream frame")
        begun_at = trio.current_time()
        while True:
            data, put_off = await self._receive_some(decoder, begun_at)
            begun_at += put_off
            if not data:
                break
            if decoder.is_idle:
                begun_at = trio.current_time()
            decoder.receive_data(data)
            self._count_raw(decoder.held_bytes)
            if LARGE_BODY < decoder.announced_size <= decoder.held_bytes:  # it will be copied out of the buffer
                await self._work.spend(decoder.announced_size * SECONDS_A_COPIED_BYTE)
            has_taken, has_more = False, True
            while has_more:
                has_more = False
                for message in decoder:
                    if message.kind is not MessageKind.DATA_ONLY:
                        self._obey(message)
                        return
                    await self._take(message.body)
                    del message  # or the last of many rests is kept, and no longer counted
                    self._count_raw(decoder.held_bytes)
                    has_taken = True
                    if has_more := self._is_full:
                        break
                self._wake()
                await self._room()
            if has_taken:  # what has begun behind it came with it, and what has passed since was our time
                begun_at = trio.current_time()
            else:  # a part of a larger one; of those that are taken each has counted
                waits_from = trio.current_time()
                await self._work.spend(len(data) * SECONDS_A_READ_BYTE)
                begun_at += trio.current_time() - waits_from
        self._context.kill("request stream ended before its sentinel")

    async def _receive_some(self, decoder: TwoPartDecoder, begun_at: float) -> tuple[bytes | bytearray, float]:
        """Read, until the frame that has begun is due; between frames a caller may rest as long as it likes.

        Returns what was read, and by how much the frame's time was put off.

        Raises:
            RemoteProtocolError: the frame has not come whole in its time.
        """
        if decoder.is_idle:
            return await self._stream.receive_some(_READ_SIZE), 0.0
        seconds = self._limits.frame_timeout + decoder.announced_size / FRAME_BYTES_PER_SECOND
        data, put_off = await read_until(self._stream, _READ_SIZE, begun_at + seconds)
        if data is None:
            raise RemoteProtocolError(f"expected the rest of a request stream frame, got none within {seconds:g} s")
        return data, put_off

    async def _take(self, body: bytes) -> None:
        if len(body) > LARGE_BODY:
            self._wake()  # for what came before it: this one takes its time, in a thread
        if len(body) <= SMALL_BODY:  # one takes next to nothing, but there may be many, on many streams
            await self._work.spend(SECONDS_A_FRAME + len(body) * SECONDS_A_BYTE)
        value, weight = await decode_body(self._decode, body)
        weight = await self._memory.take_value(value, len(body), weight)
        if self._is_closed:  # decoded at last, and wanted no more
            return
        self._items.append(_Item(value, len(body), weight))
        self._queued_bytes += len(body)

    def _count_raw(self, size: int) -> None:
        if size <= _READ_SIZE:  # nothing beside what the queue may hold
            size = 0
        if size == self._raw:
            return
        if size > self._raw:
            self._memory.take(size - self._raw)
        else:
            self._memory.give_back(self._raw - size)
        self._raw = size

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

    @property
    def _is_full(self) -> bool:
        return len(self._items) >= MAX_QUEUED_FRAMES or self._queued_bytes >= MAX_QUEUED_BYTES

    async def _room(self) -> None:
        while self._is_full:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
