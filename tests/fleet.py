"""An ``ingress serve --processes 2`` to be looked at, called, hurt and ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import trio
from attrs import frozen

import ingress
from ingress.client import Client
from ingress.discovery import FileDiscovery

ENDPOINT = "demo.backend.generate"
ECHO = ("engines.echo:echo", "--endpoint", ENDPOINT)

# On a busy machine a process takes seconds to start.
PATIENCE = 60.0


def environment(**extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "INGRESS_"))}
    return {**inherited, **extra}


@frozen
class Fleet:
    """The parent process, its callers' client, and where it tells of itself."""

    process: trio.Process
    directory: Path
    client: Client
    url: str

    def said(self) -> str:
        return (self.directory / "stderr").read_text()

    async def wait_for_line(self, pattern: str) -> None:
        await until(lambda: re.search(pattern, self.said()) is not None)

    async def page(self, path: str) -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=self.url, timeout=PATIENCE) as client:
            return await client.get(path)

    async def processes(self) -> list[dict[str, Any]]:
        found = (await self.page("/health?verbose")).json()["processes"]
        assert isinstance(found, list)
        return found

    async def pids(self) -> list[int]:
        return [process["pid"] for process in await self.processes()]

    async def total(self, name: str) -> float:
        """The sum of all series of one name on the merged page."""
        text = (await self.page("/metrics")).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def instances(self) -> set[int]:
        return {instance.instance_id for instance in self.client.instances(ENDPOINT)}

    async def take(self, instance: int, request: Any) -> int:
        """Call one instance and return how many items came in a whole answer."""
        count = 0
        async with self.client.stream(ENDPOINT, request, routing="direct", instance_id=instance) as items:
            async for _ in items:
                count += 1
        return count

    async def end(self, *numbers: int) -> int:
        """Signal the parent, and return its exit code."""
        for number in numbers:
            self.process.send_signal(number)
            await trio.sleep(0.5)
        with trio.fail_after(PATIENCE):
            return await self.process.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked after yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not is_so():
            await trio.sleep(0.05)


async def until_async(is_so: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE):
        while not await is_so():
            await trio.sleep(0.05)


@asynccontextmanager
async def open_fleet(directory: Path, *options: str, targets: tuple[str, ...] = ECHO) -> AsyncIterator[Fleet]:
    """Start two processes and wait until they can be called; whatever is left at the end is killed."""
    with (directory / "stderr").open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [
                *(sys.executable, "-m", "ingress", "serve", *targets, "--processes", "2", "--status-port", "0"),
                *("--grace", "0.3", "--file-kv", str(directory / "kv"), *options),
            ],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env=environment(),
        )
    pids: set[int] = set()
    try:
        async with ingress.open_client(discovery=FileDiscovery(directory / "kv")) as client:
            await until(lambda: "In another terminal" in (directory / "stderr").read_text())
            (url,) = re.findall(r"status +(http://127\.0\.0\.1:\d+)/health", (directory / "stderr").read_text())
            fleet = Fleet(process, directory, client, url)
            await until(lambda: len(fleet.instances()) == 2)
            pids.update(await fleet.pids())
            yield fleet
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        for pid in pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
