"""Which request connections are let in, and which give way; the plane's part is in ``test_tcp_plane.py``."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from trio.testing import MockClock

from ingress._shares import share_of_peer
from ingress._tallies import Tallies
from ingress.planes._connection import Connection
from ingress.planes._connections import Connections
from ingress.planes._silent import LEAST_SENT, MAX_SILENCE, Silent


def make(most: int, of_peer: int | None = None) -> Connections:
    return Connections(most, share_of_peer(most) if of_peer is None else of_peer, Tallies())


def enter(connections: Connections, peer: str | None) -> tuple[Connection | None, Connection | None]:
    stream: Any = None
    return connections.enter(stream, peer)


def admit(connections: Connections, peer: str | None) -> Connection:
    connection, given_up = enter(connections, peer)
    assert connection is not None and given_up is None
    return connection


@pytest.mark.parametrize(("most", "of_peer"), [(8192, 6144), (2, 2), (1, 1), (464, 348)])
def test_f15_a_peer_may_hold_three_quarters(most: int, of_peer: int) -> None:
    assert share_of_peer(most) == of_peer


async def test_f15_one_peer_leaves_the_others_their_quarter() -> None:
    connections = make(8)
    greedy = [admit(connections, "10.0.0.1") for _ in range(6)]
    assert enter(connections, "10.0.0.1") == (None, None)
    others = [admit(connections, peer) for peer in ("10.0.0.2", None)]
    assert enter(connections, None) == (None, None)
    assert connections._tallies.connections_refused == {"limit": 1, "peer": 1, "silent": 0, "displaced": 0, "tls": 0}
    for connection in (*greedy, *others):
        connections.leave(connection)
        assert not connection.is_open and not connection.is_proven  # it has sent nothing
    assert connections._tallies.connections_open == 0
    assert not connections._peers._by_address and not connections._silent


@pytest.mark.parametrize(
    ("addresses", "of_each", "left"),
    [(1, 6144, 2048), (2, 3511, 1170), (20, 403, 134), (100, 82, 32), (1500, 6, 32), (2041, 4, 28)],
)
def test_f15_the_fewer_places_are_left_the_fewer_an_address_may_have(addresses: int, of_each: int, left: int) -> None:
    """A hundred addresses with 82 connections in use each had kept out a third to a half of all others."""
    connections = Connections(8192, 6144, Tallies(), now=lambda: 0.0)
    let_in = 1
    while let_in:
        let_in = sum(enter(connections, f"a{at}")[0] is not None for at in range(addresses))
    of_peers = [peer.open for peer in connections._peers._by_address.values()]
    assert max(of_peers) == of_each and min(of_peers) >= of_each - 1
    assert left <= 8192 - connections._tallies.connections_open <= left + 1
    admit(connections, "new")


def test_f15_who_finds_no_room_for_what_it_has_is_told_so() -> None:
    connections = Connections(100, 75, Tallies(), now=lambda: 0.0)
    for peer, count in (("a", 60), ("b", 30)):
        for _ in range(count):
            admit(connections, peer)
    assert enter(connections, "b") == (None, None)
    assert connections.describe_full("b") == "30 of its address are open, and of all no more than 10 are left"
    assert connections._tallies.connections_refused["peer"] == 1


@pytest.mark.parametrize(
    ("most", "of_peer", "alone", "beside_others"), [(100, 50, 50, 8), (100, 75, 75, 8), (100, 90, 90, 9), (8, 8, 8, 8)]
)
def test_f15_an_address_that_is_alone_may_have_what_it_is_given(
    most: int, of_peer: int, alone: int, beside_others: int
) -> None:
    for others, has in ((0, alone), (most - 10, beside_others)):
        connections = Connections(most, of_peer, Tallies(), now=lambda: 0.0)
        for at in range(others):
            admit(connections, f"{at}")
        assert sum(enter(connections, "a")[0] is not None for _ in range(most)) == has


async def test_f15_who_has_its_share_displaces_nobody_who_has_as_few(autojump_clock: MockClock) -> None:
    """There is a place for whoever has."""
    connections = Connections(16, 12, Tallies())
    good = admit(connections, "good")
    silent = admit(connections, "a")
    for peer in "babababababa":
        connections.prove(admit(connections, peer))
    await trio.sleep(2 * MAX_SILENCE)
    assert enter(connections, "b") == (None, None)  # which has six; two places are left
    assert good.is_open
    connections.prove(good)
    assert enter(connections, "b")[1] is silent  # "a" has seven


async def test_f15_who_has_its_share_may_still_displace_its_own(autojump_clock: MockClock) -> None:
    connections = Connections(16, 12, Tallies())
    admit(connections, "good")
    for _ in range(6):
        connections.prove(admit(connections, "a"))
    own = [admit(connections, "b") for _ in range(6)]
    await trio.sleep(2 * MAX_SILENCE)
    connections.prove(admit(connections, "a"))
    assert enter(connections, "b")[1] is own[0]  # and not the one of "good", which is as old


async def test_f14_f15_the_longest_silent_connection_gives_way(autojump_clock: MockClock) -> None:
    connections = make(4, of_peer=4)
    first, second = admit(connections, "10.0.0.1"), admit(connections, "10.0.0.2")
    await trio.sleep(1)
    third, fourth = admit(connections, "10.0.0.1"), admit(connections, "10.0.0.2")
    connections.prove(first)
    await trio.sleep(MAX_SILENCE - 1.5)
    assert enter(connections, "10.0.0.3") == (None, None)  # not for so long yet
    await trio.sleep(1)
    new, given_up = enter(connections, "10.0.0.3")
    assert new is not None and given_up is second
    assert enter(connections, "10.0.0.3") == (None, None)
    await trio.sleep(MAX_SILENCE)
    connections.prove(third)
    assert enter(connections, "10.0.0.3")[1] is fourth
    assert connections._tallies.connections_refused == {"limit": 2, "peer": 0, "silent": 2, "displaced": 0, "tls": 0}
    assert connections._tallies.connections_open == 4


async def test_f15_an_upload_gives_way_only_once_it_falls_behind(autojump_clock: MockClock) -> None:
    connections = make(2, of_peer=2)
    slow, fast = admit(connections, "10.0.0.1"), admit(connections, "10.0.0.1")
    await trio.sleep(2 * MAX_SILENCE)
    slow.incomplete_bytes, fast.incomplete_bytes = 2 * LEAST_SENT, 3 * LEAST_SENT
    assert enter(connections, "10.0.0.2") == (None, None)
    await trio.sleep(1)
    assert enter(connections, "10.0.0.2")[1] is slow
    assert enter(connections, "10.0.0.2") == (None, None)


async def test_f15_a_peer_at_its_limit_displaces_only_its_own(autojump_clock: MockClock) -> None:
    connections = make(10, of_peer=2)
    other = admit(connections, "10.0.0.2")
    await trio.sleep(1)
    own = [admit(connections, "10.0.0.1") for _ in range(2)]
    await trio.sleep(MAX_SILENCE)
    assert [enter(connections, "10.0.0.1")[1] for _ in range(2)] == own
    assert enter(connections, "10.0.0.1") == (None, None)
    assert other.is_open


async def test_f15_of_ipv6_a_whole_network_of_64_bits_has_one_share(autojump_clock: MockClock) -> None:
    connections = make(10, of_peer=2)
    for last in (1, 2):
        admit(connections, f"2001:db8::{last}")
    assert enter(connections, "2001:db8::3") == (None, None)
    assert "2 of its address are open" in connections.describe_full("2001:db8::3")
    admit(connections, "2001:db8:0:1::3")


class LookedAt(Connection):
    looks = 0

    def __init__(self, opened_at: float) -> None:
        stream: Any = None
        super().__init__(stream, None, opened_at)

    @property
    def incomplete_bytes(self) -> int:
        LookedAt.looks += 1
        return 10 * LEAST_SENT

    @incomplete_bytes.setter
    def incomplete_bytes(self, value: int) -> None:
        assert not value


def test_f15_uploads_are_looked_at_once_a_second_however_many_connections_find_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LookedAt, "looks", 0)
    silent, uploads = Silent(), [LookedAt(n / 1000) for n in range(100)]
    for upload in uploads:
        silent.add(upload)
    for now, looks in ((5.0, 0), (20.0, 100), (20.5, 100), (21.1, 200), (22.2, 300)):
        assert {silent.longest(now) for _ in range(1000)} == {None}
        assert LookedAt.looks == looks
    silent.discard(uploads[0])
    assert silent.longest(1000.0) is uploads[1]
    assert len(silent) == 99


def test_f15_who_sends_nothing_gives_way_before_an_upload_that_fell_behind() -> None:
    stream: Any = None
    silent, upload, quiet = Silent(), Connection(stream, None, 0.0), Connection(stream, None, 12.0)
    upload.incomplete_bytes = 2 * LEAST_SENT
    silent.add(upload)
    silent.add(quiet)
    for now, longest in ((11.0, None), (20.0, None), (21.0, upload), (22.0, quiet)):
        assert silent.longest(now) is longest
    silent.discard(quiet)
    assert silent.longest(23.0) is upload


class ConnectionBook(RuleBasedStateMachine):
    """Connections come, prove themselves and leave in any order; the sums hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.open: list[Connection] = []
        self.connections = Connections(6, 4, Tallies(), now=lambda: self.now)

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(peer=st.sampled_from(["a", "b", None]))
    def come(self, peer: str | None) -> None:
        connection, given_up = enter(self.connections, peer)
        if given_up is not None:
            assert not given_up.is_open
            assert given_up.gave_way == "displaced" or given_up.opened_at + MAX_SILENCE <= self.now
            self.open.remove(given_up)
        if connection is not None:
            self.open.append(connection)
        else:
            of_peer = sum(each.peer_host == peer for each in self.open) if peer else 0
            assert len(self.open) == 6 or of_peer == 4 or of_peer >= 3 * (6 - len(self.open))

    @rule(at=st.integers(0, 5))
    def prove(self, at: int) -> None:
        if at < len(self.open):
            self.connections.prove(self.open[at])

    @rule(at=st.integers(0, 5))
    def leave(self, at: int) -> None:
        if at < len(self.open):
            self.connections.leave(self.open.pop(at))

    @invariant()
    def counts_hold(self) -> None:
        assert self.connections._tallies.connections_open == len(self.open) <= 6
        peers = {peer.address: peer.open for peer in self.connections._peers._by_address.values()}
        assert peers == {
            name: count for name in ("a", "b") if (count := sum(each.peer_host == name for each in self.open))
        }
        assert all(count <= 4 for count in peers.values())


TestConnectionBook = ConnectionBook.TestCase
