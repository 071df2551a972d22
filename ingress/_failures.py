"""How failures reach the caller: an engine's exception as an error event, a refusal as an ack text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeGuard, TypeVar

import trio

from ._signals import is_ctrl_c
from ._text import printable, quoted, safe_str
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

# Of a group of exceptions the caller and the log are told so many, and so many characters of each.
_MEMBERS_TOLD, _MEMBER_TEXT = 3, 100

# In this order: ConnectionRefusedError is a ConnectionError, and TimeoutError an OSError (docs/wire.md §4).
_KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((ValueError, TypeError), "InvalidArgument"),
    ((TimeoutError, trio.TooSlowError), "ConnectionTimeout"),
    ((ConnectionRefusedError,), "CannotConnect"),
    ((ConnectionError,), "Disconnected"),
    ((asyncio.CancelledError,), "Cancelled"),
)

ExceptionT = TypeVar("ExceptionT", bound=BaseException)

# What a class says of itself may be anything, and may raise.
_NAME_OF_CLASS = vars(type)["__name__"].__get__
_TRACEBACK_OF: Callable[[BaseException], TracebackType | None] = vars(BaseException)["__traceback__"].__get__
_members_of: Callable[[BaseException], tuple[BaseException, ...]] = vars(BaseExceptionGroup)["exceptions"].__get__


def is_a(exc: BaseException, kind: type[ExceptionT]) -> TypeGuard[ExceptionT]:
    """Tell what an exception is, which it has no say in; ``isinstance`` asks its ``__class__`` too."""
    return issubclass(type(exc), kind)


def is_cancellation(exc: BaseException) -> bool:
    """Tell whether a cancel scope had a hand in it.

    Whatever else an engine raises ends its own request and nothing else, a KeyboardInterrupt too: request tasks are
    protected from real ones, so it is the engine's own.
    """
    return any(is_a(each, trio.Cancelled) for each in leaves_of(exc))


def leaves_of(exc: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group that are no groups, or the one itself; each once.

    Groups may share members, and then be trees of any size, nest by the thousand, and say anything of themselves.
    """
    if not is_a(exc, BaseExceptionGroup):
        yield exc
        return
    seen, waiting = {id(exc)}, [exc]
    while waiting:
        for member in _members_of(waiting.pop()):
            if id(member) not in seen:
                seen.add(id(member))
                if is_a(member, BaseExceptionGroup):
                    waiting.append(member)
                else:
                    yield member


def must_pass(exc: BaseException) -> bool:
    """Tell whether an exception is for those outside: a cancellation, or Ctrl-C itself. No wall may keep it.

    Everything else may be a plug-in's; what a panic in Rust raises, for one, is no Exception.
    """
    return is_cancellation(exc) or is_ctrl_c(exc)


def error_event_of(failure: BaseException) -> ErrorEvent:
    """Map what an engine raised to the error event a 1.6.1 worker would send (docs/wire.md §4)."""
    failure = sole_exception(failure)
    if is_a(failure, GeneratorExit):
        return ErrorEvent.of_kind("EngineShutdown", "engine shutting down")
    if is_a(failure, Overloaded):
        return ErrorEvent.overloaded(text_of(failure))
    if is_a(failure, IngressError):
        # Named exceptions carry their text without a type prefix; only an InvalidArgument is meant for the end user.
        kind = failure.backend_kind
        return ErrorEvent.of_kind(kind, text_of(failure), is_public=kind == "InvalidArgument")
    kind = next((kind for types, kind in _KINDS if issubclass(type(failure), types)), "Unknown")
    return ErrorEvent.of_kind(kind, _told(failure))


def sole_exception(failure: BaseException) -> BaseException:
    """Return what was raised, out of the groups that nurseries have put round it and nothing else."""
    while is_a(failure, BaseExceptionGroup) and len(members := _members_of(failure)) == 1:
        failure = members[0]
    return failure


def class_name(failure: BaseException) -> str:
    """Return the name that the exception's class has, whatever its metaclass says of it: that may raise, too."""
    return printable(_NAME_OF_CLASS(type(failure)), 100)


def text_of(failure: BaseException) -> str:
    """The exception's own text, fit for any codec: of bounded length, and without lone surrogates."""
    text = safe_str(failure)
    if len(text) > MAX_ERROR_TEXT:
        text = f"{text[:MAX_ERROR_TEXT]}…({len(text)} characters)"
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def describe_failure(failure: BaseException) -> str:
    """Return one line for the log: type, text, and the line of code that raised it."""
    failure = sole_exception(failure)
    place = ""
    # Walked by hand: traceback.extract_tb reads source files, on the event loop, once a failure.
    if (traceback := _TRACEBACK_OF(failure)) is not None:
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        code = traceback.tb_frame.f_code
        place = f" ({code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno} in {code.co_name})"
    return quoted(_told(failure), 500) + place


def _told(failure: BaseException) -> str:
    """Return type and text, and of a group those of the first in it."""
    told = f"{class_name(failure)}: {text_of(failure)}"
    if not is_a(failure, BaseExceptionGroup):
        return told
    members = [sole_exception(each) for each in _members_of(failure)[:_MEMBERS_TOLD]]
    return f"{told}: " + "; ".join(f"{class_name(each)}: {text_of(each)[:_MEMBER_TEXT]}" for each in members)


def refusal_text(error: IngressError) -> str:
    """Return the ack text that refuses a push: one of those that callers understand (docs/wire.md §1)."""
    if isinstance(error, Overloaded):
        return f"{OVERLOADED_PREFIX}{text_of(error)}"
    if isinstance(error, UnsupportedTransport):
        return f"{UNAVAILABLE_PREFIX}{printable(text_of(error))}"
    if isinstance(error, DialBackRefused):
        # One fixed text: it tells nothing about the network behind the worker.
        return f"{UNAVAILABLE_PREFIX}dial-back address refused"
    if isinstance(error, PolicyFailed):
        return f"{UNAVAILABLE_PREFIX}admission policy failed"
    if isinstance(error, TokenRefused):
        return f"{UNAVAILABLE_PREFIX}request token refused"
    if isinstance(error, Unavailable | MessageTooLarge):
        return f"{UNAVAILABLE_PREFIX}{text_of(error)}"
    return f"{UNAVAILABLE_PREFIX}unreadable control message"
