"""Everything a worker's metrics tell of, happening all the time: the load for dashboards and rules."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from ingress import Client, IngressError, open_client
from ingress._network import TcpNetwork
from ingress.discovery import FileDiscovery

from ..raw_caller import RawConnection, open_raw_caller

ENDPOINT = "demo.backend.generate"

# Small, so that a dozen callers at once are too many.
SLOTS = 6
PLACES_IN_LINE = 2
CROWD = 12


@asynccontextmanager
async def worker_load(file_kv: Path) -> AsyncIterator[None]:
    """Load the worker that is announced in a directory while inside."""
    async with open_client(discovery=FileDiscovery(file_kv)) as client, trio.open_nursery() as nursery:
        (record,) = await client.wait_for_instances(ENDPOINT)
        caller = _Caller(client, record.instance_id)
        for act, pause in (
            (caller.stream, 0.05),
            (caller.fail, 0.2),
            (caller.leave_early, 0.2),
            (caller.crowd, 0.5),
            (caller.block, 1.0),
            (caller.do_not_read, 0.0),
        ):
            nursery.start_soon(_again_and_again, act, pause)
        nursery.start_soon(_push_nonsense, record)
        yield
        nursery.cancel_scope.cancel()


async def _again_and_again(act: Callable[[], Awaitable[None]], pause: float) -> None:
    while True:
        with contextlib.suppress(IngressError):  # refused and failed requests are what this is for
            await act()
        await trio.sleep(pause)


class _Caller:
    """What callers do, by our own client; straight to the one instance, so that a refusal sets nothing aside."""

    def __init__(self, client: Client, instance_id: int) -> None:
        self._client = client
        self._instance_id = instance_id

    def _call(self, **request: Any) -> Any:
        return self._client.stream(ENDPOINT, request, routing="direct", instance_id=self._instance_id)

    async def _read(self, **request: Any) -> None:
        async with self._call(**request) as responses:
            async for _ in responses:
                pass

    async def stream(self) -> None:
        await self._read(do="stream", n=10)

    async def fail(self) -> None:
        await self._read(do="fail")

    async def block(self) -> None:
        await self._read(do="block")

    async def leave_early(self) -> None:
        async with self._call(do="stream", n=1000) as responses:
            async for number in responses:
                if number == 3:
                    return

    async def do_not_read(self) -> None:
        async with self._call(do="flood"):
            await trio.sleep(3)

    async def crowd(self) -> None:
        async def hold() -> None:
            with contextlib.suppress(IngressError):
                await self._read(do="hold")

        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(hold)


async def _push_nonsense(record: Any) -> None:
    """Bodies that are none, pushes that are none, and endpoints that are none."""
    network = TcpNetwork()
    address, path = record.tcp_target
    host, _, port = address.rpartition(":")
    async with open_raw_caller(network) as caller, await network.connect(host, int(port)) as stream:
        connection = RawConnection(stream, path)
        while True:
            await connection.ask(b"junk")
            await connection.ask(b"junk", path="no/such/end/point")
            if await connection.ask(caller.payload(b"not json")) == "":
                response = await caller.accept()
                await response.read_to_sentinel()
                await response.aclose()
            await trio.sleep(0.3)
