"""``check_engine``: engines that behave pass it, and engines that misbehave in one way fail it and are told how."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

import ingress
from engines.echo import echo
from engines.markov import markov
from ingress import Annotated, Context, Engine
from ingress.errors import StartupError
from ingress.testing import Outcome, PropertyFailed, check_engine

FEW = 8


def failure_of(engine: Any, requests: Any = ("x",), **options: Any) -> PropertyFailed:
    with pytest.raises(PropertyFailed) as caught:
        check_engine(engine, requests, **{"examples": FEW, **options})
    return caught.value


# -- engines that pass -----------------------------------------------------------------------------------------------


@attrs.frozen
class Prompt:
    text: str


async def typed(request: Prompt) -> AsyncIterator[str]:
    for word in request.text.split():
        await trio.sleep(30)  # time jumps
        yield word


async def one_answer(request: Any) -> Any:
    return {"length": len(request)}


def blocking(request: Any) -> Iterator[int]:
    for number in range(3):
        time.sleep(0.001)
        yield number


async def endless(request: Any) -> AsyncIterator[int]:
    while True:
        await trio.sleep(1)
        yield 1


async def hot(request: Any) -> AsyncIterator[int]:
    while True:
        yield 1


async def empty(request: Any) -> AsyncIterator[int]:
    return
    yield


async def in_a_thread(request: Any) -> AsyncIterator[int]:
    for number in range(2):
        await trio.to_thread.run_sync(time.sleep, 0.001)
        yield number


async def with_nursery(request: Any) -> AsyncIterator[int]:
    send, receive = trio.open_memory_channel[int](0)

    async def produce() -> None:
        async with send:
            for number in range(3):
                await trio.sleep(1)
                await send.send(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        async for number in receive:
            yield number


async def tidy(request: Any) -> AsyncIterator[int]:
    try:
        for number in range(3):
            await trio.sleep(1)
            yield number
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(4)


async def enveloped(request: Any) -> AsyncIterator[Annotated]:
    yield Annotated({"a": (1, 2)}, id="1", comment=["c"])


@ingress.bidirectional
async def both_ways(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        await trio.sleep(1)
        yield request


@pytest.mark.parametrize(
    "engine",
    [echo, markov, one_answer, blocking, in_a_thread, with_nursery, tidy, enveloped, both_ways, empty],
    ids=lambda engine: engine.__name__,
)
def test_an_engine_that_behaves_passes(engine: Any) -> None:
    check_engine(engine, ["x", "a b c"], examples=FEW)


@pytest.mark.parametrize("engine", [endless, hot])
def test_an_answer_without_an_end_is_asked_to_stop(engine: Any) -> None:
    check_engine(engine, ["x"], examples=FEW, max_chunks=10)


def test_a_typed_engine_and_one_of_two_kinds_pass() -> None:
    check_engine(typed, [{"text": "a b"}], examples=FEW)
    outcomes: list[Outcome] = []
    check_engine([echo, both_ways], ["x"], examples=FEW, on_outcome=outcomes.append)
    assert not [outcome for outcome in outcomes if outcome.failure]
    names = [outcome.name for outcome in outcomes]
    assert len(names) == 28 and names[14:] == [f"{name} (bidirectional)" for name in names[:14]]


def test_a_life_is_entered_once_for_all_properties() -> None:
    lives: list[str] = []

    class Loaded(Engine):
        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            assert lives == ["loaded"]
            yield request

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            lives.append("loaded")
            try:
                yield
            finally:
                lives.append("released")

    check_engine(Loaded(), ["x"], examples=FEW)
    assert lives == ["loaded", "released"]


def test_without_requests_one_that_it_answers_is_found() -> None:
    outcomes: list[Outcome] = []
    check_engine(typed, examples=FEW, on_outcome=outcomes.append)
    assert outcomes[0].name == "understands a plausible request"
    assert not [outcome for outcome in outcomes if outcome.failure]

    async def picky(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield request["secret"]

    error = failure_of(picky, None)
    assert error.property == "understands a plausible request"
    assert "requests=…" in error.expected and "KeyError: 'secret'" in error.got


# -- engines that do not ---------------------------------------------------------------------------------------------


async def raising(request: Any) -> AsyncIterator[Any]:
    yield 1
    raise ConnectionError("upstream is gone")


async def hanging(request: Any) -> AsyncIterator[Any]:
    yield 1
    await trio.sleep_forever()


async def deaf(request: Any) -> AsyncIterator[Any]:
    for number in range(5):
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        yield number


async def swallowing(request: Any) -> AsyncIterator[Any]:
    yield 0
    left = 3
    while left:
        try:
            await trio.sleep(1)
            left -= 1
        except trio.Cancelled:
            pass


async def bare(request: Any) -> AsyncIterator[Any]:
    yield 0
    left = 3
    while left:
        try:
            await trio.sleep(1)
            left -= 1
        except BaseException:
            pass


async def slow_to_go(request: Any) -> AsyncIterator[Any]:
    try:
        for number in range(3):
            await trio.sleep(1)
            yield number
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(8)


async def loud_cleanup(request: Any) -> AsyncIterator[Any]:
    try:
        yield 0
        yield 1
        yield 2
    except GeneratorExit:
        raise OSError("cannot let go") from None


async def undead(request: Any) -> AsyncIterator[Any]:
    while True:
        try:
            yield "x" * 400
        except GeneratorExit:
            yield "not yet"


async def number_keys(request: Any) -> AsyncIterator[Any]:
    yield {1: "one"}


async def raw_bytes(request: Any) -> AsyncIterator[Any]:
    yield {"image": b"\xff"}


async def not_a_number(request: Any) -> AsyncIterator[Any]:
    yield float("nan")


async def unserializable(request: Any) -> AsyncIterator[Any]:
    yield object()


shared: list[Any] = []


async def mixed_up(request: Any) -> AsyncIterator[Any]:
    shared.append(request)
    await trio.sleep(1)
    yield len(shared)
    shared.pop()


BROKEN: dict[Callable[..., Any], tuple[str, str, str]] = {
    raising: ("answers every request", "a whole answer to ['x']", "ConnectionError: upstream is gone"),
    hanging: ("answers every request", "more of the answer within 60 s", "1 chunks, no final frame, no sentinel"),
    unserializable: ("answers every request", "a whole answer", "cannot be serialized"),
    number_keys: ("its chunks are the same in every codec", "keys are text", "arrives as {'1': 'one'} in json"),
    raw_bytes: ("its chunks are the same in every codec", "bytes are for msgpack alone", "{'image': [255]} in json"),
    not_a_number: ("its chunks are the same in every codec", "numbers finite", "None in json, as nan in msgpack"),
    mixed_up: ("answers 100 at once", "the same answer as alone, [1]", "["),
    deaf: ("stops before its first chunk", "to end within 5 s when ended before its first chunk", "it took 10.0 s"),
    swallowing: ("stops between chunks", "the engine to end when ended between chunks", "it swallows trio.Cancelled"),
    slow_to_go: ("stops before its first chunk", "within 5 s", "it took 8.0 s"),
    loud_cleanup: ("a failure before its first chunk", "a quiet cleanup after a failure", "OSError: cannot let go"),
    undead: ("answers every request", "a quiet cleanup", "async generator ignored GeneratorExit"),
}


@pytest.mark.parametrize("engine", BROKEN, ids=lambda engine: engine.__name__)
def test_an_engine_that_misbehaves_is_told_how(engine: Callable[..., Any]) -> None:
    name, expected, got = BROKEN[engine]
    shared.clear()
    error = failure_of(engine)
    assert error.property.startswith(name), str(error)
    assert expected in error.expected and got in error.got, str(error)
    assert error.subject == engine.__name__


def test_an_engine_that_catches_everything_is_given_up_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in Python ends it: the check must, and does."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what is left of it complains when it is collected
    got = failure_of(bare).got
    caplog.clear()
    gc.collect()
    assert "swallows trio.Cancelled" in got


def test_chunks_may_be_for_one_codec_alone() -> None:
    check_engine(raw_bytes, ["x"], codecs=["msgpack"], examples=FEW)


def test_what_is_no_engine_is_refused_as_a_worker_refuses_it() -> None:
    with pytest.raises(StartupError, match="is no engine"):
        check_engine(3)  # type: ignore[arg-type]  # the wrong type is the test
