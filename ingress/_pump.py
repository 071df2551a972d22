"""The response pump: chunks of an engine in, frames on a stream out.

A frame is sent at the moment the engine suspends. The pump steps the engine's ``__anext__`` by hand; when it passes a
trap to the scheduler instead of returning a chunk, everything that is buffered leaves in one non-blocking send. So the
first chunk never waits, chunks that are ready together leave together, no timer is involved, and no second task and no
channel stand between engine and socket. Of four designs measured it had the lowest cost and latency (docs/design.md).
"""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, Protocol

import trio

from .errors import GenerateError, PublishError
from .wire.codec import DEFAULT_MAX_RESPONSE_CHUNK
from .wire.messages import Annotated, ErrorEvent
from .wire.response import ResponseSender
from .wire.two_part import PREFIX

# What one stream may hold of chunks its caller has not taken, plus one chunk. Above it the engine is not asked.
MAX_BUFFERED = 256 * 1024

# An engine that never suspends is interrupted after 1, 2, 4, … and at last this many chunks: small first slices let
# other streams be set up, large later ones spread the 10 µs of a pass through the scheduler.
MAX_SLICE = 64

# A peer that takes no byte for this long is given up.
DEFAULT_WRITE_STALL_TIMEOUT = 60.0

# For streams that tell of no progress within a send: small enough that a caller who reads 1 KiB a second is seen to
# make some within the write-stall timeout.
_SEND_SLICE = 16 * 1024

# What an engine may yield to set more than the data.
_ENVELOPES = (Annotated, ErrorEvent)


class ResponseMeter(Protocol):
    """What is counted of a response while it is sent; see :class:`ingress.metrics.WorkHandlerMetrics`."""

    def record_flush(self, size: int) -> None: ...

    def record_chunks(self, count: int) -> None: ...

    def slow_reader(self) -> AbstractContextManager[None]: ...

    def record_stall(self) -> None: ...


class TaskStarter(Protocol):
    """Where a writer runs what sends the rest; see :class:`ingress._dialled.DialledStreams`."""

    def start_soon(self, function: Callable[..., Awaitable[None]], /) -> None: ...


class NoMeter:
    """Counts nothing."""

    def record_flush(self, size: int) -> None: ...

    def record_chunks(self, count: int) -> None: ...

    def slow_reader(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record_stall(self) -> None: ...


class ResponseWriter:
    """The outgoing buffer of one response stream.

    :meth:`write` and :meth:`flush` never wait. What the socket does not take at once is sent by a task that
    lives only as long as there is something to send. Used by one request's tasks; dead after a failure.
    """

    def __init__(
        self,
        stream: trio.abc.SendStream,
        tasks: TaskStarter,
        *,
        on_failure: Callable[[Exception], None],
        stall_timeout: float = DEFAULT_WRITE_STALL_TIMEOUT,
        meter: ResponseMeter | None = None,
    ) -> None:
        self.meter: ResponseMeter = NoMeter() if meter is None else meter
        self.buffer = bytearray()
        self.failure: Exception | None = None
        self._stream = stream
        # Only our TCP streams have one; what other streams are given to send is sent by a task.
        self._send_nowait: Callable[[bytearray], int] | None = getattr(stream, "send_nowait", None)
        self._tasks = tasks
        self._on_failure = on_failure
        self._stall_timeout = stall_timeout
        self._is_draining = False
        self._sending = 0
        self._progress: trio.Event | None = None

    def write(self, data: bytes) -> None:
        """Buffer bytes for the next flush."""
        self.buffer += data

    def flush(self) -> None:
        """Send what can be sent now; the rest follows by itself."""
        if self._is_draining or not self.buffer or self.failure is not None:
            return
        if self._send_nowait is not None:
            try:
                sent = self._send_nowait(self.buffer)
            except trio.BrokenResourceError as exc:
                self._fail(exc)
                return
            if sent:
                self.meter.record_flush(sent)
                del self.buffer[:sent]
                if not self.buffer:
                    return
        self._is_draining = True
        self._tasks.start_soon(self._drain)

    async def drained(self, *, below: int = 0) -> None:
        """Flush and wait until at most ``below`` bytes are left.

        Raises:
            PublishError: the stream failed or stalled, now or before.
        """
        self.flush()
        if len(self.buffer) + self._sending > below and self.failure is None:
            with self.meter.slow_reader():
                while len(self.buffer) + self._sending > below and self.failure is None:
                    self._progress = trio.Event()
                    await self._progress.wait()
        if self.failure is not None:
            raise PublishError(f"response stream failed: {self.failure}", stage="publish_response")

    def _fail(self, exc: Exception) -> None:
        if self.failure is None:
            self.failure = exc
            self.buffer.clear()
            self._on_failure(exc)
        self._wake()

    def _wake(self) -> None:
        if self._progress is not None:
            self._progress.set()

    async def _drain(self) -> None:
        try:
            while self.buffer and self.failure is None:
                await self._send_some()
                self._wake()
        except trio.TooSlowError:
            self.meter.record_stall()
            self._fail(TimeoutError(f"caller took no byte for {self._stall_timeout:g} s"))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._fail(exc)
        finally:
            self._is_draining = False
            self._sending = 0
            self._wake()

    async def _send_some(self) -> None:
        with trio.fail_after(self._stall_timeout):
            if self._send_nowait is not None:
                await self._stream.wait_send_all_might_not_block()
                sent = self._send_nowait(self.buffer)
                del self.buffer[:sent]
            else:
                data = bytes(self.buffer[:_SEND_SLICE])
                del self.buffer[: len(data)]
                self._sending = len(data)
                await self._stream.send_all(data)
                self._sending, sent = 0, len(data)
        if sent:
            self.meter.record_flush(sent)


class PumpProgress:
    """What a pump has done so far; readable while it runs."""

    __slots__ = ("chunks", "error_chunks", "first_flush_at")

    def __init__(self) -> None:
        self.chunks = 0
        self.error_chunks = 0
        self.first_flush_at: float | None = None
        """When the first chunk was given to the socket, in the loop's time."""


@types.coroutine
def pump_response_stream(
    chunks: AsyncGenerator[Any, None],
    sender: ResponseSender,
    writer: ResponseWriter,
    progress: PumpProgress,
    on_chunks: Callable[[], None],
    max_chunk: int = DEFAULT_MAX_RESPONSE_CHUNK,
) -> Generator[Any, Any, None]:
    """Send every chunk of the engine; return when it has no more.

    Buffers at most ``MAX_BUFFERED`` bytes and one chunk; a slow caller holds back its own engine and nobody else's.

    Args:
        on_chunks: called when chunks that are no error have been flushed, so at most once a suspension.

    Raises:
        PublishError: the stream failed.
        GenerateError: the engine yielded what the codec cannot hold, or more than ``max_chunk`` bytes.
        Exception: whatever the engine raises.
    """
    next_chunk = chunks.__anext__
    buffer, item = writer.buffer, sender.item
    slice_size, in_slice, reported, counted = 1, 0, 0, 0

    def flush() -> None:
        nonlocal reported, counted
        writer.flush()
        if progress.chunks > counted:
            if not counted:
                progress.first_flush_at = trio.current_time()
            writer.meter.record_chunks(progress.chunks - counted)
            counted = progress.chunks
        if progress.chunks - progress.error_chunks > reported:
            reported = progress.chunks - progress.error_chunks
            on_chunks()

    while True:
        # 1. Step the engine; at its first suspension send what is buffered, then let the scheduler have it.
        step: Any = next_chunk()  # an async generator's step is driven with send() and throw(), as a generator is
        try:
            trap = step.send(None)
        except StopIteration as stop:
            chunk = stop.value
        except StopAsyncIteration:
            flush()
            return
        else:
            flush()
            try:
                chunk = yield from _resume(step, trap)
            except StopAsyncIteration:
                return
        # 2. Encode.
        frame = item(chunk)
        if len(frame) > max_chunk:
            sender.body_bytes -= len(frame) - PREFIX.size
            raise GenerateError(f"engine yielded a chunk of {len(frame)} bytes, the limit is {max_chunk} bytes")
        buffer += frame
        progress.chunks += 1
        if isinstance(chunk, _ENVELOPES) and (isinstance(chunk, ErrorEvent) or chunk.is_error):
            progress.error_chunks += 1
        # 3. Give way: to the caller when it is slow, to other tasks when the engine never suspends, and to a
        #    cancellation when the engine swallows it.
        in_slice += 1
        if len(buffer) > MAX_BUFFERED or writer.failure is not None:
            flush()
            yield from _await(writer.drained(below=MAX_BUFFERED // 2))
            in_slice = 0
        elif in_slice >= slice_size:
            flush()
            yield from _await(trio.lowlevel.checkpoint())  # noqa: ASYNC105 - this is the await
            in_slice, slice_size = 0, min(slice_size * 2, MAX_SLICE)


def _resume(step: Any, trap: Any) -> Generator[Any, Any, Any]:
    """Delegate to an awaitable that has already yielded ``trap``: ``yield from`` for an iterator under way."""
    try:
        while True:
            try:
                sent = yield trap
            except BaseException as exc:
                trap = step.throw(exc)
            else:
                trap = step.send(sent)
    except StopIteration as stop:
        return stop.value


def resume_under_way(frame: FrameType) -> Any:
    """Return what a suspended pump waits for, given its innermost frame, and None for any other frame.

    What is stepped by hand is invisible to whoever walks a task's frames; see :mod:`ingress._task_tree`.
    """
    return frame.f_locals.get("step") if frame.f_code is _resume.__code__ else None


def _await(awaitable: Awaitable[None]) -> Generator[Any, Any, None]:
    return awaitable.__await__()
