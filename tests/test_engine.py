"""What may be an engine, how it is called, and how one that does not let go is ended."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import Context, Engine, make_worker
from ingress._engine import make_engine
from ingress.discovery import MemoryDiscovery
from ingress.errors import StartupError

from .raw_caller import open_stage


@attrs.frozen
class Turn:
    role: str
    n: int = attrs.field(default=1, validator=attrs.validators.ge(0))


@attrs.frozen
class Chat:
    model: str
    turns: list[Turn]


# -- the forms -------------------------------------------------------------------------------------------------------


async def async_generator(request: Any) -> AsyncIterator[Any]:
    yield ["got", request]


async def async_generator_with_context(request: Any, context: Context) -> AsyncIterator[Any]:
    yield [context.id, request]


async def coroutine(request: Any) -> Any:
    return ["got", request]


async def coroutine_with_context(req: Any, ctx: Context) -> Any:
    return [ctx.id, req]


async def coroutine_that_returns_a_stream(request: Any) -> Any:
    return async_generator(request)


def sync_generator(request: Any) -> Iterator[Any]:
    assert threading.current_thread() is not threading.main_thread()
    yield ["got", request]


def sync_generator_with_context(request: Any, context: Context) -> Iterator[Any]:
    yield [context.id, request]


def plain_function(request: Any) -> Any:
    assert threading.current_thread() is not threading.main_thread()
    return ["got", request]


def plain_function_with_context(request: Any, context: Context) -> Any:
    return [context.id, request]


class Subclass(Engine):
    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id, request]


class SubclassWithoutContext(Engine):
    async def generate(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield ["got", request]


class SubclassThatDelegates(Engine):
    def generate(self, request: Any, context: Context) -> AsyncIterable[Any]:
        return async_generator(request)


class Callable_:  # noqa: N801
    async def __call__(self, request: Any) -> AsyncIterator[Any]:
        yield ["got", request]

    async def method(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id, request]


class Iterable:
    """An async iterable that is no generator."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop()


class SubclassWithIterable(Engine):
    def generate(self, request: Any, context: Context) -> AsyncIterable[Any]:
        return Iterable([["got", request]])


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of the common kind."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


async def with_settings(settings: Any, request: Any) -> AsyncIterator[Any]:
    yield ["got", request]


async def with_an_option(request: Any, limit: int = 10) -> AsyncIterator[Any]:
    assert limit == 10
    yield ["got", request]


async def with_an_optional_context(request: Any, context: Context | None = None) -> AsyncIterator[Any]:
    assert context is not None
    yield [context.id, request]


async def with_anything(*arguments: Any) -> AsyncIterator[Any]:
    yield [arguments[1].id, arguments[0]]


FORMS = [
    async_generator,
    async_generator_with_context,
    coroutine,
    coroutine_with_context,
    coroutine_that_returns_a_stream,
    sync_generator,
    sync_generator_with_context,
    plain_function,
    plain_function_with_context,
    Subclass,
    Subclass(),
    SubclassWithoutContext(),
    SubclassThatDelegates(),
    SubclassWithIterable(),
    Callable_(),
    Callable_().method,
    lambda request: ["got", request],
    logged(async_generator),
    logged(coroutine),
    logged(sync_generator),
    logged(plain_function),
    functools.partial(with_settings, {"model": "x"}),
    functools.partial(functools.partial(with_settings), 1),
    functools.partial(logged(with_settings), 1),
    with_an_option,
    with_an_optional_context,
    with_anything,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: repr(make_engine(form))[:60])
async def test_every_form_of_engine_answers(form: Any) -> None:
    async with open_stage(form) as stage:
        said = await stage.tell(5, request_id="r")
        assert said.errors == []
        assert said.items in ([["got", 5]], [["r", 5]])


def no_parameter() -> None: ...
def three_parameters(a: Any, b: Any, c: Any) -> None: ...
def keyword_needed(request: Any, *, model: str) -> None: ...


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (no_parameter, r"test_engine.py:\d+ no_parameter\(\).*add a parameter for the request"),
        (three_parameters, r"three_parameters\(.*has 3 → remove 'c'"),
        (keyword_needed, r"remove 'model'"),
        (5, "5 is no engine"),
    ],
)
async def test_what_can_be_no_engine_is_refused_at_start_and_says_where_it_stands(target: Any, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        make_worker(target, discovery=MemoryDiscovery())


# -- typed requests --------------------------------------------------------------------------------------------------


async def typed(request: Chat) -> AsyncIterator[Any]:
    yield request  # attrs objects may be yielded


def typed_sync(request: Chat, context: Context) -> Iterator[Any]:
    yield request.turns


class TypedEngine(Engine):
    async def generate(self, request: Chat, context: Context) -> AsyncIterator[Any]:
        yield request


class TypedCallable:
    async def __call__(self, request: Chat) -> Any:
        return request


BODY = {"model": "m", "turns": [{"role": "user", "n": 2}]}


@pytest.mark.parametrize("engine", [typed, TypedEngine(), TypedCallable(), functools.partial(typed), logged(typed)])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_an_annotated_request_is_structured_and_attrs_objects_may_be_yielded(engine: Any, codec: Any) -> None:
    async with open_stage(engine) as stage:
        assert (await stage.tell(BODY, codec=codec)).items == [BODY]


async def test_an_annotated_request_is_structured_for_a_sync_engine() -> None:
    async with open_stage(typed_sync) as stage:
        assert (await stage.tell(BODY)).items == [BODY["turns"]]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"model": "m"}, "request.turns"),
        ({"model": "m", "turns": [{"role": "u"}, {"role": "u", "n": "many"}]}, "request.turns[1].n"),
        ({"model": "m", "turns": [{}]}, "request.turns[0].role"),
        ({"model": "m", "turns": [{"role": "u", "n": -1}]}, "request.turns[0]"),
        ({"model": "m", "turns": 7}, "request.turns"),
        ([1], "request"),
        (None, "request"),
        ("text", "request"),
    ],
)
async def test_a_misfit_goes_home_as_invalid_argument_naming_the_path(body: Any, path: str) -> None:
    async with open_stage(typed) as stage:
        said = await stage.tell(body)
        assert said.is_whole
        (error,) = said.errors
        assert error.kind == "InvalidArgument"
        assert path in error.message
        assert error.public_message == error.message


# -- the life of an engine -------------------------------------------------------------------------------------------


async def test_an_engine_object_lives_once_however_many_endpoints_it_serves() -> None:
    events: list[str] = []

    class Loaded(Engine):
        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            yield list(events)

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            events.append("loaded")
            yield
            events.append("released")

    engine = Loaded()
    async with open_stage({"demo.backend.a": engine, "demo.backend.b": engine}) as stage:
        assert (await stage.tell()).items == [["loaded"]]
    assert events == ["loaded", "released"]


async def test_an_engine_that_awaits_something_of_asyncio_is_told_so() -> None:
    import asyncio

    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        await asyncio.sleep(0)
        yield 2

    async with open_stage(engine) as stage:
        said = await stage.tell()
        assert said.is_whole and said.items == [1] and len(said.errors) == 1
        await wait_all_tasks_blocked()


# -- how it runs -----------------------------------------------------------------------------------------------------

variable = contextvars.ContextVar("variable", default=0)


async def _sleeps(request: Any) -> AsyncIterator[Any]:
    await trio.sleep(1)
    yield trio.current_time()


async def _has_scopes_and_nurseries(request: Any) -> AsyncIterator[Any]:
    with trio.move_on_after(1) as scope:
        await trio.sleep_forever()
    yield scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 2)
    try:
        with trio.fail_after(1):
            await trio.sleep_forever()
    except trio.TooSlowError:
        yield "too slow"


async def _keeps_context_variables(request: Any) -> AsyncIterator[Any]:
    variable.set(7)
    yield variable.get()
    await trio.lowlevel.checkpoint()
    yield variable.get()


async def _delegates(request: Any) -> AsyncIterator[Any]:
    async for item in _sleeps(0):
        yield item
    async for item in async_generator(5):
        yield item


@pytest.mark.parametrize(
    ("engine", "items"),
    [
        (_sleeps, [1.0]),
        (_has_scopes_and_nurseries, [True, "too slow"]),
        (_keeps_context_variables, [7, 7]),
        (_delegates, [1.0, ["got", 5]]),
    ],
)
async def test_an_engine_runs_as_if_it_were_iterated(engine: Any, items: list[Any], autojump_clock: MockClock) -> None:
    async with open_stage(engine) as stage:
        assert (await stage.tell()).items == items
