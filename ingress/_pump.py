"""The response pump: chunks of an engine in, frames on a stream out.

A frame is sent at the moment the engine suspends. The pump steps the engine's ``__anext__`` by hand; when it passes a
trap to the scheduler instead of returning a chunk, everything that is buffered leaves in one non-blocking send. So the
first chunk never waits, chunks that are ready together leave together, no timer is involved, and no second task and no
channel stand between engine and socket. An engine that only gives way, and is sure to be asked again in the next pass
of the scheduler, has not stopped: what a fast one yields between such passes may leave together too, within
``MAX_HELD``. Of the designs measured it had the lowest cost and latency (docs/design.md).
"""

from __future__ import annotations

import time
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

# An engine that never suspends is interrupted after 2, 4, 8, … and at last this many chunks: small first slices let
# other streams be set up, large later ones spread the 10 µs of a pass through the scheduler.
MAX_SLICE = 64

# Slices shrink while a pass through the scheduler takes more CPU time than this, so that new requests, which need
# several, have their first chunks soon however many engines never suspend.
MAX_PASS = 0.004

# An engine that does not suspend is interrupted after this long, however few its chunks.
MAX_RUN = 0.001

# How long the chunks of an engine may be held that suspends only to give way. It is asked again in each pass; some tens
# of such engines make a pass of a millisecond, and a send for each of their chunks would be a third of its cost.
MAX_HELD = 0.004

# So many of its chunks leave together at the most.
_MOST_HELD = 32

# A peer that takes no byte for this long is given up.
DEFAULT_WRITE_STALL_TIMEOUT = 60.0

# For streams that tell of no progress within a send: small enough that a caller who reads 1 KiB a second is seen to
# make some within the write-stall timeout.
_SEND_SLICE = 16 * 1024


def _trap_of_giving_way() -> object:
    """Return what a task passes to the scheduler when it only gives way: to be run again in the next pass."""
    giving_way = trio.lowlevel.cancel_shielded_checkpoint()  # noqa: ASYNC105 - driven by hand, to look at it
    trap: object = giving_way.send(None)
    giving_way.close()
    return trap


_GIVING_WAY = _trap_of_giving_way()

_clock = time.perf_counter
_cpu_clock = time.thread_time

# What an engine may yield to set more than the data.
_ENVELOPES = (Annotated, ErrorEvent)


class ResponseMeter(Protocol):
    """What is counted of a response while it is sent; see :class:`ingress.metrics.WorkHandlerMetrics`."""

    def record_flush(self, size: int) -> None: ...

    def record_chunks(self, count: int, now: float) -> None: ...

    def slow_reader(self) -> AbstractContextManager[None]: ...

    def record_stall(self) -> None: ...


class TaskStarter(Protocol):
    """Where a writer runs what sends the rest; see :class:`ingress._dialled.DialledStreams`."""

    def start_soon(self, function: Callable[..., Awaitable[None]], /) -> None: ...


class NoMeter:
    """Counts nothing."""

    def record_flush(self, size: int) -> None: ...

    def record_chunks(self, count: int, now: float) -> None: ...

    def slow_reader(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record_stall(self) -> None: ...


class ResponseWriter:
    """The outgoing buffer of one response stream.

    :meth:`write` and :meth:`flush` never wait. What the socket does not take at once is sent by a task that
    lives only as long as there is something to send. Used by one request's tasks; dead after a failure.
    """

    __slots__ = (
        *(
            "_is_draining",
            "_on_failure",
            "_progress",
            "_send_nowait",
            "_sending",
            "_stall_timeout",
            "_stream",
            "_tasks",
        ),
        *("buffer", "failure", "meter"),
    )

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
                if sent == len(self.buffer):
                    self.buffer.clear()
                    return
                del self.buffer[:sent]
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

    __slots__ = ("busy_until", "chunks", "chunks_at_suspension", "error_chunks", "first_flush_at")

    def __init__(self) -> None:
        self.chunks = 0
        self.error_chunks = 0
        self.first_flush_at: float | None = None
        """When the first chunk was given to the socket, in the loop's time."""
        self.chunks_at_suspension = 0
        """How many chunks there were when the engine, or the pump itself, last suspended."""
        self.busy_until = 0.0
        """When an engine that does not suspend is interrupted at the latest."""


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
    buffer, patience, flushed, reported = writer.buffer, 1, 0, 0

    def flush() -> None:
        nonlocal flushed, reported
        writer.flush()
        if (sent := progress.chunks) > flushed:
            now = trio.current_time()
            if not flushed:
                progress.first_flush_at = now
            writer.meter.record_chunks(sent - flushed, now)
            flushed = sent
            if sent - progress.error_chunks > reported:
                reported = sent - progress.error_chunks
                on_chunks()

    encoding = _encode_chunks(chunks, sender, writer, progress, flush, max_chunk)
    flushed_at = _clock()
    progress.busy_until = flushed_at + MAX_RUN
    try:
        trap = encoding.send(None)
        while True:
            # It waits. Send what is buffered, unless it only gives way and is likely to add to it at once.
            if trap is not _GIVING_WAY:
                flush()
                patience = 1
            elif buffer and (progress.chunks - flushed >= patience or _clock() - flushed_at > MAX_HELD):
                held = progress.chunks - flushed
                flush()
                now = _clock()
                patience = min(patience * 2, _MOST_HELD) if now - flushed_at <= MAX_HELD else max(held, 1)
                flushed_at = now
            try:
                answer = yield trap
            except BaseException as exc:
                trap = encoding.throw(exc)
            else:
                progress.chunks_at_suspension = progress.chunks
                progress.busy_until = _clock() + MAX_RUN
                trap = encoding.send(answer)
    except StopIteration:
        flush()
    except Exception:
        flush()  # what came before the failure is on its way, and counted, before it is told
        raise


async def _encode_chunks(
    chunks: AsyncGenerator[Any, None],
    sender: ResponseSender,
    writer: ResponseWriter,
    progress: PumpProgress,
    flush: Callable[[], None],
    max_chunk: int,
) -> None:
    """Ask the engine, and buffer what it yields; gives way where the engine does not."""
    buffer, item = writer.buffer, sender.item
    count, slice_size = 0, 2
    async for chunk in chunks:
        frame = item(chunk)
        if len(frame) > max_chunk:
            sender.body_bytes -= len(frame) - PREFIX.size
            raise GenerateError(f"engine yielded a chunk of {len(frame)} bytes, the limit is {max_chunk} bytes")
        buffer += frame
        count += 1
        progress.chunks = count
        if (
            type(chunk) is not dict
            and isinstance(chunk, _ENVELOPES)
            and (isinstance(chunk, ErrorEvent) or chunk.is_error)
        ):
            progress.error_chunks += 1
        # Give way: to the caller when it is slow, to other tasks when the engine never suspends, and to a cancellation
        # when the engine swallows it.
        if len(buffer) > MAX_BUFFERED or writer.failure is not None:
            flush()
            await writer.drained(below=MAX_BUFFERED // 2)
        elif count - progress.chunks_at_suspension >= slice_size or _clock() > progress.busy_until:
            flush()
            began = _cpu_clock()
            await trio.lowlevel.checkpoint()
            is_crowded = _cpu_clock() - began > MAX_PASS
            slice_size = max(slice_size // 2, 2) if is_crowded else min(slice_size * 2, MAX_SLICE)
        elif count == 1:
            flush()
            await trio.lowlevel.checkpoint_if_cancelled()


def resume_under_way(frame: FrameType) -> Any:
    """Return what a suspended pump waits for, given its innermost frame, and None for any other frame.

    What is stepped by hand is invisible to whoever walks a task's frames; see :mod:`ingress._task_tree`.
    """
    return frame.f_locals.get("encoding") if frame.f_code is pump_response_stream.__code__ else None
