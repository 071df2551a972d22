"""Which connections give way to addresses that have far fewer; the plane's part: ``test_tcp_plane_crowded.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ingress._network import TcpNetwork, TcpStream
from ingress._tallies import Tallies
from ingress.planes import _peers
from ingress.planes._connection import BEGUN, HELD, NEVER, RESTS, WAITS, Connection
from ingress.planes._connections import Connections
from ingress.planes._peers import FAR_MORE, FLOOD, LOOKS, MOST_LOOKS, POOL, USED, VASTLY_MORE, Peers
from ingress.planes._silent import MAX_SILENCE

from .bench.opcodes import counted_opcodes


class Crowd:
    """Connections of a plane that has no room for more, on a clock of its own."""

    def __init__(self, most: int, of_peer: int | None = None) -> None:
        self.now = 0.0
        self.tallies = Tallies()
        self.connections = Connections(most, of_peer or most, self.tallies, now=lambda: self.now)

    def open(self, peer: str | None, count: int = 1, *, phase: int = RESTS, was_taken: bool = True) -> list[Connection]:
        opened = list[Connection]()
        for _ in range(count):
            connection, given_up = self.enter(peer)
            assert connection is not None and given_up is None
            connection.phase, connection.opened_at = phase, self.now - USED
            connection.begun_at = self.now - USED if phase == RESTS else self.now
            if was_taken:
                self.connections.prove(connection)
                connection.taken_at = connection.begun_at
            opened.append(connection)
        return opened

    def enter(self, peer: str | None, stream: Any = None) -> tuple[Connection | None, Connection | None]:
        return self.connections.enter(stream, peer)

    def displaced_by(self, peer: str | None) -> Connection | None:
        connection, given_up = self.enter(peer)
        assert (connection is None) == (given_up is None)
        assert given_up is None or given_up.gave_way == "displaced"
        return given_up


def test_f15_two_addresses_that_hold_all_connections_keep_no_third_one_out() -> None:
    crowd = Crowd(20)
    for peer in ("a", "b"):
        crowd.open(peer, 10)
    given_up = [crowd.displaced_by("c") for _ in range(6)]
    # It gets no more than half of what the others keep.
    assert [each and each.peer_host for each in given_up] == ["a", "a", "a", "b", None, None]
    assert {peer.address: peer.open for peer in crowd.connections._peers._by_address.values()} == {
        "a": 7,
        "b": 9,
        "c": 4,
    }
    assert crowd.tallies.connections_refused == {"limit": 2, "peer": 0, "silent": 0, "displaced": 4, "tls": 0}
    assert crowd.tallies.connections_open == 20


def test_f15_nothing_is_displaced_for_an_address_that_has_as_many_or_for_one_that_nobody_knows() -> None:
    crowd = Crowd(8)
    crowd.open("a", 4)
    crowd.open("b", 4)
    for peer in ("a", "b", None):
        assert crowd.displaced_by(peer) is None
    crowd = Crowd(8)
    crowd.open(None, 6)  # those that nobody knows are no address
    crowd.open("a", 2)
    assert crowd.displaced_by("b") is None


def test_f15_who_displaces_is_told_from_who_finds_no_room() -> None:
    crowd = Crowd(8, of_peer=8)
    crowd.open("a", 8)
    given_up = crowd.displaced_by("b")
    assert given_up is not None and not given_up.is_open
    why = "its address had 8 open, far more than another one that found no room"
    assert crowd.connections.describe_given_up(given_up) == why


def test_f15_the_least_recently_used_connection_goes_first() -> None:
    crowd = Crowd(20)
    opened = crowd.open("a", 20)
    for at, each in enumerate(opened):
        each.begun_at = (at - 7) % 20 - 30.0
    assert crowd.displaced_by("b") is opened[7]


def test_f15_of_many_the_least_recently_used_of_those_that_are_looked_at_goes() -> None:
    crowd = Crowd(4 * MOST_LOOKS)
    opened = crowd.open("a", 4 * MOST_LOOKS)
    for at, each in enumerate(opened):
        each.begun_at = -10.0 - at
    given_up = [crowd.displaced_by(f"b{i}") for i in range(4)]
    assert given_up == opened[MOST_LOOKS - 1 :: MOST_LOOKS]  # each time others were looked at
    for each in opened:
        each.taken_at = NEVER
    given_up = [crowd.displaced_by(f"c{i}") for i in range(2)]
    assert given_up == opened[:1] + opened[LOOKS : LOOKS + 1]


def test_f15_an_address_that_uses_what_it_has_loses_nothing_however_many_have_about_as_much() -> None:
    """Of 200 addresses with 45 each, which rested, none had lost one: a pool of 50 in use had the most of all."""
    crowd = Crowd(950)
    for at in range(20):
        crowd.open(f"a{at}", 45)
    in_use = crowd.open("good", 50)
    for at in range(300):
        crowd.now += 0.01
        for each in in_use:
            each.begun_at = crowd.now
        crowd.displaced_by(f"b{at}")
        assert all(each.is_open for each in in_use)
    assert crowd.tallies.connections_refused["displaced"] > 250


def test_f15_one_that_was_used_a_moment_ago_is_in_use() -> None:
    crowd = Crowd(8)
    for each in crowd.open("a", 8):
        each.begun_at = crowd.now
    crowd.now += USED - 0.01
    assert crowd.displaced_by("b") is None
    crowd.now += 0.02
    assert crowd.displaced_by("b") is not None


@pytest.mark.parametrize("phase", [RESTS, BEGUN])
def test_f15_what_is_in_use_goes_last_and_only_where_an_address_has_more_than_a_pool(phase: int) -> None:
    """A request every 4.5 s on each of 8,400 connections of two addresses, and 53 of 59 newcomers found no room."""
    crowd = Crowd(POOL + 22)
    in_use = crowd.open("a", POOL + 2, phase=phase)
    rests, pool = crowd.open("a", 2), crowd.open("b", 18)
    crowd.now += 100.0
    for at, each in enumerate([*in_use, *pool]):
        each.begun_at = crowd.now - USED / (at + 2)
    for at, each in enumerate(rests):
        each.begun_at = crowd.now - USED - at
    assert [crowd.displaced_by(f"c{at}") for at in range(5)] == [*rests[::-1], *in_use[:2], None]


def test_f15_where_all_is_in_use_that_address_gives_way_that_has_the_most() -> None:
    """A flood need only ask more often than others to be in use more than they, and a pool of 100 had lost 68."""
    crowd = Crowd(POOL + 60)
    pool = crowd.open("good", POOL + 1)
    flood = crowd.open("flood", 59)
    crowd.now += 100.0
    for each in pool:
        each.begun_at = crowd.now - 4.0
    for each in flood:
        each.begun_at = crowd.now
    assert all(crowd.displaced_by(f"b{at}") in flood for at in range(25))


@pytest.mark.parametrize("of_peer", [4, 5])
def test_f15_what_is_in_use_goes_only_to_who_would_have_an_eighth(of_peer: int) -> None:
    crowd = Crowd(POOL + 8 + of_peer)
    crowd.open("a", POOL + 8)
    crowd.open("b", of_peer)
    crowd.now += USED - 0.1
    for each in crowd.connections._peers._in_turn:
        each.begun_at = crowd.now
    assert (crowd.displaced_by("b") is not None) is (of_peer == 4)


@pytest.mark.parametrize("is_first", [False, True])
def test_f15_a_request_that_waits_for_its_turn_is_in_use_however_long(is_first: bool) -> None:
    """It had passed for one that rested or trickled, and pools lost requests in a crowd."""
    crowd = Crowd(FLOOD + 2)
    (rests,) = crowd.open("a", 1)
    waiting = crowd.open("a", FLOOD + 1, phase=WAITS, was_taken=not is_first)
    crowd.now += 4.0
    rests.begun_at = crowd.now - 0.1
    assert crowd.displaced_by("b") is rests
    assert crowd.displaced_by("c") in waiting
    assert crowd.displaced_by("d") is None


@pytest.mark.parametrize("is_wrapped", [False, True])
async def test_f15_a_connection_whose_bytes_wait_is_not_taken_and_one_that_has_ended_is(is_wrapped: bool) -> None:
    class Wrapped:
        def __init__(self, transport: trio.abc.Stream) -> None:
            self.transport = transport

    network, crowd = TcpNetwork(), Crowd(4)
    async with await network.open_listener("127.0.0.1", 0) as listener:
        callers, streams = list[trio.abc.Stream](), list[TcpStream]()
        for _ in range(4):
            callers.append(await network.connect(*listener.address))
            streams.append(await listener.accept())
            connection, _ = crowd.enter("a", Wrapped(streams[-1]) if is_wrapped else streams[-1])
            assert connection is not None
            crowd.connections.prove(connection)
            connection.phase = RESTS
        for caller in callers[:3]:
            await caller.send_all(b"x")
        await callers[3].aclose()
        with trio.fail_after(5):
            while not streams[3].has_peer_left or not all(each.has_unread for each in streams[:3]):
                await trio.sleep(0.001)
        given_up = crowd.displaced_by("b")
        assert given_up is not None and streams[3] in (given_up.stream, getattr(given_up.stream, "transport", None))
        assert crowd.displaced_by("c") is None
        await streams[2].receive_some()
        assert crowd.displaced_by("c") is not None
        for stream in (*callers, *streams):
            await stream.aclose()
            assert not getattr(stream, "has_unread", False)


@pytest.mark.parametrize(
    ("phase", "is_proven", "taken_at", "is_given_up"),
    [
        (BEGUN, True, NEVER, True),
        (WAITS, True, NEVER, True),
        (RESTS, True, NEVER, False),
        (BEGUN, False, NEVER, False),
        (BEGUN, True, 0.0, False),
    ],
)
async def test_f15_more_junk_that_waits_to_be_read_is_no_request(
    phase: int, is_proven: bool, taken_at: float, is_given_up: bool
) -> None:
    """Of junk by the megabyte each connection had kept its place until all of it was read."""
    network, crowd = TcpNetwork(), Crowd(1)
    async with (
        await network.open_listener("127.0.0.1", 0) as listener,
        await network.connect(*listener.address) as caller,
        await listener.accept() as stream,
    ):
        connection, _ = crowd.enter("a", stream)
        assert connection is not None and connection.peer is not None and isinstance(stream, TcpStream)
        if is_proven:
            crowd.connections.prove(connection)
        connection.phase, connection.taken_at, connection.peer.open = phase, taken_at, 100
        await caller.send_all(b"x")
        with trio.fail_after(5):
            while not stream.has_unread:
                await trio.sleep(0.001)
        crowd.now += USED
        assert crowd.displaced_by("b") is (connection if is_given_up else None)


def test_f15_one_of_which_no_request_was_ever_taken_goes_first_the_eldest_of_them() -> None:
    crowd = Crowd(8)
    resting, young, junk = crowd.open("a", 3), crowd.open("a", 3, phase=BEGUN, was_taken=False), crowd.open("a", 2)
    for each in resting:
        each.begun_at = -100.0
    for each in junk:  # whole frames, but refused
        each.taken_at = NEVER
    young[1].opened_at, junk[0].opened_at, young[2].opened_at = -9.0, -8.0, -7.0
    assert [crowd.displaced_by(peer) for peer in ("b", "c", "d")] == [young[1], junk[0], young[2]]
    assert crowd.now - young[1].opened_at < MAX_SILENCE


@pytest.mark.parametrize(("most", "is_taken"), [(VASTLY_MORE - 1, False), (VASTLY_MORE, True)])
@pytest.mark.parametrize("incomplete", [0, 70_000])
def test_f13_f15_an_unfinished_request_is_given_up_only_by_an_address_that_has_vastly_more(
    most: int, is_taken: bool, incomplete: int
) -> None:
    crowd = Crowd(most)
    for each in crowd.open("a", most, phase=BEGUN):
        each.incomplete_bytes = incomplete
        each.begun_at = crowd.now
    crowd.now += USED - 0.1
    assert crowd.displaced_by("b") is None
    crowd.now += 0.2
    assert (crowd.displaced_by("b") is not None) is is_taken
    assert crowd.displaced_by("b") is None  # which has one


def test_f03_f15_a_large_request_is_given_up_last_and_the_slowest_first() -> None:
    crowd = Crowd(20)
    large, small = crowd.open("a", 18, phase=BEGUN), crowd.open("a", 2, phase=BEGUN)
    crowd.now = 100.0
    for at, each in enumerate(large):
        each.incomplete_bytes, each.begun_at = 1_000_000, 50.0 + at
    large[5].incomplete_bytes, large[7].incomplete_bytes = 900_000, 2_000_000
    large[7].begun_at, large[17].begun_at, large[17].incomplete_bytes = 0.0, 94.0, 120_000
    assert [crowd.displaced_by(f"b{at}") for at in range(5)] == [*small, large[17], large[5], large[0]]


def test_f11_f15_a_connection_whose_request_is_handed_over_is_never_taken() -> None:
    crowd = Crowd(100)
    crowd.open("a", 50, phase=HELD)
    crowd.open("a", 50, phase=HELD, was_taken=False)
    assert [crowd.displaced_by("b") for _ in range(10)] == [None] * 10


def test_f15_the_limit_of_one_address_displaces_only_its_own_silent_ones() -> None:
    crowd = Crowd(20, of_peer=5)
    for peer in ("a", "b", "c"):
        crowd.open(peer, 5)
    crowd.open("d", 4)
    crowd.open(None)
    assert crowd.displaced_by("a") is None
    assert crowd.displaced_by("e") is not None


# -- however many there are --------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Connection]]:
    """Collects the connections that are looked at."""
    looked_at, rank_of = list[Connection](), _peers._rank_of

    def look(connection: Connection, wanted: int, now: float) -> Any:
        looked_at.append(connection)
        return rank_of(connection, wanted, now)

    monkeypatch.setattr(_peers, "_rank_of", look)
    yield looked_at


@pytest.mark.parametrize("phase", [RESTS, BEGUN, HELD])
@pytest.mark.parametrize("addresses", [2, 40, 1000])
def test_f15_each_that_comes_costs_a_few_looks_however_many_are_open(
    looks: list[Connection], addresses: int, phase: int
) -> None:
    crowd = Crowd(8000)
    for at in range(addresses):
        crowd.open(f"a{at}", 8000 // addresses, phase=phase)
    for at in range(4000):
        looks.clear()
        crowd.displaced_by(f"b{at}")
        assert len(looks) <= MOST_LOOKS
    is_given_up = phase == RESTS or (phase == BEGUN and addresses < 1000)  # who has eight has few
    assert crowd.tallies.connections_refused["displaced"] == (4000 if is_given_up else 0)


def test_f15_a_newcomer_takes_as_many_steps_beside_eight_thousand_as_beside_eighty() -> None:
    steps = dict[tuple[int, int], int]()
    for most, addresses in ((160, 2), (160, 20), (8000, 2), (8000, 20), (8000, 2000)):
        crowd = Crowd(most)
        for at in range(addresses):
            crowd.open(f"a{at}", most // addresses)
        with counted_opcodes() as functions:
            for at in range(10):
                crowd.displaced_by(f"b{at}")
        assert crowd.tallies.connections_refused["displaced"] == 10
        steps[most, addresses] = sum(functions.values())
    assert max(steps.values()) < 1.2 * min(steps.values())


# -- the books ---------------------------------------------------------------------------------------------------------

MOST, MOST_OF_PEER = 14, 11


class PeerBook(RuleBasedStateMachine):
    """Connections of some addresses come, rest, send and leave in any order; the counts hold, and the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.crowd = Crowd(MOST, MOST_OF_PEER)
        self.open: list[Connection] = []

    @rule(peer=st.sampled_from(["a", "a", "a", "b", "c", "d", None]), times=st.integers(1, 6))
    def come(self, peer: str | None, times: int) -> None:
        for _ in range(times):
            before = self.counts()
            connection, given_up = self.crowd.enter(peer)
            if given_up is not None:
                self.open.remove(given_up)
                if given_up.gave_way == "displaced":
                    self.check_displaced(given_up, before, peer)
            if connection is not None:
                assert given_up is not None or sum(before.values()) < MOST
                self.open.append(connection)
            elif peer is not None and before[peer] < MOST_OF_PEER:
                self.check_refused(before, peer)

    def check_displaced(self, given_up: Connection, before: Counter[str | None], peer: str | None) -> None:
        assert peer is not None and given_up.peer_host is not None and not given_up.is_open
        assert self.may_go(given_up, before[given_up.peer_host], before[peer] + 1)

    def check_refused(self, before: Counter[str | None], peer: str) -> None:
        assert before[peer] >= 3 * (MOST - sum(before.values()))
        assert MOST < MOST_LOOKS
        assert not any(self.may_go(each, before[each.peer_host], before[peer] + 1) for each in self.open)

    def may_go(self, connection: Connection, has: int, wanted: int) -> bool:
        if connection.peer_host is None or connection.phase == HELD or has <= FAR_MORE * wanted:
            return False
        was_taken = connection.taken_at > NEVER
        has_vastly_more = has >= VASTLY_MORE * wanted
        if connection.phase == WAITS and (was_taken or connection.incomplete_bytes or not connection.is_proven):
            return has_vastly_more and has > FLOOD
        if not (was_taken or connection.incomplete_bytes):
            return True
        if was_taken and self.crowd.now - connection.begun_at < USED:
            return has_vastly_more and has > POOL
        return connection.phase == RESTS or has_vastly_more

    @rule(at=st.integers(0, MOST - 1), was_taken=st.booleans())
    def prove(self, at: int, was_taken: bool) -> None:
        if at < len(self.open):
            self.crowd.connections.prove(self.open[at])
            self.open[at].taken_at = self.crowd.now if was_taken else NEVER

    @rule(
        first=st.integers(0, MOST - 1), phase=st.sampled_from([RESTS, BEGUN, WAITS, HELD]), incomplete=st.integers(0, 1)
    )
    def go_on(self, first: int, phase: int, incomplete: int) -> None:
        for each in self.open[first:]:
            each.phase, each.incomplete_bytes = phase, incomplete * 70_000 if phase == BEGUN else 0

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.crowd.now += seconds

    @rule(at=st.integers(0, MOST - 1))
    def leave(self, at: int) -> None:
        if at < len(self.open):
            self.crowd.connections.leave(self.open.pop(at))

    def counts(self) -> Counter[str | None]:
        return Counter(each.peer_host for each in self.open)

    @invariant()
    def books_hold(self) -> None:
        assert self.crowd.tallies.connections_open == len(self.open) <= MOST
        assert_holds(self.crowd.connections._peers, self.open)

    def teardown(self) -> None:
        for each in self.open:
            self.crowd.connections.leave(each)
        assert_holds(self.crowd.connections._peers, [])
        assert self.crowd.tallies.connections_open == 0


def assert_holds(peers: Peers, connections: list[Connection]) -> None:
    known = [each for each in connections if each.peer_host is not None]
    counts = Counter(each.peer_host for each in known)
    assert {peer.address: peer.open for peer in peers._by_address.values()} == counts
    assert set(peers._in_turn) == set(known)
    for peer in peers._by_address.values():
        own = {each for each in known if each.peer is peer}
        assert own == {each for each in known if each.peer_host == peer.address}
        assert len(peer.silent) == sum(not each.is_proven for each in own)


TestPeerBook = PeerBook.TestCase
