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
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from types import FrameType
from typing import Any

import trio

from ._chunk_size import estimate_size
from ._failures import is_cancellation
from ._heavy_work import heavy_work
from ._response_writer import ResponseWriter
from .errors import GenerateError
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

# How long the chunks of an engine may be held that suspends only to give way; what is older leaves at the end of the
# pass in which it is noticed. Such an engine is asked again in each pass; some tens of them make a pass of a
# millisecond, some hundreds one that is longer than this, and a send for each chunk would be half of its cost.
MAX_HELD = 0.004

# Chunks from here on are encoded in turns: three hundred engines that yielded 30 MB each in the same moment had held
# everybody up for 48 s.
LARGE_CHUNK = 16 * 1024

# So many of its chunks leave together at the most.
_MOST_HELD = 32


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


class PumpProgress:
    """What a pump has done so far; readable while it runs."""

    __slots__ = (
        "busy_until",
        "chunks",
        "chunks_at_suspension",
        "error_chunks",
        "first_flush_at",
        "flushed",
        "reported",
    )

    def __init__(self) -> None:
        self.chunks = 0
        self.error_chunks = 0
        self.flushed = 0
        """How many chunks have left the pump."""
        self.reported = 0
        """How many chunks that are no errors had, when that was last told."""
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
    buffer, patience, held_since = writer.buffer, 1, 0.0
    encoding = _encode_chunks(chunks, sender, writer, progress, on_chunks, max_chunk)
    progress.busy_until = _clock() + MAX_RUN
    try:
        trap = encoding.send(None)
        while True:
            # It waits. Send what is buffered, unless it only gives way and is likely to add to it at once.
            if trap is not _GIVING_WAY:
                _flush(writer, progress, on_chunks)
                patience, held_since = 1, 0.0
            elif buffer:
                now, held = _clock(), progress.chunks - progress.flushed
                held_since = held_since or now
                if held >= patience or now - held_since > MAX_HELD:
                    _flush(writer, progress, on_chunks)
                    patience = min(patience * 2, _MOST_HELD) if now - held_since <= MAX_HELD else max(held, 1)
                    held_since = 0.0
            try:
                answer = yield trap
            except BaseException as exc:
                trap = encoding.throw(exc)
            else:
                progress.chunks_at_suspension = progress.chunks
                progress.busy_until = _clock() + MAX_RUN
                try:
                    trap = encoding.send(answer)
                finally:
                    del answer  # a cancellation's holds this frame, and so what the engine held
    except StopIteration:
        _flush(writer, progress, on_chunks)
    except BaseException as exc:
        if not is_cancellation(exc):  # what came before the failure is on its way, and counted, before it is told
            _flush(writer, progress, on_chunks)
        raise


def _flush(writer: ResponseWriter, progress: PumpProgress, on_chunks: Callable[[], None]) -> None:
    """Send what is buffered, and count and tell what chunks are among it."""
    writer.flush()
    if (chunks := progress.chunks) > progress.flushed:
        now = trio.current_time()
        if not progress.flushed:
            progress.first_flush_at = now
        writer.meter.record_chunks(chunks - progress.flushed, now)
        progress.flushed = chunks
        if chunks - progress.error_chunks > progress.reported:
            progress.reported = chunks - progress.error_chunks
            on_chunks()


async def _encode_chunks(
    chunks: AsyncGenerator[Any, None],
    sender: ResponseSender,
    writer: ResponseWriter,
    progress: PumpProgress,
    on_chunks: Callable[[], None],
    max_chunk: int,
) -> None:
    """Ask the engine, and buffer what it yields; gives way where the engine does not."""
    buffer, item = writer.buffer, sender.item
    count, slice_size = 0, 2
    may_be_large = True  # the first, and what follows a large one
    large = min(LARGE_CHUNK, max_chunk)
    async for chunk in chunks:
        if may_be_large:
            may_be_large = False
            if estimate_size(chunk) > LARGE_CHUNK:
                _flush(writer, progress, on_chunks)
                frame = await heavy_work().do(partial(item, chunk))
            else:
                frame = item(chunk)
        else:
            frame = item(chunk)
        if len(frame) > large:
            may_be_large = True
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
            chunk = frame = b""  # what waits to be sent is enough to keep of a large one
            _flush(writer, progress, on_chunks)
            await writer.drained(below=MAX_BUFFERED // 2)
        elif count - progress.chunks_at_suspension >= slice_size or _clock() > progress.busy_until:
            _flush(writer, progress, on_chunks)
            began = _cpu_clock()
            await trio.lowlevel.checkpoint()
            is_crowded = _cpu_clock() - began > MAX_PASS
            slice_size = max(slice_size // 2, 2) if is_crowded else min(slice_size * 2, MAX_SLICE)
        elif count == 1:
            _flush(writer, progress, on_chunks)
            await trio.lowlevel.checkpoint_if_cancelled()


def resume_under_way(frame: FrameType) -> Any:
    """Return what a suspended pump waits for, given its innermost frame, and None for any other frame.

    What is stepped by hand is invisible to whoever walks a task's frames; see :mod:`ingress._task_tree`.
    """
    return frame.f_locals.get("encoding") if frame.f_code is pump_response_stream.__code__ else None
