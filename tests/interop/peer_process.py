"""A real peer as a child process that is spoken to in JSON lines."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from . import peers

Event = dict[str, Any]

# Guards against hanging, many times what each step takes.
START_TIMEOUT = 30.0
ANSWER_TIMEOUT = 30.0

OUTCOMES = ("end", "error", "dropped", "instances", "done")


class PeerProcess:
    """A started peer; its events are kept in order and can be waited for."""

    def __init__(self, process: trio.Process, version: str) -> None:
        self.version = version
        self.process = process
        self.events: list[Event] = []
        self._changed = trio.Event()
        self._sending = trio.Lock()
        self._tags = map(str, itertools.count())

    async def read_events(self) -> None:
        """Collect what the peer writes until it ends."""
        buffer = b""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            self.events += [json.loads(line) for line in lines]
            self._changed.set()
            self._changed = trio.Event()

    async def wait_for(self, wanted: Callable[[Event], bool], timeout: float = ANSWER_TIMEOUT) -> Event:
        """Return the first event, past or to come, that is wanted."""
        with trio.move_on_after(timeout):
            seen = 0
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                await self._changed.wait()
        raise AssertionError(f"{self.version}: not seen within {timeout} s; last events: {self.events[-5:]}")

    async def send(self, **command: Any) -> str:
        """Send one command under a new tag and return the tag."""
        tag = next(self._tags)
        assert self.process.stdin is not None
        async with self._sending:
            await self.process.stdin.send_all(json.dumps({"tag": tag, **command}).encode() + b"\n")
        return tag

    async def outcome(self, tag: str) -> Event:
        """Wait for the outcome of a command."""
        return await self.wait_for(lambda event: event.get("tag") == tag and event["event"] in OUTCOMES)

    async def call(self, request: object = None, **options: Any) -> Event:
        """Make one call and return its outcome."""
        return await self.outcome(await self.send(op="call", request=request, **options))

    async def wait_instances(self, count: int) -> list[int]:
        outcome = await self.outcome(await self.send(op="wait_instances", count=count, timeout=20))
        assert outcome["event"] == "instances", outcome
        return list(outcome["ids"])

    def items(self, tag: str) -> list[Any]:
        """The items a call has delivered so far."""
        return [event["data"] for event in self.events if event.get("tag") == tag and event["event"] == "item"]

    async def item_seen(self, tag: str, count: int = 1) -> None:
        """Wait until a call has delivered so many items."""
        await self.wait_for(lambda _: len(self.items(tag)) >= count)


@asynccontextmanager
async def open_client_process(
    version: str, file_kv: Path, endpoint: str = "demo.backend.generate", **environment: str
) -> AsyncIterator[PeerProcess]:
    """Start a real client of an endpoint."""
    command = peers.client_command(version, *endpoint.split("."))
    async with open_process(version, command, peers.environment(version, file_kv, **environment)) as peer:
        yield peer


@asynccontextmanager
async def open_worker_process(
    version: str, file_kv: Path, *, engine: str = "plain", **environment: str
) -> AsyncIterator[PeerProcess]:
    """Start a real worker of ``demo.backend`` and wait until its records are there."""
    command = peers.worker_command(version, "demo", "backend", engine=engine)
    async with open_process(version, command, peers.environment(version, file_kv, **environment)) as peer:
        yield peer


@asynccontextmanager
async def open_process(version: str, command: Sequence[str], environment: dict[str, str]) -> AsyncIterator[PeerProcess]:
    """Start a driver that speaks JSON lines and wait until it is ready; it is killed on leaving."""
    with tempfile.TemporaryFile() as stderr:
        process = await trio.lowlevel.open_process(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        peer = PeerProcess(process, version)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.read_events)
            try:
                await peer.wait_for(lambda event: event["event"] == "ready", START_TIMEOUT)
                yield peer
            except AssertionError:
                stderr.seek(0)
                print(stderr.read()[-4000:].decode(errors="replace"))
                raise
            finally:
                if process.returncode is None:
                    os.kill(process.pid, signal.SIGKILL)
                with trio.CancelScope(shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()
