"""Handlers which the real worker serves, and what they report of their fate.

Every engine but the benchmark ones writes `{"event":"engine","id","state",..}`:

    started     the handler's first step ran
    stopped     the context was stopped or killed, at that moment; `killed` says which
    finished    it yielded all it had; `items` counts what it yielded
    raised      it raised as asked; `type`
    cancelled   CancelledError reached it
    closed      GeneratorExit reached it at a yield
"""

import asyncio
import builtins
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dynamo_handlers
from encoding_cases import CASES
from events import emit

Engine = Callable[..., AsyncIterator[Any]]

BENCHMARK_TEXT = " token of a benchmark stream whose length is always fixed"


class Fate:
    """What became of one run of an engine; counts its items."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.items = 0

    def report(self, state: str, **facts: Any) -> None:
        """Write one engine event."""
        emit(event="engine", id=self._context.id(), state=state, items=self.items, **facts)

    async def report_stop(self) -> None:
        """Wait until the caller stops or kills the request, and say so."""
        await self._context.async_killed_or_stopped()
        self.report("stopped", killed=self._context.is_killed())


@asynccontextmanager
async def reported(context: Any) -> AsyncIterator[Fate]:
    """Report the run of an engine's body, however it ends; hides nothing."""
    fate = Fate(context)
    fate.report("started")
    stop_report = asyncio.create_task(fate.report_stop())
    try:
        yield fate
    except GeneratorExit:
        fate.report("closed")
        raise
    except asyncio.CancelledError:
        fate.report("cancelled")
        raise
    except BaseException as error:
        fate.report("raised", type=type(error).__name__)
        raise
    else:
        fate.report("finished", stopped=context.is_stopped())
    finally:
        stop_report.cancel()


async def plain(request: Any, context: Any) -> AsyncIterator[Any]:
    """Yield `{"i","t"}` as the request says; a request that is no object is echoed.

    Fields: n items (1), delay seconds before each (0), size bytes of padding in
    each (0), raise_before, raise_after k items, exc class name (ValueError),
    message ("boom"), heed_stop: return once stopped instead of going on.
    """
    if not isinstance(request, dict):
        request = {"echo": request}
    async with reported(context) as fate:
        if "echo" in request:
            fate.items += 1
            yield {"echo": request["echo"]}
            return
        if request.get("raise_before"):
            raise _exception(request)
        for i in range(request.get("n", 1)):
            if i == request.get("raise_after"):
                raise _exception(request)
            await asyncio.sleep(request.get("delay", 0))
            if request.get("heed_stop") and context.is_stopped():
                return
            fate.items += 1
            yield _item(i, request.get("size", 0))
        if request.get("raise_after") == request.get("n", 1):
            raise _exception(request)


async def tight(request: Any, context: Any) -> AsyncIterator[Any]:
    """Yield `n` items of about 85 bytes of JSON, never awaiting anything."""
    for i in range(request["n"]):
        yield {"token_ids": [i], "text": BENCHMARK_TEXT}


async def awaiting(request: Any, context: Any) -> AsyncIterator[Any]:
    """Yield what `tight` yields, letting the event loop run before each item."""
    for i in range(request["n"]):
        await asyncio.sleep(0)
        yield {"token_ids": [i], "text": BENCHMARK_TEXT}


async def bench(request: Any, context: Any) -> AsyncIterator[Any]:
    """Yield `n` items in the manner `mode` names: tight, awaiting, held open, or paced by `interval` seconds."""
    if request["mode"] == "held":
        async for item in tight(request, context):
            yield item
        await asyncio.sleep(3600)
        return
    if request["mode"] == "paced":
        due = time.monotonic()
        for i in range(request["n"]):
            due += request["interval"]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield {"token_ids": [i], "text": BENCHMARK_TEXT, "due": due}
        return
    async for item in (tight if request["mode"] == "tight" else awaiting)(request, context):
        yield item


async def cases(request: Any, context: Any) -> AsyncIterator[Any]:
    """Yield the value of `encoding_cases` which the request `{"case"}` names, or each of `{"cases"}`."""
    async with reported(context) as fate:
        for case in request.get("cases") or [request["case"]]:
            fate.items += 1
            yield CASES[case]()


async def echo_inputs(inputs: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    """Yield `{"echo"}` for each input, and `{"bye": count}` at their end."""
    count = 0
    async with reported(context) as fate:
        async for value in inputs:
            count += 1
            fate.items += 1
            yield {"echo": value}
        fate.items += 1
        yield {"bye": count}


ENGINES: dict[str, Engine] = {
    "plain": plain,
    "tight": tight,
    "awaiting": awaiting,
    "bench": bench,
    "cases": cases,
    "handlers": dynamo_handlers.generate,
}


def _item(i: int, size: int) -> dict[str, Any]:
    item: dict[str, Any] = {"i": i, "t": f"tök{i}"}
    return item | {"pad": "x" * size} if size else item


def _exception(request: dict[str, Any]) -> BaseException:
    name, message = request.get("exc", "ValueError"), request.get("message", "boom")
    if name == "CancelledError":
        return asyncio.CancelledError(message)
    found = getattr(builtins, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        from dynamo.llm import exceptions

        found = getattr(exceptions, name)
    return found(message)
