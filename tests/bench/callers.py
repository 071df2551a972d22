"""The callers of a load, one a protocol: Dynamo's wire, gRPC over HTTP/2, server-sent events over HTTP/1.1.

Each reads as large blocks as there are and looks only for the ends of answers, so that it costs every worker's side the
same: next to nothing.
"""

from __future__ import annotations

import itertools
import re
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.two_part import encode_two_part

READ_SIZE = 256 * 1024
BACKLOG = 4096

Seen = Callable[[bytes], None]

# -- Dynamo's wire -----------------------------------------------------------------------------------------------------

_SENTINEL = b'"sentinel"'
_PROLOGUE = len(struct.pack(">QQQ", 14, 0, 0) + b'{"error":null}')
_SUBJECT = re.compile(rb'"subject":"([^"]+)"')


class DynamoCaller:
    """One request connection and one call-home listener; the paths of a worker are called in turn."""

    def __init__(self, paths: Sequence[str], connection: trio.SocketStream, port: int) -> None:
        self._paths = itertools.cycle(paths)
        self._connection = connection
        self._sending = trio.Lock()
        self._port = port
        self._waiting: dict[bytes, trio.MemorySendChannel[trio.SocketStream]] = {}

    async def call(self, request: dict[str, Any], seen: Seen) -> None:
        async with await self.push(request) as stream:
            got, tail, is_first = 0, b"", True
            while data := await stream.receive_some(READ_SIZE):
                if is_first:
                    got += len(data)
                    is_first = got <= _PROLOGUE
                if not is_first:
                    seen(data)
                tail = (tail + data)[-len(_SENTINEL) :]
                if tail == _SENTINEL:
                    return
        raise RuntimeError("the answer ended without its sentinel")

    async def push(self, request: dict[str, Any]) -> trio.SocketStream:
        """Send one request and return the response stream that comes home, its handshake read."""
        subject, request_id = str(uuid.uuid4()), str(uuid.uuid4())
        info = ConnectionInfo(f"127.0.0.1:{self._port}", subject, request_id, "response")
        control = RequestControlMessage(request_id, "single_in", "many_out", info.to_address(), payload_codec="json")
        payload = encode_two_part(control.encode(), codec_named("json").encode(request))
        send, receive = trio.open_memory_channel[trio.SocketStream](1)
        self._waiting[subject.encode()] = send
        async with self._sending:
            await self._connection.send_all(encode_request_frame(next(self._paths), {}, payload))
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
        await self._waiting.pop(found[1]).send(stream)


@asynccontextmanager
async def open_dynamo_caller(*records: InstanceRecord) -> AsyncIterator[DynamoCaller]:
    """Connect to a worker and listen for its dial-backs; its records differ in their endpoints only."""
    address, _ = records[0].tcp_target
    host, _, port = address.rpartition(":")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=BACKLOG)
    async with listener, await trio.open_tcp_stream(host, int(port)) as connection, trio.open_nursery() as nursery:
        caller = DynamoCaller(
            [record.tcp_target[1] for record in records], connection, listener.socket.getsockname()[1]
        )

        async def accept() -> None:
            while True:
                nursery.start_soon(caller.take_home, await listener.accept())

        nursery.start_soon(caller.read_acks)
        nursery.start_soon(accept)
        yield caller
        nursery.cancel_scope.cancel()


# -- gRPC --------------------------------------------------------------------------------------------------------------

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK = 1, 1
_END_HEADERS = 4
_WIDE = 2**31 - 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing and without Huffman's code (RFC 7541 §6.2.2); both shorter than 127 bytes."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


_REQUEST_HEADERS = b"".join(
    _literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/bench.Bench/Generate"),
        (b":authority", b"127.0.0.1"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)


class GrpcCaller:
    """One HTTP/2 connection, its windows wide open, as one gRPC channel has it."""

    def __init__(self, connection: trio.SocketStream) -> None:
        self._connection = connection
        self._sending = trio.Lock()
        self._next_id = 1
        self._seen: dict[int, Seen] = {}
        self._ended: dict[int, trio.Event] = {}
        self._unacknowledged = 0

    async def call(self, request: dict[str, Any], seen: Seen) -> None:
        body = msgspec.json.encode(request)
        ended = trio.Event()
        async with self._sending:
            stream, self._next_id = self._next_id, self._next_id + 2
            self._seen[stream], self._ended[stream] = seen, ended
            await self._connection.send_all(
                _frame(_HEADERS, _END_HEADERS, stream, _REQUEST_HEADERS)
                + _frame(_DATA, _END_STREAM, stream, struct.pack(">BI", 0, len(body)) + body)
            )
        await ended.wait()

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self._connection.send_all(data)

    async def read(self) -> None:
        """Hand out what comes, by stream; answer pings and settings, and keep the windows open."""
        buffer = bytearray()
        while data := await self._connection.receive_some(READ_SIZE):
            buffer += data
            position, answer, consumed = 0, b"", dict[int, int]()
            while len(buffer) - position >= 9:
                size = int.from_bytes(buffer[position : position + 3])
                if len(buffer) - position < 9 + size:
                    break
                kind, flags = buffer[position + 3], buffer[position + 4]
                stream = int.from_bytes(buffer[position + 5 : position + 9])
                payload = bytes(buffer[position + 9 : position + 9 + size])
                position += 9 + size
                if kind == _DATA and size:
                    consumed[stream] = consumed.get(stream, 0) + size
                    self._seen[stream](payload)
                elif kind in (_PING, _SETTINGS) and not flags & _ACK:
                    answer += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
                elif kind in (_RESET, _GOAWAY):
                    raise RuntimeError(f"gRPC frame of kind {kind}: {payload!r}")
                if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                    del self._seen[stream]
                    self._ended.pop(stream).set()
            del buffer[:position]
            self._unacknowledged += sum(consumed.values())
            if self._unacknowledged > _WIDE // 4:
                answer += _frame(_WINDOW, 0, 0, struct.pack(">I", self._unacknowledged))
                self._unacknowledged = 0
            if answer:
                await self.send(answer)


@asynccontextmanager
async def open_grpc_caller(port: int) -> AsyncIterator[GrpcCaller]:
    """Connect and open the windows; a stream's is never renewed, so an answer may have 2 GiB."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as connection, trio.open_nursery() as nursery:
        caller = GrpcCaller(connection)
        initial_window = struct.pack(">HI", 4, _WIDE)
        await caller.send(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, initial_window)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _WIDE - 65535))
        )
        nursery.start_soon(caller.read)
        yield caller
        nursery.cancel_scope.cancel()


# -- server-sent events ------------------------------------------------------------------------------------------------

_LAST_CHUNK = b"0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"


class SseCaller:
    """Connections that are kept alive, as many as there are streams at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[trio.SocketStream] = []

    async def call(self, request: dict[str, Any], seen: Seen) -> None:
        body = msgspec.json.encode(request)
        head = f"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        stream = self._idle.pop() if self._idle else await trio.open_tcp_stream("127.0.0.1", self._port)
        try:
            await stream.send_all(head.encode() + body)
            data = b""
            while _HEAD_END not in data:
                if not (more := await stream.receive_some(READ_SIZE)):
                    raise RuntimeError("the answer ended in its head")
                data += more
            if not data.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"refused: {data[:100]!r}")
            data = tail = data.partition(_HEAD_END)[2]
            while True:
                if data:
                    seen(data)
                if tail.endswith(_LAST_CHUNK):
                    break
                if not (data := await stream.receive_some(READ_SIZE)):
                    raise RuntimeError("the answer ended without its last chunk")
                tail = (tail + data)[-len(_LAST_CHUNK) :]
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self._idle.append(stream)

    async def aclose(self) -> None:
        for stream in self._idle:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_sse_caller(port: int) -> AsyncIterator[SseCaller]:
    """Open nothing yet; close what has been opened when left."""
    caller = SseCaller(port)
    try:
        yield caller
    finally:
        with trio.CancelScope(shield=True):
            await caller.aclose()
