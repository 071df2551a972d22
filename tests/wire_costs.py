"""What a call costs: for tests that hostile input stays cheap."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define

MIB = 1024 * 1024


@define
class Cost:
    """Filled in when the block ends."""

    peak: int = 0
    """Bytes allocated at the worst moment, beside what was allocated before."""

    seconds: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block's memory; its time counts too, three times longer under the measurement."""
    cost = Cost()
    tracemalloc.start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        cost.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@contextmanager
def timed() -> Iterator[Cost]:
    """Measure a block's time alone."""
    cost = Cost()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
