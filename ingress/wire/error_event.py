"""A failure as it goes home: in an error event of a response, or in its prologue.

Source: docs/wire.md §4, captures ``response-exc-*``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ..errors import RemoteError

# Backend kind -> (class, reason) as a 1.6.1 worker writes them (docs/wire.md §4, captures response-exc-*).
_KINDS: Mapping[str, tuple[str, str]] = {
    "InvalidArgument": ("InvalidRequest", "backend.invalid_argument"),
    "ConnectionTimeout": ("DeadlineExceeded", "backend.connection_timeout"),
    "CannotConnect": ("Unavailable", "backend.cannot_connect"),
    "Disconnected": ("Unavailable", "backend.disconnected"),
    "Cancelled": ("Cancelled", "backend.cancelled"),
    "EngineShutdown": ("Unavailable", "backend.engine_shutdown"),
    "Unknown": ("Internal", "backend.unknown"),
}


@frozen
class ErrorEvent:
    """A failure: what an error event holds, and the ``typed_error`` of a prologue."""

    message: str
    kind: str = "Unknown"
    """A ``Backend`` kind, or a top-level error type when ``is_backend`` is false."""

    is_backend: bool = True
    error_class: str | None = None
    reason: str | None = None
    diagnostic: str | None = None
    public_message: str | None = None
    """Set where the text may be shown to the end user as it is."""

    @classmethod
    def of_kind(cls, kind: str, message: str, *, is_public: bool = False) -> ErrorEvent:
        """Build the event of a Backend kind, with the class and reason a 1.6.1 worker gives it."""
        error_class, reason = _KINDS.get(kind, _KINDS["Unknown"])
        return cls(
            message,
            kind,
            error_class=error_class,
            reason=reason,
            diagnostic=message,
            public_message=message if is_public else None,
        )

    @classmethod
    def overloaded(cls, message: str) -> ErrorEvent:
        """Build the event of an engine that has no room.

        The 1.6.1 frontend answers it with HTTP 529 and keeps the instance, but only in this form: of the top-level
        type, and without a reason, for one that it does not know makes it an HTTP 500 (docs/wire.md §4).
        """
        return cls(message, "ResourceExhausted", is_backend=False, error_class="CapacityExhausted", diagnostic=message)

    def to_wire(self) -> dict[str, Any]:
        """Return the object as released workers write it; up to 1.5.1 clients ignore the newer keys."""
        wire: dict[str, Any] = {"error_type": {"Backend": self.kind} if self.is_backend else self.kind}
        optional = {"class": self.error_class, "reason": self.reason}
        wire.update({key: value for key, value in optional.items() if value is not None})
        wire["message"] = encodable(self.message)
        if self.diagnostic is not None:
            wire["diagnostic"] = encodable(self.diagnostic)
        if self.public_message is not None:
            wire["public"] = {"type": "message", "message": encodable(self.public_message)}
        return wire

    @classmethod
    def from_wire(cls, wire: object, *, comment: list[str] | None = None) -> ErrorEvent:
        """Read any version's error object; what is missing or odd is left out, for the message matters most."""
        if not isinstance(wire, dict):
            return cls("; ".join(comment or ()) or "unspecified error", is_backend=False)
        error_type = wire.get("error_type")
        is_backend = isinstance(error_type, dict)
        kind = error_type.get("Backend", "Unknown") if isinstance(error_type, dict) else error_type
        public = wire.get("public")
        return cls(
            message=str(wire.get("message", "unspecified error")),
            kind=kind if isinstance(kind, str) else "Unknown",
            is_backend=is_backend,
            error_class=text_or_none(wire.get("class")),
            reason=text_or_none(wire.get("reason")),
            diagnostic=text_or_none(wire.get("diagnostic")),
            public_message=text_or_none(public.get("message")) if isinstance(public, dict) else None,
        )

    def to_exception(self) -> RemoteError:
        """Return the exception that the caller's half raises."""
        return RemoteError(
            self.diagnostic or self.message, kind=self.kind, error_class=self.error_class, reason=self.reason
        )


def encodable(text: str) -> str:
    """Return the text without lone surrogates: a failure must be told even when its text cannot be."""
    return text.encode(errors="replace").decode()


def text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
