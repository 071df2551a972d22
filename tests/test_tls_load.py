"""TLS under handshakes that are many, and under a client that wants to renegotiate; a worker process each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from .reliability.served import Watch
from .soak.handshakes import TlsWorker, open_tls_worker, shake_hands

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descriptors are read in /proc")


@pytest.fixture(scope="module")
def served() -> Iterator[TlsWorker]:
    with open_tls_worker() as running:
        yield running


@pytest.mark.parametrize(("count", "at_once"), [(200, 200), (50, 1)], ids=["at once", "in a row"])
async def test_of_many_handshakes_none_is_lost_and_others_are_served(
    count: int, at_once: int, served: TlsWorker
) -> None:
    await shake_hands(served, 1, at_once=1)
    watch = Watch(served.worker)
    done = await shake_hands(served, count, at_once=at_once)
    assert (done.done, done.lost) == (count, 0)
    assert done.calls > 0
    await watch.assert_closed()
    assert await served.worker.sample("ingress_connections_refused_total", reason="tls") == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to renegotiate with")
async def test_a_client_that_renegotiates_is_refused_and_others_are_served(served: TlsWorker) -> None:
    """Python's ssl does not even offer it; ``openssl s_client`` does, on a line of one R."""
    host, port = served.worker.address
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2", "-CAfile", str(served.tls.ca_cert_path)]
    piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    said = b""
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(command, **piped)
        assert process.stdin is not None and process.stdout is not None
        async for data in process.stdout:
            said += data
            if b"Verify return code: 0 (ok)" in said and b"RENEGOTIATING" not in said:
                await process.stdin.send_all(b"R\n")
        assert await process.wait() != 0
        await process.stdin.aclose()
        assert b"RENEGOTIATING" in said and said.count(b"no renegotiation") == 1
        assert (await shake_hands(served, 1, at_once=1)).calls > 0
        while await served.worker.sample("ingress_connections_open"):
            await trio.sleep(0.05)
