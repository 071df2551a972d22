"""A caller built from the wire alone: pushes frames, takes the dial-back, and says what came over it.

It knows nothing of :mod:`ingress.client` and is as lenient as a real caller, so that what it reports is what was sent.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field
from msgspec import UNSET, UnsetType
from trio.testing import wait_all_tasks_blocked

from ingress.abc import Network
from ingress.discovery import MemoryDiscovery
from ingress.testing import MemoryNetwork
from ingress.testing._pipes import pipes
from ingress.wire.codec import codec_named
from ingress.wire.messages import (
    Annotated,
    CodecName,
    ConnectionInfo,
    ControlWord,
    ErrorEvent,
    RequestControlMessage,
    StreamAddress,
)
from ingress.wire.request_frame import AckDecoder, encode_request_frame
from ingress.wire.response import (
    FinalReceived,
    HandshakeReceived,
    ItemReceived,
    PrologueReceived,
    ResponseEvent,
    ResponseReceiver,
    ResponseState,
)
from ingress.wire.two_part import encode_two_part

HOST = "127.0.0.1"

_ids = itertools.count(1)


@define
class Transcript:
    """Everything a worker said on one response stream."""

    subject: str | None = None
    prologue_error: str | None = None
    has_prologue: bool = False
    items: list[Any] = field(factory=list)
    """The data of items that are no error."""

    errors: list[ErrorEvent] = field(factory=list)
    annotated: list[Annotated] = field(factory=list)
    has_final: bool = False
    has_sentinel: bool = False
    end: str = ""
    """``fin`` or ``reset``; empty while the stream is open."""

    @property
    def is_whole(self) -> bool:
        """Prologue without error, final frame, sentinel: nothing is missing."""
        return self.has_prologue and self.prologue_error is None and self.has_final and self.has_sentinel

    def add(self, event: ResponseEvent) -> None:
        match event:
            case HandshakeReceived(handshake):
                self.subject = handshake.subject
            case PrologueReceived(prologue):
                self.has_prologue, self.prologue_error = True, prologue.error
            case ItemReceived(annotated):
                self.annotated.append(annotated)
                if annotated.error is not None:
                    self.errors.append(annotated.error)
                else:
                    self.items.append(annotated.data)
            case FinalReceived():
                self.has_final = True


class RawResponse:
    """One accepted dial-back; for one task."""

    def __init__(self, stream: trio.abc.Stream, codec: str = "json") -> None:
        self.stream = stream
        self.transcript = Transcript()
        self._receiver = ResponseReceiver(codec_named(codec), max_message_size=1 << 40)

    async def read_some(self, max_bytes: int | None = None) -> bool:
        """Read once; False at the end of the stream."""
        try:
            data = await self.stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            self.transcript.end = "reset"
            return False
        if not data:
            self.transcript.end = "fin"
            return False
        self._receiver.receive_data(data)
        for event in self._receiver:
            self.transcript.add(event)
        self.transcript.has_sentinel = self._receiver.state is ResponseState.DONE
        return True

    async def read_until(self, is_enough: Callable[[Transcript], object]) -> Transcript:
        """Read until the transcript is as wanted; fails where the stream ends before."""
        while not is_enough(self.transcript):
            assert await self.read_some(), f"stream ended early: {self.transcript}"
        return self.transcript

    async def read_items(self, count: int) -> list[Any]:
        return (await self.read_until(lambda said: len(said.items) >= count)).items

    async def read_to_sentinel(self) -> Transcript:
        return await self.read_until(lambda said: said.has_sentinel)

    async def read_to_end(self) -> Transcript:
        """Read until the worker closes."""
        while await self.read_some():
            pass
        return self.transcript

    async def send_word(self, word: ControlWord) -> None:
        await self.stream.send_all(encode_two_part(word.encode()))

    async def send_fin(self) -> None:
        """Close the caller's direction and keep listening."""
        stream: Any = self.stream
        await stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


class RawConnection:
    """A request connection; one task may push while another reads acks."""

    def __init__(self, stream: trio.abc.Stream, path: str) -> None:
        self.stream = stream
        self.path = path
        self._acks = AckDecoder()
        self._pending: list[str] = []

    async def send(self, payload: bytes, *, path: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        await self.stream.send_all(encode_request_frame(self.path if path is None else path, headers or {}, payload))

    async def read_acks(self, count: int = 1) -> list[str]:
        """Wait for so many acks; fewer where the worker closes the connection."""
        while len(self._pending) < count:
            data = await self.stream.receive_some()
            if not data:
                break
            self._acks.receive_data(data)
            self._pending += self._acks
        acks, self._pending = self._pending[:count], self._pending[count:]
        return acks

    async def ask(self, payload: bytes, *, path: str | None = None, headers: Mapping[str, str] | None = None) -> str:
        """Push and return the ack's text."""
        await self.send(payload, path=path, headers=headers)
        (ack,) = await self.read_acks()
        return ack


class RawCaller:
    """Builds payloads, and accepts what is dialled back."""

    def __init__(self, network: Network, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        self.network = network
        self.listener = listener
        host, port = network.local_address(listener)
        self.address = f"{host}:{port}"
        self._opened: list[trio.abc.Stream] = []

    def control(
        self,
        *,
        request_id: str | None = None,
        codec: CodecName | None = "json",
        info: Mapping[str, str] | None = None,
        transport: str = "tcp_server",
        metadata: dict[str, str] | None = None,
        frontend_send_ts_ns: int | None = None,
    ) -> RequestControlMessage:
        """Build a control message that comes back here.

        Args:
            codec: None leaves the field out, as callers up to 1.2.1 do.
            info: fields of the connection info that differ.
        """
        request_id = f"request-{next(_ids)}" if request_id is None else request_id
        fields = {
            "address": self.address,
            "subject": f"subject-of-{request_id}",
            "context": request_id,
            "stream_type": "response",
            **(info or {}),
        }
        address = ConnectionInfo(**fields).to_address()
        unset: UnsetType = UNSET
        return RequestControlMessage(
            request_id,
            "single_in",
            "many_out",
            StreamAddress(transport, address.info),
            payload_codec=unset if codec is None else codec,
            metadata=unset if metadata is None else metadata,
            frontend_send_ts_ns=unset if frontend_send_ts_ns is None else frontend_send_ts_ns,
        )

    def payload(self, body: object = None, control: RequestControlMessage | None = None) -> bytes:
        """Build a payload; a body of type bytes is taken as it is."""
        control = self.control() if control is None else control
        encoded = body if isinstance(body, bytes) else codec_named(control.codec_name).encode(body)
        return encode_two_part(control.encode(), encoded)

    async def accept(self, codec: CodecName = "json") -> RawResponse:
        response = RawResponse(await self.listener.accept(), codec)
        self._opened.append(response.stream)
        return response

    async def close_all(self) -> None:
        """Close every connection, as a caller that leaves."""
        for stream in self._opened:
            await trio.aclose_forcefully(stream)

    async def connect(self, worker: Any, endpoint: int = 0) -> RawConnection:
        """Open a request connection to one of a worker's endpoints, as its discovery record says."""
        address, path = worker.records()[endpoint].tcp_target
        host, _, port = address.rpartition(":")
        stream = await self.network.connect(host.strip("[]"), int(port))
        self._opened.append(stream)
        return RawConnection(stream, path)

    async def call(self, connection: RawConnection, body: object = None, **control: Any) -> RawResponse:
        """Push, check the ack, accept the dial-back."""
        built = self.control(**control)
        ack = await connection.ask(self.payload(body, built))
        assert ack == "", f"refused: {ack}"
        return await self.accept(built.codec_name)


@asynccontextmanager
async def open_raw_caller(network: Network, host: str = HOST, port: int = 0) -> AsyncIterator[RawCaller]:
    """Listen for dial-backs while inside."""
    async with await network.open_listener(host, port) as listener:
        caller = RawCaller(network, listener)
        try:
            yield caller
        finally:
            with trio.CancelScope(shield=True):
                await caller.close_all()


def slow_network() -> MemoryNetwork:
    """A network whose dial-backs hold nothing: what the caller does not read is not taken from the worker."""
    return MemoryNetwork(_first_unbounded(trio.testing.lockstep_stream_pair))


def _first_unbounded(make_pair: Callable[[], Any]) -> Callable[[], Any]:
    # The first connection is the one over which the requests come.
    pairs = itertools.chain([trio.testing.memory_stream_pair], itertools.repeat(make_pair))
    return lambda: next(pairs)()


NETWORKS: Mapping[str, Callable[[], MemoryNetwork]] = {
    "unbounded": MemoryNetwork,
    "lockstep": slow_network,
    "pipes": lambda: MemoryNetwork(_first_unbounded(pipes(64 * 1024))),
    "narrow pipes": lambda: MemoryNetwork(_first_unbounded(pipes(100))),
}


@define
class Stage:
    """A worker, a caller, and a connection between them."""

    worker: Any
    caller: RawCaller
    connection: RawConnection

    async def call(self, body: object = None, **control: Any) -> RawResponse:
        return await self.caller.call(self.connection, body, **control)

    async def ask(self, payload: bytes, *, path: str | None = None, headers: Mapping[str, str] | None = None) -> str:
        return await self.connection.ask(payload, path=path, headers=headers)

    async def tell(self, body: object = None, **control: Any) -> Transcript:
        """Call, read the whole answer, close."""
        response = await self.call(body, **control)
        said = await response.read_to_sentinel()
        await wait_all_tasks_blocked()  # the worker counts after it has sent
        await response.aclose()
        await wait_all_tasks_blocked()
        return said

    def sample(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; short names are those of the component family."""
        full = name if name.startswith("dynamo_") else f"dynamo_component_{name}"
        return sum(value for _, value in self._samples(full, labels))

    def errors(self) -> dict[str, float]:
        """``errors_total`` by type, zeros left out."""
        samples = self._samples("dynamo_component_errors_total", {})
        return {labels["error_type"]: value for labels, value in samples if value}

    def outcomes(self) -> dict[tuple[str, str], int]:
        """``ingress_outcome_total`` by outcome and reason, zeros left out."""
        samples = self._samples("ingress_outcome_total", {})
        counted: Counter[tuple[str, str]] = Counter()
        for labels, value in samples:
            counted[labels["outcome"], labels["reason"]] += int(value)
        return {pair: value for pair, value in counted.items() if value}

    def _samples(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        for family in self.worker.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.labels, sample.value

    def counted_ends(self) -> dict[str, float]:
        """What was counted of abnormal ends: errors by type, and cancellations."""
        cancellations = self.sample("cancellation_total")
        return {**self.errors(), **({"cancellation": cancellations} if cancellations else {})}

    def assert_nothing_left(self) -> None:
        """No request in flight, no slot taken, no place in line."""
        assert self.sample("inflight_requests") == 0
        assert (self.worker.admission.running, self.worker.admission.queued) == (0, 0)
        assert len(self.worker.open_requests) == 0

    async def assert_alive(self, body: object = "alive?") -> None:
        """An ordinary request completes."""
        with trio.fail_after(60):
            assert (await self.tell(body)).is_whole


@asynccontextmanager
async def open_stage(engine: Any, *, network: Any = None, **options: Any) -> AsyncIterator[Stage]:
    """Serve an engine in memory, with a caller beside it; leaving waits for nothing unless the options say so."""
    from ingress import serving

    network = MemoryNetwork() if network is None else network
    options = {"discovery": MemoryDiscovery(), "linger": 0.0, "drain_budget": 0.0, **options}
    async with (
        open_raw_caller(network) as caller,
        serving(engine, network=network, **options) as worker,
    ):
        yield Stage(worker, caller, await caller.connect(worker))
        await caller.close_all()
