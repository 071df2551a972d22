"""Typed requests: what they cost, and how what is wrong with them is told."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest

from ingress._heavy_work import heavy_work
from ingress._typed import MANY_VALUES, Typed, count_values, is_small
from ingress.errors import InvalidArgument

from .raw_caller import open_stage


@attrs.frozen
class Tokens:
    items: list[int]
    prompt: str = ""


async def count_items(request: Tokens) -> AsyncIterator[Any]:
    yield len(request.items)


def test_of_a_small_request_every_field_that_is_wrong_is_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Typed(Tokens).structure({"items": [1, "2", None], "prompt": 3})
    assert str(caught.value).split("; ") == [
        "invalid value for type, expected int @ request.items[1]",
        "invalid value for type, expected int @ request.items[2]",
        "invalid value for type, expected str @ request.prompt",
    ]


def test_c13_of_a_large_one_the_first_thing_that_is_wrong_is_told_and_no_more_is_kept() -> None:
    """A million texts where numbers should be had taken 13 s of the event loop, and 1.7 GB."""
    typed = Typed(Tokens)
    bomb = {"items": [""] * 300_000}
    with pytest.raises(InvalidArgument):
        typed.structure({"items": [""]})  # what is imported for it is not the bomb's
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match=r"request is no Tokens: expected int, got str"):
            typed.structure(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


@pytest.mark.parametrize(("count", "is_beside"), [(10, False), (200_000, True)])
async def test_c13_a_large_one_is_made_beside_the_event_loop(count: int, is_beside: bool) -> None:
    made_in: list[int] = []

    def note(instance: Any, attribute: Any, value: Any) -> None:
        made_in.append(threading.get_ident())

    @attrs.frozen
    class Noted:
        items: list[int] = attrs.field(validator=note)

    async def engine(request: Any) -> AsyncIterator[Any]:
        yield len(request.items)
        yield threading.get_ident()

    engine.__annotations__["request"] = Noted
    async with open_stage(engine) as stage:
        said = await stage.tell({"items": list(range(count))})
    assert said.items == [count, threading.get_ident()]
    assert (made_in[0] != threading.get_ident()) == is_beside


async def test_c13_one_of_middling_size_counts_as_heavy_work() -> None:
    async with open_stage(count_items) as stage:
        await stage.tell({"items": [1]})
        before = heavy_work().spent
        said = await stage.tell({"items": [1] * 1900})  # under 4 KiB as it comes
        assert said.items == [1900]
        assert heavy_work().spent > before


@pytest.mark.parametrize(
    "items",
    [[1, ["a"] * 10_000], [{}] * 10_000, [[1.5]] * 5000, [{"a": 1}] * 5000],
    ids=["behind a number", "empty", "lists", "dicts"],
)
def test_c13_whatever_it_is_made_of_a_request_of_many_values_is_none_of_few(items: list[Any]) -> None:
    """An estimate of bytes took a list by its first value, and had an end."""
    assert not is_small({"items": items})
    assert count_values({"items": items}, MANY_VALUES) == MANY_VALUES


@pytest.mark.parametrize(("value", "count"), [(1, 1), ([], 1), ({"a": [1, 2]}, 4), ([(1, "x"), {}], 5)])
def test_values_are_counted(value: Any, count: int) -> None:
    assert count_values(value, 100) == count


async def test_what_is_wrong_with_a_large_one_is_told_to_its_caller() -> None:
    async with open_stage(count_items) as stage:
        said = await stage.tell({"items": [0] * 100_000 + ["x"]})
        assert [error.kind for error in said.errors] == ["InvalidArgument"]
        assert "expected int, got str" in said.errors[0].message
        assert said.is_whole
