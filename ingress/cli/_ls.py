"""``ingress ls``: list the workers that discovery knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from rich.console import Console
from rich.text import Text

from .._text import printable
from ..abc import Discovery
from ..wire.records import InstanceRecord
from ._errors import EXIT_CLEAN
from ._options import (
    DEFAULT_DISCOVERY,
    DEFAULT_NAMESPACE,
    DEFAULT_OUTPUT,
    AsJson,
    DiscoveryOptions,
    Namespace,
    OutputOptions,
    check_endpoint,
)
from ._payloads import print_document

SCHEMA = "ingress.ls/1"

_HEADINGS = ("endpoint", "instance", "address", "codec")


def ls(
    endpoint: str | None = None,
    /,
    *,
    as_json: AsJson = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    discovery: DiscoveryOptions = DEFAULT_DISCOVERY,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """List the workers that discovery knows.

    Parameters
    ----------
    endpoint
        Only the instances of this one.
    """
    output.set_up_logging()
    wanted = None if endpoint is None else check_endpoint(endpoint, namespace)
    opened = discovery.open_shared()
    records = trio.run(_records, opened)
    shown = sorted(
        (record for record in records if wanted is None or str(record.endpoint_id) == wanted),
        key=lambda record: (str(record.endpoint_id), record.instance_id),
    )
    if as_json:
        print_document(as_document(shown, discovery.discovery, opened))
        return EXIT_CLEAN
    if shown:
        print_table(output.stdout(), _HEADINGS, [_cells(record) for record in shown])
    if not output.quiet:
        endpoints = len({record.endpoint_id for record in shown})
        counted = f"{_counted(len(shown), 'instance')} of {_counted(endpoints, 'endpoint')}" if shown else "no worker"
        output.stderr().print(f"{counted} · {discovery.describe(opened)}", style="dim", soft_wrap=True)
    return EXIT_CLEAN


async def _records(discovery: Discovery) -> Sequence[InstanceRecord]:
    async with discovery.open_view() as view:
        return view.instances()


def as_document(records: Sequence[InstanceRecord], backend: str, opened: Discovery) -> dict[str, Any]:
    """Return what ``--json`` prints. Instance ids are hex text: as numbers most JSON readers would round them."""
    return {
        "schema": SCHEMA,
        "discovery": {"backend": backend, "location": opened.location},
        "instances": [
            {
                "endpoint": str(record.endpoint_id),
                "instance": f"{record.instance_id:x}",
                "transport": dict(record.transport),
                "codec": record.request_plane_codec or "json",
            }
            for record in records
        ],
    }


def _cells(record: InstanceRecord) -> tuple[str, ...]:
    kind, address = next(iter(record.transport.items()), ("tcp", "none that can be read"))
    where = address.partition("/")[0] if kind == "tcp" else f"{kind} {address}"
    return (
        str(record.endpoint_id),
        f"{record.instance_id:x}",
        printable(where, 60),
        printable(record.request_plane_codec or "json", 20),
    )


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write columns as wide as they need to be, so that a pipe sees what a terminal sees."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for number, row in enumerate([headings, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(Text(line.rstrip(), style="" if number else "dim"), soft_wrap=True)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
