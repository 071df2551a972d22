"""A plane whose connections are all taken: who has far fewer than others is let in, and served."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress.planes._peers import USED
from ingress.planes._turns import FRAMES_A_TURN, TAKEN, Turns
from ingress.testing import MemoryNetwork
from ingress.testing._memory import StreamPair

from .test_tcp_plane import Served, frame, is_closed, read_acks, serve_plane

SMALL_PART, LARGE_PART = frame("p", bytes(1000))[:500], frame("p", bytes(100_000))[:60_000]


class CrowdNetwork(MemoryNetwork):
    """Whose callers have addresses."""

    def __init__(self, make_pair: Callable[[], StreamPair]) -> None:
        super().__init__(make_pair)
        self._hosts: dict[trio.abc.Stream, str] = {}

    async def connect_from(self, peer_host: str, address: tuple[str, int]) -> trio.abc.Stream:
        ours = await self.connect(*address)
        assert ours._peer is not None
        self._hosts[ours._peer] = peer_host
        return ours

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return self._hosts.get(stream)


class Crowded:
    def __init__(self, served: Served, network: CrowdNetwork) -> None:
        self.served = served
        self._network = network

    async def connect_now(self, peer_host: str) -> trio.abc.Stream:
        return await self._network.connect_from(peer_host, self.served.plane.bound_address)

    async def connect(self, peer_host: str, data: bytes = b"") -> trio.abc.Stream:
        stream = await self.connect_now(peer_host)
        with contextlib.suppress(trio.BrokenResourceError):
            if data:
                await stream.send_all(data)
        await wait_all_tasks_blocked()
        return stream

    async def connect_and_call(self, peer_host: str) -> trio.abc.Stream:
        stream = await self.connect(peer_host, frame(peer_host))
        assert await read_acks(stream, 1) == [""]
        return stream


@asynccontextmanager
async def crowded_plane(
    most: int, make_pair: Callable[[], StreamPair] = trio.testing.memory_stream_pair
) -> AsyncIterator[Crowded]:
    network = CrowdNetwork(make_pair)
    async with serve_plane(network, max_connections=most, max_connections_per_peer=most) as served:
        yield Crowded(served, network)


async def test_f15_two_addresses_whose_connections_rest_keep_no_third_one_out(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with crowded_plane(8) as crowded:
        resting = [await crowded.connect_and_call(peer) for peer in ("10.0.0.1", "10.0.0.2") * 4]
        await trio.sleep(3600)
        await crowded.connect_and_call("10.0.0.3")
        assert await is_closed(resting[0])
        (record,) = caplog.records
        assert record.getMessage() == (
            "connection from 10.0.0.1 closed to make room: its address had 4 open, "
            "far more than another one that found no room"
        )
        tallies = crowded.served.tallies
        assert tallies.connections_refused == {"limit": 0, "peer": 0, "silent": 0, "displaced": 1, "tls": 0}
        assert tallies.connections_open == 8
        for peer in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):  # who have three, four and one
            assert await is_closed(await crowded.connect(peer))
        for stream in resting[2:]:
            await stream.send_all(frame())
            assert await read_acks(stream, 1) == [""]


async def test_f15_one_that_is_used_stays_and_one_that_rests_goes(autojump_clock: MockClock) -> None:
    async with crowded_plane(6) as crowded:
        used, *resting = [await crowded.connect_and_call("10.0.0.1") for _ in range(6)]
        for at in range(3):
            await trio.sleep(6)
            await used.send_all(frame())
            assert await read_acks(used, 1) == [""]
            await crowded.connect_and_call(f"10.0.1.{at}")
        assert [await is_closed(stream) for stream in resting[:3]] == [True] * 3
        await used.send_all(frame())
        assert await read_acks(used, 1) == [""]


@pytest.mark.parametrize("refusal", ["Server unavailable: nope", "Server overloaded: full"])
async def test_f15_refused_requests_are_no_use(refusal: str, autojump_clock: MockClock) -> None:
    """With one that was taken, and a refused one each 4 s, all others had been kept out for as long as that went on."""
    async with crowded_plane(8) as crowded:
        crowded.served.receiver.answers["no"] = refusal
        kept, *idle = [await crowded.connect_and_call("10.0.0.1") for _ in range(8)]
        for number in range(5):
            await trio.sleep(4)
            for stream in (kept, *idle[max(number - 1, 0) :]):
                await stream.send_all(frame("p" if stream is kept else "no"))
                assert await read_acks(stream, 1) == ["" if stream is kept else refusal]
            if number:
                await crowded.connect_and_call(f"10.0.1.{number}")
                assert await is_closed(idle[number - 1])
        await kept.send_all(frame())
        assert await read_acks(kept, 1) == [""]


async def test_f15_to_find_no_room_for_a_while_is_no_fault(autojump_clock: MockClock) -> None:
    async with crowded_plane(4) as crowded:
        crowded.served.receiver.answers["full"] = "Server overloaded: full"
        used = [await crowded.connect_and_call("10.0.0.1") for _ in range(4)]
        await trio.sleep(USED - 1)
        for stream in used:
            await stream.send_all(frame("full"))
            assert await read_acks(stream, 1) == ["Server overloaded: full"]
        assert await is_closed(await crowded.connect("10.0.0.2"))
        for stream in used:
            await stream.send_all(frame())
            assert await read_acks(stream, 1) == [""]


@pytest.mark.parametrize("data", [b"", b"\0", SMALL_PART, LARGE_PART])
async def test_f13_f15_connections_that_never_send_a_request_keep_nobody_out_not_even_at_first(
    data: bytes, autojump_clock: MockClock
) -> None:
    async with crowded_plane(20) as crowded:
        for at in range(20):
            await crowded.connect(f"10.0.0.{at % 2}", data)
        await crowded.connect_and_call("10.0.1.1")
        assert trio.current_time() == 0
        assert crowded.served.tallies.connections_refused["displaced"] == 1
        await trio.sleep(1)
        assert crowded.served.tallies.connections_open == 20
    assert crowded.served.plane._incomplete.held == 0


@pytest.mark.parametrize("has_sent", [True, False])
async def test_f13_f15_a_part_of_a_request_is_given_up_to_those_who_have_hardly_any(
    has_sent: bool, autojump_clock: MockClock
) -> None:
    async with crowded_plane(7) as crowded:
        streams = [
            await crowded.connect_and_call("10.0.0.1") if has_sent else await crowded.connect("10.0.0.1")
            for _ in range(7)
        ]
        for stream in streams:
            await stream.send_all(SMALL_PART)
        await wait_all_tasks_blocked()
        new = await crowded.connect("10.0.0.2", frame())
        assert await read_acks(new, 1) == ([] if has_sent else [""])  # seven are not vastly more than one
        assert crowded.served.tallies.connections_refused["displaced"] == (not has_sent)


@pytest.mark.parametrize("answer", ["", "Server unavailable: p"])
async def test_f12_f15_who_reads_no_ack_keeps_nobody_out(answer: str, autojump_clock: MockClock) -> None:
    """Junk whose acks are not read had kept a connection for a minute; requests that are taken keep it for 5 s."""
    async with crowded_plane(8, trio.testing.lockstep_stream_pair) as crowded:
        crowded.served.receiver.answers["p"] = answer
        for _ in range(8):
            await crowded.connect("10.0.0.1", frame())
        if not answer:
            await trio.sleep(USED)
        await crowded.connect_and_call("10.0.0.2")
        assert crowded.served.tallies.connections_refused["displaced"] == 1


async def test_f15_who_is_refused_and_lingers_keeps_nobody_out(autojump_clock: MockClock) -> None:
    async with crowded_plane(8) as crowded:
        for _ in range(8):
            await crowded.connect("10.0.0.1", frame() + b"\xff" * 100)
        await crowded.connect_and_call("10.0.0.2")
        assert crowded.served.tallies.connections_refused["displaced"] == 1


@pytest.mark.parametrize("is_first", [False, True])
async def test_f15_a_request_that_waits_for_its_turn_keeps_its_connection(
    is_first: bool, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 5 s it had passed for one that trickles, and beside a crowd a pool in use lost 70 requests."""
    async with crowded_plane(8) as crowded:
        connect = crowded.connect if is_first else crowded.connect_and_call
        pool = [await connect("10.0.0.1") for _ in range(8)]
        with monkeypatch.context() as nobodys_turn:
            nobodys_turn.setattr("ingress.planes._turns.FRAMES_A_PASS", 0)
            nobodys_turn.setattr(Turns, "_let_go", lambda turns: None)
            crowded.served.plane._conversations.turns.left = 0
            for caller in pool:
                await caller.send_all(frame())
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            mock_clock.jump(USED + 1)
            other = await crowded.connect_now("10.0.0.2")
            for _ in range(50):
                await trio.lowlevel.checkpoint()
        assert await is_closed(other)
        for caller in pool:
            assert await read_acks(caller, 1) == [""]


async def test_f14_f15_what_is_displaced_while_it_waits_for_its_turn_is_handed_over_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody could have told its caller, who may have sent it to another worker since."""
    async with crowded_plane(8) as crowded:
        greedy = [await crowded.connect_and_call("10.0.0.1") for _ in range(8)]
        pushes, turns = crowded.served.receiver.pushes, crowded.served.plane._conversations.turns
        pushes.clear()
        monkeypatch.setattr("ingress.planes._turns.FRAMES_A_PASS", 0)
        monkeypatch.setattr(Turns, "_let_go", lambda turns: None)
        monkeypatch.setattr("ingress.planes._peers.FLOOD", 0)
        turns.left = 12 * FRAMES_A_TURN
        for at, caller in enumerate(greedy):
            await caller.send_all(frame(f"greedy{at}") * 20 * FRAMES_A_TURN)
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        before = Counter(push.path for push in pushes)
        of_turn = math.ceil(FRAMES_A_TURN / TAKEN)
        assert sum(before.values()) == of_turn * math.ceil(12 * FRAMES_A_TURN / (of_turn * TAKEN))
        good = await crowded.connect_now("10.0.0.2")
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        monkeypatch.undo()
        await good.send_all(frame("good"))
        assert await read_acks(good, 1) == [""]
        await wait_all_tasks_blocked()
        pushed = Counter(push.path for push in pushes)
        (given_up,) = [at for at in range(8) if pushed[f"greedy{at}"] < 20 * FRAMES_A_TURN]
        assert pushed[f"greedy{given_up}"] == before[f"greedy{given_up}"] > 0
        assert len(await read_acks(greedy[given_up], 20 * FRAMES_A_TURN)) == before[f"greedy{given_up}"]
