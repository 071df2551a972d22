"""Functions become engines: arity and kind are looked at once, at start, never per request.

Accepted are async generator functions, plain async functions (one answer), sync generator functions and plain
functions (in a worker thread), each with ``(request)`` or ``(request, context)`` under any names, and
:class:`~ingress.abc.Engine` objects. A request parameter annotated with an attrs class is structured by cattrs.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import attrs

from ._failures import describe_failure, must_pass
from ._text import printable
from ._threads import iterate_in_thread
from ._typed import Typed, is_small, make_in_turn
from .abc import Context, Engine
from .errors import GenerateError, StartupError
from .wire.records import EndpointId

FunctionT = TypeVar("FunctionT", bound=Callable[..., AsyncIterable[Any]])

_MARK = "__ingress_bidirectional__"


def make_engine(target: object) -> CheckedEngine:
    """Return an engine for a function, an Engine object, an Engine class without arguments, or several of them.

    Several serve one endpoint side by side: a unary and a bidirectional one.

    Raises:
        StartupError: it can be no engine; the text says where it stands and how to mend it.
    """
    if isinstance(target, (list, tuple)) and target:
        return functools.reduce(CheckedEngine.joined_with, map(_checked, target))
    return _checked(target)


def bidirectional(function: FunctionT) -> FunctionT:
    """Mark a function as bidirectional: it takes ``(requests)`` or ``(requests, context)``, requests being iterable.

    ::

        @ingress.bidirectional
        async def echo(requests):
            async for request in requests:
                yield request
    """
    if not inspect.isasyncgenfunction(inspect.unwrap(_called(function))):
        raise StartupError(f"{_describe(function)}: a bidirectional engine must be an async generator function")
    try:
        setattr(function, _MARK, True)
    except AttributeError:  # bound methods do not
        return bidirectional(functools.partial(function))  # type: ignore[return-value]  # called just the same
    return function


def _is_bidirectional(target: Callable[..., Any]) -> bool:
    """Tell whether it carries the mark, or a partial's function or an object's ``__call__`` does."""
    while isinstance(target, functools.partial) and not hasattr(target, _MARK):
        target = target.func
    return any(getattr(candidate, _MARK, False) is True for candidate in (target, _called(target)))


def _checked(target: object) -> CheckedEngine:
    if isinstance(target, CheckedEngine):
        return target
    if isinstance(target, type) and issubclass(target, Engine):
        target = target()
    if isinstance(target, Engine):
        if not (target.is_unary or target.is_bidirectional):
            raise StartupError(f"{type(target).__qualname__} must implement generate or generate_bidirectional")
        return CheckedEngine(
            unary=_Call(target.generate) if target.is_unary else None,
            bidirectional=_Call(target.generate_bidirectional) if target.is_bidirectional else None,
            owners=[target],
        )
    if not callable(target):
        raise StartupError(f"{target!r} is no engine: expected a function, an async generator or an ingress.Engine")
    if _is_bidirectional(target):
        return CheckedEngine(bidirectional=_Call(target))
    return CheckedEngine(unary=_Call(target))


def as_async_generator(chunks: object) -> types.AsyncGeneratorType[Any, None]:
    """Return what the pump can step: an async generator is taken as it is, any other async iterable is wrapped.

    Raises:
        GenerateError: it cannot be iterated asynchronously.
    """
    if isinstance(chunks, types.AsyncGeneratorType):
        return chunks
    if not isinstance(chunks, AsyncIterable):
        if inspect.iscoroutine(chunks):
            chunks.close()
        raise GenerateError(f"engine returned {type(chunks).__name__}, expected an async iterable of chunks")
    iterating = _iterate(chunks)
    assert isinstance(iterating, types.AsyncGeneratorType)  # noqa: S101 - for the type checker; it is written so below
    return iterating


async def _iterate(chunks: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    iterator = aiter(chunks)
    try:
        async for chunk in iterator:
            yield chunk
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def trouble_of(engine: Engine) -> str | None:
    """Ask an engine for its trouble; one that fails to say has some."""
    try:
        trouble = engine.trouble()
        return None if trouble is None else printable(trouble, 600)
    except BaseException as exc:
        if must_pass(exc):
            raise
        return f"trouble of {type(engine).__qualname__} cannot be told: {describe_failure(exc)}"


def owners_by_name(engines: Mapping[EndpointId, CheckedEngine]) -> dict[str, Engine]:
    """Name each :class:`Engine` object after the first endpoint it serves: it has one life, however many there are."""
    named: dict[int, tuple[str, Engine]] = {}
    for endpoint_id, engine in engines.items():
        for number, owner in enumerate(engine.owners, start=1):
            which = "engine" if number == 1 else f"engine {number}"
            named.setdefault(id(owner), (f"{which} of {endpoint_id}", owner))
    return dict(named.values())


class _Call:
    """One function of an engine, and how it wants to be called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._takes_context = _takes_context(function)
        self._typed = _typed_for(function)
        self._starter = _starter(function)

    def __call__(self, request: Any, context: Context) -> AsyncIterable[Any]:
        if self._typed is None:
            return self._start(request, context)
        if is_small(request):
            return self._start(self._typed.structure(request), context)
        return self._start_typed(self._typed, request, context)

    def _start(self, request: Any, context: Context) -> AsyncIterable[Any]:
        return self._starter(request, context) if self._takes_context else self._starter(request)

    async def _start_typed(self, typed: Typed[Any], request: Any, context: Context) -> AsyncIterator[Any]:
        request = await make_in_turn(partial(typed.structure, request), request)
        async with aclosing(as_async_generator(self._start(request, context))) as chunks:
            async for chunk in chunks:
                yield chunk


class CheckedEngine(Engine):
    """An engine whose functions have been looked at; those of an :class:`Engine` object with its life cycle."""

    def __init__(
        self, *, unary: _Call | None = None, bidirectional: _Call | None = None, owners: Sequence[Engine] = ()
    ) -> None:
        self._unary = unary
        self._bidirectional = bidirectional
        self.owners = owners
        """The Engine objects whose life cycle this one has."""

    def __repr__(self) -> str:
        calls = [_describe(call.function) for call in (self._unary, self._bidirectional) if call is not None]
        return f"<engine {' and '.join(calls)}>"

    @property
    def is_unary(self) -> bool:
        return self._unary is not None

    @property
    def is_bidirectional(self) -> bool:
        return self._bidirectional is not None

    def generate(self, request: Any, context: Context) -> AsyncIterable[Any]:
        return self._unary(request, context) if self._unary is not None else super().generate(request, context)

    def generate_bidirectional(self, requests: AsyncIterable[Any], context: Context) -> AsyncIterable[Any]:
        if self._bidirectional is None:
            return super().generate_bidirectional(requests, context)
        return self._bidirectional(requests, context)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for owner in self.owners:
                await stack.enter_async_context(owner.lifespan())
            yield

    def trouble(self) -> str | None:
        return next((trouble for owner in self.owners if (trouble := trouble_of(owner)) is not None), None)

    def answering_with(self, generate: Callable[..., AsyncIterable[Any]]) -> CheckedEngine:
        """Return this engine, life cycle and all, with another function for its unary requests."""
        return CheckedEngine(unary=_Call(generate), bidirectional=self._bidirectional, owners=self.owners)

    def joined_with(self, other: CheckedEngine) -> CheckedEngine:
        """Return one engine that offers what both do.

        Raises:
            StartupError: both offer the same.
        """
        for mine, theirs in ((self._unary, other._unary), (self._bidirectional, other._bidirectional)):
            if mine is not None and theirs is not None:
                raise StartupError(
                    f"{_describe(mine.function)} and {_describe(theirs.function)} would answer the same requests"
                )
        return CheckedEngine(
            unary=self._unary or other._unary,
            bidirectional=self._bidirectional or other._bidirectional,
            owners=[*self.owners, *other.owners],
        )


def _starter(function: Callable[..., Any]) -> Callable[..., AsyncIterable[Any]]:
    """Return how the function is called so that an async iterable comes out, by its kind."""
    called = _called(function)
    # A decorator's wrapper returns what it wraps: functools.wraps tells what that is.
    for candidate in (called, inspect.unwrap(called)):
        if inspect.isasyncgenfunction(candidate):
            return function
        if inspect.iscoroutinefunction(candidate):
            return lambda *arguments: _one_answer(function, arguments)
    if inspect.isgeneratorfunction(called) or inspect.isgeneratorfunction(inspect.unwrap(called)):
        return lambda *arguments: iterate_in_thread(lambda: function(*arguments))
    if isinstance(getattr(called, "__self__", None), Engine):
        return function  # a method that returns an iterable made elsewhere
    return lambda *arguments: iterate_in_thread(lambda: iter((function(*arguments),)))


def _called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: inside a partial, or behind the ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function):
        return function
    called: Callable[..., Any] = getattr(function, "__call__", function)  # noqa: B004 - the bound method is wanted
    return called


async def _one_answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> AsyncIterator[Any]:
    answer = await function(*arguments)
    if not isinstance(answer, AsyncIterable):
        yield answer
        return
    async with aclosing(as_async_generator(answer)) as chunks:
        async for chunk in chunks:
            yield chunk


def _takes_context(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as exc:
        raise StartupError(f"{_describe(function)}: its signature cannot be read: {exc}") from exc
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    required = [p for p in positional if p.default is p.empty]
    required_keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not positional or len(required) > 2 or required_keywords:
        surplus = [p.name for p in (required[2:] + required_keywords)]
        remedy = f"remove {', '.join(map(repr, surplus))}" if surplus else "add a parameter for the request"
        raise StartupError(
            f"{_describe(function)}: needs 1 or 2 arguments (request, context), "
            f"has {len(required) + len(required_keywords)} → {remedy}"
        )
    # A second parameter with a value of its own is the author's, and no place for a context.
    return len(positional) >= 2 and positional[1].default in (inspect.Parameter.empty, None)


def _describe(function: Callable[..., Any]) -> str:
    """``file.py:7 generate(request, ctx)``, as far as it can be known."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):
        signature = "(…)"
    code = getattr(inspect.unwrap(function), "__code__", None)
    place = f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_firstlineno} " if code is not None else ""
    return f"{place}{name}{signature}"


def _typed_for(function: Callable[..., Any]) -> Typed[Any] | None:
    """Return what makes the annotated attrs class of a request, or None where there is no such annotation."""
    try:
        hints = typing.get_type_hints(_called(function))
        names = list(inspect.signature(function).parameters)
    except Exception:  # an annotation that cannot be evaluated is the author's own business
        return None
    wanted = hints.get(names[0]) if names else None
    return Typed(wanted) if isinstance(wanted, type) and attrs.has(wanted) else None
