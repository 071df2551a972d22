"""A bidirectional call from the caller's side: what is sent, what is raised, and every way to leave."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

import ingress
from ingress import Context, MemoryDiscovery, RemoteError
from ingress.client._bidirectional import BidirectionalStream
from ingress.errors import (
    InputClosed,
    MessageTooLarge,
    NoDialBack,
    NoInstances,
    NotAccepted,
    StreamIncomplete,
    Unavailable,
)
from ingress.testing import MemoryNetwork, memory_worker
from ingress.wire.messages import ConnectionInfo, ErrorEvent
from ingress.wire.two_part import TwoPartDecoder, decode_two_part, encode_two_part

from . import captures
from .test_client_doubles import GENERATE, Call, DialBack, FakeWorker, open_stage

ENDPOINT = str(GENERATE)
SENTINEL = encode_two_part(b'"sentinel"')


# -- engines ----------------------------------------------------------------------------------------------------------


@ingress.bidirectional
async def echo(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    count = 0
    async for request in requests:
        count += 1
        yield {"echo": request}
    yield {"bye": count, "metadata": dict(context.metadata)}


@ingress.bidirectional
async def first_only(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield await anext(requests)


class Watched:
    """An echo that remembers how its last request ended."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []

    @ingress.bidirectional
    async def __call__(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        self.contexts.append(context)
        async for request in requests:
            yield request
        await trio.sleep_forever()

    @property
    def fate(self) -> str:
        (context,) = self.contexts
        return "killed" if context.is_killed else "stopped" if context.is_stopped else "running"


# -- a whole conversation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_requests_go_out_and_responses_come_in_each_at_its_own_pace(codec: Any) -> None:
    async with (
        memory_worker(echo, client_options={"codec": codec}) as client,
        client.open_bidirectional(ENDPOINT, request_id="r1", metadata={"k": "v"}) as call,
    ):
        assert call.request_id == "r1"
        assert call.instance_id == client.instances()[0].instance_id
        for value in ({"a": 1}, "text", 7, None, [1.5, True]):
            await call.send(value)
            assert await anext(call) == {"echo": value}
        await call.close_input()
        assert [response async for response in call] == [{"bye": 5, "metadata": {"k": "v"}}]
        assert [response async for response in call] == []


async def test_one_task_sends_while_another_iterates() -> None:
    async with memory_worker(echo) as client, client.open_bidirectional(ENDPOINT) as call:

        async def send() -> None:
            for i in range(2000):
                await call.send(i)
            await call.close_input()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            *echoes, bye = [response async for response in call]
        assert echoes == [{"echo": i} for i in range(2000)]
        assert bye["bye"] == 2000


async def test_the_envelopes_can_be_seen_as_well() -> None:
    @ingress.bidirectional
    async def annotate(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield ingress.Annotated(data=request, id="7", event="note", comment=["c"])

    async with memory_worker(annotate) as client, client.open_bidirectional(ENDPOINT) as call:
        await call.send(1)
        await call.close_input()
        assert [each async for each in call.annotated()] == [ingress.Annotated(1, "7", "note", ["c"])]


async def test_an_answer_may_come_without_any_input() -> None:
    @ingress.bidirectional
    async def greet(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield "hello"
        async for _ in requests:
            pass

    async with memory_worker(greet) as client, client.open_bidirectional(ENDPOINT) as call:
        assert await anext(call) == "hello"
        await call.close_input()
        assert [response async for response in call] == []


async def test_one_client_calls_both_kinds_of_an_endpoint() -> None:
    async def unary(request: Any) -> AsyncIterator[Any]:
        yield {"unary": request}

    async with memory_worker([unary, echo]) as client:  # type: ignore[arg-type,unused-ignore]  # EngineLike names no sequences
        async with client.stream(ENDPOINT, 1) as responses:
            assert [response async for response in responses] == [{"unary": 1}]
        async with client.open_bidirectional(ENDPOINT) as call:
            await call.send(1)
            assert await anext(call) == {"echo": 1}


# -- what is sent -----------------------------------------------------------------------------------------------------


class Worker:
    """A scripted worker's ends of both streams."""

    def __init__(self, requests: trio.abc.Stream, responses: DialBack) -> None:
        self.requests = requests
        self.responses = responses
        self._decoder = TwoPartDecoder()

    async def next_request(self) -> Any:
        """The next frame's JSON; its word as bytes; None at the end of the stream."""
        while (message := next(iter(self._decoder), None)) is None:
            if not (data := await self.requests.receive_some()):
                return None
            self._decoder.receive_data(data)
        return message.header if message.header else json.loads(message.body)


async def dial(call: Call, network: Any) -> trio.abc.Stream:
    """Dial the request stream and shake hands."""
    address = call.control.request_stream_connection_info
    info = ConnectionInfo.from_address(address)  # type: ignore[arg-type]  # it is set in a bidirectional request
    host, _, port = info.address.rpartition(":")
    stream: trio.abc.Stream = await network.connect(host, int(port))
    handshake = json.dumps({"subject": info.subject, "stream_type": "request"}).encode()
    await stream.send_all(encode_two_part(handshake))
    return stream


async def dial_both(call: Call) -> Worker:
    """Dial the streams in the order of released workers."""
    requests = await dial(call, call.network)
    return Worker(requests, await call.dial())


async def test_the_request_is_written_as_in_the_captures() -> None:
    """The keys of the control message in their order, no body, and the frames of the request stream byte for byte."""
    seen: list[bytes] = []

    async def script(call: Call) -> None:
        worker = await dial_both(call)
        received = b""
        while not received.endswith(b'"sentinel"'):
            received += await worker.requests.receive_some()
        seen.append(received)
        await worker.responses.send(worker.responses.sender.final())
        await worker.responses.words()

    request = captures.load("bidi-request-1.6.1")
    sent = captures.load("bidi-request-stream-client-bytes-1.6.1").data
    async with open_stage(script) as stage:
        async with stage.client.open_bidirectional(GENERATE, request_id="r7") as call:
            await call.send({"x": 1})
            await call.send({"x": 2})
            await call.close_input()
            assert [response async for response in call] == []
        (frame,) = [call.frame for call in stage.worker.calls]
        payload = decode_two_part(frame.payload)
        assert payload.body == b""
        control = json.loads(payload.header)
        captured = request.decoded["control"]
        assert list(control) == list(captured)
        for name in ("connection_info", "request_stream_connection_info"):
            ours, theirs = (json.loads(each[name]["info"]) for each in (control, captured))
            assert list(ours) == list(theirs)
            assert ours["stream_type"] == theirs["stream_type"]
            assert ours["context"] == control["id"] == "r7"
            assert ours["address"] == stage.client.address
            control[name] = captured[name] = None
        assert control == {**captured, "id": "r7"}
    assert seen == [sent]


async def test_what_the_codec_cannot_hold_is_refused_and_the_call_goes_on() -> None:
    async with memory_worker(echo) as client, client.open_bidirectional(ENDPOINT) as call:
        for value in (object(), {1: {2: object()}}, 1 << 80):
            with pytest.raises(TypeError, match="request cannot be encoded as msgpack"):
                await call.send(value)
        await call.send("next")
        assert await anext(call) == {"echo": "next"}


async def test_a_request_above_the_limit_is_refused_and_nothing_of_it_is_sent() -> None:
    @ingress.bidirectional
    async def measure(requests: AsyncIterator[str]) -> AsyncIterator[int]:
        async for request in requests:
            yield len(request)

    options = {"max_message_size": 2000, "codec": "json"}
    async with memory_worker(measure, client_options=options) as client, client.open_bidirectional(ENDPOINT) as call:
        with pytest.raises(MessageTooLarge) as caught:
            await call.send("x" * (2000 - 24 - 1))  # and two quotation marks
        assert (caught.value.size, caught.value.limit) == (2001, 2000)
        await call.send("x" * (2000 - 24 - 2))
        assert await anext(call) == 1974


# -- the end of the input ---------------------------------------------------------------------------------------------


async def test_closing_the_input_twice_sends_one_sentinel_and_sending_after_it_is_refused() -> None:
    frames: list[Any] = []

    async def script(call: Call) -> None:
        worker = await dial_both(call)
        while (frame := await worker.next_request()) is not None:
            frames.append(frame)

    async with open_stage(script) as stage:
        async with stage.client.open_bidirectional(GENERATE) as call:
            await call.send(1)
            await call.close_input()
            await call.close_input()
            with pytest.raises(InputClosed, match="was closed"):
                await call.send(2)
        await wait_all_tasks_blocked()
        assert frames == [1, b'"sentinel"']


async def test_a_worker_that_ends_first_takes_no_more_input_and_its_answer_is_whole() -> None:
    async with memory_worker(first_only) as client, client.open_bidirectional(ENDPOINT) as call:
        await call.send(1)
        assert [response async for response in call] == [1]
        await wait_all_tasks_blocked()
        with pytest.raises(InputClosed, match="takes no more input"):
            await call.send(2)
        with pytest.raises(InputClosed):
            await call.send(3)
        await call.close_input()  # no error: there is none to close


async def test_a_send_that_waits_ends_when_the_worker_ends_first(autojump_clock: MockClock) -> None:
    async with open_lockstep_worker(first_only) as client, client.open_bidirectional(ENDPOINT) as call:
        answers: list[Any] = []

        async def iterate() -> None:
            async for response in call:
                answers.append(response)

        async with trio.open_nursery() as nursery:
            with trio.fail_after(5):
                nursery.start_soon(iterate)
                with pytest.raises(InputClosed):
                    while True:
                        await call.send("x" * 100_000)
        assert len(answers) == 1


def lockstep_network() -> MemoryNetwork:
    """A network whose connections hold nothing: what is not read is not taken."""
    return MemoryNetwork(trio.testing.lockstep_stream_pair)


@asynccontextmanager
async def open_lockstep_worker(engine: Any) -> AsyncIterator[ingress.Client]:
    network, discovery = lockstep_network(), MemoryDiscovery()
    async with (
        ingress.serving(engine, network=network, discovery=discovery, linger=0.0, drain_budget=0.0),
        ingress.open_client(network=network, discovery=discovery) as client,
    ):
        yield client


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_leaving_early_kills() -> None:
    engine = Watched()
    async with memory_worker(engine) as client:
        async with client.open_bidirectional(ENDPOINT) as call:
            await call.send(1)
            assert await anext(call) == 1
        await wait_all_tasks_blocked()
        assert engine.fate == "killed"


async def test_a_body_that_raises_kills_and_its_exception_arrives_as_it_is() -> None:
    engine = Watched()
    async with memory_worker(engine) as client:
        with pytest.raises(KeyError):
            async with client.open_bidirectional(ENDPOINT):
                raise KeyError("mine")
        await wait_all_tasks_blocked()
        assert engine.fate == "killed"


async def test_leaving_after_the_input_was_closed_kills_what_still_runs() -> None:
    engine = Watched()
    async with memory_worker(engine) as client:
        async with client.open_bidirectional(ENDPOINT) as call:
            await call.close_input()
        await wait_all_tasks_blocked()
        assert engine.fate == "killed"


async def test_leaving_after_a_whole_answer_is_no_cancellation() -> None:
    async with memory_worker(echo) as client:
        for _ in range(3):
            async with client.open_bidirectional(ENDPOINT) as call:
                await call.send(1)
                await call.close_input()
                assert len([response async for response in call]) == 2
        network = client._call_home
        assert not network._appointments


async def test_stop_ends_both_directions_and_the_iteration() -> None:
    engine = Watched()
    async with memory_worker(engine) as client, client.open_bidirectional(ENDPOINT) as call:
        await call.send(1)
        assert await anext(call) == 1
        await call.stop()
        assert [response async for response in call] == []
        assert engine.fate == "stopped"
        with pytest.raises(InputClosed):
            await call.send(2)
        await call.close_input()
        await call.stop()


async def test_stop_from_another_task_ends_a_send_that_waits(autojump_clock: MockClock) -> None:
    @ingress.bidirectional
    async def deaf(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield "listening"
        await trio.sleep(1000)

    async with open_lockstep_worker(deaf) as client, client.open_bidirectional(ENDPOINT) as call:
        assert await anext(call) == "listening"

        async def stop_later() -> None:
            await trio.sleep(3)
            await call.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_later)
            with pytest.raises(InputClosed):
                while True:
                    await call.send("x" * 100_000)
        assert trio.current_time() < 5


async def test_a_send_that_is_cancelled_ends_the_call_and_says_so(autojump_clock: MockClock) -> None:
    """Half a frame may have gone out, and another one behind it would be read as its rest."""
    engine = Watched()

    @ingress.bidirectional
    async def deaf(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        engine.contexts.append(context)
        yield "listening"
        await trio.sleep(1000)

    async with open_lockstep_worker(deaf) as client:
        async with client.open_bidirectional(ENDPOINT) as call:
            assert await anext(call) == "listening"
            with trio.move_on_after(1) as scope:
                while True:
                    await call.send("x" * 100_000)
            assert scope.cancelled_caught
            with pytest.raises(InputClosed):
                await call.send(1)
            await call.close_input()
            for iterate in (call, call.annotated()):
                with pytest.raises(StreamIncomplete, match="cancelled send"):
                    await anext(iterate)
            await wait_all_tasks_blocked()
            assert engine.fate == "killed"
        # It was this client's doing, so the instance is not set aside for it.
        async with client.open_bidirectional(ENDPOINT) as call:
            assert await anext(call) == "listening"


async def test_a_send_that_is_cancelled_after_the_answer_takes_nothing_back() -> None:
    async with memory_worker(first_only) as client, client.open_bidirectional(ENDPOINT) as call:
        await call.send(1)
        assert [response async for response in call] == [1]
        with trio.CancelScope() as scope:
            scope.cancel()
            await call.send(2)
        assert [response async for response in call] == []


async def test_a_cancelled_iteration_can_be_resumed(autojump_clock: MockClock) -> None:
    async with memory_worker(echo) as client, client.open_bidirectional(ENDPOINT) as call:
        with trio.move_on_after(1):
            await anext(call)
        await call.send(1)
        assert await anext(call) == {"echo": 1}


async def test_closing_the_client_ends_every_call_and_every_send_that_waits(autojump_clock: MockClock) -> None:
    @ingress.bidirectional
    async def deaf(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield "listening"
        await trio.sleep(1000)

    outcomes: list[str] = []

    async def converse(client: ingress.Client, *, task_status: trio.TaskStatus[None]) -> None:
        async with client.open_bidirectional(ENDPOINT) as call:
            assert await anext(call) == "listening"
            task_status.started()
            try:
                while True:
                    await call.send("x" * 100_000)
            except InputClosed:
                outcomes.append("closed")

    async with trio.open_nursery() as nursery:
        network, discovery = lockstep_network(), MemoryDiscovery()
        async with ingress.serving(deaf, network=network, discovery=discovery, linger=0.0, drain_budget=0.0):
            async with ingress.open_client(network=network, discovery=discovery) as client:
                await nursery.start(converse, client)
                await wait_all_tasks_blocked()
            with trio.fail_after(5):
                await wait_all_tasks_blocked()
            assert outcomes == ["closed"]


async def test_closing_the_client_ends_a_send_to_a_worker_that_does_nothing_any_more(
    autojump_clock: MockClock,
) -> None:
    network, discovery = lockstep_network(), MemoryDiscovery()
    outcomes: list[str] = []

    async def script(call: Call) -> None:
        await dial_both(call)
        await trio.sleep_forever()

    async def converse(client: ingress.Client, *, task_status: trio.TaskStatus[None]) -> None:
        async with client.open_bidirectional(ENDPOINT) as call:
            task_status.started()
            try:
                await call.send(1)
            except InputClosed:
                outcomes.append("closed")

    async with trio.open_nursery() as nursery:
        worker = FakeWorker(network, discovery, script)
        await nursery.start(worker.serve)
        async with ingress.open_client(network=network, discovery=discovery) as client:
            await nursery.start(converse, client)
            await wait_all_tasks_blocked()
            assert outcomes == []
        await wait_all_tasks_blocked()
        assert outcomes == ["closed"]
        nursery.cancel_scope.cancel()


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_what_the_engine_raises_is_a_remote_error() -> None:
    @ingress.bidirectional
    async def broken(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield await anext(requests)
        raise ValueError("boom")

    async with memory_worker(broken) as client, client.open_bidirectional(ENDPOINT) as call:
        await call.send(1)
        assert await anext(call) == 1
        with pytest.raises(RemoteError, match="ValueError: boom"):
            await anext(call)
        assert [response async for response in call] == []


async def test_an_endpoint_that_answers_no_bidirectional_requests_refuses_in_the_ack() -> None:
    async def unary(request: Any) -> AsyncIterator[Any]:
        yield request

    async with memory_worker(unary) as client:
        with pytest.raises(NotAccepted, match="unreadable control message"):
            async with client.open_bidirectional(ENDPOINT):
                pass


async def test_nobody_to_call_is_told_before_anything_is_sent() -> None:
    async with memory_worker(echo) as client:
        with pytest.raises(NoInstances):
            async with client.open_bidirectional("demo.backend.other"):
                pass
        with pytest.raises(ValueError, match="direct routing"):
            async with client.open_bidirectional(ENDPOINT, routing="direct"):
                pass


async def test_a_real_worker_that_falls_silent_is_given_up(autojump_clock: MockClock) -> None:
    async def script(call: Call) -> None:
        """What a released unary endpoint does with a header-only payload."""

    async with open_stage(script) as stage:
        with pytest.raises(NoDialBack, match="did not dial back"):
            async with stage.client.open_bidirectional(GENERATE):
                pass


async def test_a_worker_that_dials_for_the_response_alone_is_given_up(autojump_clock: MockClock) -> None:
    async def script(call: Call) -> None:
        await (await call.dial()).words()

    async with open_stage(script) as stage:
        started = trio.current_time()
        with pytest.raises(NoDialBack, match="for the request stream"):
            async with stage.client.open_bidirectional(GENERATE):
                pass
        assert trio.current_time() - started <= 10.5


async def test_a_worker_that_cannot_dial_for_the_requests_says_why(autojump_clock: MockClock) -> None:
    async def script(call: Call) -> None:
        responses = await call.dial()
        error = ErrorEvent.of_kind("CannotConnect", "dial-back failed: connection refused")
        await responses.items(ingress.Annotated.from_error(error))
        await responses.send(responses.sender.final())
        await responses.words()

    async with open_stage(script) as stage:
        with pytest.raises(RemoteError, match="connection refused"):
            async with stage.client.open_bidirectional(GENERATE):
                pass


async def test_streams_may_be_dialled_in_either_order() -> None:
    async def script(call: Call) -> None:
        responses = await call.dial()
        worker = Worker(await dial(call, call.network), responses)
        await responses.items(await worker.next_request())
        await responses.send(responses.sender.final())
        await responses.words()

    async with open_stage(script) as stage, stage.client.open_bidirectional(GENERATE) as call:
        await call.send("hello")
        assert [response async for response in call] == ["hello"]


async def test_streams_cannot_be_swapped() -> None:
    """The subject of one stream named with the type of the other is an appointment with nobody."""
    closed: list[bytes] = []

    async def script(call: Call) -> None:
        address = call.control.request_stream_connection_info
        info = ConnectionInfo.from_address(address)  # type: ignore[arg-type]  # the wrong type is the test
        host, _, port = info.address.rpartition(":")
        stream = await call.network.connect(host, int(port))
        await stream.send_all(
            encode_two_part(json.dumps({"subject": info.subject, "stream_type": "response"}).encode())
        )
        closed.append(bytes(await stream.receive_some()))
        await (await dial_both(call)).responses.words()

    async with open_stage(script) as stage, stage.client.open_bidirectional(GENERATE):
        assert closed == [b""]


async def test_a_worker_that_dies_breaks_off_both_directions() -> None:
    async def script(call: Call) -> None:
        worker = await dial_both(call)
        await worker.next_request()
        await worker.responses.items("one")
        await worker.requests.aclose()
        await worker.responses.reset()

    async with open_stage(script) as stage, stage.client.open_bidirectional(GENERATE) as call:
        await call.send(1)
        with pytest.raises(StreamIncomplete):
            async for _ in call:
                pass
        with pytest.raises(InputClosed):
            await call.send(2)


async def test_nothing_is_left_of_a_call_however_it_ends() -> None:
    for engine in (echo, first_only, Watched()):
        network, discovery = MemoryNetwork(), MemoryDiscovery()
        async with (
            ingress.serving(engine, network=network, discovery=discovery, linger=0.0, drain_budget=0.0) as worker,
            ingress.open_client(network=network, discovery=discovery) as client,
        ):
            for is_input_closed in (False, True):
                async with client.open_bidirectional(ENDPOINT) as call:
                    await call.send(1)
                    await anext(call)
                    if is_input_closed:
                        await call.close_input()
                await wait_all_tasks_blocked()
                assert len(worker.open_requests) == 0
                assert len(client._streams) == 0
            assert len(network.open_connections) <= 1  # the one that carries requests


async def test_a_whole_conversation_over_loopback() -> None:
    from ingress._network import TcpNetwork

    with trio.fail_after(30):
        async with (
            ingress.serving(
                echo, network=TcpNetwork(), discovery=(discovery := MemoryDiscovery()), linger=0.0, drain_budget=0.0
            ),
            ingress.open_client(discovery=discovery) as client,
            client.open_bidirectional(ENDPOINT) as call,
        ):
            assert isinstance(call, BidirectionalStream)

            async def send() -> None:
                for i in range(300):
                    await call.send({"i": i, "pad": "x" * 5000})
                await call.close_input()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                *echoes, bye = [response async for response in call]
            assert [each["echo"]["i"] for each in echoes] == list(range(300))
            assert bye["bye"] == 300
            with pytest.raises(InputClosed):
                await call.send("late")


async def test_a_late_send_over_loopback_is_refused_sooner_or_later() -> None:
    """The kernel takes the first bytes to a closed socket; it is the answer to them that tells."""
    with trio.fail_after(30):
        async with (
            ingress.serving(first_only, discovery=(discovery := MemoryDiscovery()), linger=0.0, drain_budget=0.0),
            ingress.open_client(discovery=discovery) as client,
            client.open_bidirectional(ENDPOINT) as call,
        ):
            await call.send(1)
            assert [response async for response in call] == [1]
            with pytest.raises(InputClosed):
                while True:
                    await call.send("late")
                    await trio.sleep(0.01)


async def test_a_worker_that_vanishes_while_it_is_called_is_unavailable(autojump_clock: MockClock) -> None:
    async def script(call: Call) -> None:
        stage.worker.withdraw()

    async with open_stage(script) as stage:
        with pytest.raises(Unavailable):
            async with stage.client.open_bidirectional(GENERATE):
                pass


# -- ingress call --bidi ----------------------------------------------------------------------------------------------

INGRESS = (sys.executable, "-m", "ingress")
PATIENCE = 20.0

ENGINES = """
import ingress, trio

@ingress.bidirectional
async def echo(requests, context):
    count = 0
    try:
        async for request in requests:
            count += 1
            yield {"echo": request}
        yield {"bye": count}
    finally:
        print("killed" if context.is_killed else "stopped" if context.is_stopped else "finished", flush=True)

@ingress.bidirectional
async def once(requests):
    yield await anext(requests)

@ingress.bidirectional
async def broken(requests):
    async for request in requests:
        raise ValueError("boom")
    yield
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes as POSIX has them")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "INGRESS_"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a store, and a worker beside it for all the commands of this module."""
    here = tmp_path_factory.mktemp("bidi")
    (here / "both.py").write_text(ENGINES)
    endpoints = [word for name in ("echo", "once", "broken") for word in ("--endpoint", name)]
    targets = [f"both.py:{name}" for name in ("echo", "once", "broken")]
    with (here / "log").open("wb") as log:
        process = subprocess.Popen(
            [*INGRESS, "serve", *targets, *endpoints, "--grace", "0", "--file-kv", "kv"],
            cwd=here,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while len(list((here / "kv").rglob("demo*"))) < 3:
            assert time.monotonic() < deadline and process.poll() is None, (here / "log").read_text()
            time.sleep(0.02)
        yield here
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def fates(place: Path) -> list[str]:
    lines = (place / "log").read_text().splitlines()
    return [line for line in lines if line in ("killed", "stopped", "finished")]


def wait_for_line(place: Path, text: str) -> str:
    """Return the first line of the worker's log that has the text, once there is one."""
    deadline = time.monotonic() + PATIENCE
    while not (found := [line for line in (place / "log").read_text().splitlines() if text in line]):
        assert time.monotonic() < deadline, (place / "log").read_text()
        time.sleep(0.02)
    return found[0]


@contextmanager
def calling(place: Path, endpoint: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """``ingress call --bidi`` with pipes for everything."""
    process = subprocess.Popen(
        [*INGRESS, "call", f"demo.backend.{endpoint}", "--bidi", "--file-kv", "kv", *arguments],
        cwd=place,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def call_with(place: Path, endpoint: str, text: bytes, *arguments: str) -> tuple[int, list[Any], list[str]]:
    """Send everything at once; the exit code, what came out, and what was complained of."""
    with calling(place, endpoint, *arguments) as process:
        out, err = process.communicate(text, PATIENCE)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode().splitlines()


@posix
def test_every_line_of_standard_input_is_a_request(place: Path) -> None:
    text = b'{"a":1}\n\n  \nhello there\n7\r\n{"broken":\n"\xc3\xa9"\n\xff\nnull\n[1,2]'
    code, out, err = call_with(place, "echo", text)
    assert (code, err) == (0, [])
    echoes = [{"a": 1}, "hello there", 7, '{"broken":', "é", "\ufffd", None, [1, 2]]
    assert out == [*({"echo": echo} for echo in echoes), {"bye": 8}]


@posix
def test_the_card_of_a_bidirectional_engine_ends_in_a_command_that_works(place: Path) -> None:
    suggested = wait_for_line(place, " call ")
    command = [*INGRESS, "call", *shlex.split(suggested.partition(" call ")[2])]
    finished = subprocess.run(
        command, cwd=place, env=environment(), input=b"1", capture_output=True, timeout=PATIENCE, check=False
    )
    assert finished.stdout == b'{"echo":1}\n{"bye":1}\n'


@posix
def test_an_empty_input_ends_the_requests_at_once(place: Path) -> None:
    assert call_with(place, "echo", b"") == (0, [{"bye": 0}], [])


@posix
def test_answers_are_printed_as_they_come_while_the_input_goes_on(place: Path) -> None:
    with calling(place, "echo") as process:
        assert process.stdin is not None and process.stdout is not None
        for i in range(3):
            process.stdin.write(f"{i}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"echo": i}
        out, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, json.loads(out)) == (0, {"bye": 3})


@posix
def test_an_answer_that_ends_first_ends_the_command_though_nobody_closes_its_input(place: Path) -> None:
    with calling(place, "once") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0
        assert (process.stdout.read(), process.stderr.read()) == (b"1\n", b"")


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_the_call_though_nobody_closes_its_input(place: Path, number: int, code: int) -> None:
    before = len(fates(place))
    with calling(place, "echo") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        assert process.stderr.read() == b""
    deadline = time.monotonic() + PATIENCE
    while fates(place)[before:] != ["killed"]:
        assert time.monotonic() < deadline, fates(place)[before:]
        time.sleep(0.01)


@posix
def test_stop_after_stops_the_conversation(place: Path) -> None:
    with calling(place, "echo", "--stop-after", "2") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"1\n2\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0
        assert process.stdout.read() == b'{"echo":1}\n{"echo":2}\n'
    # Not what the engine sees at its end: the command has left by then, perhaps.
    assert wait_for_line(place, "cancelled_by=stop")


@posix
def test_an_error_of_the_engine_is_told_and_ends_with_1(place: Path) -> None:
    code, out, err = call_with(place, "broken", b"1\n")
    assert (code, out) == (1, [])
    assert err[:2] == [
        "error: the worker answered with an error, before the first item",
        "  why: InvalidRequest: ValueError: boom",
    ]


@posix
def test_a_line_that_the_codec_cannot_hold_is_a_usage_error(place: Path) -> None:
    code, _, err = call_with(place, "echo", b"1\n123456789012345678901234567890\n")
    assert (code, err[0]) == (2, "error: the request cannot be sent")


@posix
def test_data_and_lines_exclude_each_other(place: Path) -> None:
    code, _, err = call_with(place, "echo", b"", "-d", "1")
    assert (code, err[0]) == (2, "error: --bidi and -d exclude each other")


@posix
def test_a_long_input_from_a_file_goes_both_ways(place: Path) -> None:
    (place / "lines").write_text("".join(f'{{"i":{i}}}\n' for i in range(3000)))
    with (place / "lines").open("rb") as lines:
        done = subprocess.run(
            [*INGRESS, "call", "demo.backend.echo", "--bidi", "--file-kv", "kv"],
            cwd=place,
            env=environment(),
            stdin=lines,
            capture_output=True,
            timeout=PATIENCE,
        )
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert out == [*({"echo": {"i": i}} for i in range(3000)), {"bye": 3000}]


@posix
def test_a_closed_standard_input_is_an_empty_one(place: Path) -> None:
    command = f"exec {sys.executable} -m ingress call demo.backend.echo --bidi --file-kv kv <&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=place, env=environment(), capture_output=True, timeout=PATIENCE, text=True
    )
    assert (done.returncode, done.stdout) == (0, '{"bye":0}\n'), done.stderr
