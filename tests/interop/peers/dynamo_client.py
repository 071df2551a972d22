"""A real Dynamo client driven by JSON lines; runs inside a peer's environment.

    DYN_FILE_KV=dir python dynamo_client.py NAMESPACE COMPONENT ENDPOINT

Reads one command a line on stdin, writes one event a line on stdout. Calls run
concurrently; every event carries the `tag` of its command. At the end of stdin
it waits for the calls still running; `exit` cancels them.

    {"op":"wait_instances","count":1,"timeout":10}   count 0 waits until none is left
        -> instances {ids} | error
    {"op":"call","tag":"a","request":..}
        -> item {data}*, then end {items,seconds,first} | error {type,message,..} | dropped {..}
    {"op":"call_many","tag":"m","n":100,"request":..}
        -> summary {call,outcome,items,seconds,first,..}*, then done {calls,errors,seconds}
    {"op":"exit"}

Options of `call` and `call_many`, all optional:

    routing         round_robin (default), random, or direct with instance_id
    stop_after k    context.stop_generating() after k items; 0 before reading any
    stop_at s       the same, s seconds after the call was made
    drop_after k    leave the iteration after k items; 0 before reading any
    drop_at s       cancel the task, s seconds after the call was made
    delay s         sleep between the call's return and the first read
    pause s         sleep after every item
    quiet true      no item events; the outcome carries `sha` (see `events.ItemHash`)
    annotated true  data as `{"data","event","comment","id"}`, as the client got it
    id, metadata    of the Context; metadata needs 1.3.1
"""

import asyncio
import json
import sys
import threading
import time
from typing import Any

from dynamo.runtime import Context
from dynamo_runtime import (
    METADATA_SINCE,
    RELEASE,
    VERSION,
    exit_at_once,
    find_endpoint,
    open_runtime,
)
from events import ItemHash, emit

POLL_INTERVAL = 0.005


class Call:
    """One request, from issuing it to its one outcome; lives in one task."""

    def __init__(self, client: Any, command: dict[str, Any], *, quiet: bool) -> None:
        self._client = client
        self._command = command
        self._quiet = quiet
        self._items = 0
        self._hash = ItemHash()
        self._first: float | None = None
        self._started = time.perf_counter()

    async def run(self) -> dict[str, Any]:
        """Make the call, read it as told, and return its outcome; never raises."""
        task = asyncio.current_task()
        assert task is not None
        context = self._context()
        timers = self._set_timers(context, task)
        try:
            event = await self._read(context)
        except asyncio.CancelledError:
            return self._outcome("dropped")
        except Exception as error:
            return self._outcome("error", type=type(error).__name__, message=str(error))
        finally:
            for timer in timers:
                timer.cancel()
        return self._outcome(event)

    async def _read(self, context: Any) -> str:
        stop_after, drop_after = self._command.get("stop_after"), self._command.get("drop_after")
        stream = await self._issue(context)
        await asyncio.sleep(self._command.get("delay", 0))
        if stop_after == 0:
            context.stop_generating()
        if drop_after == 0:
            return "dropped"
        async for item in stream:
            self._note(item)
            if self._items == stop_after:
                context.stop_generating()
            if self._items == drop_after:
                return "dropped"
            if pause := self._command.get("pause"):
                await asyncio.sleep(pause)
        return "end"

    async def _issue(self, context: Any) -> Any:
        options = {"annotated": self._command.get("annotated", False), "context": context}
        request, routing = self._command.get("request"), self._command.get("routing", "round_robin")
        if routing == "direct":
            return await self._client.direct(request, self._command["instance_id"], **options)
        if routing not in ("round_robin", "random"):
            raise ValueError(f"routing is round_robin, random or direct, not {routing}")
        return await getattr(self._client, routing)(request, **options)

    def _context(self) -> Any:
        metadata = self._command.get("metadata")
        if metadata and RELEASE >= METADATA_SINCE:
            return Context(self._command.get("id"), metadata)
        return Context(self._command.get("id"))

    def _set_timers(self, context: Any, task: asyncio.Task[Any]) -> list[asyncio.TimerHandle]:
        loop, timers = asyncio.get_running_loop(), []
        if (stop_at := self._command.get("stop_at")) is not None:
            timers.append(loop.call_later(stop_at, context.stop_generating))
        if (drop_at := self._command.get("drop_at")) is not None:
            timers.append(loop.call_later(drop_at, task.cancel))
        return timers

    def _note(self, item: Any) -> None:
        if self._items == 0:
            self._first = self._elapsed()
        self._items += 1
        if self._command.get("annotated"):
            item = {
                "data": item.data(),
                "event": item.event(),
                "comment": item.comments(),
                "id": item.id(),
            }
        if self._quiet:
            self._hash.add(item)
        else:
            emit(tag=self._command.get("tag"), event="item", data=item)

    def _outcome(self, event: str, **facts: Any) -> dict[str, Any]:
        if self._quiet:
            facts["sha"] = self._hash.hexdigest()
        return {
            "event": event,
            **facts,
            "items": self._items,
            "seconds": self._elapsed(),
            "first": self._first,
        }

    def _elapsed(self) -> float:
        return round(time.perf_counter() - self._started, 6)


async def call(client: Any, command: dict[str, Any]) -> None:
    """Run one call and report its items and its outcome."""
    outcome = await Call(client, command, quiet=command.get("quiet", False)).run()
    emit(tag=command.get("tag"), **outcome)


async def call_many(client: Any, command: dict[str, Any]) -> None:
    """Run `n` calls at once, or `concurrency` at a time, and report only outcomes."""
    started = time.perf_counter()
    slots = asyncio.Semaphore(command.get("concurrency", command["n"]))
    tag = command.get("tag")

    async def one(number: int) -> bool:
        async with slots:
            outcome = await Call(client, command, quiet=True).run()
        kind = outcome.pop("event")
        emit(tag=tag, event="summary", call=number, outcome=kind, **outcome)
        return kind == "error"

    failed = await asyncio.gather(*(one(number) for number in range(command["n"])))
    seconds = round(time.perf_counter() - started, 6)
    emit(tag=tag, event="done", calls=len(failed), errors=sum(failed), seconds=seconds)


async def wait_instances(client: Any, command: dict[str, Any]) -> None:
    """Report the instances as soon as `count` are known; an error after `timeout`."""
    count, timeout = command.get("count", 1), command.get("timeout", 10)
    deadline = time.perf_counter() + timeout
    while True:
        ids = sorted(client.instance_ids())
        if len(ids) >= count if count else not ids:
            emit(tag=command.get("tag"), event="instances", ids=ids)
            return
        if time.perf_counter() > deadline:
            message = f"{len(ids)} instances after {timeout} s, expected {count}"
            emit(tag=command.get("tag"), event="error", type="TimeoutError", message=message)
            return
        await asyncio.sleep(POLL_INTERVAL)


OPERATIONS = {"call": call, "call_many": call_many, "wait_instances": wait_instances}


async def obey(client: Any, lines: asyncio.Queue[str]) -> None:
    """Start a task for each command until `exit` or the end of input."""
    tasks: set[asyncio.Task[None]] = set()
    while line := await lines.get():
        command = json.loads(line)
        if command["op"] == "exit":
            for task in tasks:
                task.cancel()
            break
        task = asyncio.create_task(OPERATIONS[command["op"]](client, command))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks, return_exceptions=True)


def read_lines() -> asyncio.Queue[str]:
    """Return a queue of stdin's lines, filled by a thread; an empty one ends it.

    A thread, because asyncio can wait for a pipe but not for a file, and the
    commands may come from either.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str]()

    def pump() -> None:
        for line in sys.stdin:
            if line.strip():
                loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=pump, daemon=True).start()
    return lines


async def main(namespace: str, component: str, endpoint: str) -> None:
    """Open the runtime, say `ready`, obey, and shut the runtime down."""
    runtime = open_runtime()
    client = await find_endpoint(runtime, namespace, component, endpoint).client()
    emit(event="ready", version=VERSION)
    try:
        await obey(client, read_lines())
    finally:
        runtime.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    exit_at_once()
