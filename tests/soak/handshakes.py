"""A thousand TLS handshakes at once, a thousand in a row: what they cost the worker, and whether others are served."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import evolve, frozen

import ingress
from ingress._network import TcpNetwork
from ingress.tls import TlsContexts, TlsNetwork, TlsOptions
from tests.certificates import Authority
from tests.reliability.served import Watch, Worker, open_worker

from .load import Figure

ENDPOINT = "demo.backend.generate"

# Of our own end, which shares the machine with the worker.
PATIENCE = 60.0


@frozen
class Handshakes:
    """What a number of them came to."""

    done: int
    lost: int
    seconds: float
    cpu_seconds: float
    """Of the worker."""

    calls: int
    """Good requests that were answered meanwhile; one that is not raises."""

    slowest_call: float


@frozen
class TlsWorker:
    """A worker with TLS, and what its callers need."""

    worker: Worker
    tls: TlsOptions
    records: Path


@contextmanager
def open_tls_worker() -> Iterator[TlsWorker]:
    """Serve while inside."""
    with tempfile.TemporaryDirectory() as scratch:
        authority = Authority(Path(scratch))
        tls = authority.options()
        with open_worker(file_kv=Path(scratch) / "kv", variables=authority.environment(tls)) as worker:
            yield TlsWorker(worker, tls, Path(scratch) / "kv")


async def shake_hands(served: TlsWorker, count: int, *, at_once: int) -> Handshakes:
    """Shake hands so often, hold all connections, close them; beside a caller that calls again and again."""
    worker = served.worker
    calls: list[float] = []

    async def call(client: ingress.Client) -> None:
        while True:
            began = trio.current_time()
            async with client.stream(ENDPOINT, "hello?") as responses:
                assert [item async for item in responses] == ["hello?"]
            calls.append(trio.current_time() - began)
            await trio.sleep(0.05)  # it is here to be served, and not to be the load

    patient: dict[str, Any] = dict.fromkeys(("connect_timeout", "ack_timeout", "dial_back_timeout"), PATIENCE)
    async with (
        ingress.open_client(discovery=ingress.FileDiscovery(served.records), tls=served.tls, **patient) as client,
        trio.open_nursery() as calling,
    ):
        await client.wait_for_instances(ENDPOINT)
        calling.start_soon(call, client)
        cpu, began = worker.cpu_seconds(), trio.current_time()
        # On a loop of its own, so that how late the caller is served is the worker's doing.
        lost = await trio.to_thread.run_sync(trio.run, _flood, served, count, at_once)
        seconds, cpu = trio.current_time() - began, worker.cpu_seconds() - cpu
        seen = len(calls)
        while len(calls) <= seen:  # it is served afterwards too
            await trio.sleep(0.01)
        calling.cancel_scope.cancel()
    return Handshakes(count - lost, lost, seconds, cpu, len(calls), max(calls))


async def _flood(served: TlsWorker, count: int, at_once: int) -> int:
    """Return how many handshakes did not succeed."""
    network = TlsNetwork(TcpNetwork(), TlsContexts(evolve(served.tls, handshake_timeout=PATIENCE)))
    room = trio.CapacityLimiter(at_once)
    held: list[trio.abc.Stream] = []

    async def shake() -> None:
        async with room:
            with contextlib.suppress(OSError):
                held.append(await network.connect(*served.worker.address))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(shake)
    for stream in held:
        await trio.aclose_forcefully(stream)
    return count - len(held)


async def handshake_figures(count: int = 1000) -> list[Figure]:
    """The figures of the table."""
    with open_tls_worker() as served:
        await shake_hands(served, 20, at_once=1)  # warm
        watch = Watch(served.worker)
        at_once = await shake_hands(served, count, at_once=count)
        in_a_row = await shake_hands(served, count, at_once=1)
        await watch.assert_closed()
    return [
        Figure(
            f"TLS handshakes lost of {count:,} at once and {count:,} in a row",
            at_once.lost + in_a_row.lost,
            0,
            is_guard=True,
        ),
        Figure("CPU of the worker a TLS handshake", at_once.cpu_seconds / count * 1000, 3, "ms"),
        Figure(f"good call beside {count:,} TLS handshakes at once, slowest", at_once.slowest_call, 1, "s"),
    ]
