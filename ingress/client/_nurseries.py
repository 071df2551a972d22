"""Two ways to hold background tasks that keep expected failures out of exception groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

ResultT = TypeVar("ResultT")


@asynccontextmanager
async def open_service_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the block and never fail; they are cancelled when the block is left.

    What the block raises leaves it as it is: a caller's ``except RemoteError`` around the client must see it, and not a
    group with it inside. Only a bug in a task still arrives as a group.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def first_of(*waits: Callable[[], Awaitable[ResultT | None]]) -> ResultT | None:
    """Run all at once and return the first result that is not None, having cancelled the others.

    The functions return their expected failures. None means "nothing to report": the others go on.
    """
    results: list[ResultT] = []

    async def run(wait: Callable[[], Awaitable[ResultT | None]]) -> None:
        result = await wait()
        if result is not None:
            results.append(result)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(run, wait)
    return results[0] if results else None
