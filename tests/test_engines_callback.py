"""Libraries that call back from threads of their own."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

import ingress
from engines import callback
from engines.callback import CallbackEngine, Sink
from ingress import Context
from ingress.errors import StartupError
from ingress.testing import check_engine, memory_worker
from ingress.wire.messages import ControlWord

from .raw_caller import open_stage, slow_network

ENDPOINT = "demo.backend.generate"


class Library:
    """Works in threads of its own and calls back, as they all do."""

    def __init__(self) -> None:
        self.made = 0
        self.ended = threading.Event()

    def submit(
        self,
        count: int,
        on_chunk: Callable[[Any], bool],
        on_done: Callable[[], None],
        *,
        make: Callable[[int], Any] = lambda i: i,
        heeds_answers: bool = True,
        delay: float = 0.0,
    ) -> Callable[[], None]:
        is_cancelled, steps = threading.Event(), range(count)

        def work() -> None:
            for i in steps:
                if is_cancelled.wait(delay) if delay else is_cancelled.is_set():
                    break
                self.made += 1
                if not on_chunk(make(i)) and heeds_answers:
                    break
            on_done()
            self.ended.set()

        threading.Thread(target=work, daemon=True).start()
        return is_cancelled.set

    async def wait_ended(self) -> bool:
        return await trio.to_thread.run_sync(self.ended.wait, 5)


def submits(request: Any, context: Context, sink: Sink) -> Callable[[], None]:
    return Library().submit(request["n"], sink.chunk, sink.done, delay=0.001)


def blocks(request: Any, context: Context, sink: Sink) -> None:
    for i in range(request["n"]):
        if not sink.chunk({"i": i}):
            return
    sink.done()


@pytest.mark.parametrize("start", [submits, blocks])
def test_a_callback_engine_behaves(start: Any) -> None:
    check_engine(CallbackEngine(start), [{"n": 20}, {"n": 3}], examples=15)


async def collect(engine: Any, request: Any = None) -> list[Any]:
    async with memory_worker(engine) as client, client.stream(ENDPOINT, request) as responses:
        return [item async for item in responses]


async def test_everything_comes_in_order_and_whole() -> None:
    for count in (0, 1, 5000):
        assert await collect(CallbackEngine(blocks), {"n": count}) == [{"i": i} for i in range(count)]


@pytest.mark.parametrize("error", ["out of memory", RuntimeError("out of memory")])
async def test_an_error_goes_home_after_what_was_delivered(error: Any) -> None:
    def fails(request: Any, context: Context, sink: Sink) -> None:
        sink.chunk(1)
        sink.error(error)
        sink.done()  # the first word counts

    async with open_stage(CallbackEngine(fails)) as stage:
        transcript = await stage.tell()
    assert transcript.items == [1] and "out of memory" in transcript.errors[0].message


async def test_a_start_function_that_raises_fails_its_request() -> None:
    def fails(request: Any, context: Context, sink: Sink) -> None:
        raise ingress.InvalidArgument("no prompt")

    async with open_stage(CallbackEngine(fails)) as stage:
        assert (await stage.tell()).errors[0].kind == "InvalidArgument"


async def test_a_library_that_forgets_a_request_is_found_out() -> None:
    def forgets(request: Any, context: Context, sink: Sink) -> None:
        sink.chunk(1)

    async with open_stage(CallbackEngine(forgets)) as stage:
        transcript = await stage.tell()
        gc.collect()
    assert transcript.items == [1]
    assert "dropped the request without calling done or error" in transcript.errors[0].message


async def test_a_slow_caller_holds_the_library_back() -> None:
    library = Library()

    def floods(request: Any, context: Context, sink: Sink) -> Callable[[], None]:
        return library.submit(10_000, sink.chunk, sink.done, make=lambda i: "x" * 10_000)

    async with open_stage(CallbackEngine(floods), network=slow_network()) as stage:
        response = await stage.call()
        for _ in range(20):
            await trio.sleep(0.005)
        assert 20 < library.made < 80
        await response.send_word(ControlWord.STOP)
        assert await library.wait_ended()


async def test_a_library_that_may_not_be_held_loses_its_slow_caller() -> None:
    refused = threading.Event()

    def floods(request: Any, context: Context, sink: Sink) -> None:
        try:
            for i in range(10_000):
                sink.chunk_nowait(f"{i}" + "x" * 10_000)
        except ingress.IngressError:
            refused.set()

    async with open_stage(CallbackEngine(floods), network=slow_network()) as stage:
        await stage.call()
        assert await trio.to_thread.run_sync(refused.wait, 5)


async def test_a_stop_cancels_the_request_in_the_library() -> None:
    library = Library()

    def submits_slowly(request: Any, context: Context, sink: Sink) -> Callable[[], None]:
        sink.chunk("first")
        return library.submit(2, sink.chunk, sink.done, delay=3600)

    async with open_stage(CallbackEngine(submits_slowly)) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        assert await library.wait_ended()
        assert library.made == 0


async def test_without_a_cancel_the_thread_sees_it() -> None:
    seen = threading.Event()

    def looks(request: Any, context: Context, sink: Sink) -> None:
        sink.chunk(1)
        while not (context.is_stopped and not sink.is_wanted):
            time.sleep(0.001)
        seen.set()

    async with open_stage(CallbackEngine(looks)) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        assert await trio.to_thread.run_sync(seen.wait, 5)


async def test_a_library_that_does_not_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callback, "CANCEL_TIMEOUT", 0.05)
    kept = []

    def never_ends(request: Any, context: Context, sink: Sink) -> Callable[[], None]:
        kept.append(sink)
        sink.chunk(1)
        return lambda: None

    async with open_stage(CallbackEngine(never_ends)) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.KILL)
        with trio.fail_after(5):
            while "left behind" not in caplog.text:
                await trio.sleep(0.01)


async def submits_async(request: Any, context: Context, sink: Sink) -> None: ...


@pytest.mark.parametrize(
    "start",
    [submits_async, lambda request: None, lambda request, context, sink, more: None, 3],
    ids=["async", "one argument", "four arguments", "no function"],
)
def test_what_can_be_no_start_function_is_refused(start: Any) -> None:
    with pytest.raises(StartupError, match=r"expected def generate\(request, context, sink\)"):
        CallbackEngine(start)
