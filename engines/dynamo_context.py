"""The context of a request as a handler written for Dynamo expects it: the surface of ``dynamo.runtime.Context`` 1.6.1.

Source: the type stubs and the behaviour of the released wheel; docs/engines.md lists what differs.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ingress import Context

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-([0-9a-f]{16})-[0-9a-f]{2}")

# What is passed on beside the trace, where the caller sent it.
_ID_HEADERS = ("x-request-id", "request-id")

_MISSING: Any = object()


class StopSignal:
    """Who waits for a request's end, and whether the handler ended it itself; for the asyncio thread.

    Args:
        on_first_wait: is called once, when somebody begins to wait for the end.
        on_stop: is called when the handler itself ends the answer.
    """

    def __init__(
        self, on_first_wait: Callable[[], None] = lambda: None, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        self.was_asked = False
        """True once the handler has asked whether it is stopped: one that does may end by itself."""
        self.is_own = False
        """True once the handler has ended the answer."""
        self._on_first_wait = on_first_wait
        self._on_stop = on_stop
        self._waiting: list[asyncio.Future[bool]] | None = None

    def stop(self) -> None:
        """End the answer, as the handler asks for."""
        self.is_own = True
        self.resolve()
        self._on_stop()

    def wait(self, future: asyncio.Future[bool]) -> None:
        """Keep a future until the end."""
        if self._waiting is None:
            self._waiting = []
            self._on_first_wait()
        elif len(self._waiting) & (len(self._waiting) - 1) == 0:  # at every doubling: who waits anew for each chunk
            self._waiting = [waiting for waiting in self._waiting if not waiting.done()]
        self._waiting.append(future)

    def resolve(self) -> None:
        """Wake whoever waits: the end has come."""
        for waiting in self._waiting or ():
            if not waiting.done():
                waiting.set_result(True)
        self._waiting = [] if self._waiting is not None else None


class DynamoContext:
    """What a handler may know of, and do to, its request; for the asyncio thread.

    Args:
        context: the request's own context; None for a detached one, which nothing stops but itself.
        trace: the context whose trace it belongs to.
    """

    __slots__ = ("_context", "_id", "_metadata", "_stop", "_trace")

    def __init__(
        self,
        context: Context | None,
        *,
        id: str,  # noqa: A002 - as the real one calls it
        metadata: Mapping[str, str],
        trace: Context,
        stop: StopSignal,
    ) -> None:
        self._context = context
        self._id = id
        self._metadata = ContextMetadata(metadata)
        self._trace = trace
        self._stop = stop

    # -- who asked -----------------------------------------------------------------------------------------------------

    def id(self) -> str:
        """The caller's request id."""
        return self._id

    @property
    def metadata(self) -> ContextMetadata:
        """The caller's metadata; changes are kept for this request alone."""
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        self._metadata = ContextMetadata(metadata)

    def detached(self, id: str) -> DynamoContext:  # noqa: A002 - as the real one calls it
        """Return a context of another id that is not stopped with this one; trace and metadata are copied."""
        return DynamoContext(None, id=id, metadata=self._metadata.copy(), trace=self._trace, stop=StopSignal())

    # -- whether it is still wanted ------------------------------------------------------------------------------------

    def is_stopped(self) -> bool:
        """True once the caller wants no more, by stop, kill or going away."""
        self._stop.was_asked = True
        return self._stop.is_own or (self._context is not None and self._context.is_stopped)

    def is_killed(self) -> bool:
        """True once nothing that is still yielded can reach the caller."""
        self._stop.was_asked = True
        return self._context is not None and self._context.is_killed

    def stop_generating(self) -> None:
        """End the answer here, as if the caller had asked for it: nothing that is yielded from now on is sent."""
        self._stop.stop()

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        """Return a future that becomes True when the request is stopped or killed."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.is_stopped():
            future.set_result(True)
        else:
            self._stop.wait(future)
        return future

    def notify_first_token(self) -> None:
        """Do nothing: no abort of ours waits for a first token."""

    # -- tracing -------------------------------------------------------------------------------------------------------

    @property
    def trace_id(self) -> str | None:
        """The request's trace, 32 hexadecimal digits; None without one."""
        return self._trace.trace_id

    @property
    def span_id(self) -> str | None:
        """The span that the engine's own calls belong under: the request's, or the caller's where none are exported."""
        return self._trace.span_id

    @property
    def parent_span_id(self) -> str | None:
        """The caller's span."""
        found = _TRACEPARENT.fullmatch(self._trace.headers.get("traceparent", ""))
        return found[1] if found else None

    def trace_headers(self) -> dict[str, str] | None:
        """The headers for an engine's own calls: ``traceparent`` and its companions; None without a trace."""
        headers = self._trace.trace_headers()
        if not headers:
            return None
        asked = {name: self._trace.headers[name] for name in _ID_HEADERS if name in self._trace.headers}
        return {"request-id": self._id, **asked, **headers}

    def current_span(self) -> SpanProxy:
        """A span that takes everything and records nothing."""
        return SpanProxy()

    def start_span(self, name: str, attrs: dict[str, Any] | None = None) -> SpanProxy:
        """A span that takes everything and records nothing."""
        return SpanProxy()


class ContextMetadata:
    """The metadata of a request: text by text, as a mapping whose views are lists."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries: dict[str, str] = {}
        for key, value in entries.items():
            self[key] = value

    def __repr__(self) -> str:
        return json.dumps(self._entries, ensure_ascii=False)

    def __getitem__(self, key: str) -> str:
        return self._entries[key]

    def __setitem__(self, key: str, value: str) -> None:
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(f"metadata is text by text, got {type(key).__name__}: {type(value).__name__}")
        self._entries[key] = value

    def __delitem__(self, key: str) -> None:
        del self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._entries))

    def get(self, key: str, default: str | None = None) -> str | None:
        return self._entries.get(key, default)

    def pop(self, key: str, default: str | None = _MISSING) -> str | None:
        return self._entries.pop(key) if default is _MISSING else self._entries.pop(key, default)

    def keys(self) -> list[str]:
        return list(self._entries)

    def values(self) -> list[str]:
        return list(self._entries.values())

    def items(self) -> list[tuple[str, str]]:
        return list(self._entries.items())

    def clear(self) -> None:
        self._entries.clear()

    def copy(self) -> dict[str, str]:
        return dict(self._entries)


class SpanProxy:
    """A span without a tracer: every call is accepted, nothing is recorded."""

    __slots__ = ()

    def set_attribute(self, key: str, value: Any) -> None: ...

    def add_event(self, name: str, attrs: dict[str, Any] | None = None) -> None: ...

    def set_status(self, status: str, description: str | None = None) -> None:
        if status not in ("ok", "error"):
            raise ValueError(f'set_status: expected "ok" or "error", got {json.dumps(status)}')

    def close(self) -> None: ...

    def __enter__(self) -> SpanProxy:
        return self

    def __exit__(self, *exc_info: object) -> None: ...
