"""How the descriptors of a process are shared out between its callers' connections, its answers, and itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress import _descriptors
from ingress._descriptors import (
    MOST_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    DescriptorBudget,
    StreamDescriptors,
    present_descriptors,
    share_descriptors,
    status_connections,
)
from ingress._network import TcpNetwork
from ingress._worker_parts import find_stream_limit
from ingress.abc import PlaneOptions
from ingress.planes.tcp import TcpRequestPlane
from ingress.testing import MemoryNetwork


@pytest.mark.parametrize(
    ("limit", "connections", "streams"),
    [
        (65_536, 8192, 57_152),
        (20_000, 8192, 11_616),
        (16_700, 8192, 8316),
        (4300, 2054, 2054),
        (1024, 464, 464),
        (90, 12, 12),
        (64, 2, 2),
        (1, 2, 2),
        (None, 8192, None),
    ],
)
def test_f15_l04_connections_leave_half_of_few_descriptors_to_answers(
    limit: int | None, connections: int, streams: int | None
) -> None:
    assert share_descriptors(limit) == DescriptorBudget(connections, streams)


@pytest.mark.parametrize(("wanted", "had"), [(100, 100), (600, 600), (800, 696), (8192, 696)])
def test_connections_that_are_asked_for_leave_a_quarter(wanted: int, had: int) -> None:
    assert share_descriptors(1024, wanted) == DescriptorBudget(had, 928 - had)


@given(st.integers(80, 1 << 20), st.none() | st.integers(1, 1 << 20))
def test_no_more_is_shared_out_than_there_is(limit: int, wanted: int | None) -> None:
    budget = share_descriptors(limit, wanted)
    assert budget.streams is not None
    assert budget.connections + budget.streams + RESERVED_DESCRIPTORS <= limit
    assert 1 <= budget.connections <= (wanted or MOST_CONNECTIONS)
    assert budget.streams >= (limit - RESERVED_DESCRIPTORS - limit // 32) // 4
    assert 1 <= StreamDescriptors(budget.streams).limit <= budget.streams


@pytest.mark.parametrize(("limit", "most"), [(100, 16), (1024, 32), (20_000, 128), (None, 128)])
def test_o03_a_status_server_takes_no_more_than_what_is_left_to_it(limit: int | None, most: int) -> None:
    """Of 100 it had taken 72, and three requests were lost."""
    assert status_connections(limit) == most


def test_whole_answers_that_wait_take_a_quarter_of_few_descriptors() -> None:
    assert [StreamDescriptors(streams).most_lingering for streams in (1, 100, 464)] == [1, 23, 108]


def test_a_limit_that_is_not_known_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for soft, expected in ((4096, 4096), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, soft=soft: (soft, soft))
        assert present_descriptors() == expected
    monkeypatch.setitem(__import__("sys").modules, "resource", None)
    assert present_descriptors() is None


def test_streams_get_what_the_plane_leaves_where_descriptors_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ingress._worker_parts", "ingress.planes.tcp"):
        monkeypatch.setattr(f"{module}.present_descriptors", lambda: 1024)
    network = TcpNetwork()
    assert find_stream_limit(TcpRequestPlane(PlaneOptions(network=network)), network, None) == 464
    assert find_stream_limit(TcpRequestPlane(PlaneOptions(network=network, max_connections=28)), network, None) == 900
    assert find_stream_limit(TcpRequestPlane(PlaneOptions(network=MemoryNetwork())), MemoryNetwork(), None) is None
    assert _descriptors.StreamDescriptors(None).limit > 1 << 40
