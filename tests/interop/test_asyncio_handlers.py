"""One handler file, written for Dynamo, under the real 1.6.1 runtime and under our bridge: what did its caller see?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import field, frozen

import ingress
from engines.dynamo_context import DynamoContext

from . import peers
from .peer_process import PeerProcess, open_client_process, open_worker_process

pytestmark = [pytest.mark.interop, pytest.mark.smoke]

VERSION = "1.6.1"
HANDLERS = Path(peers.__file__).parent / "dynamo_handlers.py"
SITE_PACKAGES = (
    peers.python(VERSION).parents[1]
    / "lib"
    / f"python{sys.version_info.major}.{sys.version_info.minor}"
    / "site-packages"
)

SURFACE = [name for name in dir(DynamoContext) if not name.startswith("_")]


@frozen
class Case:
    """A request, what the caller does, and where we differ on purpose."""

    request: dict[str, Any]
    options: dict[str, Any] = field(factory=dict)
    told: str | None = "ending"
    """The handler's event that is waited for and compared. Not its ending where the caller ends the answer: the real
    runtime drops the handler at a yield and leaves it to the garbage collector, ours cancels it at once."""

    same_count: bool = True
    """False where a caller that leaves has seen as many items as were under way."""


CASES = {
    "yields": Case({"case": "yields"}),
    "yields ten thousand, never waiting": Case({"case": "yields", "n": 10_000}),
    "yields large items": Case({"case": "yields", "n": 8, "size": 300_000}),
    "sleeps between items": Case({"case": "sleeps", "n": 5}),
    "yields nothing": Case({"case": "nothing"}),
    "returns early": Case({"case": "returns_early"}),
    "items that are no dicts": Case({"case": "odd_items"}),
    "dicts like envelopes": Case({"case": "envelopes"}),
    **{
        f"raises {name} {'before the first' if after == 0 else 'after two'}": Case(
            {"case": "raises", "type": name, "after": after}
        )
        for name in ("ValueError", "RuntimeError", "TimeoutError", "ConnectionRefusedError", "KeyError")
        for after in (0, 2)
    },
    "raises CancelledError": Case({"case": "raises", "type": "CancelledError", "after": 1}),
    **{
        f"raises Dynamo's {name}": Case({"case": "raises", "dynamo": name, "after": 1})
        for name in ("InvalidArgument", "CannotConnect", "EngineShutdown", "Cancelled", "Unknown")
    },
    "raises StopAsyncIteration": Case({"case": "stops_async_iteration"}),
    "cancels itself": Case({"case": "cancels_itself"}),
    "catches a cancellation of its own": Case({"case": "catches_its_cancellation"}),
    "metadata": Case({"case": "metadata"}, {"id": "my-request", "metadata": {"k": "v", "é": "ü"}}),
    "no metadata": Case({"case": "metadata"}, {"id": "my-request"}),
    "the context's surface": Case({"case": "surface", "names": SURFACE}),
    **{
        f"{case}, caller {what}": Case({"case": case}, options, told=told, same_count=options != {"stop_after": 3})
        for case, told in (("polls", "aborted"), ("watches", "aborted"), ("ignores", None))
        for what, options in (("stops after 3", {"stop_after": 3}), ("leaves after 3", {"drop_after": 3}))
    },
    "stops itself": Case({"case": "stops_itself"}, told="stopped itself", same_count=False),
}


@asynccontextmanager
async def open_our_worker(file_kv: Path) -> AsyncIterator[PeerProcess]:
    """`ingress serve --asyncio` on the handler file; Dynamo's wheel is there for what the handlers import of it."""
    command = [sys.executable, "-m", "ingress", "serve", "--asyncio", f"{HANDLERS}:generate"]
    environment = peers.environment(VERSION, file_kv, PYTHONPATH=os.fspath(SITE_PACKAGES))
    process = await trio.lowlevel.open_process(
        [*command, "--endpoint", "demo.backend.generate"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with trio.open_nursery() as nursery:
            peer = PeerProcess(process, "ours")
            nursery.start_soon(peer.read_events)
            async with ingress.open_client(discovery=ingress.FileDiscovery(file_kv)) as client:
                await client.wait_for_instances("demo.backend.generate", timeout=20)
            yield peer
            process.kill()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


@frozen
class Seen:
    """What one caller saw, and what the handler said."""

    event: str
    type: str | None
    message: str | None
    items: list[Any]
    handler: list[dict[str, Any]]


async def run(worker: PeerProcess, client: PeerProcess, case: Case, **routing: Any) -> Seen:
    before = len(worker.events)
    tag = await client.send(op="call", request=case.request, **case.options, **routing)
    outcome = await client.outcome(tag)
    events = []
    if (told := case.told) is not None:
        told = case.request["case"] if told == "ending" else told
        events = [await worker.wait_for(lambda event: event in worker.events[before:] and event.get("case") == told)]
    return Seen(outcome["event"], outcome.get("type"), outcome.get("message"), client.items(tag), events)


async def test_a_handler_file_for_dynamo_serves_its_callers_as_it_does_there(tmp_path: Path) -> None:
    if not peers.is_installed(VERSION):
        pytest.skip(f"ai-dynamo-runtime {VERSION} is not installed; `make interop` installs it")
    if not SITE_PACKAGES.is_dir():
        pytest.skip(f"ai-dynamo-runtime {VERSION} is installed for another Python")
    if peers.is_namespaced():
        pytest.skip("runs in the other half of `make interop`")
    differences = []
    async with AsyncExitStack() as stack:
        real = await stack.enter_async_context(open_worker_process(VERSION, tmp_path / "real", engine="handlers"))
        ours = await stack.enter_async_context(open_our_worker(tmp_path / "ours"))
        callers, instances = [], []
        for directory in ("real", "ours"):
            callers.append(await stack.enter_async_context(open_client_process(VERSION, tmp_path / directory)))
            # By instance: round robin sets one aside that seems to have lost its engine.
            instances.extend(await callers[-1].wait_instances(1))
        for name, case in CASES.items():
            expected, got = [
                await run(worker, caller, case, routing="direct", instance_id=instance)
                for worker, caller, instance in zip((real, ours), callers, instances, strict=True)
            ]
            differences += [f"{name}: {difference}" for difference in differing(expected, got, case)]
    assert not differences, "\n".join(differences)


def differing(expected: Seen, got: Seen, case: Case) -> list[str]:
    """Say how what we did differs from what the real runtime did."""
    found = [
        f"{field}: real {getattr(expected, field)!r}, ours {getattr(got, field)!r}"
        for field in ("event", "type", "message")
        if getattr(expected, field) != getattr(got, field)
    ]
    count = len(expected.items) if case.same_count else min(len(expected.items), len(got.items))
    if expected.items[:count] != got.items[:count] or (case.same_count and len(got.items) != count):
        found.append(f"items: real {str(expected.items)[:500]}, ours {str(got.items)[:500]}")
    if expected.handler != got.handler:
        found.append(f"handler: real {expected.handler}, ours {got.handler}")
    return found
