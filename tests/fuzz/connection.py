"""A whole connection under attack: a worker in memory, and a script of what its caller does.

The script is bytes: an instruction, a size, and so many bytes of its own. It sends, cuts, stops, reads, waits and comes
again, and the clock jumps over every wait. Whatever it does, the worker must serve another caller after it, and nothing
of it may stay.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import trio
from trio.testing import MockClock

import ingress
from ingress.discovery import MemoryDiscovery
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ControlWord
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part
from shapes import HeaderAndData, HeaderOnly
from tests.raw_caller import RawCaller, Stage, open_raw_caller

PATH = "1/demo/backend/generate"
ADDRESS = ("127.0.0.1", 40001)
MAX_STEPS = 60

# With the shapes given, for looking plug-ins up takes five times as long as all the rest.
OPTIONS: dict[str, Any] = {
    "instance_id": 1,
    "shapes": [HeaderAndData(), HeaderOnly()],
    "linger": 0.0,
    "drain_budget": 0.0,
}

SEND, ANSWER, TAKE, READ, WAIT, CUT, RESET, AGAIN = range(8)


async def engine(request: Any) -> AsyncIterator[Any]:
    for number in range(request if isinstance(request, int) and 0 <= request < 1000 else 3):
        yield number
        if number % 7 == 1:
            await trio.sleep(number)


class Script:
    """A caller that does as the bytes say; for one task."""

    def __init__(self, network: MemoryNetwork, caller: RawCaller, worker_address: tuple[str, int]) -> None:
        self._network = network
        self._caller = caller
        self._worker = worker_address
        self._connection: Any = None
        self._home: list[Any] = []
        self.done: list[int] = []

    async def run(self, script: bytes) -> None:
        for code, argument in instructions(script):
            self.done.append(code)
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                with trio.move_on_after(200):
                    await self._step(code, argument)

    async def _step(self, code: int, argument: bytes) -> None:
        if self._connection is None or code == AGAIN:
            self._connection = await self._network.connect(*self._worker)
        if code == SEND:
            await self._connection.send_all(argument)
        elif code == TAKE:
            with trio.move_on_after(1):
                self._home.append(await self._caller.listener.accept())
        elif code == READ:
            with trio.move_on_after(1):
                await (self._home[-1] if self._home and argument else self._connection).receive_some(1 + len(argument))
        elif code == WAIT:
            await trio.sleep(2.0 ** min(len(argument), 14))
        elif code == ANSWER and self._home:
            await self._home[-1].send_all(argument)
        elif code == RESET and self._home:
            await self._home.pop().reset()
        elif code == CUT:
            await (self._home.pop() if self._home and argument else self._connection).aclose()

    async def leave(self) -> None:
        for stream in [*self._home, self._connection]:
            if stream is not None:
                await trio.aclose_forcefully(stream)


def instructions(script: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a script into its steps; a size that lies takes what there is."""
    at = 0
    for _ in range(MAX_STEPS):
        if at >= len(script):
            return
        size = int.from_bytes(script[at + 1 : at + 3])
        yield script[at] % 8, script[at + 3 : at + 3 + size]
        at += 3 + size


def step(code: int, argument: bytes = b"") -> bytes:
    return bytes([code]) + len(argument).to_bytes(2) + argument


def attack_connection(data: bytes) -> object:
    """Run the script against a worker of its own, and hold the worker to what every worker must do."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        return trio.run(_attack, data, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(disabled)


async def _attack(data: bytes) -> object:
    network = MemoryNetwork()
    async with (
        open_raw_caller(network) as caller,
        ingress.serving(engine, network=network, discovery=MemoryDiscovery(), **OPTIONS) as worker,
    ):
        assert caller.address == f"{ADDRESS[0]}:{ADDRESS[1]}"
        host, _, port = worker.address.rpartition(":")
        script = Script(network, caller, (host, int(port)))
        await script.run(data)
        await script.leave()
        await trio.sleep(100_000)  # every deadline is over
        await _take_the_rest(caller)
        stage = Stage(worker, caller, await caller.connect(worker))
        await stage.assert_alive(2)
        stage.assert_nothing_left()
        ends = stage.counted_ends()
    assert network.listeners == {}
    return sorted(ends), sorted(set(script.done))


async def _take_the_rest(caller: RawCaller) -> None:
    """What was dialled and not taken."""
    with trio.move_on_after(1):
        while True:
            await trio.aclose_forcefully(await caller.listener.accept())


def connection_seeds() -> Sequence[bytes]:
    """Scripts of ordinary and of odd callers."""
    builder = RawCaller.__new__(RawCaller)  # it builds payloads; nobody listens
    builder.address = f"{ADDRESS[0]}:{ADDRESS[1]}"
    frame = encode_request_frame(PATH, {"a": "b"}, builder.payload(5, builder.control(request_id="r")))
    stop, kill = (encode_two_part(word.encode()) for word in (ControlWord.STOP, ControlWord.KILL))
    half = len(frame) // 2
    return [
        step(SEND, frame) + step(TAKE) + step(READ, b"x" * 200) + step(CUT, b"x"),
        step(SEND, frame[:half]) + step(WAIT, b"xx") + step(SEND, frame[half:]) + step(TAKE) + step(READ, b"x"),
        step(SEND, frame[:half]) + step(WAIT, b"x" * 8) + step(AGAIN) + step(SEND, frame),
        step(SEND, frame * 3) + step(TAKE) * 3 + step(ANSWER, stop) + step(WAIT, b"xxx") + step(RESET),
        step(SEND, frame) + step(CUT) + step(TAKE) + step(ANSWER, kill[:20]) + step(WAIT) + step(ANSWER, kill[20:]),
        step(SEND, frame) + step(WAIT, b"x" * 10) + step(TAKE) + step(READ, b"x" * 2000) + step(CUT, b"x"),
        step(SEND, b"\xff\xff") + step(READ) + step(AGAIN) + step(SEND, frame),
    ]
