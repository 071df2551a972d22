"""TLS and mTLS with real peers, by the same variables on both sides; what each did stands in the table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress

from ..certificates import Authority
from .conftest import Observe
from .peer_process import open_client_process, open_worker_process

pytestmark = pytest.mark.interop

ENDPOINT = "demo.backend.generate"

# The first release that has them; older ones ignore the variables and speak plain TCP.
SINCE = (1, 6)


async def generate(request: Any) -> AsyncIterator[Any]:
    for i in range(request.get("n", 3)):
        await trio.sleep(request.get("delay", 0))
        yield {"i": i}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def speaks_tls(version: str) -> bool:
    return tuple(map(int, version.split("."))) >= SINCE


def serving(file_kv: Path, **options: Any) -> Any:
    return ingress.serving(
        generate,
        endpoint=ENDPOINT,
        discovery=ingress.FileDiscovery(file_kv),
        linger=0.0,
        drain_budget=5.0,
        **options,
    )


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_a_real_client_speaks_tls_with_our_worker(
    client_version: str, mutual: bool, file_kv: Path, authority: Authority, observed: Observe
) -> None:
    tls = authority.options(mutual=mutual)
    name = "mtls" if mutual else "tls"
    async with (
        serving(file_kv, tls=tls) as worker,
        open_client_process(client_version, file_kv, **authority.environment(tls)) as client,
    ):
        await client.wait_instances(1)
        outcome = await client.call({"n": 500}, quiet=True)
        if not speaks_tls(client_version):
            assert outcome["event"] == "error", outcome
            await is_refused(worker)
            observed(f"{name}: ignores the variables; its plain bytes are refused")
            return
        assert (outcome["event"], outcome["items"]) == ("end", 500), outcome
        tag = await client.send(op="call", request={"n": 1000, "delay": 0.02}, stop_after=3)
        stopped = await client.outcome(tag)
        assert stopped["event"] == "end" and stopped["items"] < 100, stopped
        many = await client.outcome(await client.send(op="call_many", n=60, request={"n": 20}))
        assert many["errors"] == 0, many
        assert refused(worker) == 0
    observed(f"{name}: both planes encrypted; whole answers, silent end after a stop, 60 calls at once")


async def test_certificates_are_rotated_under_a_real_client(
    client_version: str, file_kv: Path, authority: Authority, observed: Observe
) -> None:
    if not speaks_tls(client_version):
        pytest.skip("speaks no TLS")
    tls = authority.options(mutual=True)
    async with (
        serving(file_kv, tls=tls) as worker,
        open_client_process(client_version, file_kv, **authority.environment(tls)) as client,
    ):
        await client.wait_instances(1)
        tag = await client.send(op="call_many", n=150, concurrency=10, request={"n": 10, "delay": 0.01})
        for _ in range(3):
            await trio.sleep(0.4)
            authority.issue("server")
            authority.issue("server-client")
            assert worker.tls.reload()
        done = await client.outcome(tag)
        assert (done["calls"], done["errors"]) == (150, 0), done
    observed("150 calls across 3 rotations, none lost")


async def test_a_real_client_that_does_not_trust_us(
    client_version: str, file_kv: Path, tmp_path: Path, authority: Authority, observed: Observe
) -> None:
    if not speaks_tls(client_version):
        pytest.skip("speaks no TLS")
    ours = authority.options()
    theirs = Authority(tmp_path, "other").options("theirs")
    async with (
        serving(file_kv, tls=ours) as worker,
        open_client_process(client_version, file_kv, **authority.environment(theirs)) as client,
    ):
        await client.wait_instances(1)
        outcome = await client.call({"n": 1})
        assert outcome["event"] == "error", outcome
        await is_refused(worker)
    observed("error, no request arrives")


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_our_client_speaks_tls_with_a_real_worker(
    worker_version: str, mutual: bool, file_kv: Path, authority: Authority, observed: Observe
) -> None:
    tls = authority.options(mutual=mutual)
    name = "mtls" if mutual else "tls"
    async with (
        open_worker_process(worker_version, file_kv, **authority.environment(tls)),
        ingress.open_client(discovery=ingress.FileDiscovery(file_kv), tls=tls) as client,
    ):
        await client.wait_for_instances(ENDPOINT, timeout=10)
        if not speaks_tls(worker_version):
            with trio.fail_after(30), pytest.raises(ingress.IngressError):
                async with client.stream(ENDPOINT, {"n": 3}):
                    pass
            observed(f"{name}: ignores the variables; our handshake fails")
            return
        for _ in range(20):
            async with client.stream(ENDPOINT, {"n": 3}) as responses:
                assert len([item async for item in responses]) == 3
    observed(f"{name}: both planes encrypted; 20 whole answers")


def refused(worker: Any) -> float:
    value = worker.metrics.registry.get_sample_value("ingress_connections_refused_total", {"reason": "tls"})
    return float(value or 0)


async def is_refused(worker: Any) -> None:
    """Wait until a handshake was counted: the peer knows first."""
    with trio.fail_after(20):
        while refused(worker) == 0:
            await trio.sleep(0.02)
