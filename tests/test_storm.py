"""A thousand streams cancelled at random instants, over real sockets, in every way a caller can leave."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from ingress import Context, serving
from ingress._network import TcpNetwork
from ingress.discovery import MemoryDiscovery
from ingress.wire.messages import ControlWord
from ingress.wire.request_frame import encode_request_frame

from .raw_caller import RawResponse, Stage, open_raw_caller

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc, kills processes")

SEED = 20261123
STREAMS = 1000
AT_ONCE = 50
KILLED_CALLERS, STREAMS_OF_A_KILLED_CALLER = 20, 10

# What the cancellation of an engine may take; it is measured by `make bench`, and here only kept from hanging.
BOUND = 5.0

# What the kernel takes for a caller that does not read; by default that is megabytes, and no stream were ever full.
KERNEL_HOLDS = 65536

ENGINES = ("nursery", "awaiting", "tight", "coroutine", "thread")

MOMENTS: dict[str, dict[str, Any]] = {
    "before the dial-back": {},
    "before the first chunk": {"chunks": 10**6, "first": 30.0, "size": 10},
    "between chunks": {"chunks": 10**6, "pause": 0.001, "size": 200},
    "in mid-chunk": {"chunks": 10**6, "size": 1_000_000},
    "during the final": {"chunks": 1, "size": 2_000_000},
}

# How many bytes of each stream a caller has read when it is killed, and where the streams can be then. Handshake and
# prologue are more than 100 bytes.
KILLED_AFTER: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("before the dial-back",)),
    (100, ("before the first chunk", "between chunks")),
    (300_000, ("in mid-chunk", "during the final")),
    (1000, ("between chunks", "in mid-chunk")),
)

WAYS = ("stop", "kill", "fin", "rst")


@define
class Log:
    """Which engines began and whose ``finally`` has run; threads write it too."""

    begun: set[int] = field(factory=set)
    ended: set[int] = field(factory=set)
    saw_stop: set[int] = field(factory=set)
    cleaned: Counter[str] = field(factory=Counter)

    def open(self) -> set[int]:
        return self.begun - self.ended


class Engines:
    """Five ways to write an engine, all of which note their beginning and their end."""

    def __init__(self) -> None:
        self.log = Log()

    def endpoints(self) -> dict[str, Callable[..., Any]]:
        return {f"storm.engines.{name}": getattr(self, name) for name in ENGINES}

    async def nursery(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        """Has tasks of its own, and cleans up with an await."""
        with self._noted(request, context):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                send, receive = trio.open_memory_channel[str](0)
                nursery.start_soon(self._feed, send, request)
                try:
                    async for chunk in receive:
                        yield chunk
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.lowlevel.checkpoint()
                    self.log.cleaned["nursery"] += 1
                nursery.cancel_scope.cancel()

    async def awaiting(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        with self._noted(request, context):
            await trio.sleep(request.get("first", 0))
            for _ in range(request["chunks"]):
                await trio.sleep(request.get("pause", 0))
                yield "x" * request["size"]

    async def tight(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        """Never awaits between chunks."""
        with self._noted(request, context):
            await trio.sleep(request.get("first", 0))
            for _ in range(request["chunks"]):
                yield "x" * request["size"]

    async def coroutine(self, request: dict[str, Any], context: Context) -> Any:
        """One answer, after a while."""
        with self._noted(request, context):
            await trio.sleep(request.get("first", 0) or request.get("pause", 0))
            return "x" * request["size"]

    def thread(self, request: dict[str, Any], context: Context) -> Iterator[Any]:
        """Blocks; sees that it is stopped, and at the latest stops at its next chunk."""
        with self._noted(request, context):
            for _ in range(request["chunks"]):
                end = time.monotonic() + request.get("first", 0.0)
                while time.monotonic() < end and not context.is_stopped:
                    time.sleep(0.005)
                if context.is_stopped:
                    self.log.saw_stop.add(request["number"])
                time.sleep(request.get("pause", 0))
                yield "x" * request["size"]

    async def _feed(self, send: trio.MemorySendChannel[str], request: dict[str, Any]) -> None:
        async with send:
            await trio.sleep(request.get("first", 0))
            for _ in range(request["chunks"]):
                await trio.sleep(request.get("pause", 0))
                await send.send("x" * request["size"])

    def _noted(self, request: dict[str, Any], context: Context) -> Any:
        return _Noted(self.log, request["number"])


class _Noted:
    def __init__(self, log: Log, number: int) -> None:
        self._log, self._number = log, number

    def __enter__(self) -> None:
        self._log.begun.add(self._number)

    def __exit__(self, *exc_info: object) -> None:
        self._log.ended.add(self._number)


def task_tree() -> Counter[str]:
    """The names of all tasks below the root, and how many there are of each."""
    names: Counter[str] = Counter()
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        if task is not None:
            names[task.name] += 1
            todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return names


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def hold_little(listener: Any) -> None:
    listener._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_HOLDS)


async def settles(read: Callable[[], object], wanted: object) -> None:
    """Wait until it reads as wanted; says what it read instead when the bound is over."""
    with trio.move_on_after(BOUND):
        while read() != wanted:
            await trio.sleep(0.005)
    assert read() == wanted


class Storm:
    """One thousand streams, each with a moment and a way; the dice are seeded, the sockets are not."""

    def __init__(self, stage: Stage, engines: Engines, records: dict[str, tuple[str, str]]) -> None:
        self.stage, self.engines, self.records = stage, engines, records
        self.numbers = iter(range(10**6))
        self.chosen: Counter[tuple[str, str]] = Counter()
        self.slowest = 0.0

    def request(self, moment: str) -> dict[str, Any]:
        return {"number": next(self.numbers), **(MOMENTS[moment] or MOMENTS["between chunks"])}

    async def run_one(self, number: int) -> None:
        """Call, wait for the moment, leave, and see the engine's end."""
        dice = random.Random(SEED * STREAMS + number)  # its own, whoever else rolls when
        moment, way = dice.choice(list(MOMENTS)), dice.choice(WAYS)
        engine = dice.choice(ENGINES)
        self.chosen[moment, way] += 1
        request = self.request(moment)
        async with open_raw_caller(self.stage.caller.network) as caller:
            hold_little(caller.listener)
            connection = await caller.connect(self.stage.worker)
            connection.path = self.records[engine][1]
            assert await connection.ask(caller.payload(request)) == ""
            if moment == "before the dial-back":
                # The kernel takes the connection; its caller has left before it is seen.
                if dice.random() < 0.5:
                    await caller.listener.aclose()
                else:
                    await self._leave(await caller.accept(), way)
            else:
                response = await caller.accept()
                await self._reach(moment, response, request, dice)
                await self._leave(response, way)
        left_at = time.monotonic()
        await settles(lambda: request["number"] in self.engines.log.open(), False)
        self.slowest = max(self.slowest, time.monotonic() - left_at)

    async def _reach(self, moment: str, response: RawResponse, request: dict[str, Any], dice: random.Random) -> None:
        if moment == "between chunks":
            await response.read_items(1)
        elif moment == "in mid-chunk":
            await response.read_until(lambda said: said.has_prologue)
            for _ in range(dice.randrange(4)):
                await response.read_some(dice.randrange(1, 100_000))
        elif moment == "during the final":
            # Until the engine has nothing more to say, while its last bytes wait for a caller that takes no more.
            while request["number"] not in self.engines.log.ended:
                await response.read_some(65536)
        await trio.sleep(dice.random() * 0.03)

    async def _leave(self, response: RawResponse, way: str) -> None:
        stream: Any = response.stream
        try:
            if way in ("stop", "kill"):
                await response.send_word(ControlWord.STOP if way == "stop" else ControlWord.KILL)
                with trio.fail_after(BOUND):
                    while await stream.receive_some(1 << 20):
                        pass
            elif way == "rst":
                stream._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except trio.BrokenResourceError:
            pass  # the worker was faster: its close was a reset, for there were bytes it had not read
        await stream.aclose()

    async def run_killed_caller(self, number: int) -> None:
        """Let another process call, and kill it without a warning."""
        dice = random.Random(SEED * STREAMS - number)
        read, moments = KILLED_AFTER[number % len(KILLED_AFTER)]
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_HOLDS)
        listener.set_inheritable(True)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        frames, numbers, path = b"", [], ""
        for _ in range(STREAMS_OF_A_KILLED_CALLER):
            moment, engine = dice.choice(moments), dice.choice(ENGINES)
            if moment == "between chunks" and engine == "coroutine":
                engine = "awaiting"
            request = self.request(moment)
            self.chosen[moment, "sigkill"] += 1
            control = self.stage.caller.control(info={"address": address})
            path = self.records[engine][1]
            frames += encode_request_frame(path, {}, self.stage.caller.payload(request, control))
            numbers.append(request["number"])
        command = [sys.executable, "-I", str(Path(__file__).with_name("storm_caller.py")), str(listener.fileno())]
        port = self.stage.worker.address.rpartition(":")[2]
        process = await trio.lowlevel.open_process(
            [*command, port, str(len(numbers)), str(read)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
        listener.close()
        assert process.stdin is not None and process.stdout is not None
        async with process.stdin, process.stdout:
            await process.stdin.send_all(frames)
            await process.stdin.aclose()
            with trio.fail_after(30):
                assert await process.stdout.receive_some() == b"ready\n"
            await trio.sleep(dice.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
            left_at = time.monotonic()
            await process.wait()
        await settles(lambda: self.engines.log.open().intersection(numbers), set())
        self.slowest = max(self.slowest, time.monotonic() - left_at)


async def test_a_thousand_streams_cancelled_at_random_instants_leave_no_engine_task_or_descriptor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines, network = Engines(), TcpNetwork()
    async with (
        open_raw_caller(network) as caller,
        serving(
            engines.endpoints(), network=network, discovery=MemoryDiscovery(), linger=0.0, drain_budget=0.0
        ) as worker,
    ):
        paths = {record.endpoint_id.endpoint: record.tcp_target for record in worker.records()}
        connection = await caller.connect(worker)
        connection.path = paths["awaiting"][1]
        stage = Stage(worker, caller, connection)
        whole = {"number": -1, "chunks": 2, "size": 1}
        assert (await stage.tell(whole)).is_whole
        threads = threading.active_count()
        before = task_tree(), descriptors()

        storm = Storm(stage, engines, paths)
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def limited(run: Callable[..., Any], *arguments: int) -> None:
            async with limiter:
                await run(*arguments)

        async with trio.open_nursery() as nursery:
            for number in range(STREAMS - KILLED_CALLERS * STREAMS_OF_A_KILLED_CALLER):
                nursery.start_soon(limited, storm.run_one, number)
                if number % 40 == 0:
                    nursery.start_soon(limited, storm.run_killed_caller, number // 40)

        assert sum(storm.chosen.values()) == STREAMS
        assert len(storm.chosen) == len(MOMENTS) * (len(WAYS) + 1), "every moment with every way"
        await settles(lambda: stage.sample("inflight_requests"), 0)
        await settles(lambda: (task_tree(), descriptors()), before)
        assert engines.log.open() == set()
        assert engines.log.cleaned["nursery"] > 50
        assert engines.log.saw_stop, "an engine in a thread sees that nobody wants more"
        await settles(lambda: threading.active_count() <= threads + STREAMS, True)
        stage.assert_nothing_left()

        # Every request has one end, and nothing of it was an error but callers that could not be dialled any more. What
        # the killed ones had sent, and nobody had looked at yet, is no request any more.
        outcomes = stage.outcomes()
        assert sum(outcomes.values()) == stage.sample("requests_total")
        assert 0 <= STREAMS + 1 - sum(outcomes.values()) < KILLED_CALLERS * STREAMS_OF_A_KILLED_CALLER / 4
        assert {outcome for outcome, _ in outcomes} <= {"completed", "cancelled", "failed"}
        assert {reason for outcome, reason in outcomes if outcome == "failed"} <= {"response_stream"}
        assert {reason for outcome, reason in outcomes if outcome == "cancelled"} == {"stop", "kill", "disconnect"}
        assert outcomes["cancelled", "disconnect"] > STREAMS / 4
        assert not [record for record in caplog.records if record.exc_info]
        assert (await stage.tell(whole)).is_whole
