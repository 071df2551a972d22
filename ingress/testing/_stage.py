"""Where the checks play: the real handler in memory, and a caller that listens wherever a payload says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from msgspec import UNSET
from trio.testing import wait_all_tasks_blocked

from .._admission import Admission
from .._context import OpenRequests
from .._dial_guard import DialGuard
from .._dial_policy import DialPolicy
from .._dialback import DialBacks
from .._dialled import DialledStreams
from .._handler import PushHandler
from .._push_gate import AdmittedPush
from ..abc import Engine, IngressDispatch, Push
from ..metrics import WorkerMetrics
from ..wire.addresses import parse_address
from ..wire.codec import codec_named
from ..wire.messages import CallHomeHandshake, ConnectionInfo, ControlWord, StreamAddress
from ..wire.records import EndpointId
from ..wire.two_part import TwoPartDecoder, encode_two_part
from ._call import Call
from ._memory import MEMORY_HOST, MemoryNetwork
from ._outcome import fail

ENDPOINT = EndpointId("kit", "check", "generate")

# What an answer may take, in the time of the check.
DEFAULT_TIMEOUT = 60.0


class Stage:
    """The handler of one endpoint and its caller; made by :func:`open_stage`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        shapes: Sequence[IngressDispatch[Any]],
        engine: Engine,
        network: MemoryNetwork,
        streams: DialledStreams,
        timeout: float,
    ) -> None:
        self.nursery = nursery
        self.network = network
        self._dialled = streams
        self.open_requests = OpenRequests()
        self._admission = Admission(engine_request_limit=1000)
        self._metrics = WorkerMetrics(1, admission=self._admission)
        self._timeout = timeout
        self._expected: dict[str, list[Call]] = {}
        self.handler = PushHandler(
            ENDPOINT,
            engine,
            shapes,
            dial_backs=DialBacks(network, streams, DialGuard(DialPolicy("any"))),
            metrics=self._metrics.endpoint(ENDPOINT),
            admission=self._admission,
            open_requests=self.open_requests,
        )

    async def push(self, payload: bytes, frames: Sequence[bytes] | None = None, *, is_listening: bool = True) -> Call:
        """Push a payload; returns when its task has been started.

        Args:
            frames: what the caller sends on a request stream; two values in the codec of the request where not given.
            is_listening: whether anybody is where the payload says to dial.

        Raises:
            IngressError: it was refused.
        """
        admitted = self.handler.gate.admit(Push("check", payload, {}, MEMORY_HOST))
        if frames is None:
            codec = codec_named(admitted.control.codec_name)
            frames = [codec.encode({"n": 1}), codec.encode({"n": 2})]
        call = Call(admitted, frames, self._timeout)
        for info in self._streams(admitted) if is_listening else ():
            self._expected.setdefault(info.subject, []).append(call)
            address = parse_address(info.address)
            if (address.host, address.port) not in self.network.listeners:
                listener = await self.network.open_listener(address.host, address.port)
                self.nursery.start_soon(self._listen, listener)
        self.nursery.start_soon(self._handle, call)
        return call

    def _streams(self, admitted: AdmittedPush) -> list[ConnectionInfo]:
        """Where the request may be dialled back to, as far as its payload says."""
        control = admitted.control
        streams: list[StreamAddress] = [control.connection_info, *admitted.shape.request_streams(control)]
        if control.request_stream_connection_info is not UNSET:
            streams.append(control.request_stream_connection_info)
        return [ConnectionInfo.from_address(stream) for stream in dict.fromkeys(streams)]

    async def _handle(self, call: Call) -> None:
        try:
            with call.scope:
                await self.handler.handle_payload(call.admitted, self.handler.open(call.admitted))
                await self._dialled.wait_idle()  # an answer is over when its caller has it
        finally:
            call.set_over()

    # -- the caller --------------------------------------------------------------------------------------------------

    async def _listen(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        async with listener:
            while True:
                self.nursery.start_soon(self._greet, await listener.accept())

    async def _greet(self, stream: trio.abc.Stream) -> None:
        """Read the handshake and give the stream to its call."""
        decoder, received = TwoPartDecoder(), bytearray()
        try:
            while (message := next(iter(decoder), None)) is None:
                if not (data := await stream.receive_some()):
                    await stream.aclose()
                    return
                received += data
                decoder.receive_data(data)
            handshake = CallHomeHandshake.decode(message.header)
            calls = self._expected.get(handshake.subject)
            if not calls:
                fail("a handshake with the subject of the control message", f"subject {handshake.subject[:80]!r}")
            call = calls.pop(0)
            if handshake.stream_type == "response":
                call.take(stream, bytes(received))
            else:
                await self._feed(stream, call.frames)
        except trio.BrokenResourceError:
            await stream.aclose()

    async def _feed(self, stream: trio.abc.Stream, frames: Sequence[bytes]) -> None:
        for frame in frames:
            await stream.send_all(encode_two_part(body=frame))
        await stream.send_all(encode_two_part(ControlWord.SENTINEL.encode()))
        while await stream.receive_some():  # until the worker closes it
            pass
        await stream.aclose()

    # -- what is left ------------------------------------------------------------------------------------------------

    async def check_nothing_left(self, when: str) -> None:
        """Fail unless every request is over and has given back what it took."""
        await wait_all_tasks_blocked()
        left = [
            *(f"a connection to {host}:{port} that is open" for host, port in self.network.open_connections),
            *(f"request {context.id} that is open" for context in self.open_requests),
        ]
        if in_flight := self.in_flight():
            left.append(f"an in-flight gauge of {in_flight:g}")
        if self._admission.running or self._admission.queued:
            left.append(f"{self._admission.running} slots taken and {self._admission.queued} in line")
        if left:
            fail(f"nothing left {when}: no task, no open stream, nothing in flight", ", ".join(left))

    def in_flight(self) -> float:
        """What the gauge of requests in flight says."""
        return sum(endpoint.running for endpoint in self._metrics.endpoints)


@asynccontextmanager
async def open_stage(
    shapes: Sequence[IngressDispatch[Any]],
    engine: Engine,
    *,
    network: MemoryNetwork | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> AsyncIterator[Stage]:
    """Open a stage; leaving it cancels whatever still runs on it."""
    streams = DialledStreams()
    async with trio.open_nursery() as nursery:
        await nursery.start(streams.serve)
        yield Stage(nursery, shapes, engine, MemoryNetwork() if network is None else network, streams, timeout)
        nursery.cancel_scope.cancel()
