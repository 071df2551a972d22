"""A worker started from the command line with its status pages on, and a process of callers that keeps it busy."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import frozen

import ingress
from ingress.discovery import FileDiscovery

ENDPOINT = "demo.backend.generate"
CALLERS = 12

_PATIENCE = 20.0


@frozen
class ServedWorker:
    """A running ``ingress serve``."""

    process: subprocess.Popen[str]
    status_url: str
    """``http://host:port``, without a slash."""

    file_kv: Path

    def wait_ended(self) -> int:
        return self.process.wait(_PATIENCE)


@contextmanager
def serving(
    file_kv: Path, target: str = "tests.interop.paced_engine:generate", options: Sequence[str] = ()
) -> Iterator[ServedWorker]:
    """Start a worker with a status server on any port, and kill it at the end if it still runs."""
    command = [sys.executable, "-m", "ingress", "serve", target, "--status-port", "0", "--grace", "0", *options]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "INGRESS_"))}
    process = subprocess.Popen(
        [*command, "--endpoint", ENDPOINT, "--file-kv", str(file_kv)], stderr=subprocess.PIPE, text=True, env=inherited
    )
    try:
        assert process.stderr is not None
        url = None
        for line in process.stderr:
            if found := re.search(r"http://[\d.]+:\d+", line):
                url = found[0]
            if " call " in line:
                break
        assert url is not None, "the worker ended, or told no status address"
        yield ServedWorker(process, url, file_kv)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def steady_load(file_kv: Path) -> Iterator[None]:
    """Keep the worker busy while inside."""
    process = subprocess.Popen([sys.executable, "-m", "tests.interop.loaded_worker", str(file_kv)])
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


async def call_until_terminated(file_kv: Path) -> None:
    """The load: a few streams at a time, of which every fourth is left in the middle."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with ingress.open_client(discovery=FileDiscovery(file_kv)) as client, trio.open_nursery() as nursery:
            for number in range(CALLERS):
                nursery.start_soon(_call_on, client, random.Random(number))
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


async def _call_on(client: ingress.Client, chance: random.Random) -> None:
    while True:
        request = {"chunks": chance.randrange(5, 60), "pause": chance.choice((0.005, 0.02, 0.05))}
        leaves_after = 3 if chance.random() < 0.25 else None
        async with client.stream(ENDPOINT, request) as items:
            async for item in items:
                if item["number"] == leaves_after:
                    break


if __name__ == "__main__":
    trio.run(call_until_terminated, Path(sys.argv[1]))
