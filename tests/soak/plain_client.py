"""A caller without an event loop of Python's: what is measured beside it is the worker, and not the caller.

One thread, epoll, and no decoding before the end.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, field

from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.two_part import encode_two_part

SENTINEL = b'"sentinel"'
CHUNK = b'"complete_final":false'
_SUBJECT = re.compile(rb'"subject":"(\d+)"')

# A guard: a load that takes so long has lost something.
PATIENCE = 60.0


@define
class Taken:
    """One stream as far as it came."""

    data: bytearray = field(factory=bytearray)
    first_at: float | None = None

    @property
    def number(self) -> int:
        """Which of the requests it answers."""
        match = _SUBJECT.search(self.data)
        return int(match[1]) if match else -1


@define
class Result:
    """What came of a load."""

    seconds: float
    first: list[float]
    """Seconds from the push to the first chunk, of every whole stream, in order."""

    lost: int


def take(
    record: InstanceRecord, request: Mapping[str, Any], count: int, *, chunks: int, connections: int, at_once: int
) -> Result:
    """Push so many requests, never more than ``at_once`` unanswered, and take their streams."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, "listener")
        host, _, port = record.tcp_target[0].rpartition(":")
        pushing = [socket.create_connection((host, int(port))) for _ in range(connections)]
        for connection in pushing:
            selector.register(connection, selectors.EVENT_READ, AckDecoder())
        frames = enumerate(_frames(record, request, count, listener.getsockname()[1]))
        load = _Load(selector, listener, chunks)
        started = time.perf_counter()
        while len(load.ended) < count and time.perf_counter() - started < PATIENCE:
            while len(load.pushed) - len(load.ended) < at_once and (following := next(frames, None)) is not None:
                number, frame = following
                load.pushed.append(time.perf_counter())
                pushing[number % connections].sendall(frame)
            load.turn()
        seconds = time.perf_counter() - started
        for connection in pushing:
            connection.close()
    return Result(seconds, sorted(load.latencies()), count - load.whole)


class _Load:
    """The streams of one load, and the loop that takes them."""

    def __init__(self, selector: selectors.BaseSelector, listener: socket.socket, chunks: int) -> None:
        self.pushed: list[float] = []
        self.ended: list[Taken] = []
        self._selector = selector
        self._listener = listener
        self._chunks = chunks

    @property
    def whole(self) -> int:
        return sum(stream.data.endswith(SENTINEL) and stream.data.count(CHUNK) == self._chunks for stream in self.ended)

    def latencies(self) -> Iterator[float]:
        for stream in self.ended:
            if stream.first_at is not None:
                yield stream.first_at - self.pushed[stream.number]

    def turn(self) -> None:
        for key, _ in self._selector.select(1.0):
            if isinstance(key.data, Taken):
                self._read(key.fileobj, key.data)  # type: ignore[arg-type]  # a socket, as it was registered
            elif isinstance(key.data, AckDecoder):
                key.data.receive_data(key.fileobj.recv(65536))  # type: ignore[union-attr]  # likewise
                if refusals := [text for text in key.data if text]:
                    raise RuntimeError(f"refused: {refusals[0]}")
            else:
                self._accept()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except BlockingIOError:
                return
            stream.setblocking(False)
            self._selector.register(stream, selectors.EVENT_READ, Taken())

    def _read(self, stream: socket.socket, taken: Taken) -> None:
        data = stream.recv(65536)
        taken.data += data
        if taken.first_at is None and CHUNK in taken.data:
            taken.first_at = time.perf_counter()
        if not data or taken.data.endswith(SENTINEL):
            self._selector.unregister(stream)
            stream.close()
            self.ended.append(taken)


def _frames(record: InstanceRecord, request: Mapping[str, Any], count: int, port: int) -> Iterator[bytes]:
    body = codec_named("json").encode(request)
    for number in range(count):
        info = ConnectionInfo(f"127.0.0.1:{port}", str(number), f"r{number}", "response")
        control = RequestControlMessage(f"r{number}", "single_in", "many_out", info.to_address(), payload_codec="json")
        yield encode_request_frame(record.tcp_target[1], {}, encode_two_part(control.encode(), body))
