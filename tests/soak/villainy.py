"""Good callers and the villain against one worker, and what is left when both have gone."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence

import trio

from tests.reliability.served import PATIENCE, SPARE_DESCRIPTORS, Worker, open_worker
from tests.soak.engine import TARGETS, read_ledger
from tests.soak.good import open_callers
from tests.soak.history import Account, Outcome, breaches
from tests.soak.load import MIB, Figure
from tests.soak.villain import VILLAINS, Villain

Samples = Sequence[tuple[float, float]]
"""Seconds since the start, and bytes in use."""

# A process that is new still grows: what it grows by in so long is no leak.
WARM_UP = 60.0

# In a run of a minute nearly all growth is warm-up, 8 MiB beside 10,000 good requests, and memory goes up and down by
# some MiB: there the figure is a guard against leaks that one cannot miss.
LONG_RUN = 300.0
MOST_IN_LONG_RUN, MOST_IN_SHORT_RUN = 1, 24


async def run_villainy(seconds: float, seed: int) -> list[Figure]:
    """Run both for so long; returns what was lost, and what stayed behind."""
    with open_worker(targets=TARGETS) as worker:
        before = worker.descriptors()
        account, done, samples = await _attack(worker, seconds, seed)
        left = await _left_behind(worker, before)
        wrong = list(breaches(account.endings, read_ledger(worker.directory)))
        stalls = await worker.sample("ingress_loop_stalls_total")
    counts = account.counts()
    print(f"  villain, seed {seed}: {_listed(done)}")
    print(f"  good: {_listed(account.kinds())}")
    print(f"  good: {_listed(Counter({outcome.value: count for outcome, count in counts.items()}))}")
    print(f"  memory, MiB: {' '.join(f'{used / MIB:.1f}' for used in _means(samples, seconds))}")
    print(f"  the worker's loop stood still for a second or more: {stalls:.0f} times")
    for why in wrong[:20]:
        print(f"  WRONG {why}")
    return [
        Figure("good requests beside a villain", counts.total(), 1, at_least=True, is_guard=True),
        Figure("good requests lost beside a villain", counts[Outcome.LOST], 0, is_guard=True),
        Figure("good requests refused beside a villain", counts[Outcome.REFUSED], 0, is_guard=True),
        Figure("breaches in the history of good requests", len(wrong), 0, is_guard=True),
        Figure("attacks of the villain", done.total(), 1, at_least=True, is_guard=True),
        Figure(
            "memory growth a minute under the villain",
            slope(samples, seconds) * 60 / MIB,
            MOST_IN_LONG_RUN if seconds >= LONG_RUN else MOST_IN_SHORT_RUN,
            "MiB",
            is_guard=True,
        ),
        Figure("descriptors left behind", left["descriptors"], SPARE_DESCRIPTORS, is_guard=True),
        Figure("requests in flight left behind", left["in flight"], 0, is_guard=True),
    ]


async def _attack(worker: Worker, seconds: float, seed: int) -> tuple[Account, Counter[str], Samples]:
    dice = random.Random(seed)
    account, done, over = Account(), Counter[str](), trio.Event()
    samples: list[tuple[float, float]] = []
    async with open_callers(worker, dice, account) as callers, trio.open_nursery() as nursery:
        for caller in callers:
            nursery.start_soon(caller.call_until, over)
        for _ in range(VILLAINS):
            nursery.start_soon(Villain(worker, random.Random(dice.random()), done).attack_until, over)
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


def slope(samples: Samples, seconds: float) -> float:
    """Bytes a second by least squares, without the warm-up; 0 where memory falls."""
    kept = [(at, used) for at, used in samples if at >= min(WARM_UP, seconds / 3)]
    if len(kept) < 3:
        return 0.0
    fit = statistics.linear_regression([at for at, _ in kept], [used for _, used in kept])
    return max(fit.slope, 0.0)


def _means(samples: Samples, seconds: float, parts: int = 12) -> Sequence[float]:
    """The curve in so many figures."""
    found = []
    for part in range(parts):
        used = [used for at, used in samples if part <= at / seconds * parts < part + 1]
        found += [statistics.fmean(used)] if used else []
    return found


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
