"""The one error tree.

Each class stands for something a caller might *do* about it. A class carries its metric label (``error_type``, one of
the six of docs/wire.md §9, or ``None`` where nothing is counted) and the kind it has on the wire (``backend_kind``);
the instance carries the facts. This module imports nothing, so that everything may import it.
"""

from __future__ import annotations


class IngressError(Exception):
    """Base of every error this project raises on purpose."""

    error_type: str | None = None
    """The ``error_type`` label under which ``dynamo_component_errors_total`` counts it."""

    backend_kind: str = "Unknown"
    """The ``Backend`` kind with which it goes home in an error event (docs/wire.md §4)."""


class InvalidMessage(IngressError):
    """A frame or payload breaks the framing: cut short, lying lengths, empty parts, wrong checksum."""

    error_type = "invalid_message"
    backend_kind = "InvalidArgument"


class MessageTooLarge(InvalidMessage):
    """A length field announces more than the limit; nothing was buffered for it."""

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class DeserializationError(IngressError):
    """A control message or body is not what its codec or type promises."""

    error_type = "deserialization"
    backend_kind = "InvalidArgument"


class ResponseStreamError(IngressError):
    """The caller could not be dialled back, or asked for something we must not or cannot dial."""

    error_type = "response_stream"
    backend_kind = "CannotConnect"


class DialBackRefused(ResponseStreamError):
    """The address is not one this worker may dial; no packet was sent.

    ``reason`` is the fixed word under which ``ingress_dial_denied_total`` counts it.
    """

    def __init__(self, message: str, *, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class UnsupportedTransport(ResponseStreamError):
    """The caller asks for a response transport other than TCP."""


class TokenRefused(IngressError):
    """The request's token is missing or not good; the text says which to the log, and nothing of it to the caller."""


class PublishError(IngressError):
    """Writing to the response stream failed; ``stage`` is ``publish_response`` or ``publish_final``."""

    def __init__(self, message: str, *, stage: str) -> None:
        super().__init__(message)
        self.error_type = stage


class GenerateError(IngressError):
    """An engine failed. Engines may raise the subclasses, whose text then goes home without a type prefix."""

    error_type = "generate"


class InvalidArgument(GenerateError):
    """The request is the caller's mistake; the text is shown to the caller as it is (HTTP 400)."""

    backend_kind = "InvalidArgument"


class CannotConnect(GenerateError):
    """The engine cannot reach what it needs; callers set this instance aside for a while."""

    backend_kind = "CannotConnect"


class Disconnected(GenerateError):
    """The engine lost a connection it needs."""

    backend_kind = "Disconnected"


class ConnectionTimeout(GenerateError):
    """Something the engine waited for took too long."""

    backend_kind = "ConnectionTimeout"


class RequestCancelled(GenerateError):
    """The engine gave the request up on purpose."""

    backend_kind = "Cancelled"


class EngineShutdown(GenerateError):
    """The engine is going away; callers take their requests elsewhere."""

    backend_kind = "EngineShutdown"


class ProtocolError(IngressError):
    """The rules of a conversation were broken; the subclass says by whom."""


class LocalProtocolError(ProtocolError):
    """This side tried to send what the conversation does not allow now."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the conversation does not allow now."""

    error_type = "invalid_message"


class Overloaded(IngressError):
    """There is no room: every slot and place in line is taken, a policy says so, or what an engine needs is full."""


class RequestMemoryExhausted(Overloaded):
    """The requests of a worker, or those of one caller, take all the memory that they may."""


class DialsPending(Overloaded):
    """Too many dial-backs to the caller's address wait for an answer, so that one more had to wait for too long."""

    error_type = "response_stream"


class QueueDeadlinePassed(Overloaded):
    """An accepted request has waited in line for longer than the worker lets it; it has not run."""


class Unavailable(IngressError):
    """Caller's half: an instance could not be reached, refused the request, or never dialled back."""


class PolicyFailed(Unavailable):
    """An admission policy raised what is no refusal; the caller is not told what."""


class NotAccepted(Unavailable):
    """Caller's half: no connection, or a refusal in the ack. The request has not run; it may be sent elsewhere."""


class NoDialBack(Unavailable):
    """Caller's half: the response stream was never opened, in time or before the instance vanished; it may have run."""


class NoInstances(Unavailable):
    """Caller's half: discovery knows no usable instance of the endpoint."""


class StreamIncomplete(Unavailable):
    """Caller's half: the response stream ended without its final frame."""


class InputClosed(IngressError):
    """Caller's half: a bidirectional call takes no more requests; its responses may still be read."""


class RemoteError(IngressError):
    """Caller's half: the worker reported a failure of this request."""

    def __init__(
        self, message: str, *, kind: str = "Unknown", error_class: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.error_class = error_class
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.error_class or self.kind}: {self.message}"


class StartupError(IngressError):
    """The worker cannot start as configured: handler signature, port, name, engine. Exit code 3."""


class PluginError(StartupError):
    """An entry point is unknown, broken or claimed twice; the text names the distributions."""
