"""How failures reach the caller: an engine's exception as an error event, a refusal as an ack text."""

from __future__ import annotations

import asyncio

import trio

from ._signals import is_ctrl_c
from ._text import printable, quoted
from .errors import (
    DialBackRefused,
    IngressError,
    MessageTooLarge,
    Overloaded,
    PolicyFailed,
    TokenRefused,
    Unavailable,
    UnsupportedTransport,
)
from .wire.messages import ErrorEvent
from .wire.request_frame import OVERLOADED_PREFIX, UNAVAILABLE_PREFIX

# The text of an engine's exception may hold a whole prompt; what callers show and log of it is its beginning.
MAX_ERROR_TEXT = 16 * 1024

# In this order: ConnectionRefusedError is a ConnectionError, and TimeoutError an OSError (docs/wire.md §4).
_KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((ValueError, TypeError), "InvalidArgument"),
    ((TimeoutError, trio.TooSlowError), "ConnectionTimeout"),
    ((ConnectionRefusedError,), "CannotConnect"),
    ((ConnectionError,), "Disconnected"),
    ((asyncio.CancelledError,), "Cancelled"),
)

_NAME_OF_CLASS = vars(type)["__name__"].__get__


def is_cancellation(exc: BaseException) -> bool:
    """Tell whether a cancel scope had a hand in it.

    Whatever else an engine raises ends its own request and nothing else, a KeyboardInterrupt too: request tasks are
    protected from real ones, so it is the engine's own.
    """
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(trio.Cancelled) is not None
    return isinstance(exc, trio.Cancelled)


def must_pass(exc: BaseException) -> bool:
    """Tell whether an exception is for those outside: a cancellation, or Ctrl-C itself. No wall may keep it.

    Everything else may be a plug-in's; what a panic in Rust raises, for one, is no Exception.
    """
    return is_cancellation(exc) or is_ctrl_c(exc)


def error_event_of(failure: BaseException) -> ErrorEvent:
    """Map what an engine raised to the error event a 1.6.1 worker would send (docs/wire.md §4)."""
    if isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        return error_event_of(failure.exceptions[0])
    if isinstance(failure, GeneratorExit):
        return ErrorEvent.of_kind("EngineShutdown", "engine shutting down")
    if isinstance(failure, Overloaded):
        return ErrorEvent.overloaded(text_of(failure))
    if isinstance(failure, IngressError):
        # Named exceptions carry their text without a type prefix; only an InvalidArgument is meant for the end user.
        kind = failure.backend_kind
        return ErrorEvent.of_kind(kind, text_of(failure), is_public=kind == "InvalidArgument")
    kind = next((kind for types, kind in _KINDS if isinstance(failure, types)), "Unknown")
    return ErrorEvent.of_kind(kind, f"{class_name(failure)}: {text_of(failure)}")


def class_name(failure: BaseException) -> str:
    """Return the name that the exception's class has, whatever its metaclass says of it: that may raise, too."""
    return printable(_NAME_OF_CLASS(type(failure)), 100)


def text_of(failure: BaseException) -> str:
    """The exception's own text, fit for any codec: of bounded length, and without lone surrogates."""
    try:
        text = str(failure)
    except BaseException:  # an exception class of the engine whose __str__ fails must not cost the caller its answer
        text = "(its text cannot be shown)"
    if len(text) > MAX_ERROR_TEXT:
        text = f"{text[:MAX_ERROR_TEXT]}…({len(text)} characters)"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def describe_failure(failure: BaseException) -> str:
    """Return one line for the log: type, text, and the line of code that raised it."""
    place = ""
    # Walked by hand: traceback.extract_tb reads source files, on the event loop, once a failure.
    if (traceback := failure.__traceback__) is not None:
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        code = traceback.tb_frame.f_code
        place = f" ({code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno} in {code.co_name})"
    return quoted(f"{class_name(failure)}: {text_of(failure)}", 500) + place


def refusal_text(error: IngressError) -> str:
    """Return the ack text that refuses a push: one of those that callers understand (docs/wire.md §1)."""
    if isinstance(error, Overloaded):
        return f"{OVERLOADED_PREFIX}{error}"
    if isinstance(error, UnsupportedTransport):
        return f"{UNAVAILABLE_PREFIX}response transport {printable(error, 40)} is not supported"
    if isinstance(error, DialBackRefused):
        # One fixed text: it tells nothing about the network behind the worker.
        return f"{UNAVAILABLE_PREFIX}dial-back address refused"
    if isinstance(error, PolicyFailed):
        return f"{UNAVAILABLE_PREFIX}admission policy failed"
    if isinstance(error, TokenRefused):
        return f"{UNAVAILABLE_PREFIX}request token refused"
    if isinstance(error, Unavailable | MessageTooLarge):
        return f"{UNAVAILABLE_PREFIX}{error}"
    return f"{UNAVAILABLE_PREFIX}unreadable control message"
