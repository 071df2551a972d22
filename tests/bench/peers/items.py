"""The benchmark's engine for the asyncio peers: the same items as `tests/bench/engine.py`, as bytes of JSON."""

import asyncio
import time

import msgspec

BENCHMARK_TEXT = " token of a benchmark stream whose length is always fixed"

# The fastest encoder there is, so that what is compared is the road and not the cargo.
encode = msgspec.json.Encoder().encode


async def items(request):
    mode, due = request["mode"], time.monotonic()
    for i in range(request["n"]):
        if mode == "awaiting":
            await asyncio.sleep(0)
        elif mode == "paced":
            due += request["interval"]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield encode({"token_ids": [i], "text": BENCHMARK_TEXT, "due": due})
            continue
        yield encode({"token_ids": [i], "text": BENCHMARK_TEXT})
    if mode == "held":
        await asyncio.sleep(3600)
