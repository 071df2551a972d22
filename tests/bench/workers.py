"""The workers under load, as child processes whose CPU time and memory the kernel counts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from ingress.discovery import FileDiscovery
from ingress.wire.records import EndpointId
from tests.interop import peers

from .callers import open_dynamo_caller, open_grpc_caller, open_sse_caller
from .load import Caller, OpenCaller

ENDPOINT = EndpointId("demo", "backend", "generate")
START_TIMEOUT = 30.0

_TARGETS = {
    "growing": ["tests.bench.growing:grow"],
    "ours": ["tests.bench.engine:bench"],
    "bridge": ["--asyncio", "tests/interop/peers/dynamo_engines.py:bench"],
    "bridge without uvloop": ["tests.bench.bridged:plain"],
}
_SCRIPTS = {"grpc.aio": "grpc_server.py", "Starlette SSE": "sse_server.py"}
_CALLERS: dict[str, Callable[[int], AbstractAsyncContextManager[Caller]]] = {
    "grpc.aio": open_grpc_caller,
    "Starlette SSE": open_sse_caller,
}


@frozen
class RunningWorker:
    """A worker process, and how it is called."""

    name: str
    pid: int
    open_caller: OpenCaller

    def cpu_seconds(self) -> float:
        """User and system time of the process so far, all its threads together."""
        # The process's own CPU clock, as clock_getcpuclockid(3) makes its number: nanoseconds, where /proc has ticks.
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_available(name: str) -> bool:
    """Say whether the peer is installed; `tests/interop/peers/install.py 1.6.1 bench` does it."""
    if name in _SCRIPTS:
        return peers.is_installed(peers.BENCH)
    return name != "Dynamo 1.6.1" or peers.is_installed("1.6.1")


def command_of(name: str, endpoints: int = 1) -> list[str]:
    if name in _TARGETS:
        names = [str(ENDPOINT), *(f"demo.backend.e{number}" for number in range(1, endpoints))]
        targets = [*_TARGETS[name], *_TARGETS[name][-1:] * (endpoints - 1)]
        options = [word for each in names for word in ("--endpoint", each)]
        return [sys.executable, "-m", "ingress", "serve", *targets, *options, "--codec", "json"]
    if name in _SCRIPTS:
        return [str(peers.python(peers.BENCH)), str(Path(__file__).parent / "peers" / _SCRIPTS[name])]
    if name == "floor":
        return [sys.executable, "-m", "tests.bench.floor"]
    return peers.worker_command("1.6.1", "demo", "backend", engine="bench")


@asynccontextmanager
async def open_worker(name: str, *, endpoints: int = 1) -> AsyncIterator[RunningWorker]:
    """Start a worker with its defaults and wait until it can be called.

    Args:
        endpoints: how many it serves, all by the same engine; only ours serves more than one, and callers call each in
            turn.
    """
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as output:
        environment = peers.environment("1.6.1", directory, DYN_LOG="info", DYN_REQUEST_PLANE_CODEC="json")
        process = await trio.lowlevel.open_process(
            command_of(name, endpoints), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            with trio.fail_after(START_TIMEOUT):
                if name in _SCRIPTS:
                    caller = await _find_port(name, output.fileno())
                else:
                    caller = await _find_records(Path(directory), endpoints)
            yield RunningWorker(name, process.pid, caller)
        except BaseException:
            sys.stderr.buffer.write(os.pread(output.fileno(), 10_000, max(0, os.fstat(output.fileno()).st_size - 2000)))
            raise
        finally:
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()


async def _find_records(directory: Path, endpoints: int) -> OpenCaller:
    async with FileDiscovery(directory).open_view() as view:
        while not view.instances(ENDPOINT) or len(view.instances()) < endpoints:
            await trio.sleep(0.05)
        records = view.instances() if endpoints > 1 else view.instances(ENDPOINT)
        return partial(open_dynamo_caller, *records)


async def _find_port(name: str, output: int) -> OpenCaller:
    while (found := re.search(rb"^port (\d+)$", os.pread(output, 10_000, 0), re.MULTILINE)) is None:
        await trio.sleep(0.05)
    return partial(_CALLERS[name], int(found[1]))
