"""What the caller does in mid-stream, and how an engine is ended by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, Sequencer, wait_all_tasks_blocked

from ingress import Context
from ingress.wire.messages import ControlWord
from ingress.wire.two_part import PREFIX, encode_two_part

from .raw_caller import Stage, open_stage

STOP, KILL = (encode_two_part(word.encode()) for word in (ControlWord.STOP, ControlWord.KILL))


class Watched:
    """An engine that waits for ever after ``count`` chunks, and tells what became of it."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.events: list[str] = []
        self.context: Context | None = None

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.context = context
        try:
            for i in range(self.count):
                yield i
            await trio.sleep_forever()
        except trio.Cancelled:
            self.events.append("cancelled")
            raise
        finally:
            self.events.append(f"stopped={context.is_stopped} killed={context.is_killed}")


async def assert_ended_as_cancelled(stage: Stage, engine: Watched, *, killed: bool) -> None:
    await wait_all_tasks_blocked()
    assert engine.events == ["cancelled", f"stopped=True killed={killed}"]
    assert stage.counted_ends() == {"cancellation": 1}
    stage.assert_nothing_left()
    engine.events.clear()


@pytest.mark.parametrize("count", [0, 1])
async def test_s01_stop_ends_the_engine_at_once_also_before_its_first_chunk(count: int) -> None:
    engine = Watched(count)
    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_until(lambda said: said.has_prologue and len(said.items) == count)
        await response.send_word(ControlWord.STOP)
        said = await response.read_to_end()
        assert (said.end, said.has_final, len(said.items)) == ("fin", False, count)
        await assert_ended_as_cancelled(stage, engine, killed=False)


@pytest.mark.parametrize("how", ["kill", "fin", "reset"])
async def test_s02_d10_kill_and_fin_and_reset_end_the_engine_at_once(how: str) -> None:
    engine = Watched()
    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        if how == "kill":
            await response.send_word(ControlWord.KILL)
            assert (await response.read_to_end()).end == "fin"
        elif how == "fin":
            await response.send_fin()
            said = await response.read_to_end()
            assert (said.end, said.has_final) == ("fin", False)
        else:
            await response.aclose()
        await assert_ended_as_cancelled(stage, engine, killed=True)


JUNK = {
    "sentinel": encode_two_part(b'"sentinel"'),
    "unknown verb": encode_two_part(b'"pause"'),
    "object": encode_two_part(b"{}"),
    "upper case": encode_two_part(b'"STOP"'),
    "not JSON": encode_two_part(b"\x00\xff"),
    "data frame": encode_two_part(body=b"1"),
    "header and data": encode_two_part(b'"stop"', b"1"),
    "empty frame": encode_two_part(),
    "S05 length 2^62": PREFIX.pack(2**62, 0, 0) + bytes(100),
    "S05 sums that wrap": PREFIX.pack(2**64 - 1, 2**64 - 1, 0),
}


@pytest.mark.parametrize("junk", JUNK)
async def test_s04_s05_anything_but_stop_and_kill_ends_the_stream_and_no_other(
    junk: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Watched()
    async with open_stage(engine) as stage:
        neighbour = await stage.call()
        await neighbour.read_items(1)
        response = await stage.call()
        await response.read_items(1)
        await response.stream.send_all(JUNK[junk])
        assert (await response.read_to_end()).has_final is False
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}
        assert len(caplog.records) == 1
        assert caplog.records[0].exc_info is None
        assert stage.sample("inflight_requests") == 1


async def test_s03_s07_only_the_first_of_many_words_counts() -> None:
    engine = Watched()
    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.stream.send_all(STOP * 10_000 + KILL)
        await response.read_to_end()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}


async def test_s06_half_a_control_frame_is_ignored() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield 1
        await go_on.wait()
        yield 2

    go_on = trio.Event()
    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        await response.stream.send_all(STOP[:-1])
        await wait_all_tasks_blocked()
        go_on.set()
        assert (await response.read_to_sentinel()).items == [1, 2]
        await response.aclose()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {}


async def test_a_word_that_trickles_in_byte_by_byte_is_understood() -> None:
    engine = Watched()
    async with open_stage(engine) as stage:
        response = await stage.call()
        await response.read_items(1)
        for i in range(len(STOP)):
            assert engine.events == []
            await response.stream.send_all(STOP[i : i + 1])
            await wait_all_tasks_blocked()
        await assert_ended_as_cancelled(stage, engine, killed=False)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_an_engine_may_end_its_own_request(how: str) -> None:
    async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        if how == "stop":
            context.stop()
        else:
            context.kill("enough")
        yield 2
        await trio.sleep_forever()

    async with open_stage(engine) as stage:
        said = await (await stage.call()).read_to_end()
        assert (said.end, said.has_final) == ("fin", False)
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}
        stage.assert_nothing_left()


# -- stop grace ------------------------------------------------------------------------------------------------------


async def graceful(request: Any, context: Context) -> AsyncIterator[Any]:
    yield "first"
    await context.stopped()
    await trio.sleep(request)
    yield "usage"


@pytest.mark.parametrize(("needed", "items"), [(1, ["first", "usage"]), (3, ["first"])])
async def test_e03_with_a_stop_grace_the_engine_may_send_its_last_chunks_within_it(
    needed: float, items: list[str], autojump_clock: MockClock
) -> None:
    async with open_stage(graceful, stop_grace=2.0) as stage:
        response = await stage.call(needed)
        await response.read_items(1)
        await response.stream.send_all(STOP + STOP)
        await trio.sleep(0.5)
        await response.send_word(ControlWord.STOP)  # does not prolong it
        said = await response.read_until(lambda said: said.has_sentinel) if needed < 2 else await response.read_to_end()
        assert said.items == items
        assert said.is_whole == (needed < 2)
        assert trio.current_time() == pytest.approx(min(needed, 2))
        await response.aclose()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}
        stage.assert_nothing_left()


async def test_a_kill_ends_a_stop_grace(autojump_clock: MockClock) -> None:
    async with open_stage(graceful, stop_grace=2.0) as stage:
        response = await stage.call(1)
        await response.read_items(1)
        await response.stream.send_all(STOP + KILL)
        assert (await response.read_to_end()).items == ["first"]
        assert trio.current_time() < 1
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"cancellation": 1}


async def test_stopped_wakes_every_task_that_waits_and_those_that_come_late() -> None:
    seen: list[str] = []
    sequencer = Sequencer()

    async def watch(context: Context, name: str) -> None:
        await context.stopped()
        seen.append(name)

    async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, context, "a")
            nursery.start_soon(watch, context, "b")
            async with sequencer(0):
                pass
            await context.stopped()
        await context.stopped()
        assert repr(context) == "<Context 'r' of demo.backend.generate: stopped>"
        yield 1

    async with open_stage(engine, stop_grace=5) as stage:
        response = await stage.call(request_id="r")
        async with sequencer(1):
            await response.send_word(ControlWord.STOP)
        assert (await response.read_to_sentinel()).items == [1]
        assert sorted(seen) == ["a", "b"]
