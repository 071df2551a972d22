"""TLS under handshakes that are many, and under clients that want to renegotiate or change keys; one worker process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
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


needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="Python's ssl neither renegotiates nor changes keys; openssl does"
)


@asynccontextmanager
async def open_openssl(served: TlsWorker, version: str) -> AsyncIterator[trio.Process]:
    """Run ``openssl s_client``, which obeys lines of one letter."""
    host, port = served.worker.address
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", version, "-CAfile", str(served.tls.ca_cert_path)]
    piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(command, **piped)
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None
                    await pipe.aclose()


@needs_openssl
async def test_a_client_that_renegotiates_is_refused_and_others_are_served(served: TlsWorker) -> None:
    said = b""
    async with open_openssl(served, "-tls1_2") as openssl:
        assert openssl.stdin is not None and openssl.stdout is not None
        async for data in openssl.stdout:
            said += data
            if b"Verify return code: 0 (ok)" in said and b"RENEGOTIATING" not in said:
                await openssl.stdin.send_all(b"R\n")
        assert await openssl.wait() != 0
    assert b"RENEGOTIATING" in said and said.count(b"no renegotiation") == 1
    await assert_others_are_served_and_it_is_gone(served)


@needs_openssl
async def test_of_a_client_that_changes_keys_without_end_others_see_nothing(served: TlsWorker) -> None:
    changes, said = 300, b""
    async with open_openssl(served, "-tls1_3") as openssl, trio.open_nursery() as nursery:
        assert openssl.stdin is not None and openssl.stdout is not None
        asked = 0
        async for data in openssl.stdout:
            said += data
            changed = said.count(b"KEYUPDATE\n")
            if changed == changes:
                break
            if changed == asked and b"Verify return code: 0 (ok)" in said:
                asked += 1
                await openssl.stdin.send_all(b"K\n")  # one at a time: it looks at the first letter of what it reads
            if changed == 1 and asked == 2:
                nursery.start_soon(assert_served, served)
    assert said.count(b"KEYUPDATE\n") == changes
    await assert_others_are_served_and_it_is_gone(served)


async def assert_served(served: TlsWorker) -> None:
    done = await shake_hands(served, 5, at_once=1)
    assert (done.done, done.lost) == (5, 0) and done.calls > 0


async def assert_others_are_served_and_it_is_gone(served: TlsWorker) -> None:
    await assert_served(served)
    with trio.fail_after(60):
        while await served.worker.sample("ingress_connections_open"):
            await trio.sleep(0.05)
