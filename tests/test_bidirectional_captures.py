"""Every captured bidirectional exchange, played again: the caller's bytes as they were, ours held against the worker's.

The worker listens under the name and the instance id of the captured one, and the caller at the captured port, so that
nothing has to be adapted: what is compared are whole frames, subjects and ids included. Only up to 1.5.1 workers have
shorter paths, and there the path is ours.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import field, frozen
from trio.testing import MockClock, wait_all_tasks_blocked

import ingress
from ingress import Context, MemoryDiscovery, Worker, serving
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ConnectionInfo, StreamAddress
from ingress.wire.request_frame import RequestFrameDecoder, encode_request_frame
from ingress.wire.two_part import MessageKind, TwoPartDecoder, TwoPartMessage, decode_two_part, encode_two_part

from . import captures
from .captures import Capture

HOST = "127.0.0.1"


# -- the engines of the captured workers ------------------------------------------------------------------------------


@frozen
class Seen:
    """What one run of an engine saw."""

    context: Context
    ends: list[str] = field(factory=list)

    @property
    def fate(self) -> str:
        assert self.ends, "the engine is still running"
        if self.context.is_killed:
            return "killed"
        return "stopped" if self.context.is_stopped else self.ends[-1]


_seen: list[Seen] = []


@asynccontextmanager
async def watched(context: Context) -> AsyncIterator[None]:
    seen = Seen(context)
    _seen.append(seen)
    try:
        yield
    except BaseException as exc:
        seen.ends.append(type(exc).__name__)
        raise
    seen.ends.append("finished")


@ingress.bidirectional
async def echo(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async with watched(context):
        count = 0
        async for request in requests:
            count += 1
            yield {"echo": request, "n": count}
        yield {"end_of_input": count}
        for i in range(3):
            yield {"after": i}


@ingress.bidirectional
async def early(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async with watched(context):
        await anext(requests)
        yield {"only": 1}


@ingress.bidirectional
async def errmid(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async with watched(context):
        yield {"got": await anext(requests)}
        raise ValueError("boom mid")


@ingress.bidirectional
async def errstart(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async with watched(context):
        _boom()
        yield


def _boom() -> None:
    raise ValueError("boom start")


@ingress.bidirectional
async def tick(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async with watched(context):
        count = 0
        while True:
            await trio.sleep(0.1)
            count += 1
            yield {"tick": count}


@ingress.bidirectional
async def chat(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    """The engine of the single vectors."""
    async with watched(context):
        async for request in requests:
            yield {"echo": request}
        yield {"bye": 1}


ENGINES = {f"demo.backend.{engine.__name__}": engine for engine in (echo, early, errmid, errstart, tick, chat)}


# -- the stage --------------------------------------------------------------------------------------------------------


class Socket:
    """The caller's end of one connection, with everything that was read from it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._decoder = TwoPartDecoder()
        self._frames: list[TwoPartMessage] = []

    async def next_frame(self, timeout: float = 60) -> bytes:
        """Wait for a frame and return its bytes; empty at the end of the stream."""
        with trio.fail_after(timeout):
            while not self._frames:
                if not (data := await self.stream.receive_some()):
                    assert self._decoder.is_idle
                    return b""
                self._decoder.receive_data(data)
                self._frames += self._decoder
        frame = self._frames.pop(0)
        return encode_two_part(frame.header, frame.body)

    async def rest(self) -> list[bytes]:
        """Everything up to the end of the stream, without which this fails."""
        frames: list[bytes] = []
        while frame := await self.next_frame():
            frames.append(frame)
        return frames

    async def send(self, data: bytes) -> None:
        """Send; a worker that has closed already is no failure of the caller's."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)


class Replay:
    """One exchange against one worker of ours."""

    def __init__(self, worker: Worker, network: MemoryNetwork) -> None:
        self.worker = worker
        self.network = network
        self.sockets: dict[str, Socket] = {}

    async def push(self, request: bytes) -> str:
        """Send a captured request frame and return the text of the ack."""
        decoder = RequestFrameDecoder()
        decoder.receive_data(request)
        (frame,) = decoder
        instance, _, endpoint = frame.path.partition("/")
        path = frame.path if "/" in endpoint else f"{instance}/demo/backend/{endpoint}"
        again = encode_request_frame(path, frame.headers, frame.payload)
        assert again == request or path != frame.path
        connection = await self.network.connect(HOST, int(self.worker.address.rpartition(":")[2]))
        await connection.send_all(again)
        ack = await connection.receive_some()
        assert len(ack) == 4 + int.from_bytes(ack[:4])
        return ack[4:].decode()

    async def accept(self, listener: trio.abc.Listener[trio.abc.Stream]) -> bytes:
        """Take the next dial-back; return its handshake."""
        socket = Socket(await listener.accept())
        handshake = await socket.next_frame()
        self.sockets[json.loads(decode_two_part(handshake).header)["stream_type"]] = socket
        return handshake

    @property
    def requests(self) -> Socket:
        return self.sockets["request"]

    @property
    def responses(self) -> Socket:
        return self.sockets["response"]


def control_of(request: bytes) -> dict[str, Any]:
    decoder = RequestFrameDecoder()
    decoder.receive_data(request)
    (frame,) = decoder
    control: dict[str, Any] = json.loads(decode_two_part(frame.payload).header)
    return control


def port_of(request: bytes) -> int:
    """Where the captured caller listened."""
    control = control_of(request)
    address = control.get("connection_info") or control["request_stream_connection_info"]
    info = ConnectionInfo.from_address(StreamAddress(**address))
    return int(info.address.rpartition(":")[2])


@asynccontextmanager
async def open_replay(request: bytes, engines: Any = ENGINES) -> AsyncIterator[tuple[Replay, Any]]:
    """Serve the captured engines, and listen where the captured caller did."""
    _seen.clear()
    network = MemoryNetwork()
    decoder = RequestFrameDecoder()
    decoder.receive_data(request)
    (frame,) = decoder
    async with (
        await network.open_listener(HOST, port_of(request)) as listener,
        serving(
            engines,
            network=network,
            discovery=MemoryDiscovery(),
            instance_id=int(frame.path.partition("/")[0], 16),
            linger=0.0,
            drain_budget=0.0,
        ) as worker,
    ):
        replay = Replay(worker, network)
        yield replay, listener
        for socket in replay.sockets.values():
            await trio.aclose_forcefully(socket.stream)
        await wait_all_tasks_blocked()
        assert len(worker.open_requests) == 0


def samples(worker: Worker) -> dict[str, float]:
    """What was counted of abnormal ends."""
    wanted = ("dynamo_component_errors_total", "dynamo_component_cancellation_total")
    return {
        sample.labels.get("error_type", "cancellation"): sample.value
        for family in worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name in wanted and sample.value
    }


# -- answered exchanges -----------------------------------------------------------------------------------------------

# What the captured caller did last, where that is no frame; the name of the scenario says it.
LAST_ACTS = {
    "bidi_echo_trunc": ["close request"],
    "bidi_tick_trunc": ["close request"],
    "bidi_echo_eofafter": ["close request"],
    "bidi_tick_drop_resp": ["close response"],
    "bidi_tick_drop_all": ["close request", "close response"],
    "bidi_tick_echo": ["close response"],  # ticks for ever: the capture ends where its caller left
}

FATES = {
    "bidi_early": "finished",
    "bidi_echo_badctl": "killed",
    "bidi_echo_badframe": "killed",
    "bidi_echo_checksum": "finished",
    "bidi_echo_echo": "finished",
    "bidi_echo_empty": "killed",
    "bidi_echo_eofafter": "finished",
    "bidi_echo_json": "finished",
    "bidi_echo_kill_req": "killed",
    "bidi_echo_mixed": "killed",
    "bidi_echo_msgpack": "finished",
    "bidi_echo_sent_then_data": "finished",
    "bidi_echo_stop_req": "stopped",
    "bidi_echo_trunc": "killed",
    "bidi_errmid": "ValueError",
    "bidi_errstart": "ValueError",
    "bidi_tick_drop_all": "killed",
    # Ours on purpose: the real worker notices nothing until a later send fails, and then says stopped.
    "bidi_tick_drop_resp": "killed",
    "bidi_tick_echo": "killed",
    "bidi_tick_kill_req": "killed",
    "bidi_tick_kill_resp": "killed",
    "bidi_tick_sent_resp": "killed",
    "bidi_tick_stop_both": "stopped",
    "bidi_tick_stop_req": "stopped",
    "bidi_tick_stop_resp": "stopped",
    "bidi_tick_trunc": "killed",
}


def by_scenario(table: dict[str, Any], name: str) -> Any:
    scenario = name.rpartition("_")[0]
    return table.get(scenario) or table.get(scenario.removesuffix("_echo").removesuffix("_x"))


REFUSED = [name for name in captures.exchange_names() if len(captures.load_exchange(name)) == 2]
ANSWERED = [name for name in captures.exchange_names() if name not in REFUSED]


def test_every_exchange_is_played_and_has_an_end_of_its_own() -> None:
    assert {name.rpartition("_")[2] for name in ANSWERED} == {"1.4.2", "1.6.1"}
    assert len(ANSWERED) + len(REFUSED) == len(captures.exchange_names()) > 35
    assert all(by_scenario(FATES, name) for name in ANSWERED)


def as_ours(capture: Capture) -> bytes:
    """The captured frame, in the one place where ours differs: error events have the keys of 1.6.1 in any case.

    Callers up to 1.5.1 ignore them.
    """
    (frame,) = frames_of(capture.data)
    error = capture.decoded.get("data", {}).get("error") if isinstance(capture.decoded, dict) else None
    if error is None or capture.version == "1.6.1":
        return capture.data
    text = error["message"]
    name = "bidi_errmid_echo_1.6.1" if "mid" in text else "bidi_errstart_echo_1.6.1"
    (newer,) = [
        other.data
        for other in captures.load_exchange(name)
        if isinstance(other.decoded, dict) and other.decoded.get("data", {}).get("error", {}).get("message") == text
    ]
    assert set(error) < set(json.loads(frames_of(newer)[0].body)["data"]["error"])
    assert frame.kind is MessageKind.DATA_ONLY
    return newer


def frames_of(data: bytes) -> list[TwoPartMessage]:
    decoder = TwoPartDecoder()
    decoder.receive_data(data)
    return list(decoder)


@pytest.mark.parametrize("name", ANSWERED)
async def test_our_worker_writes_what_the_captured_worker_wrote(name: str, autojump_clock: MockClock) -> None:
    request, *steps = captures.load_exchange(name)
    assert request.name == "request"
    heard: list[str] = []
    async with open_replay(request.data) as (replay, listener):
        assert await replay.push(request.data) == ""
        # 1. The dial-backs, the request stream first; the ack goes its own way, before or after them.
        by_name = {step.name: step.data for step in steps}
        assert by_name["ack"] == bytes(4)
        assert await replay.accept(listener) == by_name["request_handshake"]
        assert list(replay.sockets) == ["request"]
        assert await replay.accept(listener) == by_name["response_handshake"]
        # 2. Frame by frame in the captured order.
        for step in steps:
            if step.name == "ack" or step.name.endswith("_handshake"):
                continue
            if step.is_from_worker:
                heard.append(step.name)
                assert await replay.responses.next_frame() == as_ours(step), step.name
            else:
                await (replay.responses if step.name.startswith("response_") else replay.requests).send(step.data)
        # 3. The caller's last act.
        is_whole = any(name.endswith("_sentinel") for name in heard)
        for act in by_scenario(LAST_ACTS, name) or []:
            stream = replay.sockets[act.removeprefix("close ")].stream
            await trio.aclose_forcefully(stream)
        # 4. Not a byte more from the worker, on neither socket, and both closed in the same instant, unless the answer
        #    is whole: then the caller is the first to close the response.
        started = trio.current_time()
        await wait_all_tasks_blocked()
        for kind, socket in replay.sockets.items():
            if f"close {kind}" in (by_scenario(LAST_ACTS, name) or []):
                with pytest.raises(trio.ClosedResourceError):
                    await socket.next_frame()
            elif not (is_whole and kind == "response"):
                assert await socket.rest() == [], kind
        assert trio.current_time() == started
        if is_whole:
            with trio.move_on_after(1) as scope:
                await replay.responses.next_frame()
            assert scope.cancelled_caught
        # 5. What the engine saw, and what was counted.
        (seen,) = _seen
        assert seen.fate == by_scenario(FATES, name)
        counted = {"killed": {"cancellation": 1}, "stopped": {"cancellation": 1}, "ValueError": {"generate": 1}}
        assert samples(replay.worker) == counted.get(seen.fate, {})


# -- refused envelopes ------------------------------------------------------------------------------------------------

UNREADABLE = "Server unavailable: unreadable control message"
REFUSALS = {
    "bidi_echo_badreq": UNREADABLE,  # no connection_info
    "bidi_echo_data": UNREADABLE,  # a data part
    "bidi_echo_nocinfo": UNREADABLE,  # no request_stream_connection_info
    "bidi_echo_unary": UNREADABLE,  # request_type single_in
    "bidi_echo_unary2": UNREADABLE,  # a unary request
    "bidi_echo_wrongctx": "Server unavailable: dial-back address refused",
    "bidi_echo_wrongtype": "Server unavailable: dial-back address refused",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_where_the_real_worker_answers_with_silence_ours_refuses_in_the_ack(
    name: str, autojump_clock: MockClock
) -> None:
    """The captured ack is the empty one of success, and nothing ever followed it."""
    request, ack = captures.load_exchange(name)
    assert ack.data == bytes(4)
    async with open_replay(request.data) as (replay, listener):
        assert await replay.push(request.data) == by_scenario(REFUSALS, name)
        with trio.move_on_after(60) as scope:
            await listener.accept()
        assert scope.cancelled_caught, "no dial-back"
        assert _seen == []
        assert sum(samples(replay.worker).values()) == 1


async def unary(request: Any) -> AsyncIterator[Any]:
    yield {"unary": request}


@pytest.mark.parametrize("name", ["bidi_echo_data_1.6.1", "bidi_echo_unary2_1.6.1"])
async def test_an_endpoint_that_serves_both_answers_a_unary_request_to_it(name: str, autojump_clock: MockClock) -> None:
    """Released unary endpoints look at no request type; a request with a body is a unary one whatever it says."""
    request, _ = captures.load_exchange(name)
    async with open_replay(request.data, {"demo.backend.echo": [unary, echo]}) as (replay, listener):
        assert await replay.push(request.data) == ""
        assert b'"stream_type":"response"' in await replay.accept(listener)
        await replay.responses.next_frame()
        assert json.loads(frames_of(await replay.responses.next_frame())[0].body)["data"]["data"].keys() == {"unary"}


# -- the single vectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.3.1", "1.4.2", "1.6.1"])
async def test_a_captured_conversation_of_each_release_is_answered_with_the_same_bytes(
    version: str, autojump_clock: MockClock
) -> None:
    request = captures.load(f"bidi-request-{version}").data
    async with open_replay(request, {"demo.backend.chat": chat}) as (replay, listener):
        assert await replay.push(request) == ""
        handshake = await replay.accept(listener)
        assert handshake == captures.load(f"bidi-request-stream-worker-bytes-{version}").data
        response = await replay.accept(listener)
        await replay.requests.send(captures.load(f"bidi-request-stream-client-bytes-{version}").data)
        while not response.endswith(b'"sentinel"'):
            response += await replay.responses.next_frame()
        assert response == captures.load(f"bidi-response-{version}").data
        assert await replay.requests.rest() == []
