"""A bidirectional call as the caller sees it: send requests, iterate responses, each at its own pace."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeVar

import trio

from ..errors import InputClosed, MessageTooLarge, StreamIncomplete
from ..wire.codec import PayloadCodec
from ..wire.messages import Annotated, ControlWord
from ..wire.two_part import DEFAULT_MAX_MESSAGE_SIZE, encode_two_part
from ._response_stream import ResponseStream, _AnnotatedItems

ItemT = TypeVar("ItemT")


class BidirectionalStream:
    """Requests out, responses in; made by :meth:`Client.open_bidirectional`.

    One task may send and another iterate. Iterating raises what iterating a :class:`ResponseStream` raises. The worker
    may end its answer before the input has ended; sending raises InputClosed from then on. Cancelling an iteration
    loses nothing. A send that is cancelled ends the call, for half a request may have gone out: the worker's engine is
    cancelled, and iterating raises StreamIncomplete.
    """

    def __init__(
        self,
        requests: trio.abc.Stream,
        responses: ResponseStream,
        codec: PayloadCodec,
        *,
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    ) -> None:
        self._requests = requests
        self._responses = responses
        self._codec = codec
        self._max_message_size = max_message_size
        self._is_input_closed = False
        self._is_over = False  # the answer has been read to its end
        self._is_cut = False

    @property
    def request_id(self) -> str:
        return self._responses.request_id

    @property
    def instance_id(self) -> int:
        return self._responses.instance_id

    async def send(self, request: Any) -> None:
        """Send one request; waits while the worker's engine is behind.

        Raises:
            InputClosed: the input was closed, or the worker takes no more of it.
            MessageTooLarge: the request is above this client's limit; nothing of it was sent.
            TypeError: the codec cannot hold the request.
        """
        try:
            body = self._codec.encode(request)
        except ValueError as exc:
            raise TypeError(f"request cannot be encoded as {self._codec.name}: {exc}") from exc
        frame = encode_two_part(body=body)
        if (size := len(frame)) > (limit := self._max_message_size):
            text = f"request of {size} bytes exceeds max_message_size of {limit} bytes"
            raise MessageTooLarge(text, size=size, limit=limit)
        await self._send(frame)

    async def close_input(self) -> None:
        """Tell the worker that no more requests come; its answer goes on. Does nothing where it takes none any more."""
        with contextlib.suppress(InputClosed):
            await self._send(encode_two_part(ControlWord.SENTINEL.encode()))
            self._is_input_closed = True

    async def stop(self) -> None:
        """Ask the worker to end both directions, and send no more; see :meth:`ResponseStream.stop`."""
        self._is_input_closed = True
        await self._responses.stop()

    async def aclose(self) -> None:
        """Leave, as leaving the block does; also ends a send that is waiting in another task."""
        self._is_input_closed = True
        try:
            await self._responses.aclose()
        finally:
            await trio.aclose_forcefully(self._requests)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await self._next(self._responses)

    def annotated(self) -> AsyncIterator[Annotated]:
        """Iterate over the responses with their envelopes."""
        return _AnnotatedItems(partial(self._next, self._responses.annotated()))

    async def _next(self, items: AsyncIterator[ItemT]) -> ItemT:
        try:
            return await anext(items)
        except StopAsyncIteration:
            if self._is_cut:
                raise StreamIncomplete("a cancelled send has ended this call") from None
            self._is_over = True
            raise

    async def _send(self, frame: bytes) -> None:
        if self._is_input_closed:
            raise InputClosed("the input of this call was closed")
        try:
            await self._requests.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._is_input_closed = True
            raise InputClosed("the worker takes no more input") from exc
        except trio.Cancelled:
            self._is_cut = not self._is_over
            await self.aclose()
            raise
