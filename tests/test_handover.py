"""Chunks on their way from another thread to a task."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio

from ingress import Handover, start_engine_thread
from ingress.handover import tasks_waiting


async def test_what_was_put_before_the_end_comes_before_the_end() -> None:
    handover = Handover()
    handover.put(1)
    handover.put(2)
    handover.finish(KeyError("k"))
    handover.finish()
    assert await handover.take() == [1, 2]
    with pytest.raises(KeyError, match="k"):
        await handover.take()


async def test_chunks_of_many_threads_wake_their_tasks_together() -> None:
    handovers = [Handover() for _ in range(10)]
    entries = 0
    token = trio.lowlevel.current_trio_token()
    got: list[list[Any]] = []

    async def take(handover: Handover) -> None:
        got.append(await handover.take())

    async with trio.open_nursery() as nursery:
        for handover in handovers:
            nursery.start_soon(take, handover)
        await trio.testing.wait_all_tasks_blocked()
        assert tasks_waiting() == 10
        for i, handover in enumerate(handovers):  # what a thread would do, without its being interrupted
            handover.put(i)
            entries = max(entries, token is not None and len(handovers[0]._waker._ready))
    assert sorted(got) == [[i] for i in range(10)] and entries == 10 and tasks_waiting() == 0


@pytest.mark.parametrize(("chunk", "count"), [("x" * 1000, 10), ("", 100)])
async def test_the_budget_is_of_bytes_and_of_chunks_and_counts_what_is_in_hand(chunk: str, count: int) -> None:
    spaces = []
    handover = Handover(max_chunks=100, max_bytes=10_000, on_space=lambda: spaces.append(1))
    while not handover.is_full:
        handover.put(chunk)
    assert len(await handover.take()) == count
    assert handover.hold() and not spaces, "the consumer is still at it"
    handover.put("last")
    assert await handover.take() == ["last"]
    assert spaces == [1] and not handover.hold()


async def test_a_closed_one_takes_nothing_and_frees_its_producer() -> None:
    handover, is_over = Handover(max_chunks=1), threading.Event()

    def produce() -> None:
        while handover.put_wait("x"):
            pass
        handover.finish()
        is_over.set()

    await start_engine_thread(produce)
    assert await handover.take() == ["x"]
    handover.close()
    with trio.fail_after(5):
        await handover.wait_finished()
    assert is_over.wait(5) and not handover.put("y")


async def test_a_cancelled_taker_loses_nothing() -> None:
    handover = Handover()
    with trio.move_on_after(0.01):
        await handover.take()
    handover.put(1)
    assert await handover.take() == [1]
