"""A raw load client: pushes requests, takes the dial-backs, throws the bytes away. The same for every worker."""

from __future__ import annotations

import re
import struct
import time
import uuid
from typing import Any

import trio
from attrs import define, field

from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.two_part import encode_two_part

SENTINEL = b'"sentinel"'
_SUBJECT = re.compile(rb'"subject":"([^"]+)"')
_DUE = re.compile(rb'"due":([0-9.]+)')


@define
class Load:
    """What a load is to do, and what came of it."""

    request: dict[str, Any]
    streams: int
    requests: int
    """In all; at most ``streams`` at once."""

    measure_due: bool = False
    first: list[float] = field(factory=list)
    """Seconds from the push to the first bytes after the prologue."""
    late: list[float] = field(factory=list)
    """Seconds from an item's due time to its arrival."""
    seconds: float = 0.0
    received: int = 0


async def run(load: Load, record: InstanceRecord) -> None:
    """Run the load against one worker; returns when every stream has ended."""
    async with trio.open_nursery() as nursery:
        caller = await open_caller(record, nursery)
        started = time.perf_counter()
        remaining = iter(range(load.requests))
        async with trio.open_nursery() as streams:
            for _ in range(load.streams):
                streams.start_soon(_stream_loop, load, caller, remaining)
        load.seconds = time.perf_counter() - started
        nursery.cancel_scope.cancel()


class Caller:
    """One request connection and one call-home listener."""

    def __init__(self, record: InstanceRecord, connection: trio.SocketStream, port: int) -> None:
        self._path = record.tcp_target[1]
        self._connection = connection
        self._sending = trio.Lock()
        self._port = port
        self.waiting: dict[bytes, trio.MemorySendChannel[trio.SocketStream]] = {}

    async def push(self, request: dict[str, Any]) -> trio.SocketStream:
        """Send one request and return the response stream that comes home, its handshake read."""
        subject, request_id = str(uuid.uuid4()), str(uuid.uuid4())
        info = ConnectionInfo(f"127.0.0.1:{self._port}", subject, request_id, "response")
        control = RequestControlMessage(request_id, "single_in", "many_out", info.to_address(), payload_codec="json")
        payload = encode_two_part(control.encode(), codec_named("json").encode(request))
        send, receive = trio.open_memory_channel[trio.SocketStream](1)
        self.waiting[subject.encode()] = send
        async with self._sending:
            await self._connection.send_all(encode_request_frame(self._path, {}, payload))
        return await receive.receive()

    async def read_acks(self) -> None:
        decoder = AckDecoder()
        while data := await self._connection.receive_some(65536):
            decoder.receive_data(data)
            for text in decoder:
                if text:
                    raise RuntimeError(f"refused: {text}")

    async def take_home(self, stream: trio.SocketStream) -> None:
        data = b""
        while (found := _SUBJECT.search(data)) is None:
            data += await stream.receive_some(99)  # the handshake's size: nothing of what follows is taken
        await self.waiting.pop(found[1]).send(stream)


async def open_caller(record: InstanceRecord, nursery: trio.Nursery) -> Caller:
    """Connect to a worker and listen for its dial-backs."""
    host, _, port = record.tcp_target[0].rpartition(":")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096))[0]
    caller = Caller(record, await trio.open_tcp_stream(host, int(port)), listener.socket.getsockname()[1])
    nursery.start_soon(caller.read_acks)
    nursery.start_soon(_accept, listener, caller, nursery)
    return caller


async def _accept(listener: trio.SocketListener, caller: Caller, nursery: trio.Nursery) -> None:
    while True:
        nursery.start_soon(caller.take_home, await listener.accept())


async def _stream_loop(load: Load, caller: Caller, remaining: Any) -> None:
    for _ in remaining:
        pushed = time.perf_counter()
        async with await caller.push(load.request) as stream:
            await _drain(load, stream, pushed)


async def _drain(load: Load, stream: trio.SocketStream, pushed: float) -> None:
    prologue = struct.pack(">QQQ", 14, 0, 0) + b'{"error":null}'
    got, tail, is_first = 0, b"", True
    while data := await stream.receive_some(256 * 1024):
        got += len(data)
        if is_first and got > len(prologue):
            load.first.append(time.perf_counter() - pushed)
            is_first = False
        if load.measure_due:
            now = time.monotonic()
            load.late += [now - float(due) for due in _DUE.findall(data)]
        tail = (tail + data)[-len(SENTINEL) :]
        if tail == SENTINEL:
            break
    load.received += got
