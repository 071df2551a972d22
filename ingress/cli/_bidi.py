"""``ingress call --bidi``: the lines of standard input are the requests of one bidirectional call."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from ..client import Client
from ..client._bidirectional import BidirectionalStream
from ..errors import InputClosed
from ._errors import usage

_READ_SIZE = 64 * 1024


@asynccontextmanager
async def open_conversation(client: Client, endpoint: str, **options: Any) -> AsyncIterator[BidirectionalStream]:
    """Make the call; lines are sent while the block reads the answers, and leaving it waits for no further line.

    Takes and raises what :meth:`Client.open_bidirectional` does, and:

    Raises:
        CommandError: standard input cannot be read.
        TypeError: the codec cannot hold a line.
    """
    failure: Exception | None = None
    async with client.open_bidirectional(endpoint, **options) as call:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                nonlocal failure
                try:
                    await _send_lines(call)
                except Exception as exc:
                    failure = exc
                    nursery.cancel_scope.cancel()

            nursery.start_soon(send)
            try:
                yield call
            except Exception as exc:
                failure = exc  # out of the nursery it would come wrapped in a group
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


def request_of(line: bytes) -> Any:
    """Return the request a line stands for: its JSON value, or its text where it is no JSON."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return line.decode(errors="replace").rstrip("\r")


async def _send_lines(call: BidirectionalStream) -> None:
    rest = bytearray()
    try:
        while chunk := await _read():
            rest += chunk
            if b"\n" in chunk:
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    await _send(call, bytes(line))
        await _send(call, bytes(rest))
    except InputClosed:
        return  # the worker has heard enough; its answer goes on
    await call.close_input()


async def _send(call: BidirectionalStream, line: bytes) -> None:
    if line.strip():
        await call.send(request_of(line))


async def _read() -> bytes:
    if sys.stdin is None:  # `<&-`
        return b""
    try:
        # Not sys.stdin's own methods: a thread that is left behind in one holds its lock, and the interpreter then
        # aborts when it ends.
        return await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), _READ_SIZE, abandon_on_cancel=True)
    except OSError as exc:
        raise usage("standard input cannot be read", exc.strerror or str(exc), "a file or a pipe") from exc
