"""One task hears the callers of all dialled streams: what they say, how they leave, and those who never do."""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from ingress import _dialled
from ingress._dialled import DialledStreams
from ingress._network import TcpNetwork, TcpStream

NETWORK = TcpNetwork()


@define(eq=False)
class Notes:
    """What one caller was heard to do."""

    enough: bytes = b"!"
    words: list[bytes] = field(factory=list)
    ended: trio.Event = field(factory=trio.Event)
    broken: list[trio.BrokenResourceError] = field(factory=list)

    def receive(self, data: bytes) -> bool:
        self.words.append(data)
        return not data.endswith(self.enough)

    def end(self) -> None:
        self.ended.set()

    def broke(self, error: trio.BrokenResourceError) -> None:
        self.broken.append(error)
        self.ended.set()


@asynccontextmanager
async def open_streams() -> AsyncIterator[DialledStreams]:
    async with trio.open_nursery() as nursery:
        streams = DialledStreams()
        await nursery.start(streams.serve)
        yield streams
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_pair(kind: str) -> AsyncIterator[tuple[Any, Any]]:
    if kind == "memory":
        left, right = memory_stream_pair()
        async with left, right:
            yield left, right
        return
    async with await NETWORK.open_listener("127.0.0.1", 0) as listener:
        ours = await NETWORK.connect(*listener.address)
        async with ours, await listener.accept() as theirs:
            yield ours, theirs


async def is_closed(stream: Any) -> bool:
    """Whether our end is gone, as its peer sees it."""
    with trio.move_on_after(1):
        return bool(await stream.receive_some(1) == b"")
    return False


KINDS = pytest.mark.parametrize("kind", ["socket", "memory"])


@KINDS
async def test_words_are_heard_in_order_and_the_fin_closes_the_stream(kind: str, autojump_clock: MockClock) -> None:
    notes = Notes()
    async with open_streams() as streams, open_pair(kind) as (ours, theirs):
        streams.listen(ours, notes)
        for word in (b"one", b"two"):
            await theirs.send_all(word)
            await wait_all_tasks_blocked(0.01)
        assert notes.words == [b"one", b"two"]
        await theirs.send_eof()
        await notes.ended.wait()
        assert notes.broken == []
        assert await is_closed(theirs)


@KINDS
async def test_a_listener_that_has_enough_closes_the_stream(kind: str, autojump_clock: MockClock) -> None:
    notes = Notes()
    async with open_streams() as streams, open_pair(kind) as (ours, theirs):
        streams.listen(ours, notes)
        await theirs.send_all(b"enough!")
        assert await is_closed(theirs)
        assert notes.words == [b"enough!"]
        assert not notes.ended.is_set()


async def test_a_reset_is_told_and_its_neighbours_are_heard_on(autojump_clock: MockClock) -> None:
    lost, kept = Notes(), Notes()
    async with open_streams() as streams, open_pair("socket") as (ours, theirs), open_pair("socket") as (mine, yours):
        streams.listen(ours, lost)
        streams.listen(mine, kept)
        await ours.send_all(b"never read")  # bytes that were not read turn a close into a reset
        await wait_all_tasks_blocked(0.01)
        await theirs.aclose()
        await lost.ended.wait()
        assert [type(error) for error in lost.broken] == [trio.BrokenResourceError]
        await yours.send_all(b"still here!")
        assert await is_closed(yours)
        assert kept.words == [b"still here!"]


@KINDS
async def test_a_caller_that_never_leaves_is_left_after_the_wait(kind: str, autojump_clock: MockClock) -> None:
    async with open_streams() as streams, open_pair(kind) as (ours, theirs):
        streams.listen(ours, Notes())
        streams.linger(ours, 10)
        began = trio.current_time()
        await streams.wait_idle()
        assert trio.current_time() - began == pytest.approx(10, abs=0.5)
        assert await is_closed(theirs)


async def test_each_lingering_stream_has_its_own_wait(autojump_clock: MockClock) -> None:
    closed_at = []
    async with open_streams() as streams, open_pair("socket") as (a, b), open_pair("socket") as (c, d):

        async def watch(stream: TcpStream) -> None:
            assert await stream.receive_some(1) == b""
            closed_at.append(trio.current_time() - began)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for ours, theirs in ((a, b), (c, d)):
                streams.listen(ours, Notes())
                streams.linger(ours, 10)
                nursery.start_soon(watch, theirs)
                await trio.sleep(4)
        assert closed_at == pytest.approx([10, 14], abs=0.5)


async def test_r10_a_closed_stream_that_a_forked_child_still_holds_keeps_nobody_busy() -> None:
    async with open_streams() as streams, open_pair("socket") as (ours, theirs):
        notes = Notes()
        streams.listen(ours, notes)
        await wait_all_tasks_blocked()
        held = os.dup(ours.fileno())  # as fork does
        try:
            await theirs.aclose()
            await notes.ended.wait()
            with trio.fail_after(5):
                await wait_all_tasks_blocked(0.01)
        finally:
            os.close(held)


async def test_a_stream_that_is_closed_as_the_worker_leaves_needs_no_epoll_descriptor() -> None:
    """Of a second SIGTERM every bidirectional request had logged that it was closed."""
    closed = trio.Event()

    async def hold(streams: DialledStreams, stream: TcpStream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                await streams.close(stream)
                closed.set()

    async with open_pair("socket") as (ours, theirs):
        async with open_streams() as streams:
            streams.listen(ours, Notes())
            streams.start_soon(hold, streams, ours)
            await wait_all_tasks_blocked()
        assert closed.is_set()
        assert await is_closed(theirs)


@KINDS
async def test_d11_of_too_many_lingering_streams_the_first_is_closed(
    kind: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dialled, "MAX_LINGERING", 2)
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(open_streams())
        theirs = []
        for _ in range(3):
            ours, peer = await stack.enter_async_context(open_pair(kind))
            theirs.append(peer)
            streams.listen(ours, Notes())
            streams.linger(ours, 10)
        assert [await is_closed(peer) for peer in theirs] == [True, False, False]


@KINDS
async def test_d11_l04_a_lingering_stream_holds_a_descriptor_until_it_is_closed(
    kind: str, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(open_streams())
        streams.descriptors.set_total(12)  # so that three may linger
        theirs = []
        for expected in (1, 2, 3, 3):
            ours, peer = await stack.enter_async_context(open_pair(kind))
            theirs.append(peer)
            streams.listen(ours, Notes())
            streams.linger(ours, 10)
            await wait_all_tasks_blocked()
            assert streams.descriptors.held == expected
        assert await is_closed(theirs[0])
        await theirs[1].send_eof()  # a caller that leaves
        await wait_all_tasks_blocked(0.01)
        assert streams.descriptors.held == 2
        await trio.sleep(11)
        assert streams.descriptors.held == 0
        assert await is_closed(theirs[3])


@KINDS
async def test_what_is_open_is_closed_when_nobody_serves_it_any_more(kind: str) -> None:
    async with AsyncExitStack() as stack:
        theirs = []
        async with open_streams() as streams:
            for lingers in (False, True):
                ours, peer = await stack.enter_async_context(open_pair(kind))
                theirs.append(peer)
                streams.listen(ours, Notes())
                if lingers:
                    streams.linger(ours, 10)
            await wait_all_tasks_blocked(0.01)
        assert [await is_closed(peer) for peer in theirs] == [True, True]
        assert streams.descriptors.held == 0


@KINDS
async def test_idle_is_when_the_last_caller_has_left(kind: str, autojump_clock: MockClock) -> None:
    async with open_streams() as streams, open_pair(kind) as (ours, theirs):
        await streams.wait_idle()  # at once
        streams.listen(ours, Notes())
        streams.linger(ours, 1000)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.wait_idle)
            await trio.sleep(3)
            assert nursery.child_tasks
            await theirs.send_eof()
        assert trio.current_time() - began == pytest.approx(3, abs=0.5)


@KINDS
async def test_a_bug_in_a_listener_ends_its_stream_and_no_other(
    kind: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Notes):
        def receive(self, data: bytes) -> bool:
            raise LookupError("a bug")

    good = Notes()
    async with open_streams() as streams, open_pair(kind) as (ours, theirs), open_pair(kind) as (mine, yours):
        streams.listen(ours, Broken())
        streams.listen(mine, good)
        await theirs.send_all(b"word")
        assert await is_closed(theirs)
        await yours.send_all(b"word!")
        assert await is_closed(yours)
    assert good.words == [b"word!"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None and record.exc_info[0] is LookupError


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll is Linux's")
@pytest.mark.parametrize("failing", ["epoll", "register"])
async def test_without_a_descriptor_or_a_watch_callers_are_heard_all_the_same(
    failing: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system refuses for one descriptor for all streams costs a task for each, and nothing else."""
    wanted = select.epoll

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE if failing == "epoll" else errno.ENOSPC, "none left")

    class Full:
        def __init__(self) -> None:
            if failing == "epoll":
                refuse()
            self._epoll = wanted()
            self.fileno, self.poll = self._epoll.fileno, self._epoll.poll
            self.register, self.unregister = refuse, self._epoll.unregister

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._epoll.close()

    async with open_streams() as streams:
        monkeypatch.setattr("ingress._dialled.select.epoll", Full)
        for _ in range(2):  # the one that finds out, and one that comes later
            notes = Notes()
            async with open_pair("socket") as (ours, theirs):
                streams.listen(ours, notes)
                await theirs.send_all(b"word!")
                assert await is_closed(theirs)
                assert notes.words == [b"word!"]
        monkeypatch.undo()


async def test_nothing_can_be_started_before_the_streams_are_served() -> None:
    streams = DialledStreams()
    with pytest.raises(RuntimeError, match="not being served"):
        streams.start_soon(trio.sleep, 0)
