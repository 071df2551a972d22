"""What a worker that has started tells of itself, and the start-up card made of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from .._log_writer import LineWriter
from .._worker import Worker
from ..abc import Discovery
from ._logging import wants_json
from ._options import DiscoveryOptions, OutputOptions
from ._screen import Row, call_command, command_lines, print_card, print_queued
from ._worker_flags import WorkerFlags

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("ingress.cli")

EXAMPLE_REQUEST = '{"prompt":"hello"}'


@frozen(kw_only=True)
class StartedWorker:
    """The facts of one worker; also what a worker process reports to the one that started it."""

    instance: str
    address: str
    plane: str
    tls: str
    """How the plane is encrypted: ``+tls``, ``+mtls`` or nothing."""

    codec: str
    engines: dict[str, str]
    """What each endpoint's engine is called."""

    models: dict[str, str]
    """What each model takes."""

    status: tuple[str, int] | None
    """Where the status server listens."""

    asking: list[str]
    """What ``ingress call`` needs to call the first endpoint."""

    listening: list[tuple[str, int]] = field(factory=list)
    """Its own listeners, those of requests and of status."""

    @classmethod
    def of(cls, worker: Worker, engines: Mapping[str, str]) -> StartedWorker:
        """Look at a worker that serves."""
        first = next(iter(worker.engines.values()))
        return cls(
            instance=f"{worker.instance_id:x}",
            address=worker.address,
            plane=worker.plane,
            tls=_tls_of(worker),
            codec=worker.codec,
            engines=dict(engines),
            models={card.name: "token ids" if card.takes_tokens else "text" for card in worker.models.cards.values()},
            status=worker.status.address,
            asking=["-d", EXAMPLE_REQUEST] if first.is_unary else ["--bidi"],
            listening=list(worker.own_addresses),
        )

    @property
    def where(self) -> str:
        return f"{self.plane}{self.tls} {self.address}"


def _tls_of(worker: Worker) -> str:
    if worker.tls is None:
        return ""
    return "+mtls" if worker.tls.options.is_mutual else "+tls"


def announce(
    workers: Sequence[StartedWorker],
    status_url: str | None,
    health_path: str,
    options: WorkerFlags,
    discovery: DiscoveryOptions,
    opened: Discovery,
    output: OutputOptions,
    log_writer: LineWriter,
) -> None:
    """Say that a worker, or several processes that serve the same, can be called: as a card, or as one log line.

    Waits for nobody to read it.
    """
    if output.quiet or wants_json(os.environ):
        first = workers[0]
        addresses = ", ".join(worker.address for worker in workers)
        tls = f" ({first.tls[1:]})" if first.tls else ""
        pages = f", status on {status_url}" if status_url else ""
        logger.info("serving %s on %s%s%s", ", ".join(first.engines), addresses, tls, pages)
    else:
        health_url = f"{status_url}{health_path}" if status_url else None
        print_queued(
            output.stderr(),
            log_writer,
            lambda console: _show_card(console, workers, health_url, options, discovery, opened),
        )


def _show_card(
    console: Console,
    workers: Sequence[StartedWorker],
    health_url: str | None,
    options: WorkerFlags,
    discovery: DiscoveryOptions,
    opened: Discovery,
) -> None:
    """Write the start-up card of one worker, or of several processes that serve the same."""
    first = workers[0]
    other = "json" if first.codec == "msgpack" else "msgpack"
    rows: list[Row] = [[("endpoint", name), ("engine", label)] for name, label in first.engines.items()]
    codec = ("codec", f"{first.codec}, reads {other} too")
    where = ("discovery", discovery.describe(opened))
    if len(workers) == 1:
        rows.append([("request", first.where), codec])
        rows.append([where, ("instance", first.instance)])
    else:
        rows.append([("processes", str(len(workers))), codec])
        rows += [
            [(f"process {number}", worker.where), ("instance", worker.instance)]
            for number, worker in enumerate(workers)
        ]
        rows.append([where])
    each = "" if len(workers) == 1 else ", each"
    rows.append(
        [
            ("limits", f"{options.engine_request_limit} at once + {options.request_queue_limit} in line{each}"),
            ("drain", f"{options.grace:g} s + up to {options.drain_budget:g} s"),
        ]
    )
    rows += [[("model", name), ("input", kind)] for name, kind in first.models.items()]
    if health_url is not None:
        rows.append([("status", health_url)])
    print_card(console, rows)
    if not opened.is_shared:
        return
    console.print("Ctrl-C once drains, twice quits. In another terminal:", style="dim", soft_wrap=True)
    parts = call_command(next(iter(first.engines)), first.asking, discovery.flags_to_repeat)
    console.print(command_lines(console, parts), soft_wrap=True)
