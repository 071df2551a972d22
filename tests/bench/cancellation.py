"""How long an engine lives on after its caller has left: `python -m tests.bench.cancellation`.

A worker process serves streams of one chunk every 20 ms; a caller in this process keeps so many open, and ends each at
a random instant by stop, kill, FIN or RST. The engine writes the time of its ``finally`` to a pipe; the clock is the
system's monotonic one, which both processes share. The target is 50 ms at the 99th percentile.
"""

from __future__ import annotations

import os
import platform
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from ingress.discovery import FileDiscovery
from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, ControlWord, RequestControlMessage
from ingress.wire.records import EndpointId, InstanceRecord
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part

ENDPOINT = EndpointId("bench", "cancellation", "engine")

STREAMS = 64
REQUESTS = 1000

# Some 130 requests and 3,200 chunks a second: a quarter of a core, so that no queue is measured.
LONGEST_STREAM = 1.0
TARGET_MS = 50.0

WAYS = ("stop", "kill", "fin", "rst")

MACHINE = "a process that only sleeps"

_PIPE = "INGRESS_BENCH_PIPE"

# A number of the request, and when its engine's finally ran: 16 bytes, which a pipe takes whole.
_RECORD = struct.Struct("!Qd")


# What the machine itself does to a process that only sleeps: the floor of every figure, high where others are busy.
_SLEEPER = """
import select, sys, time
late = []
while not select.select([sys.stdin], [], [], 0)[0]:
    due = time.monotonic() + 0.005
    time.sleep(0.005)
    late.append(time.monotonic() - due)
print(" ".join(map(str, late)))
"""


# -- the worker's side -----------------------------------------------------------------------------------------------


async def engine(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield a chunk every 20 ms for ever; say when that was over."""
    try:
        while True:
            yield {"token_ids": [1], "text": " token"}
            await trio.sleep(0.02)
    finally:
        os.write(int(os.environ[_PIPE]), _RECORD.pack(request["number"], time.monotonic()))


# -- the caller's side -----------------------------------------------------------------------------------------------


class Caller:
    """Calls, leaves, and remembers when and how."""

    def __init__(self, record: InstanceRecord) -> None:
        self._address, self._path = record.tcp_target
        self._dice = random.Random(50)
        self.left: dict[int, tuple[str, float]] = {}

    async def run(self, numbers: Any) -> None:
        """Make one request after the other, over a connection and a listener of its own."""
        host, _, port = self._address.rpartition(":")
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, await trio.open_tcp_stream(host, int(port)) as requests:
            for number in numbers:
                await requests.send_all(self._frame(number, listener.socket.getsockname()[1]))
                await requests.receive_some(2)  # the ack's length: nothing more comes where it accepts
                await self._leave_one(number, await listener.accept())

    def _frame(self, number: int, port: int) -> bytes:
        request_id = str(number)
        info = ConnectionInfo(f"127.0.0.1:{port}", request_id, request_id, "response")
        control = RequestControlMessage(request_id, "single_in", "many_out", info.to_address(), payload_codec="json")
        payload = encode_two_part(control.encode(), codec_named("json").encode({"number": number}))
        return encode_request_frame(self._path, {}, payload)

    async def _leave_one(self, number: int, stream: trio.SocketStream) -> None:
        way = self._dice.choice(WAYS)
        async with stream:
            seen = b""
            while b"token_ids" not in seen:  # an engine that has not begun has no finally
                seen += await stream.receive_some(65536)
            with trio.move_on_after(self._dice.random() * LONGEST_STREAM):
                while await stream.receive_some(65536):
                    pass
            self.left[number] = way, time.monotonic()
            if way in ("stop", "kill"):
                await stream.send_all(
                    encode_two_part((ControlWord.STOP if way == "stop" else ControlWord.KILL).encode())
                )
                try:
                    while await stream.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    pass
            elif way == "rst":
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def measure_machine(seconds: dict[str, list[float]], stop: trio.Event) -> None:
    """Collect how late a process that does nothing else wakes up."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-I", "-c", _SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    async with process.stdin, process.stdout:
        await stop.wait()
        await process.stdin.aclose()
        seconds[MACHINE] = [float(text) for text in b"".join([data async for data in process.stdout]).split()]
        await process.wait()


async def measure() -> dict[str, list[float]]:
    """Return the seconds from each leave to the engine's ``finally``, by the way of leaving."""
    readable, writable = os.pipe()
    with tempfile.TemporaryDirectory() as directory:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "ingress", "serve", f"{__spec__.name}:engine", "--endpoint", str(ENDPOINT), "-q"],
            env={**os.environ, "DYN_FILE_KV": directory, _PIPE: str(writable)},
            stdin=subprocess.DEVNULL,
            pass_fds=[writable],
        )
        os.close(writable)
        try:
            async with FileDiscovery(Path(directory)).open_view() as view, trio.lowlevel.FdStream(readable) as ended:
                with trio.fail_after(30):
                    while not view.instances(ENDPOINT):
                        await view.wait_changed()
                caller = Caller(view.instances(ENDPOINT)[0])
                numbers = iter(range(REQUESTS))
                async with trio.open_nursery() as nursery:
                    for _ in range(STREAMS):
                        nursery.start_soon(caller.run, numbers)
                    data = b""
                    with trio.fail_after(120):
                        while len(data) < REQUESTS * _RECORD.size:
                            data += await ended.receive_some(65536)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    seconds: dict[str, list[float]] = defaultdict(list)
    for number, at in _RECORD.iter_unpack(data):
        way, left_at = caller.left[number]
        seconds[way].append(at - left_at)
    return seconds


async def measure_both() -> dict[str, list[float]]:
    """Return :func:`measure`'s figures, and beside them what the machine did meanwhile."""
    machine: dict[str, list[float]] = {}
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure_machine, machine, stop)
        seconds = await measure()
        stop.set()
    return seconds | machine


def main() -> None:
    if sys.platform != "linux":
        sys.exit("the benchmark shares Linux's monotonic clock between processes")
    seconds = trio.run(measure_both)
    print(f"python {platform.python_version()} · {platform.machine()} · {platform.system()}; {STREAMS} streams at once")
    print(f"\n{'from leaving to the finally, ms':34}{'n':>6}{'p50':>8}{'p99':>8}{'max':>8}")
    for way in (MACHINE, *WAYS, "all"):
        names = WAYS if way == "all" else (way,)
        sample = sorted(second for name in names for second in seconds[name])
        p50, p99 = (sample[int(len(sample) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"{way:34}{len(sample):6}{p50:8.2f}{p99:8.2f}{sample[-1] * 1e3:8.2f}")
    print(f"\np99 {p99:.1f} ms, target {TARGET_MS:g} ms: {'met' if p99 <= TARGET_MS else 'MISSED'}")


if __name__ == "__main__":
    main()
