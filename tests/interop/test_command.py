"""A real client calls a worker that was started from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from .conftest import Observe
from .peer_process import open_client_process

pytestmark = pytest.mark.interop


async def test_ingress_serve_answers_and_drains_on_sigterm(
    client_version: str, file_kv: Path, observed: Observe
) -> None:
    command = [sys.executable, "-m", "ingress", "serve", "engines.echo:echo", "--endpoint", "demo.backend.generate"]
    environment = {**os.environ, "DYN_FILE_KV": str(file_kv), "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0"}
    process = await trio.lowlevel.open_process(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with open_client_process(client_version, file_kv) as client:
            await client.wait_instances(1)
            assert (await client.call({"hello": "world"}))["items"] == 1
            tag = await client.send(op="call", request={"n": 20, "delay": 0.05})
            await client.item_seen(tag, 3)
            process.send_signal(signal.SIGTERM)
            outcome = await client.outcome(tag)
            assert (outcome["event"], outcome["items"]) == ("end", 20)
        with trio.fail_after(10):
            assert await process.wait() == 0
        assert list((file_kv / "v1" / "instances").iterdir()) == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    observed("streams; SIGTERM in mid-stream loses nothing, exit 0")
