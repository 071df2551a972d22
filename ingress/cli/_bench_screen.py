"""The bar that ``ingress bench`` draws while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._bench_report import time_text
from ._load import Bounds, Load

if TYPE_CHECKING:
    from rich.console import Console

REFRESH = 0.25


async def show_progress(load: Load, bounds: Bounds, console: Console) -> None:
    """Draw how far the load is, until cancelled; gone without a trace then."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
    # Drawn from here and not from a thread of its own, which would take its turns in the middle of the load.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=1.0)
        while True:
            progress.update(task, completed=share_done(load, bounds), description=progress_line(load), refresh=True)
            await trio.sleep(REFRESH)


def share_done(load: Load, bounds: Bounds) -> float:
    """Return how much of the load is over, from 0 to 1."""
    passed = trio.current_time() - load.began
    if passed < bounds.warm_up:
        return 0.0
    if bounds.requests is not None:
        done = load.measured.answered + load.measured.failed
        return min(1.0, done / bounds.requests)
    return min(1.0, (passed - bounds.warm_up) / (bounds.seconds or 1.0))


def progress_line(load: Load) -> str:
    """Return what is known so far."""
    measured = load.measured
    passed = trio.current_time() - measured.began
    if passed <= 0:
        return f"warming up · {load.open:,} open"
    parts = [
        f"{measured.answered:,} answered",
        f"{measured.answered / passed:,.0f}/s",
        f"{load.open:,} open",
        f"p99 {time_text(measured.whole.quantile(0.99))}",
    ]
    if measured.failed:
        parts.append(f"{measured.failed:,} failed")
    return " · ".join(parts)
