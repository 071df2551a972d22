"""Callback libraries as engines: those that call ``on_chunk`` from a thread of their own.

::

    def generate(request, context, sink):
        job = library.submit(request["prompt"], on_token=sink.chunk, on_done=sink.done, on_error=sink.error)
        return job.cancel

    ingress.run(CallbackEngine(generate), endpoint="demo.backend.generate")
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from ingress import Context, Engine, Handover, start_engine_thread
from ingress.errors import GenerateError, StartupError

logger = logging.getLogger("ingress.callback")

# Libraries that are asked to cancel are waited for so long, less than what the worker gives an engine to clean up.
CANCEL_TIMEOUT = 4.0

Cancel = Callable[[], object]
Start = Callable[[Any, Context, "Sink"], Cancel | None]


class Sink:
    """Where a library delivers the chunks of one request, from any one thread at a time.

    Ends by :meth:`done` or :meth:`error`, the first of which counts. A sink that the library forgets without either
    ends with an error: nobody could end it any more.
    """

    def __init__(self, handover: Handover) -> None:
        self._handover = handover

    def __del__(self) -> None:
        self._handover.finish(GenerateError("the library dropped the request without calling done or error"))

    @property
    def is_wanted(self) -> bool:
        """False once the caller wants no more, by stop, kill or going away."""
        return not self._handover.is_closed

    def chunk(self, chunk: Any) -> bool:
        """Deliver one chunk; False when nobody wants more.

        Blocks the calling thread while the caller is slow. For a library whose one thread serves many requests,
        :meth:`chunk_nowait` does not.
        """
        return self._handover.put_wait(chunk)

    def chunk_nowait(self, chunk: Any) -> bool:
        """Deliver one chunk without waiting; False when nobody wants more.

        Raises:
            GenerateError: the caller is so slow that more must not be kept for it; the request has been ended.
        """
        if self._handover.hold():
            error = GenerateError("the caller is too slow for a library that does not wait")
            self._handover.finish(error)
            raise error
        return self._handover.put(chunk)

    def done(self) -> None:
        """Say that the answer is whole."""
        self._handover.finish()

    def error(self, error: BaseException | str) -> None:
        """Say that the answer failed, by an exception or a text."""
        self._handover.finish(GenerateError(error) if isinstance(error, str) else error)


class CallbackEngine(Engine):
    """An engine whose library calls back.

    ``start(request, context, sink)`` is called in a worker thread: it may submit and return at once, or block while the
    library calls the sink. What it returns, if anything, cancels the request in the library: it is called, in a thread,
    when the caller wants no more, and ``done`` or ``error`` are then waited for, at most ``CANCEL_TIMEOUT``. Without it
    the library learns from what ``sink.chunk`` returns, from ``sink.is_wanted`` and from ``context.is_stopped``, all of
    which may be read from any thread, and is not waited for.

    Args:
        start: a plain function.
        max_chunks: chunks that the library may be ahead of the caller.

    Raises:
        StartupError: it is none, or takes other arguments.
    """

    def __init__(self, start: Start, *, max_chunks: int = 64) -> None:
        _check(start)
        self._start = start
        self._max_chunks = max_chunks

    def __repr__(self) -> str:
        return f"<callback engine {getattr(self._start, '__qualname__', self._start)}>"

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        handover = Handover(max_chunks=self._max_chunks)
        call = _Call(self._start, handover)
        await start_engine_thread(functools.partial(call.run, request, context))
        try:
            while chunks := await handover.take():
                for chunk in chunks:
                    yield chunk
        finally:
            await call.end()


class _Call:
    """One call of a start function, and how to cancel it."""

    def __init__(self, start: Start, handover: Handover) -> None:
        self._start = start
        self._handover = handover
        self._cancel: Cancel | None = None

    def run(self, request: Any, context: Context) -> None:
        if self._handover.is_closed:
            self._handover.finish()
            return
        sink = Sink(self._handover)
        try:
            self._cancel = self._start(request, context, sink)
        except BaseException as exc:
            sink.error(exc)
            return
        if not sink.is_wanted:  # the caller left while it was being started
            self._call_cancel()

    async def end(self) -> None:
        """Cancel the request in the library, where it still works and can be told."""
        handover = self._handover
        if handover.is_finished:
            return
        handover.close()
        if self._cancel is None:
            return
        with trio.move_on_after(CANCEL_TIMEOUT, shield=True) as scope:
            await start_engine_thread(self._call_cancel)
            await handover.wait_finished()
        if scope.cancelled_caught:
            logger.warning("a library does not end when cancelled, left behind after %g s", CANCEL_TIMEOUT)

    def _call_cancel(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is None:
            return
        try:
            cancel()
        except Exception as exc:
            logger.warning("a library failed to cancel: %r", exc)


def _check(start: Start) -> None:
    if not callable(start) or inspect.iscoroutinefunction(start) or inspect.isasyncgenfunction(start):
        raise StartupError(f"{start!r} is no callback engine: expected def generate(request, context, sink)")
    try:
        inspect.signature(start).bind(None, None, None)
    except TypeError as exc:
        name = getattr(start, "__qualname__", start)
        raise StartupError(f"{name}: {exc}; expected def generate(request, context, sink)") from None
