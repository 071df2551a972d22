"""The engines under the soak: those of the attacks, and a ledger of what they ran.

The ledger is a file in the worker's directory; a table would grow in the process whose memory is measured.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

import ingress
from tests.reliability import engine

UNARY = "demo.backend.generate"
BIDIRECTIONAL = "demo.backend.converse"
TARGETS = {UNARY: f"{__name__}:generate", BIDIRECTIONAL: f"{__name__}:converse"}

LEDGER = "ledger"

# The ids of good requests; what the villain sends is nobody's business.
GOOD = "good-"


async def generate(request: Any, context: ingress.Context) -> AsyncIterator[Any]:
    with _noted(context.id):
        async with aclosing(engine.generate(request)) as chunks:  # type: ignore[type-var]  # an async generator
            async for chunk in chunks:
                yield chunk


@ingress.bidirectional
async def converse(requests: AsyncIterator[Any], context: ingress.Context) -> AsyncIterator[Any]:
    """Give each request back, with its number."""
    with _noted(context.id):
        number = 0
        async for request in requests:
            yield [number, request]
            number += 1


@contextmanager
def _noted(request_id: str) -> Iterator[None]:
    if not request_id.startswith(GOOD):
        yield
        return
    _note("begun", request_id)
    try:
        yield
    finally:
        _note("ended", request_id)


def _note(what: str, request_id: str) -> None:
    descriptor = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{what} {request_id}\n".encode())
    os.close(descriptor)


@frozen
class Runs:
    """How often a request was begun, and how often it ended."""

    begun: int = 0
    ended: int = 0


def read_ledger(directory: Path) -> Mapping[str, Runs]:
    """Return what the engines of a worker ran, by request id."""
    found: dict[str, Runs] = {}
    path = directory / LEDGER
    for line in path.read_text().splitlines() if path.exists() else ():
        what, _, request_id = line.partition(" ")
        runs = found.get(request_id, Runs())
        found[request_id] = Runs(runs.begun + (what == "begun"), runs.ended + (what == "ended"))
    return found
