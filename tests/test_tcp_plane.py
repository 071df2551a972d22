"""The TCP request plane: frames in, acks out, and nothing a peer sends ends more than its own connection."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress._failures import refusal_text
from ingress._network import TcpNetwork, TcpStream
from ingress._tallies import Tallies
from ingress.abc import PlaneOptions, Push
from ingress.planes._turns import FRAMES_A_PASS, FRAMES_A_TURN, TAKEN, Turns
from ingress.planes.tcp import TcpRequestPlane
from ingress.testing import MemoryNetwork
from ingress.wire.messages import MAX_CONTROL_MESSAGE
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.two_part import PREFIX

from .passes import counted_passes
from .raw_caller import open_stage


@define
class Receiver:
    """What a worker would be: takes pushes, answers with what ``answer`` says of the path."""

    pushes: list[Push] = field(factory=list)
    answers: dict[str, str] = field(factory=dict)
    raises: Exception | None = None

    def __call__(self, push: Push) -> str:
        self.pushes.append(push)
        if push.path == "raise" and self.raises is not None:
            raise self.raises
        if push.refusal is not None:
            return refusal_text(push.refusal)
        return self.answers.get(push.path or "", "")


@define
class Served:
    plane: TcpRequestPlane
    tallies: Tallies
    receiver: Receiver
    network: Any

    async def connect(self) -> trio.abc.Stream:
        stream: trio.abc.Stream = await self.network.connect(*self.plane.bound_address)
        return stream


@asynccontextmanager
async def serve_plane(network: Any = None, **options: Any) -> AsyncIterator[Served]:
    network = MemoryNetwork() if network is None else network
    tallies = Tallies()
    plane = TcpRequestPlane(PlaneOptions(network=network, **options), tallies=tallies)
    served = Served(plane, tallies, Receiver(), network)
    async with trio.open_nursery() as nursery:
        await nursery.start(served.plane.serve, served.receiver)
        yield served
        nursery.cancel_scope.cancel()


def frame(path: str = "p", payload: bytes = b"x", **headers: str) -> bytes:
    return encode_request_frame(path, headers, payload)


async def assert_serves(served: Served) -> None:
    stream = await served.connect()
    await stream.send_all(frame())
    assert await read_acks(stream, 1) == [""]


async def read_acks(stream: trio.abc.Stream, count: int) -> list[str]:
    """Read so many acks; fewer where the plane closes."""
    decoder, acks = AckDecoder(), list[str]()
    while len(acks) < count:
        data = await stream.receive_some()
        if not data:
            break
        decoder.receive_data(data)
        acks += decoder
    return acks


async def is_closed(stream: trio.abc.Stream) -> bool:
    try:
        return not await stream.receive_some()
    except trio.BrokenResourceError:
        return True


# -- frames and acks -------------------------------------------------------------------------------------------------


async def test_f11_a_thousand_frames_in_one_write_are_acked_in_order() -> None:
    async with serve_plane() as served:
        served.receiver.answers = {f"p{i}": f"Server unavailable: {i}" for i in range(0, 1000, 3)}
        stream = await served.connect()
        await stream.send_all(b"".join(frame(f"p{i}") for i in range(1000)))
        acks = await read_acks(stream, 1000)
        assert acks == [f"Server unavailable: {i}" if i % 3 == 0 else "" for i in range(1000)]
        assert [push.path for push in served.receiver.pushes] == [f"p{i}" for i in range(1000)]


@pytest.mark.parametrize("ack", ["", "Server unavailable: unknown endpoint"])
async def test_f04_f06_a_flood_of_small_frames_keeps_nobody_waiting(ack: str) -> None:
    async with serve_plane() as served:
        served.receiver.answers = {"flood": ack}
        flooding = [await served.connect() for _ in range(3)]
        quiet = await served.connect()
        async with trio.open_nursery() as nursery:
            for stream in flooding:
                nursery.start_soon(stream.send_all, frame("flood") * 2000)
            nursery.start_soon(quiet.send_all, frame("quiet"))
        await read_acks(quiet, 1)
        before = [push.path for push in served.receiver.pushes].index("quiet")
        assert before < 200
        for stream in flooding:
            assert await read_acks(stream, 2000) == [ack] * 2000


async def test_f18_beside_a_thousand_that_flood_others_wait_for_few_frames_on_new_connections_and_on_old() -> None:
    async with (
        serve_plane(max_connections=2000, max_connections_per_peer=2000) as served,
        trio.open_nursery() as nursery,
    ):
        pushes = served.receiver.pushes
        served.receiver.answers = {"flood": "Server unavailable: no"}
        flooding = [await served.connect() for _ in range(1000)]
        old = await served.connect()
        await old.send_all(frame("old"))
        assert await read_acks(old, 1) == [""]
        for stream in flooding:
            nursery.start_soon(stream.send_all, frame("flood", bytes(100)) * 300)
        while len(pushes) < 2000:
            await trio.lowlevel.checkpoint()

        before = len(pushes)
        new = await served.connect()
        await new.send_all(frame("new"))
        assert await read_acks(new, 1) == [""]
        assert len(pushes) - before < 8 * FRAMES_A_PASS

        before = len(pushes)
        await old.send_all(frame("old") * 100)  # as of a caller that has fallen behind
        assert await read_acks(old, 100) == [""] * 100
        assert len(pushes) - before < 100 * FRAMES_A_PASS

        for stream in flooding:
            await stream.aclose()
        await wait_all_tasks_blocked()
        assert served.tallies.connections_open == 2  # who waited for a turn has ended


async def test_f18_a_request_that_is_taken_counts_for_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_plane() as served:
        served.receiver.answers["no"] = "Server unavailable: no"
        turns, expected_to_count = served.plane._conversations.turns, list[int]()
        wait = turns.wait

        async def note_wait(*, is_bulk: bool, expected: int) -> int:
            expected_to_count.append(expected)
            turns.left = 100
            return await wait(is_bulk=is_bulk, expected=expected)

        monkeypatch.setattr(turns, "wait", note_wait)
        for path, counts in (("p", TAKEN), ("no", 1)):
            stream = await served.connect()
            await wait_all_tasks_blocked()
            for ever in (TAKEN, counts):  # of a new connection nobody knows what it sends
                turns.left = 0
                await stream.send_all(frame(path))
                await read_acks(stream, 1)
                assert expected_to_count.pop() == ever
            turns.left = 100
            await stream.send_all(frame(path) * 3)
            await read_acks(stream, 3)
            assert turns.left == 100 - 3 * counts


async def test_f13_waiting_for_a_turn_is_not_the_callers_time(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_plane() as served:
        turns = served.plane._conversations.turns
        wait = turns.wait

        async def wait_long(*, is_bulk: bool, expected: int) -> int:
            mock_clock.jump(40)
            return await wait(is_bulk=is_bulk, expected=expected)

        monkeypatch.setattr(turns, "wait", wait_long)
        stream = await served.connect()
        turns.left = 0
        await stream.send_all(frame()[:3])
        await wait_all_tasks_blocked()
        assert turns.left > 0
        await stream.send_all(frame()[3:])
        assert await read_acks(stream, 1) == [""]
        assert trio.current_time() == 40
        assert served.tallies.frames_refused["deadline"] == 0


async def test_f18_the_rest_of_a_large_frame_waits_for_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_plane() as served:
        turns, waited = served.plane._conversations.turns, list[bool]()

        async def wait(*, is_bulk: bool, expected: int) -> int:
            waited.append(is_bulk)
            return FRAMES_A_TURN

        monkeypatch.setattr(turns, "wait", wait)
        stream = await served.connect()
        await wait_all_tasks_blocked()
        turns.left = 0
        await stream.send_all(LARGE)
        assert await read_acks(stream, 1) == [""]
        assert waited == [True, False]  # with its first read, which might be a thousand frames, and when it is whole


async def test_c13_of_huge_frames_that_are_whole_together_each_has_its_turn_with_others_between() -> None:
    turns, seen = 0, list[int]()

    async def neighbour() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    class Watching(list[Push]):
        def append(self, push: Push) -> None:
            seen.append(turns)

    async with serve_plane() as served, trio.open_nursery() as nursery:
        served.receiver.pushes = Watching()
        streams = [await served.connect() for _ in range(4)]
        huge = frame(payload=bytes(12 << 20))  # more than a pass may take
        for stream in streams:
            await stream.send_all(huge[:-1])
        await wait_all_tasks_blocked()
        nursery.start_soon(neighbour)
        for stream in streams:
            nursery.start_soon(stream.send_all, huge[-1:])
        for stream in streams:
            assert await read_acks(stream, 1) == [""]
        nursery.cancel_scope.cancel()
    assert len(seen) == 4 and all(before < after for before, after in itertools.pairwise(seen))


async def test_acks_do_not_wait_for_engines(autojump_clock: MockClock) -> None:
    async def stuck(request: Any) -> AsyncIterator[Any]:
        await trio.sleep(math.inf)
        yield

    async with open_stage(stuck) as stage:
        for _ in range(100):
            await stage.connection.send(stage.caller.payload())
        assert await stage.connection.read_acks(100) == [""] * 100


async def test_f10_frames_split_at_every_boundary_are_understood() -> None:
    two = frame("first", b"abc", k="v") + frame("second", b"")
    async with serve_plane() as served:
        for cut in range(len(two) + 1):
            stream = await served.connect()
            await stream.send_all(two[:cut])
            await wait_all_tasks_blocked()
            await stream.send_all(two[cut:])
            assert await read_acks(stream, 2) == ["", ""]
        stream = await served.connect()
        for i in range(len(two)):
            await stream.send_all(two[i : i + 1])
        assert await read_acks(stream, 2) == ["", ""]
        assert {push.path for push in served.receiver.pushes} == {"first", "second"}
        assert served.receiver.pushes[0].headers == {"k": "v"}
        assert served.receiver.pushes[0].peer_host == "127.0.0.1"


async def test_f09_a_frame_that_is_cut_short_calls_nothing_and_logs_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = frame("path", b"y" * 60, h="v")
    async with serve_plane() as served:
        for cut in range(len(whole)):
            stream = await served.connect()
            await stream.send_all(whole[:cut])
            await stream.aclose()
        await wait_all_tasks_blocked()
        assert served.receiver.pushes == []
        assert caplog.records == []


async def test_f16_noise_ends_its_own_connection_only() -> None:
    dice = random.Random(1)
    async with serve_plane(max_frame_size=100_000) as served:
        for _ in range(300):
            stream = await served.connect()
            noise = bytearray(frame("path", b"y" * 60, h="v") * 2)
            for _ in range(dice.randrange(1, 8)):
                noise[dice.randrange(len(noise))] = dice.randrange(256)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(bytes(noise))
            await stream.aclose()
        stream = await served.connect()
        await stream.send_all(frame("good"))
        assert await read_acks(stream, 1) == [""]


async def silent(request: Any) -> AsyncIterator[Any]:
    return
    yield


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"\xff\xfe\xfd", b"\xed\xa0\x80", b"\xc0\xaf"])
async def test_f06_a_path_that_is_not_utf8_is_refused_and_the_connection_kept(path: bytes) -> None:
    async with open_stage(silent) as stage:
        payload = stage.caller.payload()
        raw = bytes([0, len(path)]) + path + b"\0\0" + len(payload).to_bytes(4, "big") + payload
        await stage.connection.stream.send_all(raw)
        assert await stage.connection.read_acks() == ["Server unavailable: invalid endpoint path"]
        assert await stage.ask(payload) == ""


@pytest.mark.parametrize("length", [1025, 65535, 0x1603, 0x4745])
async def test_f05_f17_a_path_that_is_too_long_is_refused_and_the_connection_closed(
    length: int, autojump_clock: MockClock
) -> None:
    async with serve_plane() as served:
        stream = await served.connect()
        await stream.send_all(frame("good") + length.to_bytes(2, "big") + b"T / HTTP/1.1\r\n")
        assert await read_acks(stream, 3) == ["", "Server unavailable: invalid endpoint path"]
        assert await is_closed(stream)
        assert len(served.receiver.pushes) == 1


async def test_f01_a_frame_that_announces_too_much_is_refused_from_its_length_alone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    async with open_stage(echo) as stage:
        path = stage.connection.path.encode()
        await stage.connection.stream.send_all(len(path).to_bytes(2, "big") + path + b"\0\2{}" + b"\xff" * 4)
        size = 2 + len(path) + 2 + 2 + 4 + 0xFFFFFFFF
        assert await stage.connection.read_acks() == [
            f"Server unavailable: message too large: {size} bytes (max: 33554432 bytes)"
        ]
        assert await is_closed(stage.connection.stream)
        assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["WARNING"]
        registry = stage.worker.metrics.registry
        assert registry.get_sample_value("ingress_frames_refused_total", {"reason": "too_large"}) == 1


async def test_a_caller_whose_control_message_can_be_read_is_told_on_a_stream_that_its_request_is_too_large(
    autojump_clock: MockClock,
) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    async with open_stage(echo, max_frame_size=2000) as stage:
        payload = stage.caller.payload("x" * 5000)
        assert await stage.ask(payload[:1500] + bytes(len(payload) - 1500)) == ""
        response = await stage.caller.accept()
        transcript = await response.read_to_sentinel()
        (error,) = transcript.errors
        assert error.message.startswith("message too large: ")
        assert "(max: 2000 bytes)" in error.message
        assert transcript.is_whole
        assert await is_closed(stage.connection.stream)
        assert stage.errors() == {"invalid_message": 1}
        await response.aclose()


async def test_a_beginning_that_holds_no_control_message_is_refused_in_the_ack(autojump_clock: MockClock) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    for payload in (bytes(5000), b"\0" * 6 + b"\xff\xff" + bytes(5000), b"\0" * 7 + b"\7" + bytes(5000)):
        async with open_stage(echo, max_frame_size=2000) as stage:
            assert (await stage.ask(payload)).startswith("Server unavailable: ")


@pytest.mark.parametrize(("sent", "closed_at"), [(1, 30), (3, 30), (60, 30 + (1 << 20) // (64 * 1024))])
async def test_f13_a_frame_is_due_so_long_after_its_first_byte_however_it_trickles(
    sent: int, closed_at: float, autojump_clock: MockClock
) -> None:
    announced = frame("p", bytes((1 << 20) - len(frame("p", b""))))
    async with serve_plane() as served:
        stream = await served.connect()
        await trio.sleep(100)  # an idle connection is no slow frame
        began = trio.current_time()
        await stream.send_all(announced[:sent])
        with pytest.raises(trio.BrokenResourceError):
            for byte in announced[sent:]:
                await trio.sleep(1)
                await stream.send_all(bytes([byte]))
        # The byte that finds the connection closed is sent up to a second later.
        assert closed_at <= trio.current_time() - began <= closed_at + (0 if sent == 60 else 17) + 1
        assert served.tallies.frames_refused["deadline"] == 1
        await assert_serves(served)


async def test_f13_a_frame_that_begins_in_the_tail_of_another_has_its_own_deadline(autojump_clock: MockClock) -> None:
    async with serve_plane() as served:
        stream = await served.connect()
        for _ in range(5):  # never idle, for each read holds the end of a frame and the beginning of the next
            await stream.send_all(frame()[:3])
            await trio.sleep(20)
            await stream.send_all(frame()[3:] + frame()[:3])
            assert await read_acks(stream, 1) == [""]
            await trio.sleep(20)
            await stream.send_all(frame()[3:])
            assert await read_acks(stream, 1) == [""]


async def test_d15_a_deadline_that_passed_while_the_worker_was_stopped_waits_for_what_is_there(
    mock_clock: MockClock,
) -> None:
    """Under load the loop may look at its deadlines before it looks at what has come."""
    async with serve_plane() as served:
        streams = [await served.connect() for _ in range(2)]
        for stream in streams:
            await stream.send_all(frame()[:3])
        await wait_all_tasks_blocked()
        mock_clock.jump(35)
        await wait_all_tasks_blocked()
        assert served.tallies.frames_refused["deadline"] == 0
        await streams[0].send_all(frame()[3:])
        assert await read_acks(streams[0], 1) == [""]
        mock_clock.jump(0.26)
        with trio.fail_after(1):
            assert await is_closed(streams[1])
        assert served.tallies.frames_refused["deadline"] == 1


async def test_f14_an_idle_connection_is_closed_where_a_limit_is_set(autojump_clock: MockClock) -> None:
    async with serve_plane(idle_timeout=5.0) as served:
        stream = await served.connect()
        await trio.sleep(4)
        await stream.send_all(frame())
        assert await read_acks(stream, 1) == [""]
        assert await is_closed(stream)
        assert trio.current_time() == pytest.approx(9)


@pytest.mark.parametrize("options", [{}, {"max_connections_per_peer": 2}, {"max_connections_per_peer": 5}])
async def test_f15_connections_above_the_limit_are_closed_and_counted_and_make_room_again(
    options: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_plane(max_connections=2, **options) as served:
        first, second, third = [await served.connect() for _ in range(3)]
        assert await is_closed(third)
        assert served.tallies.connections_refused == {"limit": 1, "peer": 0, "silent": 0, "displaced": 0, "tls": 0}
        (record,) = caplog.records
        assert record.getMessage() == "connection from 127.0.0.1 refused: 2 are open, of at most 2"
        await first.send_all(frame())
        assert await read_acks(first, 1) == [""]
        await second.aclose()
        await wait_all_tasks_blocked()
        assert served.tallies.connections_open == 1
        await assert_serves(served)


@pytest.mark.parametrize("kind", ["memory", "socket"])
async def test_f14_f15_a_connection_that_never_sent_a_request_makes_room(
    kind: str, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = TcpNetwork() if kind == "socket" else None
    options = {"max_connections": 3, "max_connections_per_peer": 3}
    async with serve_plane(network, **options) as served, AsyncExitStack() as stack:

        async def connect() -> trio.abc.Stream:
            return await stack.enter_async_context(await served.connect())

        used, silent, trickling = [await connect() for _ in range(3)]
        await used.send_all(frame())
        assert await read_acks(used, 1) == [""]
        await trickling.send_all(frame()[:5])
        assert await is_closed(await connect())  # none has been silent for long
        mock_clock.jump(11)
        for gone in (silent, trickling):
            new = await connect()
            await new.send_all(frame())
            assert await read_acks(new, 1) == [""]
            assert await is_closed(gone)
        assert await is_closed(await connect())  # those that are left have sent one
        await used.send_all(frame())
        assert await read_acks(used, 1) == [""]
        await wait_all_tasks_blocked(0.01)
        assert served.tallies.connections_open == 3
        assert served.tallies.connections_refused == {"limit": 2, "peer": 0, "silent": 2, "displaced": 0, "tls": 0}
        assert "closed to make room: it has sent no whole request" in caplog.text
        assert "internal error" not in caplog.text


async def test_f14_what_has_made_room_while_it_waited_for_its_turn_is_not_taken(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could have told its caller, who may have sent it to another worker since."""
    monkeypatch.setattr("ingress.planes._turns.FRAMES_A_PASS", 0)
    monkeypatch.setattr(Turns, "_let_go", lambda turns: None)
    async with serve_plane(max_connections=1, max_connections_per_peer=1) as served:
        slow = await served.connect()
        await slow.send_all(frame("slow"))
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        mock_clock.jump(11)
        quick = await served.connect()
        assert await is_closed(slow)
        monkeypatch.undo()
        await quick.send_all(frame("quick"))
        assert await read_acks(quick, 1) == [""]
        await wait_all_tasks_blocked()
        assert [push.path for push in served.receiver.pushes] == ["quick"]


async def test_f15_a_large_first_request_on_its_way_does_not_make_room(mock_clock: MockClock) -> None:
    async with serve_plane(max_connections=2, max_connections_per_peer=2) as served:
        upload, stalled = await served.connect(), await served.connect()
        await upload.send_all(LARGE[:80_000])
        await stalled.send_all(LARGE[:1000])
        await wait_all_tasks_blocked()
        mock_clock.jump(11)
        new = await served.connect()
        await new.send_all(frame())
        assert await read_acks(new, 1) == [""]
        assert await is_closed(stalled)
        assert await is_closed(await served.connect())
        await upload.send_all(LARGE[80_000:])
        assert await read_acks(upload, 1) == [""]


async def test_f11_f15_a_connection_does_not_make_room_while_its_first_requests_are_acked(
    mock_clock: MockClock,
) -> None:
    async with serve_plane(max_connections=1, max_connections_per_peer=1) as served:
        stream = await served.connect()
        await stream.send_all(frame() * 1000)
        while not served.receiver.pushes:
            await trio.lowlevel.checkpoint()
        mock_clock.jump(11)
        assert await is_closed(await served.connect())
        assert len(served.receiver.pushes) < 1000
        assert await read_acks(stream, 1000) == [""] * 1000


async def test_f15_the_connections_of_one_peer_have_a_limit_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    async with serve_plane(max_connections=8) as served:
        streams = [await served.connect() for _ in range(6)]
        assert await is_closed(await served.connect())
        assert served.tallies.connections_refused["peer"] == 1
        (record,) = caplog.records
        text = "connection from 127.0.0.1 refused: 6 of its address are open, of at most 6 of one address"
        assert record.getMessage() == text
        await streams.pop().aclose()
        await wait_all_tasks_blocked()
        await assert_serves(served)


async def test_f15_more_connections_than_fit_the_limit_of_descriptors_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ingress.planes.tcp.present_descriptors", lambda: 1024)
    assert TcpRequestPlane(PlaneOptions(network=MemoryNetwork())).max_connections == 464
    async with serve_plane(max_connections=900) as served:
        assert served.plane.max_connections == 696
    text = "max_connections of 900 does not fit the limit of open files and is taken for 696"
    assert [record.getMessage() for record in caplog.records] == [text]


# -- frames that have not arrived whole ------------------------------------------------------------------------------

LARGE = frame("large", b"x" * 400_000)
UNFINISHED = "Server overloaded: too many bytes of unfinished requests"


async def test_f03_f13_large_frames_that_wait_for_their_rest_have_a_limit_together(autojump_clock: MockClock) -> None:
    async with serve_plane(max_frame_size=500_000, max_incomplete_bytes=1_000_000) as served:
        waiting = [await served.connect() for _ in range(2)]
        for stream in waiting:
            await stream.send_all(LARGE[:350_000])  # of one peer, which may hold 750,000
        await wait_all_tasks_blocked()
        one_more = await served.connect()
        await one_more.send_all(LARGE[:200_000])
        assert await read_acks(one_more, 2) == [UNFINISHED]
        assert await is_closed(one_more)
        assert served.tallies.frames_refused["overloaded"] == 1
        await assert_serves(served)  # small ones are
        await waiting[0].send_all(LARGE[350_000:])
        assert await read_acks(waiting[0], 1) == [""]  # and those that wait come to their end
        again = await served.connect()
        await again.send_all(LARGE)
        assert await read_acks(again, 1) == [""]
        await waiting[1].aclose()
        await wait_all_tasks_blocked()
        assert served.plane._incomplete.held == 0


async def test_f03_of_a_frame_that_finds_no_room_no_more_is_taken_than_any_connection_may_hold(
    autojump_clock: MockClock,
) -> None:
    async with serve_plane(max_frame_size=500_000, max_incomplete_bytes=500_000) as served:
        first, second = await served.connect(), await served.connect()
        await first.send_all(LARGE[:399_000])
        await wait_all_tasks_blocked()
        await second.send_all(LARGE[:390_000])
        assert await read_acks(second, 1) == [UNFINISHED]
        (push,) = served.receiver.pushes
        assert len(push.payload) <= MAX_CONTROL_MESSAGE + PREFIX.size


async def test_f02_frames_that_are_too_large_are_looked_at_some_a_pass_too(autojump_clock: MockClock) -> None:
    """A thousand that waited for their beginnings together had been handed over in one pass."""
    looked_at: Counter[int] = Counter()

    class Counted(list[Push]):
        def append(self, push: Push) -> None:
            looked_at[passes.count] += 1

    async with serve_plane(max_frame_size=1000) as served, counted_passes() as passes:
        served.receiver.pushes = Counted()
        streams = [await served.connect() for _ in range(1000)]
        for stream in streams:
            await stream.send_all(frame(payload=bytes(2000))[:200])
        for stream in streams:
            assert len(await read_acks(stream, 1)) == 1
    assert sum(looked_at.values()) == 1000
    assert max(looked_at.values()) <= FRAMES_A_PASS


async def test_f14_idle_connections_hold_nothing_of_the_requests_that_they_have_sent() -> None:
    body = 4 << 20
    whole = frame("p", bytes(body))
    async with serve_plane() as served:
        streams = [await served.connect() for _ in range(16)]  # of the last read of each 48 KiB would be held
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for stream in streams:
                await stream.send_all(whole)
                assert await read_acks(stream, 1) == [""]
                served.receiver.pushes.clear()
            await wait_all_tasks_blocked()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        assert held < 256 * 1024, f"{held} bytes are held"


async def test_f13_a_frame_that_is_overdue_gives_its_bytes_back(autojump_clock: MockClock) -> None:
    async with serve_plane() as served:
        stream = await served.connect()
        await stream.send_all(LARGE[:300_000])
        await wait_all_tasks_blocked()
        assert served.plane._incomplete.held == 300_000
        await trio.sleep(60)
        assert await is_closed(stream)
        assert served.plane._incomplete.held == 0


async def test_l08_a_large_frame_is_refused_while_memory_is_short(autojump_clock: MockClock) -> None:
    is_short = False
    async with serve_plane(is_short_of_memory=lambda size: is_short) as served:
        stream, other = await served.connect(), await served.connect()
        await stream.send_all(LARGE[:200_000])
        await wait_all_tasks_blocked()
        is_short = True
        await trio.sleep(5)  # what is held is kept
        await stream.send_all(LARGE[200_000:210_000])
        assert await read_acks(stream, 2) == ["Server overloaded: worker is short of memory"]
        assert await is_closed(stream)
        await other.send_all(frame())
        assert await read_acks(other, 1) == [""]
        assert served.tallies.frames_refused == {"too_large": 0, "path": 0, "deadline": 0, "overloaded": 1}


async def test_f02_the_limit_counts_the_whole_frame_and_is_inclusive(autojump_clock: MockClock) -> None:
    overhead = len(frame("p", b""))
    async with serve_plane(max_frame_size=1000) as served:
        stream = await served.connect()
        await stream.send_all(frame("p", b"x" * (1000 - overhead)) + frame("p", b"x" * (1001 - overhead)))
        assert await read_acks(stream, 3) == ["", "Server unavailable: message too large: 1001 bytes (max: 1000 bytes)"]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("", ""),
        ("../../etc", "../../etc"),
        ("a\nb\x1b\0", "a\\nb\\x1b\\x00"),
        ("\u202egnp", "\\u202egnp"),
        ("x" * 1024, "x" * 200 + "…(1024 characters)"),
    ],
)
async def test_f04_f07_an_unknown_path_is_named_escaped_and_clipped_and_the_connection_kept(
    path: str, shown: str
) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    async with open_stage(echo) as stage:
        for _ in range(2):
            ack = await stage.ask(stage.caller.payload(), path=path)
            assert ack == f"Server unavailable: unknown endpoint {shown}"
        await stage.assert_alive()


@pytest.mark.parametrize("headers", [b"", b"not json", b"[]", b"null", b'{"a":1}', b"[" * 30_000, b"\xff" * 65535])
async def test_f08_headers_of_any_kind_are_served(headers: bytes) -> None:
    async with serve_plane() as served:
        stream = await served.connect()
        await stream.send_all(b"\0\1p" + len(headers).to_bytes(2, "big") + headers + b"\0\0\0\1x")
        assert await read_acks(stream, 1) == [""]
        assert served.receiver.pushes[0].headers == {}


# -- peers that misbehave --------------------------------------------------------------------------------------------


async def test_f12_a_peer_that_never_reads_its_acks_is_not_read_from_and_closed_at_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async with serve_plane(MemoryNetwork(trio.testing.lockstep_stream_pair)) as served:
        stream = await served.connect()
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(frame("p") * 100)
                sent += 1
        assert trio.current_time() == pytest.approx(60)
        assert sent <= 2


async def test_f14_an_idle_connection_is_kept(autojump_clock: MockClock) -> None:
    async with serve_plane() as served:
        stream = await served.connect()
        for _ in range(3):
            await stream.send_all(frame())
            assert await read_acks(stream, 1) == [""]
            await trio.sleep(3600)


async def test_a_receiver_that_fails_ends_one_connection_and_not_the_plane(caplog: pytest.LogCaptureFixture) -> None:
    async with serve_plane() as served:
        served.receiver.raises = RuntimeError("bug")
        first, second = await served.connect(), await served.connect()
        await first.send_all(frame("raise"))
        assert await is_closed(first)
        await second.send_all(frame("fine"))
        assert await read_acks(second, 1) == [""]
        assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("most", [500, 1])
async def test_f15_connections_that_come_together_are_let_in_or_refused_in_a_few_passes_of_the_loop(most: int) -> None:
    network = TcpNetwork()
    async with (
        serve_plane(network, max_connections=most, max_connections_per_peer=most) as served,
        AsyncExitStack() as stack,
    ):
        await wait_all_tasks_blocked()
        for _ in range(200):  # before the plane can accept one
            stream = network.start_connect(*served.plane.bound_address)
            assert isinstance(stream, TcpStream)
            await stack.enter_async_context(stream)
        passes = 0
        while served.tallies.connections_open + served.tallies.connections_refused["limit"] < 200:
            await trio.lowlevel.checkpoint()
            passes += 1
        assert passes < 15
        assert served.tallies.connections_open == min(most, 200)
        if most > 200:
            assert isinstance(stream, TcpStream)
            await stream.send_all(frame())
            assert await read_acks(stream, 1) == [""]


class FailingListener(trio.abc.Listener[trio.abc.Stream]):
    """Raises errors before it accepts."""

    def __init__(self, inner: Any, errors: list[OSError]) -> None:
        self._inner = inner
        self._errors = errors

    async def accept(self) -> trio.abc.Stream:
        if self._errors:
            raise self._errors.pop(0)
        stream: trio.abc.Stream = await self._inner.accept()
        return stream

    async def aclose(self) -> None:
        await self._inner.aclose()


class FailingNetwork(MemoryNetwork):
    errors: list[OSError]
    make_listener: type[FailingListener] = FailingListener

    async def open_listener(self, host: str, port: int) -> Any:
        self.inner = await super().open_listener(host, port)
        return self.make_listener(self.inner, self.errors)

    def local_address(self, listener: Any) -> tuple[str, int]:
        return self.inner.address


class FailingAtOnceListener(FailingListener):
    """Raises them once something has been accepted, to whoever asks for more."""

    async def accept(self) -> trio.abc.Stream:
        if self._errors:
            await trio.lowlevel.checkpoint()
            return trio.testing.memory_stream_pair()[0]
        return await super().accept()

    def accept_nowait(self) -> trio.abc.Stream | None:
        if self._errors:
            raise self._errors.pop(0)
        return None


class FailingAtOnceNetwork(FailingNetwork):
    make_listener = FailingAtOnceListener


@pytest.mark.parametrize("make_network", [FailingNetwork, FailingAtOnceNetwork])
async def test_l03_the_listener_survives_every_accept_errno_without_spinning(
    make_network: type[FailingNetwork], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = make_network()
    network.errors = [OSError(number, "cannot") for number in (24, 23, 12, 105, 103, 71, 113, 1, 22, 999)]
    network.errors += [OSError(24, "too many open files") for _ in range(100)]
    async with serve_plane(network) as served:
        stream = await served.connect()
        await stream.send_all(frame())
        assert await read_acks(stream, 1) == [""]
        assert 10 < trio.current_time() < 12  # a tenth of a second each
        assert len(caplog.records) < 10 + 2 * 13  # a line for each kind, and at most two a second


# -- where callers are sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advertise", "expected"),
    [
        (None, "127.0.0.1:40001"),
        ("worker-7", "worker-7:40001"),
        ("worker-7:99", "worker-7:99"),
        ("10.0.0.7", "10.0.0.7:40001"),
        ("10.0.0.7:99", "10.0.0.7:99"),
        ("12345", "12345:40001"),
        ("2001:db8::7", "[2001:db8::7]:40001"),
        ("[2001:db8::7]", "[2001:db8::7]:40001"),
        ("[2001:db8::7]:99", "[2001:db8::7]:99"),
    ],
)
async def test_the_advertised_address_is_what_was_asked_for_with_the_bound_port(
    advertise: str | None, expected: str
) -> None:
    async with serve_plane(advertise=advertise) as served:
        assert served.plane.transport("1/a") == {"tcp": f"{expected}/1/a"}


@pytest.mark.parametrize("advertise", ["", "h:99999", "h:0", "h:", "h:+5", "a b", "[h]:80", "[::1]x:80", "h:٣"])
def test_an_address_that_callers_would_refuse_is_refused_at_once(advertise: str) -> None:
    with pytest.raises(ValueError, match="advertise: expected HOST or HOST:PORT"):
        PlaneOptions(network=TcpNetwork(), advertise=advertise)


async def test_a_worker_bound_to_all_addresses_advertises_one_that_is_not_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ingress.planes.tcp.routable_host", lambda: "10.9.8.7")
    for host in ("0.0.0.0", "::"):
        async with serve_plane(TcpNetwork(), host=host) as served:
            _, port = served.plane.bound_address
            assert served.plane.address == f"10.9.8.7:{port}"


async def test_the_addresses_of_a_plane_that_has_not_started_are_refused() -> None:
    with pytest.raises(RuntimeError, match="has not started"):
        TcpRequestPlane(PlaneOptions(network=MemoryNetwork())).transport("x")
