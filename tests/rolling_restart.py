"""A rolling restart under steady load: each worker is replaced by a new one, and no request may fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from ingress.discovery import FileDiscovery
from ingress.wire.records import EndpointId

ENDPOINT = EndpointId("demo", "backend", "generate")

WORKERS = 3

# What a request of the load asks of the echo engine; longer than the linger, so that every drain finds some open.
REQUEST = {"n": 30, "delay": 0.08}

# The default. Callers must learn of a withdrawal within it, on a busy machine too: our client looks ten times a second,
# and where looking is slow it rests for a second between two looks.
LINGER = 2.0

PATIENCE = 30.0


@define
class Load:
    """Keeps so many requests open until told to stop, and remembers how each ended."""

    call: Callable[[], Awaitable[str]]
    """Makes one request and returns ``whole``, or says what was wrong with its answer."""

    streams: int = 16
    ends: list[str] = field(factory=list)
    is_over: bool = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self.streams):
                nursery.start_soon(self._call_on)

    async def _call_on(self) -> None:
        while not self.is_over:
            self.ends.append(await self.call())


@asynccontextmanager
async def open_worker_process(file_kv: Path) -> AsyncIterator[trio.Process]:
    """Start ``ingress serve``; a worker that has not ended is killed."""
    target = ["engines.echo:echo", "--endpoint", str(ENDPOINT), "--grace", str(LINGER), "--drain-budget", "20"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "INGRESS_"))}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "ingress", "serve", *target, "-q"],
        env={**inherited, "DYN_FILE_KV": str(file_kv)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def replace_all(file_kv: Path, rounds: int, on_serving: Callable[[int], Awaitable[object]]) -> int:
    """Start three workers, then replace one after the other, so many times; returns how many were replaced.

    Args:
        on_serving: told how many replacements have been made, when all workers can be found.
    """
    async with trio.open_nursery() as nursery, FileDiscovery(file_kv).open_view() as view:

        async def run(cancel: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
            known = {record.instance_id for record in view.instances(ENDPOINT)}
            async with open_worker_process(file_kv) as process:
                with trio.fail_after(PATIENCE):
                    while {record.instance_id for record in view.instances(ENDPOINT)} <= known:
                        await view.wait_changed()
                task_status.started()
                await cancel.wait()
                process.send_signal(signal.SIGTERM)
                with trio.fail_after(PATIENCE):
                    assert await process.wait() == 0, "every request was answered"
                ended.append(process.pid)

        ended: list[int] = []
        running: list[trio.Event] = []
        for _ in range(WORKERS):
            running.append(trio.Event())
            await nursery.start(run, running[-1])
        await on_serving(0)
        for number in range(rounds * WORKERS):
            fresh = trio.Event()
            await nursery.start(run, fresh)  # first the new one, then the end of the old one, as Kubernetes does
            running.append(fresh)
            running.pop(0).set()
            with trio.fail_after(PATIENCE):
                while len(ended) <= number:
                    await trio.sleep(0.02)
            await on_serving(number + 1)
        for last in running:
            last.set()
    return len(ended) - WORKERS
