"""One call of a check: a push, the answer that is read, and how the caller takes its leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import trio
from attrs import define, field

from .._push_gate import AdmittedPush
from ..errors import IngressError
from ..wire.codec import codec_named
from ..wire.messages import Annotated, ControlWord, ErrorEvent
from ..wire.response import (
    FinalReceived,
    HandshakeReceived,
    ItemReceived,
    PrologueReceived,
    ResponseEvent,
    ResponseReceiver,
    ResponseState,
)
from ..wire.two_part import encode_two_part
from ._outcome import fail
from ._run import within


@define(eq=False)
class Answer:
    """Everything that came on one response stream."""

    annotated: list[Annotated] = field(factory=list)
    errors: list[ErrorEvent] = field(factory=list)
    prologue_error: str | None = None
    has_prologue: bool = False
    has_final: bool = False
    has_sentinel: bool = False
    was_cut: bool = False
    """True where the check has asked it to stop because it had seen enough."""

    @property
    def items(self) -> list[Any]:
        """The data of the items that are no error."""
        return [item.data for item in self.annotated]

    @property
    def is_whole(self) -> bool:
        return self.has_prologue and self.prologue_error is None and self.has_final and self.has_sentinel

    def add(self, event: ResponseEvent) -> None:
        match event:
            case PrologueReceived(prologue):
                self.has_prologue, self.prologue_error = True, prologue.error
            case ItemReceived(Annotated(error=ErrorEvent() as error)):
                self.errors.append(error)
            case ItemReceived(annotated):
                self.annotated.append(annotated)
            case FinalReceived():
                self.has_final = True
            case HandshakeReceived():
                pass

    def describe(self) -> str:
        parts = [
            f"{len(self.annotated)} chunks",
            *(f"error {error.kind}: {error.message[:200]}" for error in self.errors),
            *([] if self.prologue_error is None else [f"error prologue: {self.prologue_error[:200]}"]),
            *([] if self.has_prologue else ["no prologue"]),
            *([] if self.has_final else ["no final frame"]),
            *([] if self.has_sentinel else ["no sentinel"]),
        ]
        return ", ".join(parts)


class Call:
    """One push and its answer; made by :meth:`Stage.push`."""

    def __init__(self, admitted: AdmittedPush, frames: Sequence[bytes], timeout: float) -> None:
        self.admitted = admitted
        self.frames = frames
        self.answer = Answer()
        self.scope = trio.CancelScope()
        """Cancels the request's task as a worker that is being cancelled does."""
        self.is_over = trio.Event()
        """Set when the handler has let go of the request."""
        self._timeout = timeout
        self._stream: trio.abc.Stream | None = None
        self._receiver = ResponseReceiver(codec_named(admitted.control.codec_name), max_message_size=1 << 40)
        # One generator until it is exhausted: a final frame that carries data yields two events.
        self._events: Iterator[ResponseEvent] = iter(())
        self._has_come = trio.Event()

    async def connected(self) -> None:
        """Wait for the dial-back, or for an end without one."""
        with within(self._timeout, "a dial-back"):
            await self._has_come.wait()

    def take(self, stream: trio.abc.Stream, received: bytes) -> None:
        """Take the connection that came for the response."""
        self._stream = stream
        self._receiver.receive_data(received)
        self._has_come.set()

    def set_over(self) -> None:
        self.is_over.set()
        self._has_come.set()

    async def read(self, is_enough: Callable[[Answer], bool], max_bytes: int | None = None, pause: float = 0.0) -> bool:
        """Read until it is enough; False where the stream ends before."""
        await self.connected()
        while True:
            if self._receive(is_enough):
                return True
            if self._stream is None:
                return False
            with within(self._timeout, "more of the answer", self.answer.describe()):
                try:
                    data = await self._stream.receive_some(max_bytes)
                except trio.BrokenResourceError:
                    return False
            if not data:
                return False
            self._receiver.receive_data(data)
            await trio.sleep(pause)

    async def _read_unseen(self) -> None:
        """Read what still comes, and look at none of it: an engine that never waits has made a lot by now."""
        if self._stream is not None:
            with (
                within(self._timeout, "an end of the answer", self.answer.describe()),
                suppress(trio.BrokenResourceError),
            ):
                while await self._stream.receive_some():
                    pass

    def _receive(self, is_enough: Callable[[Answer], bool]) -> bool:
        """Take in what has come, as far as is enough; tell whether it is."""
        try:
            while not is_enough(self.answer):
                if (event := next(self._events, None)) is None:
                    self._events = iter(self._receiver)
                    if (event := next(self._events, None)) is None:
                        break
                self.answer.add(event)
        except IngressError as exc:
            fail("a response stream as in docs/wire.md §4", f"{exc} after {self.answer.describe()}")
        self.answer.has_sentinel = self._receiver.state is ResponseState.DONE
        return is_enough(self.answer)

    async def finish(self, max_chunks: int | None = None, **reading: Any) -> Answer:
        """Read the whole answer, close as a caller does, and wait until the handler has let go.

        Args:
            max_chunks: an answer that is longer is asked to stop.
            reading: how it is read; see :meth:`read`.
        """
        await self.read(
            lambda said: said.has_sentinel or (max_chunks is not None and len(said.annotated) > max_chunks), **reading
        )
        if not self.answer.has_sentinel and max_chunks is not None and len(self.answer.annotated) > max_chunks:
            self.answer.was_cut = True
            await self.say(ControlWord.STOP)
            await self._read_unseen()
        await self.leave()
        await self.over()
        return self.answer

    async def say(self, word: ControlWord) -> None:
        """Send a control word, if there is anybody to hear it."""
        await self.connected()
        if self._stream is not None:
            with suppress(trio.BrokenResourceError):
                await self._stream.send_all(encode_two_part(word.encode()))

    async def leave(self) -> None:
        """Close the response stream."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    async def over(self, expected: str = "the request to end") -> None:
        """Wait until the handler has let go of the request."""
        with within(self._timeout, expected, f"a request that still runs, after {self.answer.describe()}"):
            await self.is_over.wait()
