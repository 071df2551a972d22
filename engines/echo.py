"""The echo engine: exact counts and delays, for tests and first steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio


async def echo(request: Any) -> AsyncIterator[Any]:
    """Yield the request back.

    A request of the form ``{"n": 3, "delay": 0.1}`` is echoed ``n`` times, as ``{"i": 0, "echo": request}`` and so on,
    with ``delay`` seconds before each.
    """
    if not isinstance(request, dict) or not isinstance(request.get("n"), int):
        yield request
        return
    delay = request.get("delay", 0)
    for i in range(request["n"]):
        await trio.sleep(delay if isinstance(delay, (int, float)) else 0)
        yield {"i": i, "echo": request}
