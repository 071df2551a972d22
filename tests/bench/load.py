"""Raw load: so many requests, so many at once, bytes thrown away. The same for every worker, whatever it speaks."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio
from attrs import define, field

_DUE = re.compile(rb'"due":([0-9.]+)')

# The first chunks of a thousand streams take a second or two; this only guards against hanging.
HOLD_TIMEOUT = 60.0


class Caller(Protocol):
    """What sends requests to one worker, in its protocol."""

    async def call(self, request: dict[str, Any], seen: Callable[[bytes], None]) -> None:
        """Send one request, give every read that holds chunks to ``seen``, and return when the answer is whole."""


OpenCaller = Callable[[], AbstractAsyncContextManager[Caller]]


@define
class Load:
    """What a load is to do, and what came of it."""

    request: dict[str, Any]
    streams: int
    requests: int
    """In all; at most ``streams`` at once."""

    measure_due: bool = False
    first: list[float] = field(factory=list)
    """Seconds from the push to the first bytes after the prologue."""
    late: list[float] = field(factory=list)
    """Seconds from an item's due time to its arrival."""
    seconds: float = 0.0
    received: int = 0


async def run(load: Load, open_caller: OpenCaller) -> None:
    """Run the load against one worker; returns when every stream has ended."""
    async with open_caller() as caller:
        started = time.perf_counter()
        remaining = iter(range(load.requests))
        async with trio.open_nursery() as streams:
            for _ in range(load.streams):
                streams.start_soon(_call_each, load, caller, remaining)
        load.seconds = time.perf_counter() - started
    if load.received < load.requests * load.request["n"] * 60:
        raise RuntimeError(f"answers of {load.received} bytes to {load.requests} requests are not whole")


async def hold(count: int, open_caller: OpenCaller, while_open: Callable[[], Awaitable[None]]) -> None:
    """Open so many streams, wait for a chunk of each, run ``while_open``, and leave them."""
    waiting, all_open = set(range(count)), trio.Event()

    def seen_of(number: int) -> Callable[[bytes], None]:
        def seen(data: bytes) -> None:
            waiting.discard(number)
            if not waiting:
                all_open.set()

        return seen

    async with open_caller() as caller, trio.open_nursery() as streams:
        for number in range(count):
            streams.start_soon(caller.call, {"mode": "held", "n": 1}, seen_of(number))
        with trio.fail_after(HOLD_TIMEOUT):
            await all_open.wait()
        await while_open()
        streams.cancel_scope.cancel()


async def _call_each(load: Load, caller: Caller, remaining: Iterator[int]) -> None:
    for _ in remaining:
        pushed = time.perf_counter()
        is_first = True

        def seen(data: bytes) -> None:
            nonlocal is_first
            load.received += len(data)
            if is_first:
                load.first.append(time.perf_counter() - pushed)  # noqa: B023 - called within the turn only
                is_first = False
            if load.measure_due:
                now = time.monotonic()
                load.late += [now - float(due) for due in _DUE.findall(data)]

        await caller.call(load.request, seen)
