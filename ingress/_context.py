"""The context of one request: who asked, and whether the answer is still wanted."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import trio

from ._tracing import RequestSpan
from .wire.records import EndpointId
from .wire.trace_context import TraceContext


class Ending(enum.Enum):
    """Why an answer ended before its engine did."""

    STOPPED = "stopped"
    KILLED = "killed"
    SHUT_DOWN = "shut down"


class RequestContext:
    """The one implementation of :class:`ingress.abc.Context`.

    Owned by the request's task; the flags may be read from any thread, the methods called from the worker's only. The
    engine runs inside :attr:`scope`, so that ending the request cancels it wherever it waits, also before its first
    chunk.
    """

    __slots__ = (
        *("__weakref__", "_ended", "_stop_grace", "_trace", "ending", "endpoint", "headers", "id", "is_killed"),
        *("kill_reason", "metadata", "say_goodbye", "scope", "span"),
    )

    def __init__(
        self,
        *,
        request_id: str,
        endpoint: EndpointId,
        metadata: Mapping[str, str],
        headers: Mapping[str, str],
        trace: TraceContext | None = None,
        span: RequestSpan | None = None,
        stop_grace: float = 0.0,
    ) -> None:
        self.id = request_id
        self.endpoint = endpoint
        self.metadata = metadata
        self.headers = headers if type(headers) is MappingProxyType else MappingProxyType(headers)
        self.span = span
        self.scope = trio.CancelScope()
        self.ending: Ending | None = None
        """The first reason to end; a kill after a stop changes nothing but ``is_killed``."""
        self.is_killed = False
        self.kill_reason = ""
        self.say_goodbye: Callable[[], None] | None = None
        """Buffers and sends the orderly end of an open response stream; set by whoever opened it."""
        self._stop_grace = stop_grace
        self._ended: trio.Event | None = None
        self._trace = trace if span is None else span.trace

    def __repr__(self) -> str:
        state = self.ending.value if self.ending else "running"
        return f"<Context {self.id!r} of {self.endpoint}: {state}>"

    @property
    def trace_id(self) -> str | None:
        return None if self._trace is None else self._trace.trace_id

    @property
    def span_id(self) -> str | None:
        return None if self._trace is None else self._trace.span_id

    def trace_headers(self) -> dict[str, str]:
        return {} if self._trace is None else self._trace.headers()

    @property
    def is_stopped(self) -> bool:
        return self.ending is not None

    async def stopped(self) -> None:
        if self._ended is None:
            self._ended = trio.Event()
            if self.ending is not None:
                self._ended.set()
        await self._ended.wait()

    def stop(self) -> None:
        self._end(Ending.STOPPED)
        if self._stop_grace > 0 and not self.is_killed:
            if math.isinf(self.scope.deadline):
                self.scope.deadline = trio.current_time() + self._stop_grace
        else:
            self.scope.cancel()

    def kill(self, reason: str) -> None:
        self._end(Ending.KILLED)
        if not self.is_killed:
            self.is_killed = True
            self.kill_reason = reason
        self.scope.cancel()

    def shut_down(self) -> None:
        """End the request because the worker leaves; the caller is told so."""
        self._end(Ending.SHUT_DOWN)
        if self.ending is Ending.SHUT_DOWN and self.say_goodbye is not None:
            # Before the engine is cancelled: it may take its time, or never let go.
            self.say_goodbye()
        self.scope.cancel()

    def _end(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
            if self._ended is not None:
                self._ended.set()


class OpenRequests:
    """The requests of a worker from their acks to their sentinels; for its own tasks."""

    def __init__(self) -> None:
        self._contexts: set[RequestContext] = set()
        self._idle: trio.Event | None = None

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[RequestContext]:
        return iter(tuple(self._contexts))

    def add(self, context: RequestContext) -> None:
        self._contexts.add(context)

    def discard(self, context: RequestContext) -> None:
        self._contexts.discard(context)
        if not self._contexts and self._idle is not None:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until there is none."""
        while self._contexts:
            self._idle = trio.Event()
            await self._idle.wait()
