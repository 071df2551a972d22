"""An engine for a worker under load: it streams, floods, fails, hangs and blocks, as its request says."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import trio


async def generate(request: Any) -> AsyncIterator[Any]:
    match request["do"]:
        case "stream":
            for number in range(request["n"]):
                await trio.sleep(0.01)
                yield number
        case "hold":
            await trio.sleep(0.4)
            yield "held"
        case "flood":
            while True:
                yield "x" * 100_000
        case "fail":
            raise RuntimeError("as the request wished")
        case "block":
            time.sleep(0.3)
            yield "blocked"
