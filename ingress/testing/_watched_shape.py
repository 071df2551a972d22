"""A shape under observation: what it opens, what it builds, and what is left of that."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any

import trio

from ..abc import Context, Dialer, Engine, IngressDispatch, InputT, ParsedRequest
from ..wire.messages import RequestControlMessage, StreamAddress

CHUNKS = [{"chunk": 0}, {"chunk": 1}, {"chunk": 2}]
"""What :class:`KitEngine` answers."""


class KitEngine(Engine):
    """Answers both ways, with :data:`CHUNKS`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        """Requests; of a bidirectional one the list of what its stream held."""

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.seen.append(request)
        for chunk in CHUNKS:
            await trio.lowlevel.checkpoint()
            yield chunk

    async def generate_bidirectional(self, requests: AsyncIterable[Any], context: Context) -> AsyncIterator[Any]:
        yield CHUNKS[0]
        self.seen.append([request async for request in requests])
        for chunk in CHUNKS[1:]:
            yield chunk


class WatchedShape(IngressDispatch[Any]):
    """Passes everything on to the shape inside, and sees to what it does with the network."""

    def __init__(self, shape: IngressDispatch[Any]) -> None:
        self.shape = shape
        self.dialled: list[StreamAddress] = []
        self.decoders: list[Callable[[bytes], Any]] = []
        self._made: list[weakref.ref[Any]] = []

    def accepts(self, payload: bytes) -> bool:
        return self.shape.accepts(payload)

    def read_control(self, payload: bytes) -> RequestControlMessage:
        return self.shape.read_control(payload)

    def can_serve(self, engine: Engine) -> bool:
        return self.shape.can_serve(engine)

    def request_streams(self, control: RequestControlMessage) -> Sequence[StreamAddress]:
        return self.shape.request_streams(control)

    def invoke(self, engine: Engine, request: Any, context: Context) -> AsyncIterable[Any]:
        return self.shape.invoke(engine, request, context)

    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[Any]:
        watched = _WatchedDialer(dialer, self)
        self.remember(watched)
        return await self.shape.parse_and_build_request(payload, control, watched)

    def remember(self, thing: Any) -> None:
        """Look later whether it is still held by anybody."""
        self._made.append(weakref.ref(thing))

    def kept(self) -> list[str]:
        """Name what was made for requests that are over and is still held."""
        gc.collect()
        return [type(thing).__name__.lstrip("_") for made in self._made if (thing := made()) is not None]


class _WatchedDialer:
    def __init__(self, inner: Dialer, watch: WatchedShape) -> None:
        self._inner = inner
        self._watch = watch

    async def open_request_stream(
        self, stream: StreamAddress, decode: Callable[[bytes], InputT]
    ) -> AsyncIterable[InputT]:
        self._watch.dialled.append(stream)
        self._watch.decoders.append(decode)
        requests = await self._inner.open_request_stream(stream, decode)
        self._watch.remember(requests)
        return requests
