"""How large a chunk will be."""

from __future__ import annotations

from typing import Any

import pytest

from ingress import Annotated
from ingress._chunk_size import estimate_size


@pytest.mark.parametrize(
    ("chunk", "least", "most"),
    [
        ("x" * 1000, 1000, 1100),
        (b"x" * 1000, 1000, 1100),
        ({"text": "x" * 1000, "token_ids": [1, 2]}, 1000, 1100),
        ({"choices": [{"delta": {"content": "x" * 1000}}]}, 1000, 1200),
        (["x" * 100] * 10, 1000, 1400),
        ([1.5] * 1000, 8000, 8100),
        (Annotated(data="x" * 1000), 1000, 1100),
        (None, 1, 100),
        (object(), 1, 100),
    ],
)
def test_it_is_about_the_size_on_the_wire(chunk: Any, least: int, most: int) -> None:
    assert least <= estimate_size(chunk) <= most


def test_estimating_has_an_end() -> None:
    cyclic: list[Any] = []
    cyclic += [cyclic] * 100
    assert estimate_size(cyclic) > 0
    assert estimate_size({"a": cyclic}) > 0
