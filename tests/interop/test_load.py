"""`ingress bench` puts a real Dynamo worker under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress

from .peer_process import open_worker_process

pytestmark = pytest.mark.interop

ENDPOINT = "demo.backend.generate"


async def bench(file_kv: Path, *arguments: str) -> tuple[int, Any]:
    finished = await trio.run_process(
        [sys.executable, "-m", "ingress", "bench", ENDPOINT, "--warmup", "0", "--json", *arguments],
        env={**os.environ, "DYN_FILE_KV": str(file_kv)},
        capture_stdout=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return finished.returncode, json.loads(finished.stdout)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_real_worker_is_put_under_load(worker_version: str, codec: str, file_kv: Path) -> None:
    if codec == "msgpack" and worker_version < "1.4":
        pytest.skip(f"{worker_version} workers read JSON only")
    async with (
        open_worker_process(worker_version, file_kv, DYN_REQUEST_PLANE_CODEC=codec),
        ingress.open_client(discovery=ingress.FileDiscovery(file_kv)) as client,
    ):
        await client.wait_for_instances(ENDPOINT, timeout=10)
        code, closed = await bench(file_kv, "-d", '{"n": 5}', "-n", "40", "-c", "4")
        assert (code, closed["codecs"]) == (0, [codec])
        assert (closed["requests"]["answered"], closed["chunks"]) == (40, 200)
        code, due = await bench(file_kv, "-d", '{"n": 5}', "--rate", "50", "--duration", "1")
        assert code == 0
        assert (due["requests"]["sent"], due["chunks"], due["latencies"]["late_send"]["count"]) == (50, 250, 50)
        failing = json.dumps({"n": 5, "raise_after": 2, "exc": "ValueError", "message": "boom"})
        code, failed = await bench(file_kv, "-d", failing, "-n", "3", "-c", "1")
        assert code == 1
        assert [(each["kind"], each["count"]) for each in failed["failures"]] == [("RemoteError InvalidArgument", 3)]
        assert failed["chunks"] == 6
