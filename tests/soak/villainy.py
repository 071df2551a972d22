"""Good callers and the villain against one worker, and what is left when both have gone."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence

import trio

from tests.raw_caller import open_raw_caller
from tests.reliability.served import NETWORK, PATIENCE, SPARE_DESCRIPTORS, Worker, open_worker
from tests.soak.good import CALLERS, Account, call_on, open_clients
from tests.soak.load import MIB, Figure
from tests.soak.villain import VILLAINS, Villain

# A process that is new still grows: what it grows by in so long is no leak.
WARM_UP = 20.0

# In a run of a minute nearly all growth is warm-up, and streams of callers that never read, which are given up after
# one: there the figure is a guard against leaks that one cannot miss.
LONG_RUN = 300.0


async def run_villainy(seconds: float, seed: int) -> list[Figure]:
    """Run both for so long; returns what was lost, and what stayed behind."""
    with open_worker() as worker:
        before = worker.descriptors()
        account, done, samples = await _attack(worker, seconds, seed)
        left = await _left_behind(worker, before)
        print(f"  villain, seed {seed}: " + ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
        print(f"  good: {account.complete} complete, {account.told} told, {account.left} left by their callers")
        for why in account.lost[:20]:
            print(f"  LOST {why}")
    return [
        Figure("good requests beside a villain", account.total, 1, at_least=True, is_guard=True),
        Figure("good requests lost beside a villain", len(account.lost), 0, is_guard=True),
        Figure("attacks of the villain", done.total(), 1, at_least=True, is_guard=True),
        Figure(
            "memory growth a minute under the villain",
            slope(samples, seconds) * 60 / MIB,
            1 if seconds >= LONG_RUN else 48,
            "MiB",
            is_guard=True,
        ),
        Figure("descriptors left behind", left["descriptors"], SPARE_DESCRIPTORS, is_guard=True),
        Figure("requests in flight left behind", left["in flight"], 0, is_guard=True),
    ]


async def _attack(worker: Worker, seconds: float, seed: int) -> tuple[Account, Counter[str], list[tuple[float, float]]]:
    dice = random.Random(seed)
    account, done, over = Account(), Counter[str](), trio.Event()
    samples: list[tuple[float, float]] = []
    async with open_clients(worker.directory / "kv") as clients, trio.open_nursery() as nursery:

        async def attack(own: random.Random) -> None:
            async with open_raw_caller(NETWORK) as caller:
                villain = Villain(worker, caller, own, done)
                await villain.attack_until(over)

        for number in range(CALLERS):
            nursery.start_soon(call_on, clients[number % 2], random.Random(dice.random()), account, over)
        for _ in range(VILLAINS):
            nursery.start_soon(attack, random.Random(dice.random()))
        started = trio.current_time()
        while (elapsed := trio.current_time() - started) < seconds:
            samples.append((elapsed, worker.memory()))
            await trio.sleep(0.5)
        over.set()
    return account, done, samples


async def _left_behind(worker: Worker, before: int) -> dict[str, float]:
    with trio.move_on_after(PATIENCE):
        while worker.descriptors() > before + SPARE_DESCRIPTORS:
            await trio.sleep(0.2)
    descriptors = max(0, worker.descriptors() - before)
    await worker.assert_alive()
    await trio.sleep(0.2)
    return {"descriptors": descriptors, "in flight": await worker.in_flight()}


def slope(samples: Sequence[tuple[float, float]], seconds: float) -> float:
    """Bytes a second by least squares, without the warm-up; 0 where memory falls."""
    kept = [(at, used) for at, used in samples if at >= min(WARM_UP, seconds / 3)]
    if len(kept) < 3:
        return 0.0
    fit = statistics.linear_regression([at for at, _ in kept], [used for _, used in kept])
    return max(fit.slope, 0.0)
