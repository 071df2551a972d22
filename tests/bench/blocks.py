"""The blocks of memory that an open stream holds, and that what has ended leaves behind.

A block is what CPython's allocator counts: whatever has at most 512 bytes, so most objects. How many there are depends
on neither the machine nor its load.
"""

from __future__ import annotations

import gc
import sys

from .lockstep import LockstepCaller

OPEN_STREAM = "held by an open stream"
FINISHED_REQUEST = "left by a finished request"
SENT_CHUNK = "left by a sent chunk"
GARBAGE = "objects of a request that await the garbage collector"

STREAMS = 100
REQUESTS = 100
CHUNKS = 256
LONG_REQUESTS = 20

WARM_UP = 20


async def measure_blocks(caller: LockstepCaller) -> dict[str, float]:
    """Return the blocks by unit, and the objects that a request leaves to the garbage collector, which is to be off."""
    await _hold(caller, WARM_UP)  # tables that have grown once are large enough for what follows
    await _call(caller, WARM_UP, 1)
    await _call(caller, 2, CHUNKS)
    units: dict[str, float] = {}
    before = await _blocks(caller)
    await _call(caller, REQUESTS, 1)
    units[GARBAGE] = gc.collect() / REQUESTS
    units[FINISHED_REQUEST] = (await _blocks(caller) - before) / REQUESTS
    before = await _blocks(caller)
    await _call(caller, LONG_REQUESTS, CHUNKS)
    units[SENT_CHUNK] = (await _blocks(caller) - before) / (LONG_REQUESTS * CHUNKS)
    frames = [caller.frame_of("held", 1) for _ in range(STREAMS)]
    before = await _blocks(caller)
    for frame in frames:
        await caller.hold(frame)
    units[OPEN_STREAM] = (await _blocks(caller) - before) / STREAMS
    await caller.let_go()
    return units


async def _call(caller: LockstepCaller, requests: int, chunks: int) -> None:
    for _ in range(requests):
        await caller.call(caller.frame_of("tight", chunks))


async def _hold(caller: LockstepCaller, streams: int) -> None:
    for _ in range(streams):
        await caller.hold(caller.frame_of("held", 1))
    await caller.let_go()


async def _blocks(caller: LockstepCaller) -> int:
    await caller.let_deadlines_pass()
    gc.collect()  # empties the interpreter's own stores of spare objects too
    return sys.getallocatedblocks()
