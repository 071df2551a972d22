"""A network in memory and a scripted worker, with which the tests of the caller's half are played."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field

from ingress.abc import Network
from ingress.client import Client, open_client
from ingress.client._nurseries import open_service_nursery
from ingress.discovery import MemoryDiscovery
from ingress.wire.codec import PayloadCodec, codec_named
from ingress.wire.messages import ConnectionInfo, ControlWord, RequestControlMessage
from ingress.wire.records import EndpointId, InstanceRecord
from ingress.wire.request_frame import RequestFrame, RequestFrameDecoder, encode_ack
from ingress.wire.response import ControlWordReader, ResponseSender
from ingress.wire.two_part import decode_two_part

GENERATE = EndpointId("demo", "backend", "generate")


class MemoryStream(trio.abc.Stream):
    """One end of a connection in memory, which can also reset it."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self._is_reset = False
        self.is_closed = False
        self.peer: MemoryStream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._inner.receive_some(max_bytes))
        if not data and self._is_reset:
            raise trio.BrokenResourceError("reset by peer")
        return data

    async def aclose(self) -> None:
        self.is_closed = True
        await self._inner.aclose()

    async def reset(self) -> None:
        self.peer._is_reset = True
        await self.aclose()


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.backlog, self._accepted = trio.open_memory_channel[MemoryStream](1000)
        self.errors: list[OSError] = []
        """What the next calls of accept raise."""

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return await self._accepted.receive()

    async def aclose(self) -> None:
        self.backlog.close()
        self._accepted.close()
        await trio.lowlevel.checkpoint()


class MemoryNetwork:
    """Connections within the process; counts them by port."""

    def __init__(self) -> None:
        self.listeners: dict[int, MemoryListener] = {}
        self.connections: list[tuple[int, MemoryStream]] = []
        """Port and the connecting end of every connection ever made."""
        self.silent_ports: set[int] = set()
        """Ports to which a connection is never established."""
        self._ports = itertools.count(40001)

    async def open_listener(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        await trio.lowlevel.checkpoint()
        listener = MemoryListener((host, port or next(self._ports)))
        self.listeners[listener.address[1]] = listener
        return listener

    async def connect(self, host: str, port: int) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if port in self.silent_ports:
            await trio.sleep_forever()
        left, right = map(MemoryStream, trio.testing.memory_stream_pair())
        left.peer, right.peer = right, left
        try:
            self.listeners[port].backlog.send_nowait(right)
        except (KeyError, trio.ClosedResourceError):
            raise ConnectionRefusedError(111, "Connection refused") from None
        self.connections.append((port, left))
        return left

    def local_address(self, listener: trio.abc.Listener[trio.abc.Stream]) -> tuple[str, int]:
        assert isinstance(listener, MemoryListener)
        return listener.address

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return "127.0.0.1"

    def connections_to(self, port: int) -> int:
        return sum(1 for known, _ in self.connections if known == port)


class DialBack:
    """The worker's end of one response stream."""

    def __init__(self, stream: trio.abc.Stream, codec: PayloadCodec) -> None:
        self.stream = stream
        self.sender = ResponseSender(codec)
        self._words = ControlWordReader()
        self._pending: Iterator[ControlWord] = iter(())

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def items(self, *values: object) -> None:
        await self.send(b"".join(self.sender.item(value) for value in values))

    async def reset(self) -> None:
        assert isinstance(self.stream, MemoryStream)
        await self.stream.reset()

    async def next_word(self) -> ControlWord | None:
        """Wait for a word of the caller; None when it closed."""
        while (word := next(self._pending, None)) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._words.receive_data(data)
            self._pending = iter(self._words)
        return word

    async def words(self) -> list[str]:
        """Read to the end: the words the caller sent before it closed."""
        words: list[str] = []
        while word := await self.next_word():
            words.append(word.value)
        return words


@define(eq=False)
class Call:
    """One request as the worker got it."""

    frame: RequestFrame
    network: Network = field(repr=False)

    @property
    def control(self) -> RequestControlMessage:
        return RequestControlMessage.decode(decode_two_part(self.frame.payload).header)

    @property
    def codec(self) -> PayloadCodec:
        return codec_named(self.control.codec_name)

    @property
    def request(self) -> Any:
        return self.codec.decode(decode_two_part(self.frame.payload).body)

    @property
    def info(self) -> ConnectionInfo:
        return ConnectionInfo.from_address(self.control.connection_info)

    async def connect(self) -> DialBack:
        host, _, port = self.info.address.rpartition(":")
        return DialBack(await self.network.connect(host, int(port)), self.codec)

    async def dial(self) -> DialBack:
        """Dial, shake hands and send the prologue."""
        dial_back = await self.connect()
        await dial_back.send(dial_back.sender.handshake(self.info.subject) + dial_back.sender.prologue())
        return dial_back


Script = Callable[[Call], Awaitable[None]]


async def echo(call: Call) -> None:
    """Answer with the request, then whatever ``count`` asks for; end as a released worker does."""
    dial_back = await call.dial()
    await dial_back.items(call.request)
    await dial_back.send(dial_back.sender.final())
    await dial_back.words()
    await dial_back.stream.aclose()


async def silence(call: Call) -> None:
    """Accept and do nothing."""


def answer(body: Callable[[DialBack], bytes], *, close: bool = True) -> Script:
    """Build a script that sends these bytes after the prologue and closes, or waits for the caller to close."""

    async def script(call: Call) -> None:
        dial_back = await call.dial()
        await dial_back.send(body(dial_back))
        if not close:
            await dial_back.words()
        await dial_back.stream.aclose()

    return script


class FakeWorker:
    """Serves one endpoint by running ``script`` for each request; ``ack`` returns an ack text, or None for no ack."""

    def __init__(
        self,
        network: Network,
        discovery: MemoryDiscovery,
        script: Script,
        *,
        instance_id: int = 1,
        codec: str | None = None,
    ) -> None:
        self.script = script
        self.ack: Callable[[Call], Awaitable[str | None]] = accept
        self.calls: list[Call] = []
        self.port = 0
        self.instance_id = instance_id
        self._network = network
        self._discovery = discovery
        self._codec = codec
        self._announced = trio.CancelScope()

    @property
    def record(self) -> InstanceRecord:
        path = f"{self.instance_id:x}/demo/backend/generate"
        return InstanceRecord(GENERATE, self.instance_id, {"tcp": f"127.0.0.1:{self.port}/{path}"}, self._codec)

    def withdraw(self) -> None:
        """Take the record out of discovery."""
        self._announced.cancel()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = await self._network.open_listener("127.0.0.1", 0)
        _, self.port = self._network.local_address(listener)
        async with listener, trio.open_nursery() as nursery:
            await nursery.start(self._announce)
            task_status.started()
            while True:
                stream = await listener.accept()
                nursery.start_soon(self._serve_connection, stream, nursery)

    async def _announce(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._announced:
            await self._discovery.serve_records([self.record], task_status=task_status)

    async def _serve_connection(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        decoder = RequestFrameDecoder()
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            async with stream:
                while data := await stream.receive_some():
                    decoder.receive_data(data)
                    for frame in decoder:
                        await self._take(Call(frame, self._network), stream, nursery)

    async def _take(self, call: Call, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        self.calls.append(call)
        text = await self.ack(call)
        if text is not None:
            await stream.send_all(encode_ack(text))
        if not text:
            nursery.start_soon(self._run, call)

    async def _run(self, call: Call) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the caller is gone
            await self.script(call)


async def accept(call: Call) -> str | None:
    return ""


async def never_ack(call: Call) -> str | None:
    return None


def refuse(text: str) -> Callable[[Call], Awaitable[str | None]]:
    async def ack(call: Call) -> str | None:
        return text

    return ack


@define
class Stage:
    """A client and its workers, all in memory."""

    client: Client
    network: MemoryNetwork
    discovery: MemoryDiscovery
    workers: list[FakeWorker]
    nursery: trio.Nursery

    @property
    def worker(self) -> FakeWorker:
        return self.workers[0]


@asynccontextmanager
async def open_stage(
    script: Script = echo, *, workers: int = 1, codec: str | None = None, codec_override: Any = None, **options: Any
) -> AsyncIterator[Stage]:
    """Open ``workers`` workers with the ids 1, 2, …, whose records name ``codec``, and a client with ``options``."""
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    fakes = [FakeWorker(network, discovery, script, instance_id=n + 1, codec=codec) for n in range(workers)]
    async with open_service_nursery() as nursery:
        for fake in fakes:
            await nursery.start(fake.serve)
        async with open_client(discovery=discovery, network=network, codec=codec_override, **options) as client:
            yield Stage(client, network, discovery, fakes, nursery)
        # Whatever was left by the calls themselves, nothing of the client outlives it.
        await trio.testing.wait_all_tasks_blocked()
        ports = {fake.port for fake in fakes}
        for port, stream in network.connections:
            assert (stream if port in ports else stream.peer).is_closed


async def collect(stage: Stage, request: object = None, **options: Any) -> list[Any]:
    """Make one call and return the data of its items."""
    async with stage.client.stream("demo.backend.generate", request, **options) as responses:
        return [item async for item in responses]


async def test_the_scripted_worker_echoes() -> None:
    async with open_stage() as stage:
        assert await collect(stage, {"a": 1}) == [{"a": 1}]
