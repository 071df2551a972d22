"""The engine of the workers under attack: does what its request says, and otherwise echoes it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio


async def generate(request: Any) -> AsyncIterator[Any]:
    if not isinstance(request, dict) or "do" not in request:
        yield request
        return
    match request["do"]:
        case "count":
            due = trio.current_time()
            for number in range(request["n"]):
                if request.get("pause"):
                    due += request["pause"]
                    await trio.sleep_until(due)
                yield [number, request.get("text", "")]
        case "wait":
            yield "begun"
            await trio.sleep(request.get("seconds", 3600))
            yield "done"
        case "measure":
            yield len(request["list"])
        case "block":
            time.sleep(request["seconds"])  # what engines must not do
            yield "blocked"
        case "raise":
            raise ValueError(request.get("text", "as the request wished"))
        case "large":
            yield "x" * request["size"]
        case "fork":
            yield _child_by_fork()
        case "spawn":
            yield await trio.to_thread.run_sync(_child_by_spawn)


def _child_by_fork() -> list[str]:
    """Fork, and return what the child's sockets are."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, "\n".join(open_sockets()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said.splitlines()


def _child_by_spawn() -> list[str]:
    context = multiprocessing.get_context("spawn")
    reading, writing = context.Pipe(duplex=False)
    child = context.Process(target=_tell_sockets, args=(writing,))
    child.start()
    said: list[str] = reading.recv()
    child.join()
    return said


def _tell_sockets(writing: Any) -> None:
    writing.send(open_sockets())


def open_sockets() -> list[str]:
    """The sockets of this process that speak TCP, as the kernel lists them."""
    inodes = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
        found += [line.split()[1] for line in lines if line.split()[9] in inodes]
    return found
