"""Workers are replaced one after the other under load; our client loses no request."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import trio

import ingress
from engines.echo import echo
from ingress import Worker, make_worker

from .rolling_restart import ENDPOINT, LINGER, REQUEST, WORKERS, Load


async def test_r05_a_rolling_restart_loses_no_request_of_our_client(tmp_path: Path) -> None:
    """Over real sockets and a real directory, the workers in one process.

    `make interop` does it with processes, three times in a row.
    """
    discovery = ingress.FileDiscovery(tmp_path)

    def make() -> Worker:
        return make_worker(echo, endpoint=str(ENDPOINT), discovery=discovery, linger=LINGER, drain_budget=20)

    async with ingress.open_client(discovery=discovery) as client:

        async def call() -> str:
            async with client.stream(ENDPOINT, REQUEST) as responses:
                items = [item async for item in responses]
            return "whole" if len(items) == REQUEST["n"] else f"{len(items)} items"

        load = Load(call, streams=24)
        drained: list[Worker] = []
        async with trio.open_nursery() as nursery:
            workers = [make() for _ in range(WORKERS)]
            for worker in workers:
                await nursery.start(worker.serve)
            await client.wait_for_instances(ENDPOINT, WORKERS)
            nursery.start_soon(load.run)
            await trio.sleep(0.2)
            for old in workers:
                fresh = make()
                await nursery.start(fresh.serve)
                old.drain()
                with trio.fail_after(20):
                    while old.phase.value != "stopped":
                        await trio.sleep(0.01)
                drained.append(old)
                workers = [*workers, fresh]
            load.is_over = True
            await trio.sleep(0.01)
            while client._streams:
                await trio.sleep(0.01)
            for worker in workers[WORKERS:]:
                worker.drain()
    assert Counter(load.ends) == {"whole": len(load.ends)}
    assert len(load.ends) > 48
    assert [worker.cancelled_by_drain for worker in drained] == [0] * WORKERS
