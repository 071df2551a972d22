"""The engine of `tests.bench.growth`: items of any size, and streams that all begin to flow at one word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio


class Gate:
    """Holds streams back until all of them are open: those that flow would slow the opening of the others."""

    opened = trio.Event()


def item_of(size: int) -> dict[str, Any]:
    return {"token_ids": [1000], "text": "x" * size}


async def grow(request: Any) -> AsyncIterator[Any]:
    """Answer with one item; flow after the gate was opened; or open it for those who wait."""
    if request["mode"] == "one":
        yield item_of(16)
    elif request["mode"] == "open the gate":
        Gate.opened.set()
        Gate.opened = trio.Event()
        yield item_of(16)
    else:
        item, opened = item_of(request["size"]), Gate.opened
        yield item
        await opened.wait()
        while True:
            await trio.lowlevel.checkpoint()
            yield item
