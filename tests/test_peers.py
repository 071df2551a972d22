"""Which connections the address that has most gives up to others; the plane's part: ``test_tcp_plane_crowded.py``."""

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
from ingress.planes._connection import BEGUN, HELD, MAX_SILENCE, RESTED, RESTS, Connection
from ingress.planes._connections import Connections
from ingress.planes._peers import FAR_MORE, MOST_LOOKS, VASTLY_MORE, Peers

from .bench.opcodes import counted_opcodes


class Crowd:
    """Connections of a plane that has no room for more, on a clock of its own."""

    def __init__(self, most: int, of_peer: int | None = None) -> None:
        self.now = 0.0
        self.tallies = Tallies()
        self.connections = Connections(most, of_peer or most, self.tallies, now=lambda: self.now)

    def open(self, peer: str | None, count: int = 1, *, phase: int = RESTS, is_proven: bool = True) -> list[Connection]:
        opened = list[Connection]()
        for _ in range(count):
            connection, given_up = self.enter(peer)
            assert connection is not None and given_up is None
            connection.phase = phase
            if is_proven:
                self.connections.prove(connection)
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
    assert [each and each.peer_host for each in given_up] == ["a", "b", "a", "b", None, None]
    assert {peer.address: peer.open for peer in crowd.connections._peers._by_address.values()} == {
        "a": 8,
        "b": 8,
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
    assert crowd.connections.describe_given_up(given_up) == "its address had 8 open, the most of all"


def test_f15_the_least_recently_used_connection_goes_first() -> None:
    crowd = Crowd(20)
    opened = crowd.open("a", 20)
    for at, each in enumerate(opened):
        each.begun_at = (at - 7) % 20
    assert crowd.displaced_by("b") is opened[7]


def test_f15_of_many_one_that_was_used_since_it_was_looked_at_is_passed_over() -> None:
    crowd = Crowd(4 * MOST_LOOKS)
    opened = crowd.open("a", 4 * MOST_LOOKS)
    given_up = [crowd.displaced_by(f"b{i}") for i in range(4)]
    assert given_up == opened[::MOST_LOOKS]  # nothing is known of them, so each time others were looked at
    assert {each.phase for each in opened} == {RESTED}
    for each in opened[1:10]:
        each.phase, each.begun_at = RESTS, 1.0
    assert [crowd.displaced_by(f"c{i}") for i in range(2)] == opened[10:12]
    assert [each.phase for each in opened[1:10]] == [RESTED] * 9


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


def test_f15_one_that_never_sent_a_request_goes_after_those_that_rest_the_eldest_first() -> None:
    crowd = Crowd(8)
    young, resting = crowd.open("a", 4, phase=BEGUN, is_proven=False), crowd.open("a", 4)
    young[1].opened_at, young[2].opened_at = -2.0, -1.0
    for each in resting[1:]:
        each.phase = HELD
    assert [crowd.displaced_by(peer) for peer in ("b", "c", "d")] == [resting[0], young[1], young[2]]
    assert crowd.now - young[1].opened_at < MAX_SILENCE


@pytest.mark.parametrize(("most", "is_taken"), [(VASTLY_MORE - 1, False), (VASTLY_MORE, True)])
@pytest.mark.parametrize("incomplete", [0, 70_000])
def test_f13_f15_an_unfinished_request_is_given_up_only_by_an_address_that_has_vastly_more(
    most: int, is_taken: bool, incomplete: int
) -> None:
    crowd = Crowd(most)
    for each in crowd.open("a", most, phase=BEGUN):
        each.incomplete_bytes = incomplete
    assert (crowd.displaced_by("b") is not None) is is_taken
    assert crowd.displaced_by("b") is None  # which has one


def test_f03_f15_a_large_request_is_given_up_last_and_the_slowest_first() -> None:
    crowd = Crowd(20)
    large, small = crowd.open("a", 18, phase=BEGUN), crowd.open("a", 2, phase=BEGUN)
    crowd.now = 100.0
    for at, each in enumerate(large):
        each.incomplete_bytes, each.begun_at = 1_000_000, 50.0 + at
    large[5].incomplete_bytes, large[7].incomplete_bytes = 900_000, 2_000_000
    large[7].begun_at = 0.0
    assert [crowd.displaced_by(f"b{at}") for at in range(4)] == [*small, large[5], large[0]]


def test_f11_f15_a_connection_whose_request_is_handed_over_or_acked_is_never_taken() -> None:
    crowd = Crowd(100)
    crowd.open("a", 50, phase=HELD)
    crowd.open("a", 50, phase=HELD, is_proven=False)
    assert [crowd.displaced_by("b") for _ in range(10)] == [None] * 10


def test_f15_the_limit_of_one_address_displaces_only_its_own_silent_ones() -> None:
    crowd = Crowd(20, of_peer=5)
    for peer in ("a", "b", "c", "d"):
        crowd.open(peer, 5)
    assert crowd.displaced_by("a") is None
    assert crowd.displaced_by("e") is not None


# -- however many there are --------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Connection]]:
    """Collects the connections that are looked at."""
    looked_at, rank_of = list[Connection](), _peers._rank_of

    def look(connection: Connection, phase: int, now: float) -> Any:
        looked_at.append(connection)
        return rank_of(connection, phase, now)

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
    looks.clear()
    total = 0
    for at in range(4000):
        crowd.displaced_by(f"b{at}")
        assert len(looks) <= MOST_LOOKS
        total += len(looks)
        looks.clear()
    if phase == RESTS:
        assert total < 2 * 8000 + 4000  # each is marked once, and looked at again when it goes
        displaced = crowd.tallies.connections_refused["displaced"]
        assert displaced == 4000
    for _ in range(100):
        crowd.displaced_by("a0")  # which has as many as any
    assert not looks


def test_f15_a_newcomer_takes_as_many_steps_beside_eight_thousand_as_beside_eighty() -> None:
    steps = dict[tuple[int, int], int]()
    for most, addresses in ((80, 2), (80, 20), (8000, 2), (8000, 20), (8000, 2000)):
        crowd = Crowd(most)
        for at in range(addresses):
            for each in crowd.open(f"a{at}", most // addresses):
                each.phase = RESTED
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
        has, wanted = before[given_up.peer_host], before[peer] + 1
        assert has == max(count for each, count in before.items() if each is not None) > FAR_MORE * wanted
        assert self.may_go(given_up, has, wanted)

    def check_refused(self, before: Counter[str | None], peer: str) -> None:
        assert sum(before.values()) == MOST
        has, wanted = max((count for each, count in before.items() if each is not None), default=0), before[peer] + 1
        if has > FAR_MORE * wanted:
            of_heaviest = {
                name: [each for each in self.open if each.peer_host == name]
                for name, count in before.items()
                if name is not None and count == has
            }
            assert any(not any(self.may_go(each, has, wanted) for each in those) for those in of_heaviest.values())

    def may_go(self, connection: Connection, has: int, wanted: int) -> bool:
        if connection.phase == HELD:
            return False
        is_unused = connection.phase in (RESTS, RESTED) or not (connection.is_proven or connection.incomplete_bytes)
        return is_unused or has >= VASTLY_MORE * wanted

    @rule(at=st.integers(0, MOST - 1))
    def prove(self, at: int) -> None:
        if at < len(self.open):
            self.crowd.connections.prove(self.open[at])

    @rule(first=st.integers(0, MOST - 1), phase=st.sampled_from([RESTS, BEGUN, HELD]), incomplete=st.integers(0, 1))
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
    assert {count: {peer.address for peer in those} for count, those in peers._by_count.items()} == {
        count: {peer for peer in counts if counts[peer] == count} for count in counts.values()
    }
    assert peers._most == max(counts.values(), default=0)
    for peer in peers._by_address.values():
        own = {each for each in known if each.peer is peer}
        assert set(peer.connections) == own == {each for each in known if each.peer_host == peer.address}
        assert len(peer.silent) == sum(not each.is_proven for each in own)


TestPeerBook = PeerBook.TestCase
