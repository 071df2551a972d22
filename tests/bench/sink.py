"""A byte sink, so that a load costs the machine next to nothing beside the workers: `python -m tests.bench.sink PLAN`.

It pushes requests and lets the kernel copy their answers into one buffer that nobody reads; of each answer it looks at
the last ten bytes. The kernel wakes it for whole blocks only (SO_RCVLOWAT), for a wake-up a chunk would cost more than
the chunk. Prints what it took and cost as JSON.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
from attrs import frozen

from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.request_frame import encode_request_frame
from ingress.wire.two_part import encode_two_part

SENTINEL = b'"sentinel"'
BUFFER = 1 << 20

# Less than what a socket buffers by default, else its window would close before anybody is woken. The end of an answer
# is shorter than a block: all streams are looked at so often, in seconds.
BLOCK = 48 * 1024
SWEEP = 0.01

GIVE_UP = 120.0


@frozen
class Target:
    """Where one instance takes requests."""

    host: str
    port: int
    path: str


@frozen
class Plan:
    """What is to be pushed: to each target so many requests, so many at once."""

    targets: list[Target]
    request: dict[str, Any]
    streams: int
    requests: int


@frozen
class Taken:
    """What came of it."""

    seconds: float
    """From the first push to the last sentinel."""

    cpu_seconds: float
    received: int
    machine_seconds: float
    """CPU seconds of everything on the machine meanwhile."""


def machine_seconds() -> float:
    """Seconds that all cores together have been busy."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Sink:
    """All streams of one plan, in one loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._poll = select.epoll()
        self._streams: dict[int, tuple[socket.socket, int]] = {}
        """With the position of the target, by descriptor."""
        self._by_subject: dict[bytes, int] = {}
        self._left = [plan.requests for _ in plan.targets]
        self._open = [0 for _ in plan.targets]
        self._pushing = [socket.create_connection((target.host, target.port)) for target in plan.targets]

    def run(self) -> Taken:
        buffer = bytearray(BUFFER)
        received = 0
        started, cpu, machine = time.perf_counter(), time.process_time(), machine_seconds()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        for position in range(len(self._plan.targets)):
            for _ in range(self._plan.streams):
                self._push(position)
        sweep_at = started + SWEEP
        while any(self._open):
            ready = {descriptor for descriptor, _ in self._poll.poll(max(0.0, sweep_at - time.perf_counter()))}
            if self._listener.fileno() in ready:
                self._accept()
                ready.remove(self._listener.fileno())
            if (now := time.perf_counter()) >= sweep_at:
                ready, sweep_at = set(self._streams), now + SWEEP
            if now - started > GIVE_UP:
                raise TimeoutError(f"answers are not whole after {GIVE_UP:g} s")
            for descriptor in ready:
                received += self._receive(descriptor, buffer)
        return Taken(time.perf_counter() - started, time.process_time() - cpu, received, machine_seconds() - machine)

    def _push(self, position: int) -> None:
        if not self._left[position]:
            return
        self._left[position] -= 1
        self._open[position] += 1
        subject, request_id = str(uuid.uuid4()), str(uuid.uuid4())
        self._by_subject[subject.encode()] = position
        port = self._listener.getsockname()[1]
        info = ConnectionInfo(f"127.0.0.1:{port}", subject, request_id, "response")
        control = RequestControlMessage(request_id, "single_in", "many_out", info.to_address(), payload_codec="json")
        payload = encode_two_part(control.encode(), codec_named("json").encode(self._plan.request))
        self._pushing[position].sendall(encode_request_frame(self._plan.targets[position].path, {}, payload))

    def _accept(self) -> None:
        stream, _ = self._listener.accept()
        handshake = stream.recv(4096)
        position = next(place for subject, place in self._by_subject.items() if subject in handshake)
        stream.setblocking(False)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, BLOCK)
        self._streams[stream.fileno()] = stream, position
        self._poll.register(stream.fileno(), select.EPOLLIN)

    def _receive(self, descriptor: int, buffer: bytearray) -> int:
        stream, position = self._streams[descriptor]
        try:
            count = stream.recv_into(buffer)
        except BlockingIOError:
            return 0
        if not count:
            raise ConnectionError("an answer ended without its sentinel")
        # A read may cut the last ten bytes in two: then what is left of them is all that the next one has.
        if buffer[:count].endswith(SENTINEL[-min(count, len(SENTINEL)) :]):
            self._poll.unregister(descriptor)
            del self._streams[descriptor]
            stream.close()
            self._open[position] -= 1
            self._push(position)
        return count


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(Sink(plan).run()))


if __name__ == "__main__":
    main()
