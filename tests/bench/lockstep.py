"""A worker and its caller in one thread, in turn: what the worker executes is the same in every run.

The caller acts only while the worker waits, over real sockets on loopback, so that no race decides how many passes
through the scheduler a request takes. Time stands still: nothing is overdue and nothing recurs, however slow the
machine is or a tracer makes it.
"""

from __future__ import annotations

import io
import itertools
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

import ingress
from ingress import _pump
from ingress._logging import set_up_logging
from ingress.discovery import MemoryDiscovery
from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part

from .engine import BENCHMARK_TEXT, bench

# Without an event for so long the worker is taken to wait. What loopback delivers late is waited for again.
_QUIET = 0.001
_PATIENCE = 5000

# Longer than any of a request, shorter than the engine holds a stream open.
_LONGEST_DEADLINE = 300.0

_READ_SIZE = 256 * 1024
_SENTINEL = b'"sentinel"'


class FrozenClock(trio.abc.Clock):
    """The loop's clock, which moves only where it is told to."""

    def __init__(self) -> None:
        self._now = 1000.0

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline <= self._now else math.inf

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _Log(io.TextIOBase):
    """Takes the worker's lines, and keeps none."""

    completed = 0

    def write(self, text: str) -> int:
        self.completed += "status=completed" in text
        return len(text)


class LockstepCaller:
    """Makes one request after the other; for the task that opened it."""

    def __init__(self, record: InstanceRecord, clock: FrozenClock) -> None:
        self._clock = clock
        address, self._path = record.tcp_target
        host, _, port = address.rpartition(":")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._connection = socket.create_connection((host, int(port)))
        self._connection.setblocking(False)
        self._ids = itertools.count(100_000)
        self._held: list[int] = []

    def frame_of(self, mode: str, chunks: int) -> bytes:
        """Encode a request of the engine of the benchmarks."""
        number = next(self._ids)
        home = "{}:{}".format(*self._listener.getsockname())
        info = ConnectionInfo(home, f"subject-{number}", f"request-{number}", "response")
        control = RequestControlMessage(info.context, "single_in", "many_out", info.to_address(), payload_codec="json")
        body = codec_named("json").encode({"mode": mode, "n": chunks})
        return encode_request_frame(self._path, {}, encode_two_part(control.encode(), body))

    async def call(self, frame: bytes) -> int:
        """Make a request, and return how many chunks its answer had once the worker has closed the stream."""
        answer = bytearray()
        with await self._push(frame) as stream:
            while not answer.endswith(_SENTINEL):
                answer += await self._read(stream)
            stream.shutdown(socket.SHUT_WR)
            if await self._when_idle(lambda: stream.recv(1)):
                raise RuntimeError("bytes after the sentinel")
        return answer.count(BENCHMARK_TEXT.encode())

    async def hold(self, frame: bytes) -> None:
        """Make a request whose stream stays open until :meth:`let_go`, and read its first bytes.

        Of each, the caller keeps a number: what is allocated is the worker's.
        """
        stream = await self._push(frame)
        answer = b""
        while BENCHMARK_TEXT.encode() not in answer:
            answer += await self._read(stream)
        self._held.append(stream.detach())

    async def let_go(self) -> None:
        """Leave the streams that are held, and wait for the worker to see it."""
        for descriptor in self._held:
            socket.close(descriptor)
        self._held.clear()
        await wait_all_tasks_blocked(_QUIET)

    async def let_deadlines_pass(self) -> None:
        """Let trio forget the deadlines of what has ended; no stream is held for so long that it ends by this."""
        self._clock.jump(_LONGEST_DEADLINE)
        await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked(_QUIET)

    async def aclose(self) -> None:
        self._connection.close()
        self._listener.close()
        await self.let_go()

    async def _push(self, frame: bytes) -> socket.socket:
        self._connection.send(frame)
        stream: socket.socket = (await self._when_idle(self._listener.accept))[0]
        stream.setblocking(False)
        self._connection.recv(_READ_SIZE)  # the ack, which says nothing where the worker has dialled back
        return stream

    async def _read(self, stream: socket.socket) -> bytes:
        data = await self._when_idle(lambda: stream.recv(_READ_SIZE))
        if not data:
            raise RuntimeError("the answer ended without its sentinel")
        return bytes(data)

    async def _when_idle(self, act: Callable[[], Any]) -> Any:
        for _ in range(_PATIENCE):
            await wait_all_tasks_blocked(_QUIET)
            try:
                return act()
            except BlockingIOError:
                pass
        raise RuntimeError("the worker does nothing more, and nothing came of it")


@asynccontextmanager
async def open_lockstep(clock: FrozenClock) -> AsyncIterator[LockstepCaller]:
    """Serve the engine of the benchmarks as a user would, and call it, in a loop with this clock.

    Metrics are on, and logs at INFO, into memory: a thread that writes them would come in between.
    """
    log = _Log()
    set_up_logging({}, log)  # type: ignore[arg-type]  # all it needs of a text stream
    with _pump_without_clocks():
        async with ingress.serving(
            bench, endpoint="bench.backend.generate", discovery=MemoryDiscovery(), codec="json", linger=0.0
        ) as worker:
            (record,) = worker.records()
            caller = LockstepCaller(record, clock)
            try:
                yield caller
            finally:
                with trio.CancelScope(shield=True):
                    await caller.aclose()
    if not log.completed:
        raise RuntimeError("the requests were not logged")


@contextmanager
def _pump_without_clocks() -> Iterator[None]:
    clocks = _pump._clock, _pump._cpu_clock
    _pump._clock = _pump._cpu_clock = lambda: 0.0
    try:
        yield
    finally:
        _pump._clock, _pump._cpu_clock = clocks
