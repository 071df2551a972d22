"""The workers under load, as child processes whose CPU time and memory the kernel counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import frozen

from ingress.discovery import FileDiscovery
from ingress.wire.records import EndpointId, InstanceRecord
from tests.interop import peers

ENDPOINT = EndpointId("demo", "backend", "generate")
_TICKS = os.sysconf("SC_CLK_TCK")


@frozen
class RunningWorker:
    """A worker process and its record."""

    name: str
    pid: int
    record: InstanceRecord

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def command_of(name: str) -> list[str]:
    targets = {
        "ours": ["tests.bench.engine:bench"],
        "bridge": ["--asyncio", "tests/interop/peers/dynamo_engines.py:bench"],
        "bridge without uvloop": ["tests.bench.bridged:plain"],
    }
    if name in targets:
        options = ["--endpoint", str(ENDPOINT), "--codec", "json"]
        return [sys.executable, "-m", "ingress", "serve", *targets[name], *options]
    return peers.worker_command("1.6.1", "demo", "backend", engine="bench")


@asynccontextmanager
async def open_worker(name: str) -> AsyncIterator[RunningWorker]:
    """Start a worker with its defaults and wait until it can be found."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as output:
        environment = peers.environment("1.6.1", directory, DYN_LOG="info", DYN_REQUEST_PLANE_CODEC="json")
        process = await trio.lowlevel.open_process(
            command_of(name), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            async with FileDiscovery(Path(directory)).open_view() as view:
                with trio.fail_after(30):
                    while not view.instances(ENDPOINT):
                        await trio.sleep(0.05)
                yield RunningWorker(name, process.pid, view.instances(ENDPOINT)[0])
        except BaseException:
            output.seek(0)
            sys.stderr.buffer.write(output.read()[-2000:])
            raise
        finally:
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
