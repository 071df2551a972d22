"""Blocking engines in threads."""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import trio

from ingress import Context, _threads
from ingress._threads import MAX_AHEAD, iterate_in_thread
from ingress.wire.messages import ControlWord

from .raw_caller import open_stage, slow_network


async def collect(iterator: Any) -> list[Any]:
    return [item async for item in iterator]


async def test_everything_comes_in_order_and_the_end_is_the_end() -> None:
    for count in (0, 1, MAX_AHEAD, 5000):
        assert await collect(iterate_in_thread(functools.partial(iter, range(count)))) == list(range(count))


async def test_what_the_iterator_raises_comes_after_what_it_yielded() -> None:
    def engine() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("k")

    got = []
    with pytest.raises(KeyError, match="k"):
        async for item in iterate_in_thread(engine):
            got.append(item)
    assert got == [1, 2]


async def test_a_call_that_fails_raises_and_stop_iteration_is_no_end() -> None:
    def fail() -> Iterator[int]:
        raise StopIteration

    with pytest.raises(RuntimeError):
        await collect(iterate_in_thread(fail))


async def test_a_thread_runs_ahead_so_far_and_no_further() -> None:
    made = 0

    def engine() -> Iterator[int]:
        nonlocal made
        for i in range(10_000):
            made = i + 1
            yield i

    async with aclosing(iterate_in_thread(engine)) as chunks:  # type: ignore[type-var]
        assert await anext(chunks) == 0
        for _ in range(20):
            await trio.sleep(0.005)
        assert made <= MAX_AHEAD + 1
        assert [await anext(chunks) for _ in range(1000)] == list(range(1, 1001))


async def test_a_thread_that_is_left_stops_at_its_next_chunk_and_closes_its_generator() -> None:
    closed = threading.Event()

    def engine() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async with aclosing(iterate_in_thread(engine)) as chunks:  # type: ignore[type-var]
        await anext(chunks)
    assert await trio.to_thread.run_sync(closed.wait, 5)


async def test_a_thread_that_blocks_does_not_hold_back_whoever_leaves() -> None:
    go_on = threading.Event()

    def engine() -> Iterator[int]:
        go_on.wait(20)
        yield 1

    started = time.monotonic()
    with trio.move_on_after(0.05):
        await collect(iterate_in_thread(engine))
    assert time.monotonic() - started < 5
    go_on.set()


async def test_blocking_engines_are_bounded_in_number_and_give_their_places_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_threads, "MAX_THREADS", 3)
    running = highest = 0
    lock = threading.Lock()

    def engine() -> Iterator[int]:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        time.sleep(0.01)
        yield 1
        with lock:
            running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(collect, iterate_in_thread(engine))
    assert highest <= 3
    with trio.fail_after(5):
        while _threads._limiter().borrowed_tokens:
            await trio.sleep(0.005)


async def test_a_thread_that_cannot_be_started_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", fail)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await collect(iterate_in_thread(lambda: iter([1])))
    assert _threads._limiter().borrowed_tokens == 0


async def test_a_late_wake_up_of_the_last_nap_does_not_disturb_the_next() -> None:
    """The thread may read the event of a nap that begins after the one it was to end."""

    def engine() -> Iterator[int]:
        yield 1
        go_on.wait(20)
        yield 2

    go_on = threading.Event()
    async with aclosing(iterate_in_thread(engine)) as chunks:  # type: ignore[type-var]
        assert await anext(chunks) == 1
        handover = chunks.ag_frame.f_locals["running"]._handover  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:

            async def disturb() -> None:
                await trio.sleep(0.01)
                handover._wake()
                await trio.sleep(0.01)
                go_on.set()

            nursery.start_soon(disturb)
            assert await anext(chunks) == 2


async def test_d07_a_caller_that_does_not_read_holds_no_thread_and_gets_everything_later() -> None:
    """Two hundred and sixty had kept every blocking engine waiting for a minute."""
    seen = contextvars.ContextVar("seen", default=0)
    threads: set[int] = set()

    def engine() -> Iterator[int]:
        for number in range(1000):
            assert seen.get() == number, "what it has set is there in whichever thread"
            seen.set(number + 1)
            threads.add(threading.get_ident())
            yield number

    slow = [iterate_in_thread(engine) for _ in range(3)]
    for chunks in slow:
        assert await anext(chunks) == 0
    with trio.fail_after(20):
        while _threads._limiter().borrowed_tokens:
            await trio.sleep(0.001)
        assert await collect(iterate_in_thread(lambda: iter("abc"))) == ["a", "b", "c"]
        for chunks in slow:
            assert [number async for number in chunks] == list(range(1, 1000))
    assert _threads._limiter().borrowed_tokens == 0


async def test_what_is_left_while_it_holds_no_thread_is_closed_in_one() -> None:
    closed_in: list[int] = []

    def engine() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed_in.append(threading.get_ident())

    chunks = iterate_in_thread(engine)
    assert await anext(chunks) == 1
    with trio.fail_after(20):
        while _threads._limiter().borrowed_tokens:
            await trio.sleep(0.001)
        await aclosing(chunks).__aexit__(None, None, None)  # type: ignore[type-var]
        while not closed_in or _threads._limiter().borrowed_tokens:
            await trio.sleep(0.001)
    assert closed_in != [threading.get_ident()]


async def test_a_generator_that_fails_when_it_goes_on_says_so() -> None:
    def engine() -> Iterator[int]:
        yield from range(500)
        raise ValueError("later")

    chunks = iterate_in_thread(engine)
    assert await anext(chunks) == 0
    await trio.sleep(0.05)
    with pytest.raises(ValueError, match="later"):
        await collect(chunks)


async def test_many_threads_deliver_everything_however_they_meet_the_loop() -> None:
    def engine() -> Iterator[int]:
        for i in range(300):
            if i % 7 == 0:
                time.sleep(0)
            yield i

    async def check() -> None:
        assert await collect(iterate_in_thread(engine)) == list(range(300))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(check)


async def test_a_sync_engine_sees_that_it_is_stopped() -> None:
    stopped = threading.Event()

    def engine(request: Any, context: Context) -> Iterator[Any]:
        yield 1
        while not context.is_stopped:
            time.sleep(0.001)
        stopped.set()

    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.send_word(ControlWord.STOP)
        assert await trio.to_thread.run_sync(stopped.wait, 5)
        assert (await response.read_to_end()).has_final is False


async def test_a_slow_caller_holds_back_a_thread() -> None:
    made = 0

    def engine(request: Any) -> Iterator[Any]:
        nonlocal made
        for _ in range(10_000):
            made += 1
            yield "x" * 10_000

    async with open_stage(engine, network=slow_network()) as stage:
        await stage.call()
        for _ in range(20):
            await trio.sleep(0.005)
        assert made < 250


async def test_an_engine_may_use_channels_and_threads_of_its_own() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        send, receive = trio.open_memory_channel[int](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.send, 5)
            value = await receive.receive()
        yield value
        yield await trio.to_thread.run_sync(lambda: 6)

    async with open_stage(engine) as stage:
        assert (await stage.tell()).items == [5, 6]
