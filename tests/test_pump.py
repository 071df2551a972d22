"""When chunks leave, what is held back, and who waits for whom."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import Annotated, ErrorEvent, _pump
from ingress._pump import (
    MAX_BUFFERED,
    MAX_HELD,
    MAX_PASS,
    MAX_RUN,
    MAX_SLICE,
    PumpProgress,
    pump_response_stream,
)
from ingress._response_writer import ResponseWriter
from ingress.errors import GenerateError, PublishError
from ingress.metrics import WorkerMetrics
from ingress.wire.codec import codec_named
from ingress.wire.records import EndpointId
from ingress.wire.response import ResponseReceiver, ResponseSender

from .raw_caller import Transcript


@define
class Socket(trio.abc.SendStream):
    """A socket with a send buffer of ``capacity`` bytes that its peer empties by :meth:`take`."""

    capacity: float = float("inf")
    sends: list[bytes] = field(factory=list)
    held: int = 0
    is_closed: bool = False
    error: Exception | None = None
    _room: trio.Event = field(factory=trio.Event)

    def send_nowait(self, data: bytes | bytearray) -> int:
        if self.error is not None:
            raise trio.BrokenResourceError from self.error
        count = int(min(len(data), self.capacity - self.held))
        if count:
            self.sends.append(bytes(data[:count]))
            self.held += count
        return count

    def take(self, count: int) -> None:
        self.held = max(0, self.held - count)
        self._room.set()
        self._room = trio.Event()

    async def wait_send_all_might_not_block(self) -> None:
        if self.held >= self.capacity and self.error is None:
            await self._room.wait()

    async def send_all(self, data: Any) -> None:
        raise AssertionError("the writer sends without blocking where it can")

    async def aclose(self) -> None:
        self.is_closed = True

    @property
    def said(self) -> Transcript:
        """What was sent so far, as its peer reads it."""
        receiver, said = ResponseReceiver(codec_named("json"), max_message_size=1 << 40), Transcript()
        receiver.receive_data(b"".join(self.sends))
        for event in receiver:
            said.add(event)
        return said


@define
class Pump:
    socket: Any
    writer: ResponseWriter
    sender: ResponseSender
    progress: PumpProgress = field(factory=PumpProgress)
    failures: list[Exception] = field(factory=list)
    notified: list[int] = field(factory=list)

    async def run(self, chunks: Any, **options: Any) -> None:
        async with aclosing(chunks):
            await pump_response_stream(
                chunks,
                self.sender,
                self.writer,
                self.progress,
                lambda: self.notified.append(self.progress.chunks),
                **options,
            )


@asynccontextmanager
async def open_pump(socket: Any = None) -> AsyncIterator[Pump]:
    socket = Socket() if socket is None else socket
    async with trio.open_nursery() as nursery:
        failures: list[Exception] = []
        writer = ResponseWriter(socket, nursery, on_failure=failures.append)
        sender = ResponseSender(codec_named("json"))
        pump = Pump(socket, writer, sender, failures=failures)
        writer.write(sender.handshake("s") + sender.prologue())
        yield pump
        nursery.cancel_scope.cancel()


# -- when chunks leave -----------------------------------------------------------------------------------------------


async def test_the_first_chunk_leaves_at_once_and_no_chunk_waits_for_a_timer(autojump_clock: MockClock) -> None:
    out: list[tuple[float, int]] = []

    async def engine() -> Any:
        yield "first"
        out.append((trio.current_time(), len(pump.socket.said.items)))
        for i in range(4):
            await trio.sleep(10)
            out.append((trio.current_time(), len(pump.socket.said.items)))
            yield i
        await trio.sleep(10)
        out.append((trio.current_time(), len(pump.socket.said.items)))

    async with open_pump() as pump:
        await pump.run(engine())
    assert out == [(0, 1), (10, 1), (20, 2), (30, 3), (40, 4), (50, 5)]


async def test_an_engine_that_takes_its_time_before_the_first_chunk_has_its_prologue_sent(
    autojump_clock: MockClock,
) -> None:
    async def engine() -> Any:
        await trio.sleep(1)
        assert pump.socket.said.has_prologue
        yield 1

    async with open_pump() as pump:
        await pump.run(engine())


async def test_chunks_that_are_ready_together_leave_in_one_send(autojump_clock: MockClock) -> None:
    async def engine() -> Any:
        yield "first"
        for burst in range(20):
            await trio.sleep(1)
            for i in range(3):
                yield [burst, i]

    async with open_pump() as pump:
        await pump.run(engine())
        assert len(pump.socket.said.items) == 61
    # One for the prologue and the first chunk, one a burst, and a few more where a slice ended within a burst.
    assert 21 <= len(pump.socket.sends) <= 21 + 8


async def test_an_engine_that_never_awaits_does_not_starve_its_neighbours() -> None:
    seen: list[int] = []

    async def neighbour() -> None:
        while True:
            seen.append(pump.progress.chunks)
            await trio.lowlevel.checkpoint()

    async def engine() -> Any:
        for i in range(2000):
            yield i

    async with open_pump() as pump, trio.open_nursery() as nursery:
        nursery.start_soon(neighbour)
        await pump.run(engine())
        nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in itertools.pairwise(seen)]
    assert (
        max(gaps) <= 2 * MAX_SLICE
    )  # one batch of the scheduler may begin with the pump and the last have ended with it
    assert seen[1] <= 14  # the first slices are short
    assert len(pump.socket.sends) < 60


class Stopwatch:
    """The pump's clock, which stands still unless a test says how much time has passed."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(_pump, "_clock", watch)
    monkeypatch.setattr(_pump, "_cpu_clock", watch)
    return watch


async def test_chunks_between_which_an_engine_only_gives_way_may_leave_together(stopwatch: Stopwatch) -> None:
    async def engine() -> Any:
        for i in range(200):
            await trio.lowlevel.checkpoint()
            yield i

    async with open_pump() as pump:
        await pump.run(engine())
        assert pump.socket.said.items == list(range(200))
        sends = pump.socket.sends
    assert [send.count(b'"complete_final"') for send in sends[:5]] == [1, 1, 2, 4, 8]
    assert len(sends) < 20


async def test_chunks_of_an_engine_that_takes_long_to_give_way_again_leave_one_by_one(stopwatch: Stopwatch) -> None:
    async def engine() -> Any:
        for i in range(20):
            await trio.lowlevel.checkpoint()
            sent.append(len(pump.socket.said.items))
            stopwatch.now += 2 * MAX_HELD
            yield i

    sent: list[int] = []
    async with open_pump() as pump:
        await pump.run(engine())
    assert sent == list(range(20))


class LargeText(str):
    """One that can be looked for."""


async def test_d07_of_a_large_chunk_that_waits_to_be_sent_only_its_bytes_are_held() -> None:
    alive: list[weakref.ref[LargeText]] = []

    def message() -> dict[str, str]:
        text = LargeText("x" * 2 * MAX_BUFFERED)
        alive.append(weakref.ref(text))
        return {"text": text}

    async def engine() -> Any:
        yield message()
        yield message()

    async with open_pump(Socket(capacity=100)) as pump, trio.open_nursery() as nursery:
        nursery.start_soon(pump.run, engine())
        await wait_all_tasks_blocked()
        assert len(pump.writer.buffer) > 2 * MAX_BUFFERED - 100
        assert [text() for text in alive] == [None]
        nursery.cancel_scope.cancel()


class LongPasses(trio.abc.Instrument):
    """Neighbours that make each pass through the scheduler take so long."""

    def __init__(self, stopwatch: Stopwatch, seconds: float) -> None:
        self._stopwatch = stopwatch
        self._seconds = seconds

    def before_io_wait(self, timeout: float) -> None:
        self._stopwatch.now += self._seconds


async def test_where_each_pass_is_long_a_chunk_is_held_for_the_next_one_and_no_more(stopwatch: Stopwatch) -> None:
    async def engine() -> Any:
        for i in range(40):
            await trio.lowlevel.checkpoint()
            held.append(i - len(pump.socket.said.items))
            yield i

    held: list[int] = []
    passes = LongPasses(stopwatch, 2 * MAX_HELD)
    async with open_pump() as pump:
        trio.lowlevel.add_instrument(passes)
        await pump.run(engine())
        trio.lowlevel.remove_instrument(passes)
        assert pump.socket.said.items == list(range(40))
    assert max(held) == 1
    assert len(pump.socket.sends) <= 24  # by twos


async def test_what_is_held_leaves_when_the_engine_really_waits(
    stopwatch: Stopwatch, autojump_clock: MockClock
) -> None:
    async def engine() -> Any:
        for i in range(40):
            await trio.lowlevel.checkpoint()
            yield i
        await trio.lowlevel.checkpoint()
        await trio.sleep(1)
        sent.append(len(pump.socket.said.items))

    sent: list[int] = []
    async with open_pump() as pump:
        await pump.run(engine())
    assert sent == [40]


async def test_chunks_of_an_engine_that_computes_long_without_awaiting_do_not_wait_for_a_slice(
    stopwatch: Stopwatch,
) -> None:
    async def engine() -> Any:
        for i in range(20):
            sent.append(len(pump.socket.said.items))
            stopwatch.now += 2 * MAX_RUN
            yield i

    sent: list[int] = []
    async with open_pump() as pump:
        await pump.run(engine())
    assert sent == list(range(20))


async def test_slices_are_short_while_a_pass_through_the_scheduler_takes_long(stopwatch: Stopwatch) -> None:
    async def crowd() -> None:
        while True:
            seen.append(pump.progress.chunks)
            stopwatch.now += 2 * MAX_PASS
            await trio.lowlevel.checkpoint()

    async def engine() -> Any:
        for i in range(500):
            yield i

    seen: list[int] = []
    async with open_pump() as pump, trio.open_nursery() as nursery:
        nursery.start_soon(crowd)
        await pump.run(engine())
        nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in itertools.pairwise(seen)]
    assert max(gaps[3:]) <= 6  # two slices, as above; the one before a crowd was noticed is longer


async def test_chunks_are_reported_at_most_once_a_suspension_and_errors_never() -> None:
    error = Annotated.from_error(ErrorEvent("bad"))

    async def engine() -> Any:
        yield error
        await trio.lowlevel.checkpoint()
        yield 1
        yield error
        yield 2
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        yield error

    async with open_pump() as pump:
        await pump.run(engine())
    assert (pump.progress.chunks, pump.progress.error_chunks) == (5, 3)
    assert 1 <= len(pump.notified) <= 2


async def test_chunks_before_an_engines_failure_are_sent_and_counted() -> None:
    async def engine() -> Any:
        for i in range(3):
            yield i
        raise KeyError("oh")

    meter = WorkerMetrics(1).endpoint(EndpointId("a", "b", "c"))
    async with open_pump() as pump:
        pump.writer.meter = meter
        with pytest.raises(KeyError):
            await pump.run(engine())
        assert pump.socket.said.items == [0, 1, 2]
    assert meter.chunks == 3


# -- who waits -------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.integers(1, 300_000), max_size=12), st.integers(20_000, 400_000), st.integers(20_000, 500_000))
def test_memory_is_bounded_and_nothing_is_lost_whatever_the_socket_takes(
    sizes: list[int], capacity: int, taken: int
) -> None:
    async def engine() -> Any:
        for size in sizes:
            held.append(len(pumps[0].writer.buffer))
            yield "x" * size

    async def reader(socket: Socket) -> None:
        while True:
            await wait_all_tasks_blocked()
            socket.take(taken)

    async def scenario() -> None:
        async with open_pump(Socket(capacity)) as pump, trio.open_nursery() as nursery:
            pumps.append(pump)
            nursery.start_soon(reader, pump.socket)
            await pump.run(engine())
            pump.writer.write(pump.sender.final())
            await pump.writer.drained()
            nursery.cancel_scope.cancel()
        assert [len(item) for item in pump.socket.said.items] == sizes
        assert pump.socket.said.has_final

    pumps: list[Pump] = []
    held: list[int] = []
    trio.run(scenario)
    # The engine is not asked while more than the bound is held.
    assert all(size <= MAX_BUFFERED for size in held)


async def test_a_full_socket_holds_back_its_own_engine_only() -> None:
    async def engine() -> Any:
        while True:
            yield "x" * 10_000

    async with open_pump(Socket(50_000)) as slow, open_pump() as quick, trio.open_nursery() as nursery:
        nursery.start_soon(slow.run, engine())
        await wait_all_tasks_blocked()
        assert 25 < slow.progress.chunks < 35
        with trio.move_on_after(5):
            quick_engine = (i async for i in _count(500))
            await quick.run(quick_engine)
        assert quick.progress.chunks == 500
        before = slow.progress.chunks
        slow.socket.take(50_000)
        await wait_all_tasks_blocked()
        assert slow.progress.chunks <= before + 10
        nursery.cancel_scope.cancel()


async def _count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def test_a_socket_that_breaks_ends_the_pump_and_the_engine_is_not_asked_again() -> None:
    asked = 0

    async def engine() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield asked
            if asked == 3:
                pump.socket.error = OSError("reset")
            await trio.lowlevel.checkpoint()

    async with open_pump() as pump:
        with pytest.raises(PublishError):
            await pump.run(engine())
    assert asked <= 5
    assert len(pump.failures) == 1


@pytest.mark.parametrize(("rate", "is_kept"), [(1024, True), (100, True), (60, False), (0, False), (None, False)])
async def test_d09_what_the_system_sends_for_a_slow_caller_is_progress(
    rate: int | None, is_kept: bool, autojump_clock: MockClock
) -> None:
    """The socket takes more when a third of a megabyte is gone: at 1 KiB/s that had been too late."""

    class Filled(Socket):
        @property
        def untaken(self) -> int | None:
            return None if rate is None else 1_000_000 - int(rate * (trio.current_time() - began))

        async def wait_send_all_might_not_block(self) -> None:
            await trio.sleep_until(began + 333_333 / rate if rate else math.inf)
            self.capacity = 1 << 20

    began = trio.current_time()
    socket = Filled(capacity=0)
    async with open_pump(socket) as pump:
        pump.writer.write(b"x" * 1000)
        if is_kept:
            await pump.writer.drained()
            assert rate and trio.current_time() - began == pytest.approx(333_333 / rate)
        else:
            with pytest.raises(PublishError, match="took next to nothing for 60 s"):
                await pump.writer.drained()
            assert trio.current_time() - began == 60


async def test_a_send_that_was_cut_is_never_followed_by_another() -> None:
    """How much of a cancelled ``send_all`` arrived is not known; anything more would be garbage to the peer."""
    sent: list[bytes] = []

    class Blocking(trio.abc.SendStream):
        async def send_all(self, data: Any) -> None:
            sent.append(bytes(data))
            await trio.sleep_forever()

        async def wait_send_all_might_not_block(self) -> None: ...
        async def aclose(self) -> None: ...

    async def engine() -> Any:
        while True:
            yield "x" * 1000
            await trio.lowlevel.checkpoint()

    async with open_pump(Blocking()) as pump:
        with trio.move_on_after(0.05):
            await pump.run(engine())
    with pytest.raises(PublishError, match="cut while it was sent"):
        await pump.writer.drained()
    pump.writer.write(b"more")
    pump.writer.flush()
    assert len(sent) == 1


async def test_a_send_that_fails_as_nobody_foresaw_does_not_look_sent(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(trio.abc.SendStream):
        async def send_all(self, data: Any) -> None:
            await trio.lowlevel.checkpoint()
            raise OSError("an odd network")

        async def wait_send_all_might_not_block(self) -> None: ...
        async def aclose(self) -> None: ...

    async with open_pump(Odd()) as pump:
        pump.writer.write(b"x" * 100)
        pump.writer.flush()
        with trio.fail_after(5), pytest.raises(PublishError, match="an odd network"):
            await pump.writer.drained()
        assert [str(failure) for failure in pump.failures] == ["an odd network"]
    assert "response stream: internal error" in caplog.text


@pytest.mark.parametrize(("stall", "is_cut"), [(59, False), (61, True)])
async def test_d07_a_peer_that_takes_no_byte_is_given_up_at_the_stall_limit(
    stall: float, is_cut: bool, autojump_clock: MockClock
) -> None:
    async with open_pump(Socket(100)) as pump:
        pump.writer.write(b"x" * 300)
        pump.writer.flush()
        await trio.sleep(stall)
        pump.socket.take(100)
        await wait_all_tasks_blocked()
        assert bool(pump.failures) == is_cut
        assert len(pump.socket.sends) == (1 if is_cut else 2)


async def test_a_chunk_over_the_limit_is_the_engines_failure_and_is_not_counted_as_sent() -> None:
    async def engine() -> Any:
        yield "small"
        yield "x" * 1000

    async with open_pump() as pump:
        with pytest.raises(GenerateError, match=r"chunk of 10.. bytes, the limit is 500 bytes"):
            await pump.run(engine(), max_chunk=500)
        assert pump.sender.body_bytes == len('{"data":{"data":"small"},"complete_final":false}')
