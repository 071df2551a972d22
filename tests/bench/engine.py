"""Our side of the benchmark: the same engine as `tests/interop/peers/dynamo_engines.py`, on trio."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import trio

BENCHMARK_TEXT = " token of a benchmark stream whose length is always fixed"


async def bench(request: Any) -> AsyncIterator[Any]:
    """Yield ``n`` items in the manner ``mode`` names: tight, awaiting, paced, or held open after them."""
    if request["mode"] in ("tight", "held"):
        for i in range(request["n"]):
            yield {"token_ids": [i], "text": BENCHMARK_TEXT}
        if request["mode"] == "held":
            await trio.sleep(3600)
    elif request["mode"] == "awaiting":
        for i in range(request["n"]):
            await trio.lowlevel.checkpoint()
            yield {"token_ids": [i], "text": BENCHMARK_TEXT}
    else:
        due = time.monotonic()
        for i in range(request["n"]):
            due += request["interval"]
            await trio.sleep(max(0.0, due - time.monotonic()))
            yield {"token_ids": [i], "text": BENCHMARK_TEXT, "due": due}
