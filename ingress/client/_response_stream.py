"""One answer as the caller sees it: iterate it, stop it, leave it.

Source: docs/wire.md §4 and §5.1 to §5.3.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Protocol

import trio
from msgspec import UNSET

from .._text import printable
from ..errors import IngressError, StreamIncomplete, Unavailable
from ..wire.codec import PayloadCodec
from ..wire.messages import Annotated, ControlWord, ErrorEvent, Prologue
from ..wire.response import (
    FinalReceived,
    HandshakeReceived,
    ItemReceived,
    PrologueReceived,
    ResponseEvent,
    ResponseReceiver,
    ResponseState,
)
from ..wire.two_part import DEFAULT_MAX_MESSAGE_SIZE, encode_two_part
from ._call_home import Appointment

logger = logging.getLogger("ingress.client")

# A control word has 34 bytes: a worker that does not take them in this time is not reading.
CONTROL_TIMEOUT = 1.0

# The sentinel follows the final frame, and the final frame an error event, mostly in the same segment. Closing before
# they have come would reset the connection, and the worker would count a cancellation.
ENDING_TIMEOUT = 1.0

# Classes of a typed prologue error that speak of the worker; every other one speaks of the request.
_INSTANCE_CLASSES = frozenset({None, "Internal", "Unavailable"})


class OnFailure(Protocol):
    """Is told of every failure of a stream, once."""

    def __call__(self, failure: ErrorEvent | IngressError, /) -> object: ...


class ResponseStream:
    """The answer to one request: an async iterator over the data of its items.

    Iterating raises:

    * RemoteError: the worker reported a failure of this request;
    * StreamIncomplete: the stream ended without its final frame;
    * DeserializationError, InvalidMessage, RemoteProtocolError: the worker sent what cannot be read.

    After any of these, and after the final frame, nothing more is delivered. Items that carry no data, only an event or
    a comment, are left out; :meth:`annotated` shows them. The wait for an item has no bound of its own, for engines
    think as long as they like: put ``trio.fail_after`` around it.

    One task may iterate; another may call :meth:`stop`. Cancelling an iteration loses nothing, it can be resumed.
    """

    def __init__(
        self,
        appointment: Appointment,
        codec: PayloadCodec,
        *,
        request_id: str,
        instance_id: int,
        on_failure: OnFailure,
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    ) -> None:
        self.request_id = request_id
        self.instance_id = instance_id
        self._appointment = appointment
        self._receiver = ResponseReceiver(codec, max_message_size=max_message_size)
        # One generator until it is exhausted: a final frame that carries data yields two events.
        self._events: Iterator[ResponseEvent] = iter(())
        self._stream: trio.abc.Stream | None = None
        self._on_failure = on_failure
        self._is_over = False  # nothing more is delivered
        self._is_stopped = False
        self._is_refused = False  # by an error event or an error prologue: the worker ends the stream by itself
        self._is_gone = False  # the worker closed or reset
        self._is_closed = False

    # -- opening: for the client ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Wait for the worker to dial in and to send its prologue; the caller bounds the wait.

        Raises:
            RemoteError: the prologue refuses this request.
            Unavailable: the prologue reports that this instance cannot serve, or the stream ends instead.
        """
        dial_in = await self._appointment.kept()
        self._stream = dial_in.stream
        self._receiver.receive_data(dial_in.received)
        self._events = iter(self._receiver)
        event = await self._next_event()
        if isinstance(event, HandshakeReceived):
            event = await self._next_event()
        if isinstance(event, PrologueReceived) and event.prologue.error is not None:
            self._is_over = self._is_refused = True
            raise prologue_failure(event.prologue)

    @property
    def has_dialled_in(self) -> bool:
        return self._appointment.dial_in is not None

    # -- reading -------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while True:
            item = await self._next_item()
            if item.data is not UNSET:
                return item.data

    def annotated(self) -> AsyncIterator[Annotated]:
        """Iterate over the items with their envelopes: id, event and comment beside the data; raises the same."""
        return _AnnotatedItems(self._next_item)

    async def _next_item(self) -> Annotated:
        if self._is_over:
            raise StopAsyncIteration
        try:
            event = await self._next_event()
        except IngressError as exc:
            self._is_over = True
            if self._is_stopped and isinstance(exc, StreamIncomplete):
                raise StopAsyncIteration from None  # a stopped worker closes without a final frame
            if not self._is_closed:
                self._on_failure(exc)
            raise
        match event:
            case ItemReceived(Annotated(error=None) as item):
                return item
            case ItemReceived(Annotated(error=ErrorEvent() as error)):
                self._is_over = self._is_refused = True
                self._on_failure(error)
                raise error.to_exception()
            case _:
                assert isinstance(event, FinalReceived)  # noqa: S101 - the receiver allows nothing else here
                await self._finish()
        raise StopAsyncIteration

    async def _finish(self) -> None:
        self._is_over = True
        with contextlib.suppress(IngressError):  # what follows the final frame means nothing
            next(self._events, None)  # the sentinel, if it came along
        if self._receiver.state is ResponseState.DONE:
            await self.aclose()  # the worker waits for it

    async def _next_event(self) -> ResponseEvent:
        # A checkpoint a read and not one an item: reads are bounded, and items can be many.
        while (event := next(self._events, None)) is None:
            await self._receive()
            self._events = iter(self._receiver)
        return event

    async def _receive(self) -> None:
        assert self._stream is not None  # noqa: S101 - set when it was opened
        try:
            data = await self._stream.receive_some()
        except trio.BrokenResourceError as exc:
            self._is_gone = True
            raise StreamIncomplete("response stream was reset before its final frame") from exc
        except trio.ClosedResourceError as exc:
            raise StreamIncomplete("response stream was closed by this client") from exc
        if not data:
            self._is_gone = True
            self._receiver.receive_eof()
            raise StreamIncomplete("response stream ended before its sentinel")
        self._receiver.receive_data(data)

    # -- ending --------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ask the worker to end the answer, and go on iterating: what still comes is delivered.

        The stream then ends with its final frame, or without one where the worker just closes; both are a normal end.
        """
        if not (self._is_stopped or self._is_over or self._is_closed):
            self._is_stopped = True
            await self._send_word(ControlWord.STOP)

    async def aclose(self) -> None:
        """Leave: unless the answer is over, the worker's engine is cancelled. Bounded, also when cancelled."""
        if self._is_closed:
            return
        self._is_closed = self._is_over = True
        if self._stream is None:
            return
        try:
            if self._is_refused or self._receiver.state is ResponseState.SENTINEL:
                with trio.move_on_after(ENDING_TIMEOUT):
                    await self._receive_ending()
        finally:
            with trio.move_on_after(CONTROL_TIMEOUT, shield=True):
                if not self._is_gone and self._receiver.state not in (ResponseState.SENTINEL, ResponseState.DONE):
                    await self._send_word(ControlWord.KILL)
            with trio.move_on_after(CONTROL_TIMEOUT, shield=True):
                await self._stream.aclose()

    async def __aenter__(self) -> ResponseStream:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _receive_ending(self) -> None:
        """Read on to the sentinel and ignore what else there is; frames after the final one mean nothing."""
        try:
            while True:
                for _ in self._events:
                    pass
                if self._receiver.state is ResponseState.DONE:
                    return
                await self._receive()
                self._events = iter(self._receiver)
        except IngressError as exc:
            logger.debug("response stream of request %s ended oddly: %s", printable(self.request_id), exc)

    async def _send_word(self, word: ControlWord) -> None:
        if self._stream is None:
            return
        try:
            with trio.move_on_after(CONTROL_TIMEOUT):
                await self._stream.send_all(encode_two_part(word.encode()))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError) as exc:
            # The worker is gone, which the reader notices, or a stop of another task is stuck in front of this kill.
            logger.debug("%s not sent for request %s: %s", word.value, printable(self.request_id), exc)


class _AnnotatedItems:
    def __init__(self, next_item: Callable[[], Awaitable[Annotated]]) -> None:
        self._next_item = next_item

    def __aiter__(self) -> AsyncIterator[Annotated]:
        return self

    async def __anext__(self) -> Annotated:
        return await self._next_item()


def prologue_failure(prologue: Prologue) -> IngressError:
    """Tell a refusal of this request from an instance that cannot serve, as a 1.6.1 caller does."""
    typed = prologue.typed_error
    if typed is not None and typed.error_class not in _INSTANCE_CLASSES:
        return typed.to_exception()
    return Unavailable(f"worker failed before the response stream: {printable(prologue.error)}")
