"""Good callers: ask for random things and check that they get exactly those."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

import ingress
from ingress.wire.messages import CodecName

ENDPOINT = "demo.backend.generate"
CALLERS = 16
CODECS: tuple[CodecName, ...] = ("json", "msgpack")

# Longer than any good request takes, also on a busy machine.
PATIENCE = 30.0


@define
class Account:
    """What came of the good requests; each ends in exactly one of these."""

    complete: int = 0
    told: int = 0
    """Those that asked for an error and got it."""

    left: int = 0
    """Those whose caller had enough before the end."""

    lost: list[str] = field(factory=list)
    """What was wrong with the others."""

    @property
    def total(self) -> int:
        return self.complete + self.told + self.left + len(self.lost)


@asynccontextmanager
async def open_clients(file_kv: Path) -> AsyncIterator[list[ingress.Client]]:
    """Two clients of ours, one a codec."""
    async with AsyncExitStack() as stack:
        discovery = ingress.FileDiscovery(file_kv)
        clients = [
            await stack.enter_async_context(ingress.open_client(discovery=discovery, codec=codec)) for codec in CODECS
        ]
        for client in clients:
            await client.wait_for_instances(ENDPOINT)
        yield clients


async def call_on(client: ingress.Client, dice: random.Random, account: Account, over: trio.Event) -> None:
    """Call until it is over, one request after the other."""
    while not over.is_set():
        await call(client, dice, account)
        await trio.sleep(dice.expovariate(1 / 0.02))


async def call(client: ingress.Client, dice: random.Random, account: Account) -> None:
    """One request; whatever else than its answer comes is noted as lost."""
    kind = dice.choices(["count", "echo", "raise", "leave"], [6, 2, 1, 1])[0]
    size = dice.randrange(1, 100)
    text = "é" * dice.randrange(200)
    request: dict[str, Any] = {"do": "count", "n": size, "text": text, "pause": dice.choice([0, 0, 0.001, 0.01])}
    if kind == "echo":
        request = {"list": list(range(size * 50)), "text": text}
    elif kind == "raise":
        request = {"do": "raise", "text": text}
    expected = [request] if kind == "echo" else [[number, text] for number in range(size)]
    items: list[Any] = []
    try:
        with trio.fail_after(PATIENCE):
            async with client.stream(ENDPOINT, request) as responses:
                async for item in responses:
                    items.append(item)
                    if kind == "leave" and len(items) == (size + 1) // 2:
                        break
    except ingress.RemoteError as exc:
        if kind == "raise" and text in str(exc):
            account.told += 1
        else:
            account.lost.append(f"{kind}: {exc!r}")
    except Exception as exc:
        account.lost.append(f"{kind}: {exc!r}")
    else:
        if kind == "leave":
            account.left += 1
        elif kind != "raise" and items == expected:
            account.complete += 1
        else:
            account.lost.append(f"{kind}: {len(items)} items of {len(expected)}")
