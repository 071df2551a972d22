"""One response stream, from the dial-back to the sentinel, as the handler writes it."""

from __future__ import annotations

import errno

import trio

from ._context import RequestContext
from ._dial_guard import DialTarget
from ._dialback import DialBack
from ._failures import error_event_of
from ._pump import PumpProgress
from ._response_writer import ResponseMeter, ResponseWriter
from .errors import EngineShutdown
from .wire.codec import codec_named
from .wire.messages import Annotated, ConnectionInfo, ErrorEvent, RequestControlMessage
from .wire.response import ResponseSender, ResponseState


class Response:
    """Joins the conversation's state machine, the writer and the dialled stream; for the request's own task.

    Each step is taken once; a step that was taken already is skipped, so that a goodbye may follow wherever the answer
    was cut.
    """

    __slots__ = (
        *("_address", "_context", "_info", "_meter", "_writer", "dial_back", "error_type"),
        *("is_clean_end", "is_whole", "progress", "publish_error", "sender"),
    )

    def __init__(
        self,
        dial_back: DialBack,
        context: RequestContext,
        control: RequestControlMessage,
        info: ConnectionInfo,
        address: DialTarget,
        meter: ResponseMeter | None = None,
    ) -> None:
        self.dial_back = dial_back
        self.sender = ResponseSender(codec_named(control.codec_name))
        self.progress = PumpProgress()
        self.publish_error: str | None = None
        """``publish_response`` or ``publish_final`` when writing failed while the caller still wanted the answer."""
        self.is_whole = False
        """True once the sentinel has been handed to the kernel."""
        self.is_clean_end = False
        """True when the final frame was written while the caller still wanted the answer."""
        self._context = context
        self._info = info
        self._address = address
        self._meter = meter
        self.error_type: str | None = None
        """How the answer failed first: one of the ``ERROR_TYPES``, ``queue_deadline`` or ``overloaded``."""
        self._writer: ResponseWriter | None = None

    @property
    def writer(self) -> ResponseWriter:
        if self._writer is None:
            raise RuntimeError("the response stream has not been opened")
        return self._writer

    async def open(self) -> None:
        """Dial the caller and buffer the handshake.

        Raises:
            ResponseStreamError: the caller cannot be reached.
        """
        if self._writer is None:
            stream = await self.dial_back.open_response_stream(self._address, self._on_failure)
            self._writer = ResponseWriter(
                stream,
                self.dial_back.shared.streams,
                on_failure=self._on_failure,
                stall_timeout=self.dial_back.shared.limits.write_stall_timeout,
                meter=self._meter,
                open_memory=self.dial_back.open_memory,
            )
            self._writer.write(self.sender.handshake(self._info.subject))
            self._context.say_goodbye = self.say_goodbye

    def send_prologue(self) -> None:
        if self.sender.state is ResponseState.PROLOGUE:
            self.writer.write(self.sender.prologue())

    def send_error(self, error: ErrorEvent) -> None:
        self.writer.write(self.sender.item(Annotated.from_error(error)))

    def refuse(self, reason: str) -> None:
        """Write an error prologue, for callers that understand no refusal in an ack."""
        self.writer.write(self.sender.error_prologue(reason))

    def say_goodbye(self) -> None:
        """Buffer what an orderly end still lacks, told as the worker's shutdown, and send what can be sent now.

        Called from the task that drains the worker as well as from the request's own.
        """
        self.send_prologue()
        if self.sender.state is ResponseState.ITEMS:
            self.send_error(error_event_of(EngineShutdown("engine shutting down")))
            self.writer.write(self.sender.final())
        self.writer.flush()

    async def send_final(self) -> None:
        """Write the final frame and the sentinel, and wait until the kernel has taken everything.

        Raises:
            PublishError: the stream failed or stalled.
        """
        if self.sender.state is ResponseState.ITEMS:
            self.is_clean_end = self._context.ending is None
            self.writer.write(self.sender.final())
        await self.writer.drained()
        self.is_whole = True

    def let_go(self) -> None:
        """Let the request's objects go with it: they refer to each other, and would stay until a garbage collection."""
        self._context.say_goodbye = None
        self._writer = None

    def _on_failure(self, exc: Exception) -> None:
        """End the request by what reader or writer met first; which of the two it was makes no difference."""
        if self._context.ending is not None:
            return
        if _is_reset(exc):
            self._context.kill("caller reset the response stream")
        else:
            is_final = self.sender.state is ResponseState.DONE
            self.publish_error = "publish_final" if is_final else "publish_response"
            self._context.kill(f"response stream failed: {exc}")


# What a peer does to a connection on purpose, or by dying: its kernel has answered. All else is the network's doing, or
# our own patience that has ended, and then what was written is lost.
_RESETS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})


def _is_reset(exc: Exception) -> bool:
    if not isinstance(exc, trio.BrokenResourceError):
        return False
    cause = exc.__cause__
    return not isinstance(cause, OSError) or cause.errno in _RESETS
