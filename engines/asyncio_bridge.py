"""asyncio handlers behind the trio worker: one loop in one thread, chunks handed over in batches.

A handler written for Dynamo, ``async def generate(request, context)``, is served as it is::

    ingress.run(AsyncioEngine(generate), endpoint="demo.backend.generate")

or ``ingress serve --asyncio my_module:generate``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from ingress import Context, Engine, Handover
from ingress import errors as ingress_errors
from ingress.errors import GenerateError, StartupError

from ._loop_thread import LoopThread
from .asyncio_loop import AsyncioLoop
from .dynamo_context import DynamoContext, StopSignal

logger = logging.getLogger("ingress.asyncio")

# A handler that asks its context whether it is stopped is given so long to end by itself, as it may under Dynamo,
# which never cancels one: a token or two. One that never asks is cancelled at once.
DEFAULT_WIND_DOWN = 0.25

# A cancelled task is waited for so long, less than what the worker gives an engine to clean up; then it is left behind.
CANCEL_TIMEOUT = 4.0

# A handler that never waits gives way to others after so many chunks.
_SLICE = 64

Handler = Callable[..., Any]


class AsyncioEngine(Engine):
    """An engine whose handler is asyncio's.

    The handler is called with the request and, where it has a parameter of that name or a second one, with a
    :class:`~engines.dynamo_context.DynamoContext`; it returns an async iterable of chunks, or is a plain ``async``
    function of one answer. All its requests are tasks of one loop, and know the contextvars of the worker's, so that
    log lines carry the request's ids. What it raises goes home as if a trio engine had raised it.

    When the caller wants no more, its task is cancelled and waited for, at most ``CANCEL_TIMEOUT``; a handler that has
    asked ``is_stopped()`` or waits for ``async_killed_or_stopped()`` has ``wind_down`` seconds to end by itself first.
    When the caller is slow, the handler is held at its ``yield``.

    Args:
        handler: an async generator function, a function that returns an async iterable, or an ``async`` function.
        loop: the loop to live in, for engines that share objects; a new one by default.
        wind_down: seconds.

    Raises:
        StartupError: the handler cannot be called with a request, or blocks.
    """

    def __init__(
        self, handler: Handler, *, loop: AsyncioLoop | None = None, wind_down: float = DEFAULT_WIND_DOWN
    ) -> None:
        self._handler = handler
        self._call = _calling(handler)
        self._loop = AsyncioLoop() if loop is None else loop
        self._wind_down = wind_down

    def __repr__(self) -> str:
        return f"<asyncio engine {getattr(self._handler, '__qualname__', self._handler)}>"

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._loop.running():
            yield

    def trouble(self) -> str | None:
        return self._loop.trouble()

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        thread = self._loop.thread
        asking = _Request(self._call, request, context, thread, self._wind_down)
        with thread.serving(asking):
            asking.begin()
            take = asking.handover.take
            try:
                while chunks := await take():
                    for chunk in chunks:
                        yield chunk
            finally:
                await asking.end()


def bridge_all(handlers: Sequence[Handler]) -> list[Engine]:
    """Make engines of several handlers that live in one loop, as they would under Dynamo."""
    loop = AsyncioLoop()
    return [AsyncioEngine(handler, loop=loop) for handler in handlers]


class _Request:
    """One call of a handler: a task in the loop, and what the trio side knows of it."""

    def __init__(self, call: Handler, request: Any, context: Context, thread: LoopThread, wind_down: float) -> None:
        self.handover = Handover(on_space=self._on_space)
        self._call = call
        self._request = request
        self._context = context
        self._thread = thread
        self._wind_down = wind_down
        self._watch_scope: trio.CancelScope | None = None
        self._stop = StopSignal(self._on_first_wait, self._on_stop)
        self._dynamo_context = DynamoContext(
            context,
            id=context.id,
            metadata=context.metadata,
            trace=context,
            stop=self._stop,
        )
        self._variables = contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None
        self._space: asyncio.Future[None] | None = None

    # -- the trio side -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._thread.call(self._start)

    async def end(self) -> None:
        """Cancel the task where it still runs, and wait for it, bounded."""
        if self._watch_scope is not None:
            self._watch_scope.cancel()
        if self.handover.is_finished:
            return
        self.handover.close()
        self._thread.call(self._wind_up)
        with trio.move_on_after(CANCEL_TIMEOUT, shield=True) as scope:
            await self.handover.wait_finished()
        if scope.cancelled_caught:
            logger.warning(
                "request %.100s: the handler's task does not end when cancelled, left behind after %g s",
                self._context.id,
                CANCEL_TIMEOUT,
            )
        elif self.handover.error is not None and not isinstance(self.handover.error, asyncio.CancelledError):
            logger.warning("request %.100s: the handler failed while ending: %r", self._context.id, self.handover.error)

    def fail(self, error: BaseException) -> None:
        self.handover.finish(error)
        self._thread.call(self._wind_up)  # for a loop that is blocked now and goes on later

    async def _watch(self) -> None:
        """Tell the handler of a stop that does not cancel it: one with a grace."""
        with trio.CancelScope() as self._watch_scope:
            await self._context.stopped()
            self._thread.call(self._stop.resolve)

    def _begin_watch(self) -> None:
        if not self.handover.is_closed and not self.handover.is_finished:
            self._thread.nursery.start_soon(self._watch)

    def _on_space(self) -> None:
        self._thread.call(self._release)

    # -- the asyncio side ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.handover.is_closed or self.handover.is_finished:
            self.handover.finish()  # cancelled before it began
        elif (death := self._thread.death()) is not None:
            self.handover.finish(death)  # a loop that is being closed runs what was queued, and cancels no new task
        else:
            running = self._run()
            try:
                self._task = self._thread.loop.create_task(running, context=self._variables)
            except Exception as exc:  # of a task factory of the handler's
                running.close()
                self.handover.finish(exc)
                return
            self._task.add_done_callback(self._on_done)

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            await self._pass_on()
        except BaseException as exc:  # a SystemExit too: it is the request's own, and must not end the loop
            error = _translated(exc)
        # A loop that has died cancels its tasks; that is not what their callers should hear.
        self.handover.finish(self._thread.death() or error)

    def _on_done(self, _: object) -> None:
        if not self.handover.is_finished:  # cancelled before its first step: nothing of it has run
            self.handover.finish(self._thread.death() or asyncio.CancelledError())

    async def _pass_on(self) -> None:
        chunks = self._call(self._request, self._dynamo_context)
        if inspect.isawaitable(chunks):
            chunks = await chunks
            if not isinstance(chunks, AsyncIterable):
                self.handover.put(chunks)
                return
        if not isinstance(chunks, AsyncIterable):
            raise GenerateError(f"handler returned {type(chunks).__name__}, expected an async iterable of chunks")
        handover, stop, in_slice = self.handover, self._stop, 0
        put = handover.put
        iterator = aiter(chunks)
        try:
            async for chunk in iterator:
                if stop.is_own or not put(chunk):
                    break
                in_slice += 1
                if handover.is_full:
                    await self._wait_for_space()
                    in_slice = 0
                elif in_slice >= _SLICE:
                    await asyncio.sleep(0)
                    in_slice = 0
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    async def _wait_for_space(self) -> None:
        while True:
            self._space = self._thread.loop.create_future()
            if not self.handover.hold():
                return
            await self._space

    def _release(self) -> None:
        if self._space is not None and not self._space.done():
            self._space.set_result(None)

    def _wind_up(self) -> None:
        self._stop.resolve()
        self._release()  # held at a yield, it ends there with a GeneratorExit
        if self._task is None or self._task.done():
            return
        if self._stop.was_asked:
            self._thread.loop.call_later(self._wind_down, self._task.cancel)
        else:
            self._task.cancel()

    def _on_first_wait(self) -> None:
        self._thread.call_trio(self._begin_watch)

    def _on_stop(self) -> None:
        self._thread.call_trio(self._context.stop)


def _calling(handler: Handler) -> Handler:
    """Return how to call a handler with a request and a context, whichever it takes.

    Raises:
        StartupError: it takes none, or would block the loop.
    """
    if not callable(handler) or isinstance(handler, (type, Engine)):
        raise StartupError(f"{handler!r} is no asyncio handler: expected async def generate(request, context)")
    plain = inspect.unwrap(handler.func if isinstance(handler, functools.partial) else handler)
    if inspect.isgeneratorfunction(plain):
        raise StartupError(
            f"{getattr(handler, '__qualname__', handler)} is a blocking generator and would stop the asyncio loop; "
            "it is an engine as it is, without asyncio"
        )
    parameters = inspect.signature(handler).parameters
    positional = [
        each for each in parameters.values() if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    named = parameters.get("context")
    if named is not None and named.kind in (named.POSITIONAL_OR_KEYWORD, named.KEYWORD_ONLY):
        return lambda request, context: handler(request, context=context)
    if len(positional) >= 2:
        return handler
    if positional or any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
        return lambda request, context: handler(request)
    raise StartupError(
        f"{getattr(handler, '__qualname__', handler)} takes no request: expected async def generate(request, context)"
    )


_DYNAMO_EXCEPTIONS = {
    "InvalidArgument": ingress_errors.InvalidArgument,
    "CannotConnect": ingress_errors.CannotConnect,
    "Disconnected": ingress_errors.Disconnected,
    "ConnectionTimeout": ingress_errors.ConnectionTimeout,
    "Cancelled": ingress_errors.RequestCancelled,
    "EngineShutdown": ingress_errors.EngineShutdown,
    "Unknown": GenerateError,
}


def _translated(error: BaseException) -> BaseException:
    """Return our exception for one of ``dynamo.llm.exceptions``, so that its kind goes home; any other as it is."""
    for kind in type(error).__mro__:
        ours = _DYNAMO_EXCEPTIONS.get(kind.__name__)
        if ours is not None and kind.__module__.partition(".")[0] == "dynamo":
            translated = ours(str(error))
            translated.__cause__, translated.__traceback__ = error, error.__traceback__
            return translated
    return error
