"""Worker processes are replaced one after the other under load; neither real clients nor ours lose a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

import ingress
from tests.rolling_restart import ENDPOINT, REQUEST, WORKERS, Load, replace_all

from . import compatibility, peers
from .peer_process import open_client_process

pytestmark = pytest.mark.interop

CLIENT = "1.6.1"

ROUNDS = 3


async def run_under_load(
    file_kv: Path, call: Callable[[], Awaitable[str]], ready: Callable[[], Awaitable[object]]
) -> Load:
    """Replace every worker three times while the load goes on."""
    load = Load(call)
    async with trio.open_nursery() as nursery:

        async def on_serving(number: int) -> None:
            if number == 0:
                await ready()
                nursery.start_soon(load.run)
                await trio.sleep(0.5)
            elif number == ROUNDS * WORKERS:
                load.is_over = True
                count = -1
                while count != len(load.ends):  # until nobody calls any more
                    count = len(load.ends)
                    await trio.sleep(2)

        assert await replace_all(file_kv, ROUNDS, on_serving) == ROUNDS * WORKERS
    return load


async def test_r05_a_rolling_restart_of_three_workers_under_load(file_kv: Path) -> None:
    """Not parametrized as the others are: three rounds take most of a minute."""
    if not peers.is_installed(CLIENT) or peers.is_namespaced():
        pytest.skip(f"ai-dynamo-runtime {CLIENT} is not installed; `make interop` installs it")
    file_kv.mkdir()
    async with open_client_process(CLIENT, file_kv) as client:
        sending = trio.Lock()

        async def call() -> str:
            async with sending:
                tag = await client.send(op="call", request=REQUEST, quiet=True)
            outcome = await client.outcome(tag)
            return "whole" if (outcome["event"], outcome["items"]) == ("end", REQUEST["n"]) else str(outcome)

        load = await run_under_load(file_kv, call, lambda: client.wait_instances(WORKERS))
    assert Counter(load.ends) == {"whole": len(load.ends)}
    assert len(load.ends) > 100
    compatibility.note(
        "a rolling restart of three workers under load", f"client {CLIENT}", "nine workers replaced, no request lost"
    )


async def test_r05_our_client_loses_no_request_in_a_rolling_restart(file_kv: Path) -> None:
    file_kv.mkdir()
    async with ingress.open_client(discovery=ingress.FileDiscovery(file_kv)) as client:

        async def call() -> str:
            async with client.stream(ENDPOINT, REQUEST) as responses:
                items = [item async for item in responses]
            return "whole" if len(items) == REQUEST["n"] else f"{len(items)} items"

        load = await run_under_load(file_kv, call, lambda: client.wait_for_instances(ENDPOINT, WORKERS))
    assert Counter(load.ends) == {"whole": len(load.ends)}
    assert len(load.ends) > 100
