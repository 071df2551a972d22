"""Engines that fork, one of each kind: on trio, blocking, and (behind the bridge) on asyncio."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import trio

from engines.asyncio_bridge import AsyncioEngine

from .engine import open_sockets

# A child that a failed test has left behind.
_LIFETIME = 60


async def on_trio(request: Any) -> AsyncIterator[Any]:
    reading, writing = os.pipe()
    if not _is_in_child(request, writing):
        yield await trio.to_thread.run_sync(_answer, request, reading, writing)
    elif _is_to_wait(request):
        await trio.sleep(0)


async def _on_asyncio(request: Any) -> AsyncIterator[Any]:
    reading, writing = os.pipe()
    if not _is_in_child(request, writing):
        yield await asyncio.to_thread(_answer, request, reading, writing)
    elif _is_to_wait(request):
        while True:
            await asyncio.sleep(0)
    elif request["child"] == "yields":
        yield "from the child"


on_asyncio = AsyncioEngine(_on_asyncio)


def blocking(request: Any) -> Iterator[Any]:
    reading, writing = os.pipe()
    if not _is_in_child(request, writing):
        yield _answer(request, reading, writing)
    elif request["child"] == "yields":
        yield "from the child"


def _is_to_wait(request: Any) -> bool:
    return bool(request["child"] == "waits")


def _is_in_child(request: Any, writing: int) -> bool:
    """Fork; True in a child that comes back."""
    if request["child"] == "target":
        multiprocessing.get_context("fork").Process(target=_stay, args=(writing,)).start()
        return False
    if os.fork():
        return False
    signal.alarm(_LIFETIME)
    match request["child"]:
        case "stays":
            _stay(writing)
        case "raises":
            raise ValueError("in the child")
        case "exits":
            sys.exit(0)
    return True


def _stay(writing: int) -> None:
    signal.alarm(_LIFETIME)
    os.write(writing, json.dumps([os.getpid(), open_sockets()]).encode() + b"\n")
    while True:
        time.sleep(_LIFETIME)


def _answer(request: Any, reading: int, writing: int) -> Any:
    """What a child that stays says, or else the exit code of the child."""
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if said := pipe.readline():
            return json.loads(said)
    _, status = os.waitpid(-1, 0)
    return os.waitstatus_to_exitcode(status)
