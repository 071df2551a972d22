"""Who of the connections of a plane looks at frames, and how many in one pass of the loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ingress._fair_line import working_for
from ingress.planes._turns import FRAMES_A_PASS, FRAMES_A_TURN, TAKEN, Turns

from .passes import counted_passes

CROWD = 1000


@asynccontextmanager
async def open_turns() -> AsyncIterator[tuple[Turns, trio.Nursery]]:
    async with trio.open_nursery() as nursery:
        turns = Turns()
        nursery.start_soon(turns.serve)
        yield turns, nursery
        nursery.cancel_scope.cancel()


async def flood(turns: Turns, frames: list[str]) -> None:
    """Look at a frame for ever, and have each refused."""
    while True:
        left = await turns.go_on(is_welcome=False)
        turns.left -= left
        frames += ["flood"] * left


async def test_nobody_waits_while_little_is_looked_at() -> None:
    async with open_turns() as (turns, _), counted_passes() as passes:
        for _ in range(1000):
            turns.left -= 1
            if turns.left <= 0:
                assert await turns.wait(is_bulk=False) == FRAMES_A_TURN
            await trio.lowlevel.checkpoint()
        assert passes.count <= 1000 + 1000 // FRAMES_A_PASS * 3


async def test_f18_a_pass_of_the_loop_looks_at_few_frames_however_many_flood() -> None:
    frames, of_pass = list[str](), Counter[int]()
    async with open_turns() as (turns, nursery), counted_passes() as passes:
        for _ in range(CROWD):
            nursery.start_soon(flood, turns, frames)
        for _ in range(200):
            before = len(frames)
            await trio.lowlevel.checkpoint()
            of_pass[passes.count] += len(frames) - before
        assert max(of_pass.values()) <= 2 * FRAMES_A_PASS
        assert len(frames) > 100 * FRAMES_A_PASS / 2  # nor does it look at next to none


@pytest.mark.parametrize(
    ("wait", "within"),
    [
        (lambda turns: turns.wait(is_bulk=False), 4),
        (lambda turns: turns.wait(is_bulk=True), 4),
        (lambda turns: turns.go_on(is_welcome=True), 4),
        (lambda turns: turns.go_on(is_welcome=False), 2 * CROWD / (FRAMES_A_PASS / 4)),
    ],
)
async def test_f18_a_flood_of_refused_frames_keeps_its_own_kind_waiting(
    wait: Callable[[Turns], Awaitable[int]], within: float
) -> None:
    frames = list[str]()
    async with open_turns() as (turns, nursery), counted_passes() as passes:
        for _ in range(CROWD):
            nursery.start_soon(flood, turns, frames)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        turns.left = 0
        before = passes.count
        assert await wait(turns) >= 1
        assert passes.count - before <= within


async def test_f18_frames_that_are_probably_taken_count_for_what_they_cost() -> None:
    """With as many of them in a pass as of refused ones it took 0.1 s, of which other work had 10 ms."""
    went_in = Counter[int]()

    async def stand() -> None:
        turns.left -= await turns.wait(is_bulk=False, expected=TAKEN)
        went_in[passes.count] += 1

    turns = Turns()
    async with trio.open_nursery() as nursery, counted_passes() as passes:
        turns.left = 0
        for _ in range(CROWD):
            nursery.start_soon(stand)
        await wait_all_tasks_blocked()
        nursery.start_soon(turns.serve)
        await wait_all_tasks_blocked()
        assert went_in.total() == CROWD
        assert max(went_in.values()) <= 2 * (FRAMES_A_PASS // TAKEN + 1)
        nursery.cancel_scope.cancel()


async def test_f18_what_was_more_than_a_pass_had_the_next_ones_have_less() -> None:
    async with open_turns() as (turns, _), counted_passes() as passes:
        await wait_all_tasks_blocked()
        turns.left -= 10 * FRAMES_A_PASS
        before = passes.count
        await turns.wait(is_bulk=False)
        assert passes.count - before >= 9


async def test_f18_no_line_stands_still_while_another_is_long() -> None:
    seen = Counter[str]()

    async def stand(name: str, wait: Callable[[], Awaitable[int]]) -> None:
        while True:
            frames = await wait()
            turns.left -= frames
            seen[name] += frames

    async with open_turns() as (turns, nursery):
        turns.left = 0
        for _ in range(CROWD):
            nursery.start_soon(stand, "readers", lambda: turns.wait(is_bulk=False))
            nursery.start_soon(stand, "bulk", lambda: turns.go_on(is_welcome=True))
            nursery.start_soon(stand, "refused", lambda: turns.go_on(is_welcome=False))
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        total = seen.total()
        assert 80 * FRAMES_A_PASS < total < 120 * FRAMES_A_PASS
        assert seen["readers"] == pytest.approx(total / 2, rel=0.1)
        assert seen["bulk"] == pytest.approx(total / 4, rel=0.1)
        assert seen["refused"] == pytest.approx(total / 4, rel=0.1)


@pytest.mark.parametrize(
    "wait_in_bulk",
    [lambda turns: turns.wait(is_bulk=True, expected=TAKEN), lambda turns: turns.go_on(is_welcome=True)],
)
async def test_f18_who_has_just_read_goes_first_then_who_sends_a_great_many_and_who_is_refused_last(
    wait_in_bulk: Callable[[Turns], Awaitable[int]],
) -> None:
    ended_in = dict[str, int]()

    async def stand(name: str, wait: Callable[[Turns], Awaitable[int]]) -> None:
        turns.left -= await wait(turns)
        ended_in[name] = passes.count

    turns = Turns()
    async with trio.open_nursery() as nursery, counted_passes() as passes:
        turns.left = 0
        for name, wait in (
            ("refused", lambda turns: turns.go_on(is_welcome=False)),
            ("bulk", wait_in_bulk),
            ("readers", lambda turns: turns.wait(is_bulk=False)),
        ):  # who goes last has come first
            for _ in range(CROWD // TAKEN if name == "bulk" else CROWD):
                nursery.start_soon(stand, name, wait)
            await wait_all_tasks_blocked()
        assert not ended_in
        nursery.start_soon(turns.serve)
        await wait_all_tasks_blocked()
        assert ended_in["readers"] < ended_in["bulk"] < ended_in["refused"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "wait",
    [
        lambda turns: turns.wait(is_bulk=False),
        lambda turns: turns.wait(is_bulk=True),
        lambda turns: turns.go_on(is_welcome=False),
    ],
)
async def test_f18_addresses_take_turns_on_however_many_connections_they_wait(
    wait: Callable[[Turns], Awaitable[int]],
) -> None:
    """Behind 6,100 connections of one address all others had waited for 3 to 5 s."""
    went = list[str]()

    async def stand(address: str) -> None:
        working_for.set(address)
        turns.left -= await wait(turns)
        went.append(address)

    turns = Turns()
    async with trio.open_nursery() as nursery:
        turns.left = 0
        for address, count in (("10.0.0.1", CROWD), ("10.0.0.2", 3), ("10.0.0.3", 1)):
            for _ in range(count):
                nursery.start_soon(stand, address)
            await wait_all_tasks_blocked()
        nursery.start_soon(turns.serve)
        await wait_all_tasks_blocked()
        assert len(went) == CROWD + 4
        assert set(went[FRAMES_A_PASS:]) == {"10.0.0.1"}
        nursery.cancel_scope.cancel()


async def test_f18_addresses_that_ask_for_little_keep_nobody_waiting_who_asks_for_more() -> None:
    """Where each had its turn after the other, 4,000 had made a pool of 150 wait for 11 s."""
    went, pool = Counter[str](), 50

    async def stand(address: str, times: int) -> None:
        working_for.set(address)
        for _ in range(times):
            turns.left -= await turns.wait(is_bulk=False)
            went[address] += 1

    turns = Turns()
    async with trio.open_nursery() as nursery:
        turns.left = 0
        for at in range(CROWD):
            nursery.start_soon(stand, f"10.0.{at}", 1000)
        await wait_all_tasks_blocked()
        for _ in range(pool):
            nursery.start_soon(stand, "pool", 1)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        nursery.start_soon(turns.serve)
        while went["pool"] < pool:
            await trio.lowlevel.checkpoint()
        assert went.total() <= 2 * (CROWD + pool) + FRAMES_A_PASS
        nursery.cancel_scope.cancel()


async def test_who_leaves_its_line_takes_no_turn() -> None:
    async def stand() -> None:
        turns.left -= await turns.wait(is_bulk=False)

    turns = Turns()
    async with trio.open_nursery() as nursery:
        turns.left = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as leaving:
                for _ in range(CROWD):
                    leaving.start_soon(stand)
                await wait_all_tasks_blocked()
                scope.cancel()
        nursery.start_soon(turns.serve)
        assert await turns.wait(is_bulk=False) == FRAMES_A_TURN  # which it has where it waits alone
        nursery.cancel_scope.cancel()


async def test_who_comes_first_goes_first_one_frame_each_in_a_crowd_and_a_turn_each_where_there_is_none() -> None:
    went = list[tuple[int, int]]()

    async def stand(number: int) -> None:
        went.append((number, await turns.wait(is_bulk=False)))

    turns = Turns()
    async with trio.open_nursery() as nursery:
        for crowd, share in ((300, 1), (4, FRAMES_A_TURN)):
            went.clear()
            turns.left = 0
            for number in range(crowd):
                nursery.start_soon(stand, number)
                await wait_all_tasks_blocked()
            async with trio.open_nursery() as serving:
                serving.start_soon(turns.serve)
                await wait_all_tasks_blocked()
                serving.cancel_scope.cancel()
            first = went[: min(crowd, FRAMES_A_PASS)]
            assert {number for number, _ in first} == set(range(len(first)))
            assert {frames for _, frames in first} == {share}


async def test_who_leaves_the_line_takes_nobodys_turn() -> None:
    turns = Turns()
    turns.left = 0
    with trio.move_on_after(0.01):
        await turns.wait(is_bulk=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.serve)
        await wait_all_tasks_blocked()
        assert turns.left == FRAMES_A_PASS
        nursery.cancel_scope.cancel()
