"""An engine for screens: chunks at a steady pace, so that there is something to see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio


async def generate(request: dict[str, Any]) -> AsyncIterator[dict[str, int]]:
    for number in range(request["chunks"]):
        await trio.sleep(request["pause"])
        yield {"number": number}
