"""The outgoing end of one response stream: what the pump writes, sent without waiting where the kernel takes it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import trio

from ._request_memory import HeldMemory
from ._stream_limits import DEFAULT_WRITE_STALL_TIMEOUT
from .errors import PublishError

logger = logging.getLogger("ingress.dialback")

# What is more than any answer may hold beside one chunk, which is 256 KiB: of 2,048 answers 1 GiB at most.
_COUNTED = 512 * 1024

# Of what the system holds for a caller, so many bytes have to be taken within the write-stall timeout: one in a minute
# would hold a stream for ever.
LEAST_TAKEN = 4 * 1024

# For streams that tell of no progress within a send: small enough that a caller who reads 1 KiB a second is seen to
# make some within the write-stall timeout.
_SEND_SLICE = 16 * 1024


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
            "_open_memory",
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
        open_memory: Callable[[], HeldMemory] | None = None,
    ) -> None:
        self.meter: ResponseMeter = NoMeter() if meter is None else meter
        self.buffer = bytearray()
        self.failure: Exception | None = None
        self._stream = stream
        # Only our TCP streams have one; what other streams are given to send is sent by a task.
        self._send_nowait: Callable[[bytearray], int] | None = getattr(stream, "send_nowait", None)
        self._tasks = tasks
        self._on_failure = on_failure
        self._open_memory = open_memory
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
            with self.meter.slow_reader(), self._held_memory():
                while len(self.buffer) + self._sending > below and self.failure is None:
                    self._progress = trio.Event()
                    await self._progress.wait()
        if self.failure is not None:
            raise PublishError(f"response stream failed: {self.failure}", stage="publish_response")

    @contextmanager
    def _held_memory(self) -> Iterator[None]:
        """Count a large chunk as held by its request while it waits for a slow reader."""
        size = len(self.buffer)
        if size < _COUNTED or self._open_memory is None:
            yield
            return
        memory = self._open_memory()
        memory.take_anyway(size)
        try:
            yield
        finally:
            memory.give_back(size)

    def _fail(self, exc: Exception) -> None:
        if self.failure is None:
            # Tracebacks hold our frames, and those this writer.
            self.failure = exc.with_traceback(None)
            if exc.__cause__ is not None:
                exc.__cause__.with_traceback(None)
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
            self._fail(TimeoutError(f"caller took next to nothing for {self._stall_timeout:g} s"))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._fail(exc)
        except Exception as exc:  # a bug, of a third party's stream perhaps: what it has lost must not look sent
            logger.exception("response stream: internal error")
            self._fail(exc)
        finally:
            if self._sending and self.failure is None:  # cancelled: nothing may follow half a frame
                self.failure = ConnectionError("cut while it was sent")
            self._is_draining = False
            self._sending = 0
            self._wake()

    async def _wait_until_taken(self) -> None:
        """Wait until the socket takes more, as long as its caller takes what it holds.

        It takes more once a third of what it holds is gone, which may be a megabyte: for a slow caller a quarter of an
        hour.

        Raises:
            trio.TooSlowError: the caller has taken next to nothing within the stall timeout.
        """
        untaken: int | None = getattr(self._stream, "untaken", None)
        while True:
            with trio.move_on_after(self._stall_timeout):
                await self._stream.wait_send_all_might_not_block()
                return
            before, untaken = untaken, getattr(self._stream, "untaken", None)
            if before is None or untaken is None or untaken > before - LEAST_TAKEN:
                raise trio.TooSlowError

    async def _send_some(self) -> None:
        if self._send_nowait is not None:
            await self._wait_until_taken()
            sent = self._send_nowait(self.buffer)
            del self.buffer[:sent]
        else:
            with trio.fail_after(self._stall_timeout):
                data = bytes(self.buffer[:_SEND_SLICE])
                del self.buffer[: len(data)]
                self._sending = len(data)
                await self._stream.send_all(data)
                self._sending, sent = 0, len(data)
        if sent:
            self.meter.record_flush(sent)
