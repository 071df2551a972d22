"""Dialling the caller back: checks first, connects, shakes hands, and closes what it opened."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

import trio
from attrs import frozen

from ._context import Ending, RequestContext
from ._dial_guard import DialGuard, DialTarget
from ._dial_limits import Turn
from ._dialled import DialledStreams
from ._logging import request_scope
from ._network import TcpConnect, TcpStream
from ._patience import is_late
from ._request_memory import HeldMemory
from ._request_stream import RequestInput
from ._stream_limits import DEFAULT_STREAM_LIMITS, StreamLimits
from ._text import RateLimitedLogger, named, quoted
from .abc import Network
from .errors import InvalidMessage, RemoteProtocolError, ResponseStreamError
from .wire.addresses import SocketAddress
from .wire.messages import CallHomeHandshake, ControlWord, StreamAddress
from .wire.response import ControlWordReader
from .wire.two_part import encode_two_part

logger = logging.getLogger("ingress.dialback")
_log = RateLimitedLogger(logger)

InputT = TypeVar("InputT")


@frozen
class DialBacks:
    """How a worker dials its callers back; one a worker."""

    network: Network

    streams: DialledStreams
    """Where what serves a stream runs."""

    guard: DialGuard
    limits: StreamLimits = DEFAULT_STREAM_LIMITS

    def of_request(
        self,
        context: RequestContext,
        peer_host: str | None,
        open_memory: Callable[[], HeldMemory],
        dialling: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> DialBack:
        """Return the dial-backs of one request.

        Args:
            peer_host: who sent it; None where it is not known.
            open_memory: returns the request's account of memory.
            dialling: what each dial that has to wait is waited for in; it may end the wait, and raise.
        """
        return DialBack(self, context, peer_host, open_memory, dialling)


class DialBack:
    """The dial-backs of one request, the :class:`ingress.abc.Dialer` of its shape, open while inside ``async with``.

    Leaving closes every stream that was opened: at once, except after :meth:`let_caller_close_first`; then the response
    stream is left to the worker's streams, to be closed when its caller has closed its side, or after ``close_wait``.

    Each stream has one reader for its whole life, which turns what the caller does into ``context.stop`` and
    ``context.kill``.
    """

    # Of this and what else an open stream has there may be thousands.
    __slots__ = (
        *("_caller", "_context", "_dialling", "_inputs", "_is_graceful", "_open", "_peer_host"),
        *("open_memory", "shared"),
    )

    def __init__(
        self,
        shared: DialBacks,
        context: RequestContext,
        peer_host: str | None,
        open_memory: Callable[[], HeldMemory],
        dialling: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.shared = shared
        self.open_memory = open_memory
        """Returns the request's account of memory."""
        self._context = context
        self._peer_host = peer_host
        self._dialling = dialling
        self._open: list[trio.abc.Stream] = []
        self._caller: _Caller | None = None
        self._inputs: tuple[tuple[RequestInput[Any], trio.CancelScope], ...] = ()
        self._is_graceful = False

    async def __aenter__(self) -> DialBack:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for requests, reading in self._inputs:  # an input that goes on after the answer's end is of no interest
            reading.cancel()
            requests.close()
        if error is None and self._is_graceful and self._caller is not None and not self._caller.is_gone:
            self._open.remove(self._caller.stream)
            self._caller.has_answer = True
            self.shared.streams.linger(self._caller.stream, self.shared.limits.close_wait)
        self._caller = None
        await self.close()

    async def open_response_stream(
        self, address: DialTarget, on_broken: Callable[[Exception], None]
    ) -> trio.abc.Stream:
        """Connect to a checked address and listen for the caller's control words; the handshake is the sender's.

        Args:
            on_broken: called with what reading the stream raised, when it broke; the caller ends the request by it.

        Raises:
            ResponseStreamError: unreachable, or no answer within the connect timeout.
        """
        stream = await self._connect(address)
        self._caller = _Caller(stream, self._context, on_broken)
        self.shared.streams.listen(stream, self._caller)
        return stream

    async def open_request_stream(
        self, stream: StreamAddress, decode: Callable[[bytes], InputT]
    ) -> AsyncIterable[InputT]:
        """See :meth:`ingress.abc.Dialer.open_request_stream`."""
        info, address = self.shared.guard.check(self._peer_host, self._context.id, stream, "request")
        connection = await self._connect(address)
        handshake = encode_two_part(CallHomeHandshake(info.subject, "request").encode())
        try:
            with trio.fail_after(self.shared.limits.handshake_timeout):
                await connection.send_all(handshake)
        except (trio.TooSlowError, trio.BrokenResourceError) as exc:
            raise ResponseStreamError(f"request stream of {address.host}:{address.port} took no handshake") from exc
        requests = RequestInput(connection, self._context, decode, self.open_memory(), self.shared.limits)
        reading = trio.CancelScope()
        self._inputs += ((requests, reading),)
        self.shared.streams.start_soon(self._follow, connection, requests, reading)
        return requests

    def let_caller_close_first(self) -> None:
        """The answer is whole: wait for the caller's FIN, so that nothing under way is lost to a reset."""
        self._is_graceful = True

    async def close(self) -> None:
        """Close every stream without waiting: a FIN, or a reset where the caller's bytes were not read."""
        if self._caller is not None:
            self._caller.is_gone = True
        for stream in reversed(self._open):  # the response stream first: it is the one that is written
            await self.shared.streams.close(stream)

    async def _connect(self, target: DialTarget) -> trio.abc.Stream:
        guard = self.shared.guard
        turn: Turn | None = None
        started: TcpConnect | None = None
        if isinstance(target, SocketAddress) and (guard.limits.is_idle or guard.may_connect_at_once(target)):
            # What is connected at once, as on the same machine, is never pending: it needs no turn and no timer.
            begun = self._begin_to_connect(target)
            if isinstance(begun, TcpStream):
                guard.limits.outcomes.note_answer(target)
                self._open.append(begun)
                return begun
            started = begun
            if started is not None and (turn := guard.limits.take_turn_nowait(self._peer_host, target)) is None:
                started.close()
                if guard.limits.is_line_long(self._peer_host, target):
                    raise ResponseStreamError(f"dial-back to {target.host}:{target.port} not accepted at once")
        with self._dialling():
            if turn is None:
                turn, started = await guard.limits.take_turn(self._peer_host, target), None
            stream = await self._connect_in_turn(turn, target, started)
            self._open.append(stream)
        return stream

    def _begin_to_connect(self, target: SocketAddress) -> TcpStream | TcpConnect | None:
        # Only real TCP has one.
        start: Callable[[str, int], TcpStream | TcpConnect] | None = getattr(self.shared.network, "start_connect", None)
        if start is None:
            return None
        try:
            return start(target.host, target.port)
        except OSError as exc:
            if exc.errno not in _OUR_OWN:
                self.shared.guard.limits.outcomes.note_failure(target, target, is_silent=False)
            raise ResponseStreamError(f"dial-back to {target.host}:{target.port} {_describe(exc)}") from exc

    async def _connect_in_turn(self, turn: Turn, target: DialTarget, started: TcpConnect | None) -> trio.abc.Stream:
        dialled: SocketAddress | None = None
        stream: trio.abc.Stream | None = None
        failure, is_theirs = "", True
        try:
            for connecting in (started, None):  # once more where we were stopped: it may have come about long ago
                with turn.begin(self.shared.limits.connect_timeout) as scope:
                    try:
                        dialled = (
                            target
                            if isinstance(target, SocketAddress)
                            else await self.shared.guard.resolve(self._peer_host, target)
                        )
                        if connecting is not None:
                            stream = await connecting.wait()
                        else:
                            stream = await self.shared.network.connect(dialled.host, dialled.port)
                    except OSError as exc:
                        failure, is_theirs = _describe(exc), exc.errno not in _OUR_OWN
                if not (scope.cancelled_caught and is_late(scope.deadline)):
                    break
            if stream is not None:
                turn.note_answer()
                return stream
            if is_theirs:
                turn.note_failure(dialled, is_silent=scope.cancelled_caught)
        finally:
            turn.release()
        raise ResponseStreamError(
            f"dial-back to {target.host}:{target.port} {failure or f'timed out after {turn.timeout:g} s'}"
        )

    async def _follow(self, stream: trio.abc.Stream, requests: RequestInput[InputT], reading: trio.CancelScope) -> None:
        """Read a request stream until it ends or the request does, and close it.

        A caller that leaves by this stream sees the response stream closed as well, however long the engine takes to
        clean up; what a goodbye or a stop grace still has to send goes first.
        """
        context = self._context
        with reading:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_stopped, context, nursery.cancel_scope)
                try:
                    await requests.read()
                finally:
                    # Before the engine runs again: what it yields from here on reaches nobody.
                    if context.is_killed or (context.ending is Ending.STOPPED and context.scope.cancel_called):
                        await self.close()
                    else:
                        await self.shared.streams.close(stream)
                nursery.cancel_scope.cancel()


# What we lack ourselves says nothing about an address.
_OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def _describe(failure: OSError) -> str:
    return f"failed: {os.strerror(failure.errno) if failure.errno else failure}"


class _Caller:
    """The caller's side of a response stream; every way it ends but a whole answer is a kill."""

    __slots__ = ("_context", "_on_broken", "_words", "has_answer", "is_gone", "stream")

    def __init__(
        self, stream: trio.abc.Stream, context: RequestContext, on_broken: Callable[[Exception], None]
    ) -> None:
        self.stream = stream
        self.is_gone = False
        self.has_answer = False
        """True once the answer is whole: whatever the caller does then is its good end."""
        self._context = context
        self._on_broken = on_broken
        self._words: ControlWordReader | None = None  # most callers never say a word

    def receive(self, data: bytes) -> bool:
        """Obey the control words; the FIN goes out with the last, however long the engine takes to clean up."""
        if self.has_answer:
            return False
        context = self._context
        if self._words is None:
            self._words = ControlWordReader()
        self._words.receive_data(data)
        try:
            for word in self._words:
                if word is ControlWord.STOP:
                    context.stop()
                else:
                    context.kill("kill from the caller")
        except (RemoteProtocolError, InvalidMessage) as exc:
            with request_scope(context.id, context.trace_id, context.span_id):
                _log.log(
                    logging.WARNING,
                    "control word",
                    "request %s: %s; taken for a kill",
                    named(context.id),
                    quoted(exc),
                )
            context.kill("protocol error on the response stream")
            self.is_gone = True
        else:
            self.is_gone = context.scope.cancel_called
        return not self.is_gone

    def end(self) -> None:
        self.is_gone = True
        if not self.has_answer:
            self._context.kill("caller closed the response stream")

    def broke(self, error: trio.BrokenResourceError) -> None:
        self.is_gone = True
        if not self.has_answer:
            self._on_broken(error)


async def _cancel_when_stopped(context: RequestContext, scope: trio.CancelScope) -> None:
    await context.stopped()
    scope.cancel()
