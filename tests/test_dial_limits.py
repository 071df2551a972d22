"""Dials wait their turn, addresses that keep failing are left alone, and names are looked up once or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress._dial_guard import DialGuard
from ingress._dial_limits import CROWDED_TIMEOUT, HURRIED_TIMEOUT, DialLimits
from ingress._dial_outcomes import DOUBT_TIME
from ingress._dial_policy import DialPolicy
from ingress._network import TcpNetwork
from ingress.errors import DialBackRefused, ResponseStreamError
from ingress.testing import MemoryNetwork
from ingress.testing._memory import MemoryStream
from ingress.wire.addresses import HostName, parse_address, parse_host_name
from ingress.wire.messages import ConnectionInfo

from .raw_caller import Stage, open_raw_caller, open_stage

REFUSED = "Server unavailable: dial-back address refused"
OVERLOADED = "Server overloaded: too many dial-backs of this caller's address are pending"
ADDRESS = parse_address("10.0.0.1:5000")
OTHER = parse_address("10.0.0.1:5001")


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


class BlackHole(MemoryNetwork):
    """Some ports are never answered."""

    black: frozenset[int] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.pending = self.most_pending = 0

    async def connect(self, host: str, port: int) -> MemoryStream:
        if port not in self.black:
            return await super().connect(host, port)
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        try:
            await trio.sleep_forever()
        finally:
            self.pending -= 1
        raise AssertionError("slept for ever")


def denied(stage: Stage) -> dict[str, float]:
    return {
        sample.labels["reason"]: sample.value
        for family in stage.worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "ingress_dial_denied_total" and sample.value
    }


async def ask(stage: Stage, address: str) -> str:
    return await stage.ask(stage.caller.payload(0, stage.caller.control(info={"address": address})))


async def test_d05_a_peer_has_few_dials_pending_to_an_address_that_has_not_answered(autojump_clock: MockClock) -> None:
    network = BlackHole()
    network.black = frozenset(range(6000, 6100))
    async with open_stage(echo, network=network, drain_budget=600) as stage:
        for _ in range(100):
            assert await ask(stage, "127.0.0.1:6000") == ""
        await wait_all_tasks_blocked()
        assert network.pending == 8
        await stage.assert_alive()
        for port in range(6001, 6051):
            assert await ask(stage, f"127.0.0.1:{port}") == ""
        await wait_all_tasks_blocked()
        assert network.pending == network.most_pending == 48
        await trio.sleep(HURRIED_TIMEOUT + 5.1)  # the last ten, which were in line, have the whole time
        assert stage.errors() == {"response_stream": 150}
        assert network.most_pending == 48
        stage.assert_nothing_left()


async def test_d05_addresses_that_have_answered_are_dialled_while_others_are_silent(autojump_clock: MockClock) -> None:
    network = BlackHole()
    network.black = frozenset(range(6000, 7000))
    async with open_stage(echo, network=network, drain_budget=600) as stage:
        await stage.assert_alive()
        for port in range(6000, 6100):
            await ask(stage, f"127.0.0.1:{port}")
        await wait_all_tasks_blocked()
        before = trio.current_time()
        await stage.assert_alive()
        assert trio.current_time() == before
        assert network.pending == 48


async def test_d05_an_address_that_has_answered_has_48_of_64_turns_until_it_is_silent(
    autojump_clock: MockClock,
) -> None:
    limits = DialLimits()
    limits.outcomes.note_answer(ADDRESS)
    turns = [turn for _ in range(64) if (turn := limits.take_turn_nowait("peer", ADDRESS)) is not None]
    assert len(turns) == 48
    strangers = [limits.take_turn_nowait("peer", number) for number in range(64)]
    assert strangers == [None] * 64  # what is left of the peer's is kept for addresses that have answered
    limits.outcomes.note_answer(OTHER)
    others = [limits.take_turn_nowait("peer", OTHER) for _ in range(17)]
    assert others[15] is not None and others[16] is None
    turns[0].note_failure(ADDRESS, is_silent=True)
    assert not limits.outcomes.has_answered(ADDRESS) and limits.outcomes.is_failing(ADDRESS)
    turns[1].note_answer()
    assert not limits.outcomes.is_failing(ADDRESS)


async def test_d05_256_dials_are_pending_at_most_and_224_of_them_to_new_addresses() -> None:
    limits = DialLimits()

    def take(numbers: range) -> int:
        """A dial of a caller of its own each."""
        return sum(limits.take_turn_nowait(f"peer {number}", number) is not None for number in numbers)

    assert take(range(400)) == 224
    for number in range(400, 600):
        limits.outcomes.note_answer(number)
    assert take(range(400, 600)) == 32


async def test_d05_of_all_turns_three_eighths_are_for_callers_that_have_none() -> None:
    limits = DialLimits()
    for number in range(400):
        limits.outcomes.note_answer(number)
    turns = [limits.take_turn_nowait(f"peer {number % 20}", number) for number in range(400)]
    assert sum(turn is not None for turn in turns) == 160
    assert all(limits.take_turn_nowait(f"new {number}", f"new {number}") is not None for number in range(64))
    assert limits.take_turn_nowait("new 64", "new 64") is None
    assert all(limits.take_turn_nowait(f"good {number}", number) is not None for number in range(32))
    assert limits.take_turn_nowait("good 32", 32) is None


async def test_d05_callers_that_wait_have_the_next_turn_one_after_the_other() -> None:
    """Twenty that had let their listeners' queues fill had kept everybody with a way of 20 ms waiting for 3 s."""
    limits = DialLimits()
    order: list[str] = []
    for number in range(200):
        limits.outcomes.note_answer(number)

    async def dial(peer: str, target: int) -> None:
        await limits.take_turn(peer, target)
        order.append(peer)

    # Nobody has more for having none: each who waits holds one, beside the 160 of others.
    peers = [f"peer {number % 10}" for number in range(160)] + ["greedy", "good", "fair"]
    turns = [turn for number, peer in enumerate(peers) if (turn := limits.take_turn_nowait(peer, number)) is not None]
    assert len(turns) == 163
    async with trio.open_nursery() as nursery:
        for peer in ("greedy",) * 8 + ("good",) * 2 + ("fair",) * 3:
            nursery.start_soon(dial, peer, 199)
            await wait_all_tasks_blocked()
        assert order == []
        for turn in turns[:160]:
            turn.release()
            await wait_all_tasks_blocked()
    assert order == ["greedy", "good", "fair"] * 2 + ["greedy", "fair"] + ["greedy"] * 5


async def test_d05_who_waits_for_an_address_that_was_silent_is_sent_away(autojump_clock: MockClock) -> None:
    """Wherever it waits: of 64 requests to each of 80 such addresses, those in line had taken every slot."""
    limits = DialLimits()
    sent_away: list[float] = []
    for number in range(10):
        limits.outcomes.note_answer(number)

    async def dial(number: int) -> None:
        try:
            turn = await limits.take_turn(f"peer {number}", number)
        except ResponseStreamError:
            sent_away.append(trio.current_time())
            return
        with turn.begin(5.0):
            await trio.sleep_forever()
        turn.note_failure(ADDRESS, is_silent=True)
        turn.release()

    async with trio.open_nursery() as nursery:
        for number in range(10):
            for _ in range(40):
                nursery.start_soon(dial, number)
    assert set(sent_away) == {HURRIED_TIMEOUT}
    # 160 have turns at once, and one of each caller that comes after them: six, for 160 are of four callers or more. As
    # these are given up, their turns go to callers who have not been told yet: in the worst order all of the 160.
    assert 400 - (160 + 6) - 160 <= len(sent_away) <= 400 - 160
    assert trio.current_time() == HURRIED_TIMEOUT + 5.0


async def test_d05_who_has_answered_and_does_no_more_has_not_answered_for_a_minute(autojump_clock: MockClock) -> None:
    limits = DialLimits()
    limits.outcomes.note_answer(ADDRESS)
    limits.outcomes.note_answer(OTHER)  # another port of the same host
    limits.outcomes.note_failure(ADDRESS, ADDRESS, is_silent=True)
    for _ in range(10):
        assert not limits.outcomes.has_answered(ADDRESS) and not limits.outcomes.has_answered(OTHER)
        await trio.sleep(DOUBT_TIME / 10)
        limits.outcomes.note_answer(ADDRESS)
    assert limits.outcomes.has_answered(ADDRESS) and limits.outcomes.has_answered(OTHER)


async def test_an_address_that_refuses_is_doubted_by_nobody() -> None:
    limits = DialLimits()
    limits.outcomes.note_answer(OTHER)
    limits.outcomes.note_failure(ADDRESS, ADDRESS, is_silent=False)
    assert limits.outcomes.has_answered(OTHER)


async def test_the_table_of_those_in_doubt_is_bounded() -> None:
    limits = DialLimits()
    for number in range(3000):
        address = parse_address(f"127.1.{number // 250}.{number % 250}:5000")
        limits.outcomes.note_answer(address)
        limits.outcomes.note_failure(address, address, is_silent=True)
    assert len(limits.outcomes._doubted) == 1024


async def test_d05_a_dial_is_given_up_sooner_once_another_address_waits_for_its_turn(
    autojump_clock: MockClock,
) -> None:
    network = BlackHole()
    network.black = frozenset(range(6000, 6048))
    async with open_stage(echo, network=network, drain_budget=600) as stage:
        for port in range(6000, 6048):
            assert await ask(stage, f"127.0.0.1:{port}") == ""
        await wait_all_tasks_blocked()
        await stage.assert_alive()
        assert trio.current_time() == HURRIED_TIMEOUT
        await wait_all_tasks_blocked()
        assert stage.errors() == {"response_stream": 48}


async def test_d02_waiting_for_a_turn_does_not_count_against_the_connect_timeout(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = BlackHole()
    network.black = frozenset(range(6000, 6400))
    async with open_stage(echo, network=network, drain_budget=600) as stage:
        # In one write, so that nobody has waited when they are admitted.
        for port in range(6000, 6400):
            await stage.connection.send(
                stage.caller.payload(0, stage.caller.control(info={"address": f"127.0.0.1:{port}"}))
            )
        assert set(await stage.connection.read_acks(400)) == {""}
        # The last of all, behind eight times 48: only of the last of those do no more wait than can dial at once.
        await stage.assert_alive()
        assert trio.current_time() == 7 * CROWDED_TIMEOUT + HURRIED_TIMEOUT
        await trio.sleep(5.1)
        assert stage.errors() == {"response_stream": 400}
        stage.assert_nothing_left()


async def test_d05_a_thousand_callers_whom_nobody_can_reach_do_not_keep_a_new_one_for_long(
    autojump_clock: MockClock,
) -> None:
    limits = DialLimits()

    async def dial(number: int) -> None:
        turn = await limits.take_turn(f"peer {number}", number)
        with turn.begin(5.0):
            await trio.sleep_forever()
        turn.release()

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(dial, number)
        await wait_all_tasks_blocked()
        newcomer = await limits.take_turn("newcomer", "home")
        assert trio.current_time() == 3 * CROWDED_TIMEOUT + HURRIED_TIMEOUT
        newcomer.release()


async def test_d05_of_ipv6_a_whole_network_of_64_bits_has_one_peers_turns() -> None:
    limits = DialLimits()
    taken = [limits.take_turn_nowait(f"2001:db8::{number:x}", number) for number in range(100)]
    assert sum(turn is not None for turn in taken) == 48
    assert limits.take_turn_nowait("2001:db8:0:1::1", "another") is not None


async def test_d05_a_line_that_does_not_move_takes_nobody_more(autojump_clock: MockClock) -> None:
    network = BlackHole()
    network.black = frozenset(range(6000, 7000))
    async with open_stage(echo, network=network, drain_budget=600) as stage:
        await stage.assert_alive()
        for port in range(6000, 6000 + 48 + 64):
            assert await ask(stage, f"127.0.0.1:{port}") == ""
        await trio.sleep(0.3)
        counted = stage.errors()
        assert await ask(stage, "127.0.0.1:6999") == OVERLOADED
        assert stage.errors() == {"response_stream": counted.get("response_stream", 0) + 1}
        await stage.assert_alive()
        assert trio.current_time() == 0.3


async def test_d02_who_waits_for_a_silent_address_does_not_try_it_again(autojump_clock: MockClock) -> None:
    network = BlackHole()
    network.black = frozenset({6000})
    async with open_stage(echo, network=network, drain_budget=600) as stage:
        for _ in range(100):
            assert await ask(stage, "127.0.0.1:6000") == ""
        await trio.sleep(5.01)
        assert stage.errors() == {"response_stream": 100}
        assert await ask(stage, "127.0.0.1:6000") == REFUSED
        await trio.sleep(1)
        assert await ask(stage, "127.0.0.1:6000") == ""


def open_silent_listener() -> tuple[list[socket.socket], int]:
    """Return a listener whose accept queue is full, with what fills it, and its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    sockets = [listener]
    for _ in range(3):
        sockets.append(socket.socket())
        sockets[-1].setblocking(False)
        sockets[-1].connect_ex(listener.getsockname())
    return sockets, int(listener.getsockname()[1])


async def test_d02_d05_a_caller_on_this_machine_that_accepts_is_never_behind_those_who_do_not(
    mock_clock: MockClock,  # which stands still: nobody is given up to make room
) -> None:
    with ExitStack() as stack:
        ports = []
        for _ in range(48 + 64):
            sockets, port = open_silent_listener()
            for each in sockets:
                stack.enter_context(each)
            ports.append(port)
        async with open_stage(echo, network=TcpNetwork()) as stage:
            for port in ports:
                assert await ask(stage, f"127.0.0.1:{port}") == ""
            for _ in range(5):
                async with open_raw_caller(TcpNetwork()) as another:  # whose address has never answered
                    connection = await another.connect(stage.worker)
                    response = await another.call(connection, 7)
                    assert (await response.read_to_sentinel()).items == [7]
            assert stage.sample("inflight_requests") == 48 + 64
            mock_clock.rate = 100


async def test_d05_an_address_that_failed_64_times_within_a_second_is_refused_for_one(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(echo) as stage:
        for _ in range(64):
            assert await ask(stage, "127.0.0.1:6000") == ""  # nobody listens
        await wait_all_tasks_blocked()
        assert await ask(stage, "127.0.0.1:6000") == REFUSED
        assert denied(stage) == {"failing": 1}
        await stage.assert_alive()
        await trio.sleep(1.1)
        assert await ask(stage, "127.0.0.1:6000") == ""


async def test_d05_dials_that_succeed_are_never_limited() -> None:
    async with open_stage(echo) as stage:
        for _ in range(300):
            await stage.assert_alive()


async def test_a_turn_is_given_back_when_its_waiter_has_gone() -> None:
    limits = DialLimits()
    turns = [await limits.take_turn(f"peer {number}", number) for number in range(224)]
    for peer in ("peer 1", "another"):
        with trio.move_on_after(0) as scope:
            await limits.take_turn(peer, 0)
        assert scope.cancelled_caught
    for turn in turns:
        turn.release()
    (await limits.take_turn("another", 0)).release()
    assert not limits._shares
    assert not limits._all._holders


async def test_who_waits_for_a_turn_gets_it_in_order(autojump_clock: MockClock) -> None:
    limits = DialLimits()
    limits.outcomes.note_answer("address")
    done: list[int] = []

    async def dial(number: int) -> None:
        turn = await limits.take_turn("peer", "address")
        await trio.sleep(1)
        done.append(number)
        turn.release()

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(dial, number)
            await wait_all_tasks_blocked(0.001)
    # Within a batch the scheduler decides.
    assert [set(done[:48]), set(done[48:96]), set(done[96:])] == [
        set(range(48)),
        set(range(48, 96)),
        set(range(96, 100)),
    ]
    assert not limits._shares


async def test_old_failures_do_not_add_up_and_the_table_is_bounded(autojump_clock: MockClock) -> None:
    limits = DialLimits()
    for _ in range(200):
        limits.outcomes.note_failure(ADDRESS, ADDRESS, is_silent=False)
        await trio.sleep(0.1)
    assert not limits.outcomes.is_failing(ADDRESS)
    for port in range(1024, 5000):
        address = parse_address(f"10.0.0.2:{port}")
        limits.outcomes.note_failure(address, address, is_silent=False)
    assert len(limits.outcomes._failures) <= 1024


async def test_d03_a_neighbours_listener_is_not_dialled_also_when_it_was_before() -> None:
    guard = DialGuard(DialPolicy("any"))

    def may_dial(port: int) -> bool:
        info = ConnectionInfo(f"127.0.0.1:{port}", "s", "r", "response").to_address()
        try:
            guard.check("127.0.0.1", "r", info, "response")
        except DialBackRefused:
            return False
        return True

    assert may_dial(7000)
    assert may_dial(7001)
    guard.keep_from("parent", ("127.0.0.1", 6999))
    guard.keep_from("1.0", ("127.0.0.1", 7000))
    assert [may_dial(port) for port in (6999, 7000, 7001)] == [False, False, True]
    guard.keep_from("1.0", ("0.0.0.0", 7001))
    assert [may_dial(port) for port in (6999, 7000, 7001)] == [False, True, False]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("localhost:5000", "unreadable"),
        ("192.0.2.1:5000", "policy"),
        ("127.0.0.1:22", "reserved"),
        ("169.254.169.254:8000", "reserved"),
        ("127.0.0.9:5000", "denied"),
    ],
)
async def test_every_denial_is_counted_under_its_reason(address: str, reason: str) -> None:
    async with open_stage(echo, dial_policy=DialPolicy("peer", deny=["127.0.0.9"])) as stage:
        assert await ask(stage, address) == REFUSED
        assert denied(stage) == {reason: 1}
        assert len(stage.worker._network.connects) == 1  # the caller's own


# -- names -----------------------------------------------------------------------------------------------------------


class Resolver:
    """Answers with what it was given, and counts; what is slow answers nothing until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.was_asked = threading.Event()
        self.let_go = threading.Event()
        monkeypatch.setattr("ingress._dial_guard.socket.getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host: str, port: int, *rest: Any, **named: Any) -> Any:
        self.asked.append(host)
        self.was_asked.set()
        answers = self.answers.pop(0) if self.answers else []
        if answers == ["slow"]:
            self.let_go.wait(60)
        if answers in ([], ["slow"]):
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port)) for answer in answers]


@pytest.mark.parametrize(
    ("answers", "is_answered"),
    [
        ([["127.0.0.1"]], True),
        ([["127.0.0.1", "192.0.2.1"]], False),  # one of two lies outside
        ([["127.0.0.1"], ["192.0.2.1"]], True),  # what a second look-up would find does not matter: there is none
        ([["169.254.169.254"]], False),
        ([], False),
        ([["slow"]], False),
    ],
)
async def test_d04_every_address_of_a_name_is_checked_and_the_checked_one_dialled(
    answers: list[list[str]], is_answered: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    autojump_clock.autojump_threshold = 0.1  # what a thread takes
    resolver = Resolver(monkeypatch, *answers)
    async with open_stage(echo, dial_policy=DialPolicy("peer", resolve_names=True), drain_budget=60) as stage:
        port = stage.caller.address.rpartition(":")[2]
        assert await ask(stage, f"caller.example:{port}") == ""
        if is_answered:
            response = await stage.caller.accept()
            assert (await response.read_to_sentinel()).items == [0]
            await response.aclose()
        else:
            await trio.sleep(6)
            assert stage.errors() == {"response_stream": 1}
            assert len(stage.worker._network.connects) == 1
        assert resolver.asked == ["caller.example"]
        resolver.let_go.set()


async def test_d04_look_ups_that_nobody_answers_take_no_thread_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, *[["slow"]] * 40)
    guard = DialGuard(DialPolicy("any", resolve_names=True))
    threads = trio.to_thread.current_default_thread_limiter()

    async def look_up(number: int) -> None:
        with trio.move_on_after(0.2):
            await guard.resolve("10.0.0.9", HostName(f"n{number}.example", 5000))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(look_up, number)
        assert threads.borrowed_tokens == 0
        assert await trio.to_thread.run_sync(lambda: "an engine's") == "an engine's"
    assert len(resolver.asked) == 32, "given up, they keep their threads until they are answered"
    resolver.let_go.set()


async def test_d03_a_name_at_a_port_that_no_address_may_have_is_refused_without_a_look_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(monkeypatch, ["127.0.0.1"])
    async with open_stage(echo, dial_policy=DialPolicy("any", resolve_names=True)) as stage:
        assert await ask(stage, "caller.example:22") == REFUSED
        assert denied(stage) == {"reserved": 1}
    named = DialPolicy("any", allow=["127.0.0.1/32"], resolve_names=True)
    async with open_stage(echo, dial_policy=named) as stage:
        assert await ask(stage, "caller.example:22") == ""
        assert await trio.to_thread.run_sync(resolver.was_asked.wait, 20)
    assert resolver.asked == ["caller.example"]


async def test_d03_no_name_is_looked_up_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(monkeypatch, ["127.0.0.1"])
    async with open_stage(echo) as stage:
        assert await ask(stage, "caller.example:5000") == REFUSED
    assert resolver.asked == []


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:80", "127.1:80", "2130706433:80", "0x7f000001:80", "a..b:80", "-a:80", "a_b:80", "a:0", "a:65536",
     "a b:80", "user@a:80", "a:80/x", "[::1]:80", "a", "a:", ":80", "x" * 254 + ":80", "é:80"],
)  # fmt: skip
def test_what_is_no_name_is_not_taken_for_one(text: str) -> None:
    assert parse_host_name(text) is None


def test_names_are_read() -> None:
    assert parse_host_name("pod-7.team.svc.cluster.local:8000") == HostName("pod-7.team.svc.cluster.local", 8000)
