"""A handler file as people write it for Dynamo; the same file runs under the real runtime and under our bridge.

The request's `case` names what is done. Each run ends with one event on stdout: `{"event":"handler","case","ending",
"stopped","killed"}`, where `ending` is how the handler's body was left; some cases say more.
"""

import asyncio
import builtins
import json
import sys


def tell(case, **facts):
    sys.stdout.write(json.dumps({"event": "handler", "case": case, **facts}) + "\n")
    sys.stdout.flush()


async def generate(request, context):
    case = request["case"]
    ending = "returned"
    try:
        async for item in CASES[case](request, context):
            yield item
    except BaseException as error:
        ending = type(error).__name__
        raise
    finally:
        tell(case, ending=ending, stopped=context.is_stopped(), killed=context.is_killed())


async def yields(request, context):
    for i in range(request.get("n", 3)):
        yield {"i": i, "t": f"tök{i}", "pad": "x" * request.get("size", 0)}


async def sleeps(request, context):
    for i in range(request.get("n", 3)):
        await asyncio.sleep(0.01)
        yield {"i": i}


async def nothing(request, context):
    if request.get("n"):
        yield 0


async def returns_early(request, context):
    for i in range(100):
        if i == 2:
            return
        yield i


async def odd_items(request, context):
    for item in (1, "text", None, True, 1.5, [1, [2]], (1, 2), {}, {"a": {"b": None}}, "", 0):
        yield item


async def envelopes(request, context):
    """Dicts that look like what stands on the wire."""
    yield {"data": {"a": 1}}
    yield {"data": 1, "event": "e", "comment": ["c"], "id": "7"}
    yield {"event": "error", "comment": ["boom"]}
    yield {"error": "x"}


async def raises(request, context):
    for i in range(request.get("after", 0)):
        yield i
    if request.get("dynamo"):
        from dynamo.llm import exceptions

        raise getattr(exceptions, request["dynamo"])("told by name")
    name = request["type"]
    raise (asyncio.CancelledError if name == "CancelledError" else getattr(builtins, name))("boom")


async def stops_async_iteration(request, context):
    yield 0
    raise StopAsyncIteration


async def cancels_itself(request, context):
    yield 0
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def catches_its_cancellation(request, context):
    task = asyncio.create_task(asyncio.sleep(10))
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        yield "caught"


async def metadata(request, context):
    yield {"id": context.id(), "metadata": context.metadata.copy(), "items": context.metadata.items()}
    context.metadata["added"] = "yes"
    yield {"keys": sorted(context.metadata.keys()), "length": len(context.metadata), "has": "added" in context.metadata}
    yield {"pop": context.metadata.pop("added"), "default": context.metadata.pop("added", "gone")}
    context.metadata = {"new": "map"}
    yield {"metadata": context.metadata.copy(), "get": context.metadata.get("none")}


async def surface(request, context):
    """Everything a context offers that changes nothing."""
    context.notify_first_token()
    with context.start_span("step", {"a": 1}) as span:
        span.set_attribute("k", 1)
        span.add_event("e", {"b": 2})
        span.set_status("ok")
    context.current_span().close()
    detached = context.detached("other")
    detached.stop_generating()
    yield {
        "stopped": context.is_stopped(),
        "killed": context.is_killed(),
        "detached": [detached.id(), detached.is_stopped()],
    }
    yield {"trace": [context.trace_id, context.span_id, context.parent_span_id], "headers": context.trace_headers()}
    yield {"names": sorted(name for name in dir(context) if name in request["names"])}
    for wrong in (
        lambda: context.metadata["none"],
        lambda: context.metadata.__setitem__("k", 1),
        lambda: span.set_status("odd"),
        lambda: context.none,
        lambda: setattr(context, "none", 1),
    ):
        try:
            wrong()
        except Exception as error:
            yield type(error).__name__


async def polls(request, context):
    """Looks whether it is stopped, as most handlers do, and tidies up after itself."""
    for i in range(1000):
        await asyncio.sleep(0.01)
        if context.is_stopped():
            await asyncio.sleep(0)  # an engine's abort
            tell("aborted", by="poll", killed=context.is_killed())
            return
        yield {"i": i}


async def watches(request, context):
    """Has a task that waits for the end, as the handlers for vLLM do."""

    async def abort_when_stopped():
        told = await context.async_killed_or_stopped()
        await asyncio.sleep(0)
        tell("aborted", by="watch", told=told, killed=context.is_killed())

    watching = asyncio.create_task(abort_when_stopped())
    try:
        for i in range(1000):
            await asyncio.sleep(0.01)
            yield {"i": i}
    finally:
        watching.cancel()


async def ignores(request, context):
    """Never looks."""
    for i in range(1000):
        await asyncio.sleep(0.01)
        yield {"i": i}


async def stops_itself(request, context):
    for i in range(100):
        await asyncio.sleep(0.02)
        if i == 3:
            context.stop_generating()
            tell("stopped itself", stopped=context.is_stopped(), killed=context.is_killed())
        yield i


CASES = {
    case.__name__: case
    for case in (
        yields,
        sleeps,
        nothing,
        returns_early,
        odd_items,
        envelopes,
        raises,
        stops_async_iteration,
        cancels_itself,
        catches_its_cancellation,
        metadata,
        surface,
        polls,
        watches,
        ignores,
        stops_itself,
    )
}
