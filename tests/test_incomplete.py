"""The bytes of requests that wait for their rest; the plane's part is in ``test_tcp_plane.py``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ingress import _memory_watermark
from ingress._memory_watermark import MemoryLimit, find_usable_memory
from ingress.planes._connection import Connection
from ingress.planes._incomplete import LEAST_INCOMPLETE_BYTES, IncompleteFrames

MIB = 1 << 20
TOO_MANY = "too many bytes of unfinished requests"


def connection(peer_host: str | None = None) -> Connection:
    stream: Any = None
    return Connection(stream, peer_host, 0.0)


def test_f03_all_connections_have_one_budget_and_give_it_back() -> None:
    frames = IncompleteFrames(100, 10)
    first, second = connection(), connection()
    assert [frames.note(first, 60), frames.note(second, 40)] == [None, None]
    assert frames.note(second, 41) == TOO_MANY
    assert frames.note(second, 0) is None
    assert frames.note(first, 100) is None
    frames.note(first, 0)
    assert frames.held == 0


def test_f03_one_peer_leaves_the_others_a_quarter() -> None:
    frames = IncompleteFrames(100, 10)
    assert frames.note(connection("10.0.0.1"), 70) is None
    of_peer = connection("10.0.0.1")
    assert frames.note(of_peer, 6) == TOO_MANY
    assert frames.note(of_peer, 0) is None
    assert frames.note(connection("10.0.0.2"), 30) is None


def test_f03_who_holds_little_finds_room_where_a_few_have_taken_all_of_it() -> None:
    frames = IncompleteFrames(6400, 100)
    assert frames.note(connection("10.0.0.1"), 4800) is None
    assert frames.note(connection("10.0.0.2"), 1600) is None
    assert frames.note(connection("10.0.0.2"), 1) == TOO_MANY
    little = [connection(f"10.0.1.{number}") for number in range(16)]
    assert [frames.note(each, 99) for each in little] == [None] * 16
    assert frames.note(little[0], 101) == TOO_MANY


def test_one_of_the_largest_requests_always_fits() -> None:
    frames = IncompleteFrames(10, 50)
    assert (frames.most, frames.most_of_peer) == (50, 50)
    assert frames.note(connection("10.0.0.1"), 50) is None


def test_l08_what_is_held_does_not_grow_while_memory_is_short() -> None:
    asked: list[int] = []

    def is_short(size: int) -> bool:
        asked.append(size)
        return len(asked) > 1

    frames, one = IncompleteFrames(100, 10, is_short), connection()
    assert frames.note(one, 20) is None
    assert frames.note(one, 25) == "worker is short of memory"
    assert frames.note(one, 0) is None
    assert asked == [20, 5]


@pytest.mark.parametrize(
    ("memory", "most"), [(None, 64 * MIB), (100 * MIB, 64 * MIB), (1024 * MIB, 128 * MIB), (64 << 30, 8 << 30)]
)
def test_the_budget_is_an_eighth_of_the_memory(memory: int | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory_watermark, "find_usable_memory", lambda: memory)
    assert IncompleteFrames(None, 32 * MIB).most == most
    assert IncompleteFrames(None, 1 << 40).most == 1 << 40
    assert LEAST_INCOMPLETE_BYTES == 64 * MIB


@pytest.mark.skipif(sys.platform == "win32", reason="no such question there")
def test_memory_is_the_limit_of_the_group_or_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = MemoryLimit(5 * MIB, Path(), Path(), "")
    monkeypatch.setattr(_memory_watermark, "find_memory_limit", lambda: limit)
    assert find_usable_memory() == 5 * MIB
    monkeypatch.setattr(_memory_watermark, "find_memory_limit", lambda: None)
    assert (find_usable_memory() or 0) > 64 * MIB
    monkeypatch.delattr(os, "sysconf")
    assert find_usable_memory() is None
