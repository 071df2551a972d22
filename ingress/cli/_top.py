"""``ingress top``: what workers are doing, live in a terminal or once for a script."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Annotated

import trio
from cyclopts import Parameter
from rich.console import Console

from ._errors import EXIT_CLEAN, EXIT_FAILED, usage
from ._ls import print_table
from ._options import DEFAULT_OUTPUT, AsJson, OutputOptions
from ._payloads import print_document
from ._scrape import DEFAULT_STATUS_HOST, StatusAddress, parse_address
from ._top_screen import COLUMNS, as_document, live_table, plain_rows
from ._watched import WatchedWorker

DEFAULT_INTERVAL = 1.0

# More workers than a screen has lines; each has a connection of its own every interval.
MAX_WORKERS = 64

_ENDING = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))

_LEAST_INTERVAL, _MOST_INTERVAL = 0.1, 60.0


def check_interval(kind: object, value: float) -> None:
    """Raise ValueError unless the value is an interval to poll at."""
    if not _LEAST_INTERVAL <= value <= _MOST_INTERVAL:
        raise ValueError(f"expected seconds from {_LEAST_INTERVAL:g} to {_MOST_INTERVAL:g}")


def top(
    *addresses: str,
    once: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    interval: Annotated[float, Parameter(validator=check_interval)] = DEFAULT_INTERVAL,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Watch what workers do: streams, chunks a second, p50 and p99, queue, cancels, loop lag, drain.

    Reads the /metrics and /progress of their status servers. Ctrl-C ends it. Where the output is no terminal, a plain
    table is printed at every interval. With --once and --json it looks twice, an interval apart, for the rates; the
    quantiles are then since the workers' starts, and it ends with 1 where a worker does not answer.

    Parameters
    ----------
    addresses
        The status servers: 9090, host:9090 or http://host:9090. By default DYN_SYSTEM_PORT on loopback.
    once
        Print one plain table and end.
    interval
        Seconds between two looks.
    """
    output.set_up_logging()
    workers = [WatchedWorker(address) for address in find_addresses(addresses)]
    if once or as_json:
        for worker in workers:
            worker.is_lifelong = True
        trio.run(_look_twice, workers, interval)
        if as_json:
            print_document(as_document(workers))
        else:
            _print_plain(output.stdout(), workers)
            for worker in workers:
                if worker.problem is not None:
                    output.stderr().print(f"{worker.address}: {worker.problem}", style="yellow", soft_wrap=True)
        return EXIT_CLEAN if all(worker.is_there for worker in workers) else EXIT_FAILED
    signals: list[int] = []
    is_unread = False
    try:
        trio.run(_watch_until_signalled, workers, interval, output.stdout(), signals)
    except* BrokenPipeError:
        is_unread = True
    if is_unread:  # raised here, for what is raised above arrives as a group
        raise BrokenPipeError
    # Ctrl-C is how one leaves it.
    return 128 + signals[0] if signals and signals[0] != signal.SIGINT else EXIT_CLEAN


def find_addresses(texts: Sequence[str]) -> list[StatusAddress]:
    """Return where to look, each address once.

    Raises:
        CommandError: no address, or one that is none.
    """
    if not texts:
        return [_own_address(os.environ.get("DYN_SYSTEM_PORT", ""))]
    if len(texts) > MAX_WORKERS:
        raise usage(f"{len(texts)} workers are too many", f"at most {MAX_WORKERS} fit", "fewer addresses")
    return list(dict.fromkeys(parse_address(text) for text in texts))


def _own_address(port: str) -> StatusAddress:
    remedy = "ingress serve … --status-port 9090, then ingress top 9090"
    if not port:
        raise usage("no worker to look at", "no address is given and DYN_SYSTEM_PORT is not set", remedy)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        why = "it names no port to look at; 0 lets a worker pick one, which its start-up card shows"
        raise usage(f"DYN_SYSTEM_PORT={port} is no worker's address", why, "ingress top PORT")
    return StatusAddress(DEFAULT_STATUS_HOST, int(port))


async def _look_twice(workers: Sequence[WatchedWorker], interval: float) -> None:
    await _poll_all(workers)
    if any(worker.is_there for worker in workers):
        await trio.sleep(interval)
        await _poll_all(workers)


async def _poll_all(workers: Sequence[WatchedWorker]) -> None:
    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(worker.poll)


async def _watch_until_signalled(
    workers: Sequence[WatchedWorker], interval: float, console: Console, signals: list[int]
) -> None:
    """Watch until told to end; by a signal too the terminal is given back as it was."""
    with trio.open_signal_receiver(*(number for number in _ENDING if number is not None)) as received:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, workers, interval, console)
            async for number in received:
                signals.append(number)
                break
            nursery.cancel_scope.cancel()


async def _watch(workers: Sequence[WatchedWorker], interval: float, console: Console) -> None:
    """Poll every worker at its own pace, so that one which hangs holds up no other, and show them until cancelled."""
    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(_poll_on, worker, interval)
        with trio.move_on_after(interval):  # for a first screen with something on it
            for worker in workers:
                await worker.was_polled.wait()
        await _show(workers, interval, console)


async def _poll_on(worker: WatchedWorker, interval: float) -> None:
    while True:
        due = trio.current_time() + interval
        await worker.poll()
        await trio.sleep_until(due)


async def _show(workers: Sequence[WatchedWorker], interval: float, console: Console) -> None:
    if not console.is_terminal or console.is_dumb_terminal:
        while True:
            _print_plain(console, workers)
            console.print()
            await trio.sleep(interval)
    from rich.live import Live

    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(live_table(workers, console.width, console.height), refresh=True)
            await trio.sleep(interval)


def _print_plain(console: Console, workers: Sequence[WatchedWorker]) -> None:
    print_table(console, [column.heading for column in COLUMNS], plain_rows(workers))
    console.file.flush()
