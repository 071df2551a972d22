"""The bidirectional shape: its three methods, the engines it serves, and whole conversations through a worker."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

import ingress
from ingress import Context, Engine, MemoryDiscovery, ParsedRequest, serving
from ingress._context import RequestContext
from ingress._dial_guard import DialGuard
from ingress._dial_policy import DialPolicy
from ingress._dialback import DialBacks
from ingress._dialled import DialledStreams
from ingress._engine import make_engine
from ingress._request_memory import HeldMemory, RequestMemory
from ingress.errors import (
    DeserializationError,
    InvalidMessage,
    PluginError,
    ResponseStreamError,
    StartupError,
)
from ingress.testing import MemoryNetwork
from ingress.testing._memory import MemoryStream, StreamPair
from ingress.wire.codec import codec_named
from ingress.wire.messages import ConnectionInfo, ControlWord, RequestControlMessage, StreamAddress
from ingress.wire.records import EndpointId
from ingress.wire.two_part import PREFIX, encode_two_part
from shapes import HeaderAndData, HeaderOnly

from .raw_caller import RawCaller, RawConnection, RawResponse, open_raw_caller
from .test_bidirectional_captures import Socket, samples
from .test_request_memory import watch_discarded

SENTINEL = encode_two_part(ControlWord.SENTINEL.encode())
STOP = encode_two_part(ControlWord.STOP.encode())
KILL = encode_two_part(ControlWord.KILL.encode())

HOST = "127.0.0.1"


def frame(value: Any, codec: str = "json") -> bytes:
    return encode_two_part(body=codec_named(codec).encode(value))


def chunk(value: Any) -> bytes:
    return encode_two_part(body=codec_named("json").encode_item(value))


PROLOGUE = encode_two_part(b'{"error":null}')
FINAL = encode_two_part(body=b'{"complete_final":true}')


# -- the shape alone --------------------------------------------------------------------------------------------------


def address(request_id: str = "r", stream_type: Any = "request", subject: str = "s2", port: int = 5) -> StreamAddress:
    return ConnectionInfo(f"{HOST}:{port}", subject, request_id, stream_type).to_address()


def control(**fields: Any) -> RequestControlMessage:
    given: dict[str, Any] = {
        "id": "r",
        "request_type": "many_in",
        "response_type": "many_out",
        "connection_info": address(stream_type="response", subject="s1"),
        "payload_codec": "json",
        "request_stream_connection_info": address(),
        **fields,
    }
    return RequestControlMessage(**{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize(
    ("payload", "is_accepted"),
    [
        (encode_two_part(b"{}"), True),
        (encode_two_part(b"{}", b"{}"), False),
        (encode_two_part(body=b"{}"), False),
        (bytes(24), False),
        (encode_two_part(b"{}")[:23], False),
        (b"", False),
        (PREFIX.pack(2**63, 0, 0), True),  # a look at the framing alone; reading it will refuse it
    ],
)
def test_a_payload_with_a_header_and_nothing_else_is_of_this_shape(payload: bytes, is_accepted: bool) -> None:
    assert HeaderOnly().accepts(payload) is is_accepted
    assert not (is_accepted and HeaderAndData().accepts(payload))


def test_the_control_message_is_read_with_both_addresses() -> None:
    shape = HeaderOnly()
    read = shape.read_control(encode_two_part(control().encode()))
    assert read == control()
    assert shape.request_streams(read) == [address()]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (control(request_type="single_in").encode(), "expected request type many_in, got single_in"),
        (control(request_stream_connection_info=None).encode(), "no request_stream_connection_info"),
        (b"{}", "control message"),
        (b"\xff", "control message"),
        (b'"sentinel"', "control message"),
    ],
)
def test_a_control_message_that_does_not_ask_for_a_request_stream_is_refused(header: bytes, text: str) -> None:
    with pytest.raises(DeserializationError, match=text):
        HeaderOnly().read_control(encode_two_part(header))


def test_lying_lengths_are_refused() -> None:
    with pytest.raises(InvalidMessage, match="announces"):
        HeaderOnly().read_control(PREFIX.pack(2**63, 0, 0) + b"{}")


def test_a_checksum_is_looked_at_only_when_asked_for() -> None:
    header = control().encode()
    payload = PREFIX.pack(len(header), 0, 12345) + header
    assert HeaderOnly().read_control(payload) == control()
    with pytest.raises(InvalidMessage, match="checksum"):
        HeaderOnly(verify_checksum=True).read_control(payload)


class RecordingDialer:
    """Implements :class:`ingress.abc.Dialer` without a network."""

    def __init__(self) -> None:
        self.dialled: list[StreamAddress] = []

    async def open_request_stream(self, stream: StreamAddress, decode: Callable[[bytes], Any]) -> AsyncIterable[Any]:
        self.dialled.append(stream)

        async def frames() -> AsyncIterator[Any]:
            yield decode(b"\x01")

        return frames()


async def test_the_request_is_the_stream_in_the_codec_of_the_request() -> None:
    dialer = RecordingDialer()
    asked = control(payload_codec="msgpack")
    parsed: ParsedRequest[AsyncIterable[Any]] = await HeaderOnly().parse_and_build_request(b"", asked, dialer)
    assert parsed.control == asked
    assert dialer.dialled == [address()]
    assert [request async for request in parsed.request] == [1]


async def test_a_request_without_a_codec_is_json() -> None:
    parsed = await HeaderOnly().parse_and_build_request(b"", control(payload_codec=None), RecordingDialer())
    with pytest.raises(DeserializationError, match="JSON"):
        assert [request async for request in parsed.request]


# -- the engines ------------------------------------------------------------------------------------------------------


@ingress.bidirectional
async def echo(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield request


@ingress.bidirectional
async def echo_with_id(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield {context.id: request}


async def unary(request: Any) -> AsyncIterator[Any]:
    yield {"unary": request}


class Both(Engine):
    """One object for both kinds of requests."""

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield {"unary": request}

    async def generate_bidirectional(self, requests: AsyncIterable[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            yield {"both ways": request}


class Method:
    async def echo(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    @ingress.bidirectional
    async def marked(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


class Callee:
    @ingress.bidirectional
    async def __call__(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


@ingress.bidirectional
async def prefixed(prefix: str, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield prefix + request


def passed_through(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@pytest.mark.parametrize(
    ("target", "is_unary", "is_bidirectional"),
    [
        (echo, False, True),
        (echo_with_id, False, True),
        (unary, True, False),
        ([unary, echo], True, True),
        ((echo, unary), True, True),
        (Both, True, True),
        (Both(), True, True),
        (ingress.bidirectional(Method().echo), False, True),
        (Method().marked, False, True),
        (Callee(), False, True),
        (functools.partial(prefixed, ">"), False, True),
        (functools.partial(functools.partial(prefixed), ">"), False, True),
        (passed_through(echo), False, True),
        ([make_engine(unary), make_engine(echo)], True, True),
    ],
    ids=itertools.count(1),
)
def test_an_engine_is_what_its_functions_are(target: Any, is_unary: bool, is_bidirectional: bool) -> None:
    engine = make_engine(target)
    assert (engine.is_unary, engine.is_bidirectional) == (is_unary, is_bidirectional)
    assert HeaderOnly().can_serve(engine) is is_bidirectional
    assert HeaderAndData().can_serve(engine) is is_unary


def test_marking_a_bound_method_marks_nobody_elses() -> None:
    method = Method()
    ingress.bidirectional(method.echo)
    assert not make_engine(method.echo).is_bidirectional


def no_generator(requests: Any) -> Any:
    return requests


async def a_coroutine(requests: Any) -> Any:
    return requests


def a_sync_generator(requests: Any) -> Any:
    yield requests


@pytest.mark.parametrize("function", [no_generator, a_coroutine, a_sync_generator])
def test_only_an_async_generator_function_can_answer_both_ways(function: Any) -> None:
    with pytest.raises(StartupError, match=f"{function.__name__}.*must be an async generator function"):
        ingress.bidirectional(function)


@pytest.mark.parametrize("targets", [[echo, echo_with_id], [unary, unary], [Both(), echo], [Both(), unary]])
def test_two_engines_of_one_kind_cannot_share_an_endpoint(targets: list[Any]) -> None:
    with pytest.raises(StartupError, match="would answer the same requests"):
        make_engine(targets)


@pytest.mark.parametrize("targets", [[], [[unary]], [unary, 7]])
def test_what_is_no_engine_is_refused_in_a_list_as_well(targets: Any) -> None:
    with pytest.raises(StartupError, match="is no engine"):
        make_engine(targets)


def test_an_engine_without_either_method_is_refused() -> None:
    class Neither(Engine):
        pass

    with pytest.raises(StartupError, match="Neither must implement generate or generate_bidirectional"):
        make_engine(Neither())


def test_asking_an_engine_for_what_it_does_not_offer_says_so() -> None:
    context: Any = None
    with pytest.raises(NotImplementedError, match="no bidirectional requests"):
        make_engine(unary).generate_bidirectional(AsyncIteratorOfNothing(), context)
    with pytest.raises(NotImplementedError, match="no unary requests"):
        make_engine(echo).generate(1, context)


class AsyncIteratorOfNothing:
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        raise StopAsyncIteration


async def test_both_engines_of_an_endpoint_have_their_life() -> None:
    lives: list[str] = []

    class OneWay(Engine):
        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            yield request

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            lives.append("one way begins")
            yield
            lives.append("one way ends")

    class BothWays(Engine):
        async def generate_bidirectional(self, requests: AsyncIterable[Any], context: Context) -> AsyncIterator[Any]:
            async for request in requests:
                yield request

        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            lives.append("both ways begins")
            yield
            lives.append("both ways ends")

    async with make_engine([OneWay(), BothWays()]).lifespan():
        assert lives == ["one way begins", "both ways begins"]
    assert lives[2:] == ["both ways ends", "one way ends"]


# -- through a worker -------------------------------------------------------------------------------------------------

_ids = itertools.count(1)


@define
class Conversation:
    """The caller's ends of both sockets."""

    requests: Socket
    responses: Socket

    async def both_end(self) -> tuple[list[bytes], list[bytes]]:
        return await self.requests.rest(), await self.responses.rest()


@define
class Stage:
    worker: ingress.Worker
    caller: RawCaller
    connection: RawConnection
    sockets: list[Socket] = field(factory=list)

    async def accept(self) -> Socket:
        self.sockets.append(Socket(await self.caller.listener.accept()))
        return self.sockets[-1]

    def control(self, request_id: str, **fields: Any) -> RequestControlMessage:
        _, port = self.caller.network.local_address(self.caller.listener)
        return control(
            **{
                "id": request_id,
                "connection_info": address(request_id, "response", "subject-1", port),
                "request_stream_connection_info": address(request_id, "request", "subject-2", port),
                **fields,
            },
        )

    async def ask(self, **fields: Any) -> str:
        return await self.connection.ask(encode_two_part(self.control(f"request-{next(_ids)}", **fields).encode()))

    async def open(self, **fields: Any) -> Conversation:
        assert await self.ask(**fields) == ""
        requests = await self.accept()
        assert await requests.next_frame() == encode_two_part(b'{"subject":"subject-2","stream_type":"request"}')
        responses = await self.accept()
        assert await responses.next_frame() == encode_two_part(b'{"subject":"subject-1","stream_type":"response"}')
        return Conversation(requests, responses)

    def counted_ends(self) -> dict[str, float]:
        return samples(self.worker)


@asynccontextmanager
async def open_stage(engine: Any, *, network: Any = None, **options: Any) -> AsyncIterator[Stage]:
    network = MemoryNetwork() if network is None else network
    options = {"discovery": MemoryDiscovery(), "linger": 0.0, "drain_budget": 0.0, **options}
    async with open_raw_caller(network) as caller, serving(engine, network=network, **options) as worker:
        stage = Stage(worker, caller, await caller.connect(worker))
        yield stage
        for socket in stage.sockets:
            await trio.aclose_forcefully(socket.stream)
        await trio.aclose_forcefully(stage.connection.stream)
        await caller.close_all()


async def test_l04_a_conversation_takes_two_descriptors_until_both_streams_are_closed() -> None:
    async with open_stage(echo) as stage:
        descriptors = stage.worker._streams.descriptors
        descriptors.set_total(3)
        call = await stage.open()
        assert descriptors.held == 2
        assert await stage.ask() == "Server overloaded: worker is short of descriptors"
        await call.requests.send(SENTINEL)
        assert await call.requests.rest() == []
        await wait_all_tasks_blocked()
        assert descriptors.held == 1  # until its caller has closed it
        await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert descriptors.held == 0


async def test_l08_a_push_counts_its_own_bytes_as_long_as_its_conversation_lasts() -> None:
    async with open_stage(echo) as stage:
        call = await stage.open(metadata={"k": "v" * 12_000})
        assert await call.responses.next_frame() == PROLOGUE
        assert 12_000 < stage.worker.admission.request_memory.held < 50_000
        await call.requests.send(SENTINEL)


async def test_l08_input_for_which_there_is_no_memory_is_told_on_the_response_stream() -> None:
    go_on = trio.Event()

    @ingress.bidirectional
    async def slow(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield len(request)
            await go_on.wait()

    dense = frame([{} for _ in range(2400)])  # 9,600 bytes that become 170 KB
    async with open_stage(slow, max_frame_size=10_000, max_request_memory=1) as stage:
        memory = stage.worker.admission.request_memory
        call = await stage.open()
        await call.requests.send(dense * 9)
        assert await call.responses.next_frame() == PROLOGUE
        assert await call.responses.next_frame() == chunk(2400)
        assert await call.requests.rest() == []  # nobody reads it any more
        go_on.set()
        said = b"".join(await call.responses.rest())
        assert b"requests of one caller would take more than 1 MiB of memory" in said
        assert said.endswith(FINAL + SENTINEL)
        await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert (memory.held, len(stage.worker.open_requests)) == (0, 0)
        again = await stage.open()
        await again.requests.send(dense)
        assert await again.responses.next_frame() == PROLOGUE
        assert await again.responses.next_frame() == chunk(2400)


async def test_l08_input_that_finds_no_memory_is_no_failure_of_the_engine() -> None:
    go_on = trio.Event()

    @ingress.bidirectional
    async def late(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        await go_on.wait()
        async for request in requests:
            yield len(request)

    dense = frame([{} for _ in range(2400)])
    async with open_stage(late, max_frame_size=10_000, max_request_memory=1) as stage:
        call = await stage.open()
        await call.requests.send(dense * 9)
        assert await call.requests.rest() == []
        go_on.set()
        assert b"would take more than 1 MiB" in b"".join(await call.responses.rest())
        await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {}
        assert stage.worker.admission.request_memory.held == 0


async def test_l08_large_frames_of_a_caller_that_leaves_are_freed_in_their_turn() -> None:
    @ingress.bidirectional
    async def slow(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield len(request)
            await trio.sleep_forever()

    async with open_stage(slow) as stage:
        memory = stage.worker.admission.request_memory
        discarded = watch_discarded(memory)
        call = await stage.open()
        await call.requests.send(frame("x" * 50_000) * 3)
        assert await call.responses.next_frame() == PROLOGUE
        assert await call.responses.next_frame() == chunk(50_000)
        await wait_all_tasks_blocked()
        held = memory.held
        await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert discarded == [held // 3] * 3
        assert memory.held == 0


async def test_l08_a_push_too_small_to_count_takes_nothing_back_for_its_conversation() -> None:
    async with open_stage(echo) as stage:
        memory = stage.worker.admission.request_memory
        others = memory.open("127.0.0.9")
        others.take(memory.half - 10_000)
        calls = [await stage.open() for _ in range(3)]
        assert [await call.responses.next_frame() for call in calls] == [PROLOGUE] * 3
        assert memory.held == memory.half - 10_000
        await calls[0].requests.send(frame("x" * 1000))
        assert await calls[0].responses.next_frame() == chunk("x" * 1000)
        assert memory.held > memory.half - 10_000
        for call in calls:
            await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert memory._of_peers == {"127.0.0.9": memory.half - 10_000}


async def test_a_conversation_is_handshakes_prologue_chunks_final_sentinel() -> None:
    async with open_stage(echo) as stage:
        call = await stage.open()
        assert await call.responses.next_frame() == PROLOGUE  # before any input
        await call.requests.send(frame({"a": 1}))
        assert await call.responses.next_frame() == chunk({"a": 1})
        await call.requests.send(SENTINEL)
        assert await call.responses.next_frame() == FINAL
        assert await call.responses.next_frame() == SENTINEL
        assert await call.requests.rest() == []
        await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert len(stage.worker.open_requests) == 0
        assert stage.counted_ends() == {}


async def test_the_request_socket_is_closed_at_the_sentinel_while_the_answer_goes_on() -> None:
    go_on = trio.Event()

    @ingress.bidirectional
    async def answer_at_length(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for _ in requests:
            pass
        await go_on.wait()
        yield {"stopped": context.is_stopped}

    async with open_stage(answer_at_length) as stage:
        call = await stage.open()
        await call.requests.send(frame(1) + SENTINEL + frame("late"))
        assert await call.requests.rest() == []
        go_on.set()
        assert await call.responses.next_frame() == PROLOGUE
        assert await call.responses.next_frame() == chunk({"stopped": False})
        assert await call.responses.next_frame() == FINAL


async def test_frames_may_come_before_the_response_stream_is_dialled() -> None:
    """The worker sends nothing on the request stream but its handshake, so a caller may send at once."""
    async with open_stage(echo) as stage:
        assert await stage.ask() == ""
        requests = await stage.accept()
        await requests.send(frame(1) + frame(2) + SENTINEL)
        responses = await stage.accept()
        await responses.next_frame()
        frames = [await responses.next_frame() for _ in range(5)]
        assert frames == [PROLOGUE, chunk(1), chunk(2), FINAL, SENTINEL]


LEAVINGS: dict[str, tuple[str, Any]] = {
    "stop on the request stream": ("requests", STOP),
    "stop on the response stream": ("responses", STOP),
    "kill on the request stream": ("requests", KILL),
    "kill on the response stream": ("responses", KILL),
    "sentinel on the response stream": ("responses", SENTINEL),
    "an empty frame on the request stream": ("requests", bytes(24)),
    "end of the request stream": ("requests", "aclose"),
    "end of the response stream": ("responses", "aclose"),
    "reset of the request stream": ("requests", "reset"),
    "reset of the response stream": ("responses", "reset"),
}


async def leave(call: Conversation, how: str) -> None:
    which, act = LEAVINGS[how]
    socket = getattr(call, which)
    await (socket.send(act) if isinstance(act, bytes) else getattr(socket.stream, act)())


@pytest.mark.parametrize("how", LEAVINGS)
@pytest.mark.parametrize("is_input_over", [False, True])
async def test_both_sockets_close_at_once_however_long_the_engine_takes_to_clean_up(
    how: str, is_input_over: bool, autojump_clock: MockClock
) -> None:
    contexts: list[Context] = []

    @ingress.bidirectional
    async def slow_to_leave(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        contexts.append(context)
        try:
            async for _ in requests:
                pass
            await trio.sleep(math.inf)
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async with open_stage(slow_to_leave) as stage:
        call = await stage.open()
        assert await call.responses.next_frame() == PROLOGUE
        await call.requests.send(frame(1))
        if is_input_over:
            await call.requests.send(SENTINEL)
        await wait_all_tasks_blocked()
        started = trio.current_time()
        await leave(call, how)
        which, act = LEAVINGS[how]
        if is_input_over and which == "requests":
            await wait_all_tasks_blocked()
            assert not contexts[0].is_stopped, "the input was over, so nothing on its socket matters"
            return
        for name, socket in (("requests", call.requests), ("responses", call.responses)):
            if isinstance(act, bytes) or name != which:
                assert await socket.rest() == []
        assert trio.current_time() == started
        assert contexts[0].is_stopped
        assert contexts[0].is_killed is (act != STOP)
        assert len(stage.worker.open_requests) == 1  # still cleaning up
        await trio.sleep(5)
        assert len(stage.worker.open_requests) == 0
        assert stage.counted_ends() == {"cancellation": 1}


async def test_an_engine_that_yields_on_after_a_stop_reaches_nobody(autojump_clock: MockClock) -> None:
    @ingress.bidirectional
    async def stubborn(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for _ in requests:
                pass
        except trio.Cancelled:
            yield "one more"
            raise

    async with open_stage(stubborn) as stage:
        call = await stage.open()
        await call.requests.send(STOP)
        assert await call.both_end() == ([], [PROLOGUE])


@pytest.mark.parametrize("how", ["stop on the request stream", "stop on the response stream"])
async def test_with_a_stop_grace_the_input_ends_at_once_and_the_engine_may_say_its_last_words(
    how: str, autojump_clock: MockClock
) -> None:
    @ingress.bidirectional
    async def polite(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        count = 0
        async for _ in requests:
            count += 1
        yield {"count": count, "stopped": context.is_stopped}

    async with open_stage(polite, stop_grace=2.0) as stage:
        call = await stage.open()
        await call.requests.send(frame(1) + frame(2))
        await wait_all_tasks_blocked()
        await leave(call, how)
        assert await call.requests.rest() == []
        frames = [await call.responses.next_frame() for _ in range(4)]
        assert frames == [PROLOGUE, chunk({"count": 2, "stopped": True}), FINAL, SENTINEL]
        assert trio.current_time() < 1


async def test_a_stop_grace_has_an_end(autojump_clock: MockClock) -> None:
    @ingress.bidirectional
    async def deaf(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        await trio.sleep(math.inf)
        yield

    async with open_stage(deaf, stop_grace=2.0) as stage:
        call = await stage.open()
        started = trio.current_time()
        await call.requests.send(STOP)
        assert await call.requests.rest() == []
        assert trio.current_time() == started
        assert await call.responses.rest() == [PROLOGUE]
        assert trio.current_time() - started == pytest.approx(2)


async def test_an_engine_that_ends_before_its_input_closes_it_and_late_input_is_ignored() -> None:
    @ingress.bidirectional
    async def first_only(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield await anext(requests)

    async with open_stage(first_only) as stage:
        call = await stage.open()
        await call.requests.send(frame(1) + frame(2) + frame(3))
        frames = [await call.responses.next_frame() for _ in range(4)]
        assert frames == [PROLOGUE, chunk(1), FINAL, SENTINEL]
        assert await call.requests.rest() == []
        await call.requests.send(frame(4))
        await call.requests.stream.aclose()  # no sentinel was sent, and none is missed
        await call.responses.stream.aclose()
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {}


async def test_a_request_stream_that_ends_right_after_the_answer_takes_nothing_back(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(echo) as stage:
        call = await stage.open()
        await call.requests.send(SENTINEL)
        await call.requests.stream.aclose()
        assert await call.responses.next_frame() == PROLOGUE
        assert await call.responses.next_frame() == FINAL
        assert await call.responses.next_frame() == SENTINEL
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {}


async def test_an_engine_that_raises_is_told_like_any_other() -> None:
    @ingress.bidirectional
    async def broken(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield await anext(requests)
        raise ValueError("boom")

    async with open_stage(broken) as stage:
        call = await stage.open()
        await call.requests.send(frame(1))
        assert await call.responses.next_frame() == PROLOGUE
        assert await call.responses.next_frame() == chunk(1)
        assert b'"InvalidArgument"' in await call.responses.next_frame()
        assert await call.responses.next_frame() == FINAL
        assert await call.requests.rest() == []
        assert stage.counted_ends() == {"generate": 1}


async def test_an_endpoint_serves_unary_and_bidirectional_requests_side_by_side() -> None:
    for engine in ([unary, echo_with_id], Both()):
        async with open_stage(engine) as stage:
            call = await stage.open(id="r7", **addresses_for(stage, "r7"))
            await call.requests.send(frame("x") + SENTINEL)
            said = await stage.caller.call(stage.connection, "one")
            assert (await said.read_to_sentinel()).items == [{"unary": "one"}]
            await call.responses.next_frame()
            assert await call.responses.next_frame() in (chunk({"r7": "x"}), chunk({"both ways": "x"}))


def addresses_for(stage: Stage, request_id: str) -> dict[str, Any]:
    _, port = stage.caller.network.local_address(stage.caller.listener)
    return {
        "connection_info": address(request_id, "response", "subject-1", port),
        "request_stream_connection_info": address(request_id, "request", "subject-2", port),
    }


@pytest.mark.parametrize("engine", [unary, echo])
async def test_a_request_of_the_kind_that_is_not_served_is_refused_in_the_ack(engine: Any) -> None:
    async with open_stage(engine) as stage:
        many_in = encode_two_part(stage.control("r").encode())
        single_in = stage.caller.payload({"a": 1})
        payload = many_in if engine is unary else single_in
        assert await stage.connection.ask(payload) == "Server unavailable: unreadable control message"
        assert stage.counted_ends() == {"invalid_message": 1}


async def test_a_request_address_is_held_to_the_same_policy_as_a_response_address() -> None:
    async with open_stage(echo) as stage:
        for elsewhere in ("203.0.113.9:80", "localhost:80", "127.0.0.1:0", stage.worker.address):
            info = ConnectionInfo(elsewhere, "s", f"request-{next(_ids)}", "request")
            ack = await stage.ask(request_stream_connection_info=info.to_address())
            assert ack.startswith("Server unavailable: "), elsewhere
        assert isinstance(stage.caller.network, MemoryNetwork)
        assert len(stage.caller.network.connects) == 1  # the caller's own, to the worker
        assert stage.counted_ends() == {"response_stream": 4}


async def test_a_request_stream_that_cannot_be_dialled_is_told_on_the_response_stream() -> None:
    async with open_stage(echo) as stage:
        request_id = "r"
        assert (
            await stage.ask(
                id=request_id,
                **addresses_for(stage, request_id)
                | {"request_stream_connection_info": address(request_id, port=50009)},
            )
            == ""
        )
        response = RawResponse((await stage.accept()).stream)
        said = await response.read_to_sentinel()
        assert said.is_whole
        (error,) = said.errors
        assert error.kind == "CannotConnect" and "127.0.0.1:50009" in error.message
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"response_stream": 1}


async def test_a_request_stream_whose_dial_or_handshake_hangs_is_given_up(autojump_clock: MockClock) -> None:
    class Stuck(MemoryNetwork):
        async def connect(self, host: str, port: int) -> MemoryStream:
            if port == 50009:
                await trio.sleep_forever()
            if port == 50010:
                # Nobody reads the other end.
                return MemoryStream(trio.testing.lockstep_stream_pair()[0], lambda _: None)
            return await super().connect(host, port)

    async with open_stage(echo, network=Stuck()) as stage:
        for port, text in ((50009, "timed out"), (50010, "took no handshake")):
            request_id = f"r{port}"
            fields = addresses_for(stage, request_id) | {
                "request_stream_connection_info": address(request_id, port=port)
            }
            assert await stage.ask(id=request_id, **fields) == ""
            said = await RawResponse((await stage.accept()).stream).read_to_sentinel()
            assert text in said.errors[0].message


async def test_a_draining_worker_says_goodbye_to_a_conversation_over_its_budget(autojump_clock: MockClock) -> None:
    async with open_stage(echo, drain_budget=1.0) as stage:
        call = await stage.open()
        await call.requests.send(frame(1))
        await wait_all_tasks_blocked()
        stage.worker.drain()
        assert await call.requests.rest() == []
        frames = [await call.responses.next_frame() for _ in range(5)]
        assert frames[:2] == [PROLOGUE, chunk(1)]
        assert b'"EngineShutdown"' in frames[2]
        assert frames[3:] == [FINAL, SENTINEL]


async def test_a_draining_worker_lets_a_conversation_within_its_budget_finish(autojump_clock: MockClock) -> None:
    async with open_stage(echo, drain_budget=10.0) as stage:
        call = await stage.open()
        stage.worker.drain()
        await trio.sleep(2)
        await call.requests.send(frame(1) + SENTINEL)
        frames = [await call.responses.next_frame() for _ in range(4)]
        assert frames == [PROLOGUE, chunk(1), FINAL, SENTINEL]


async def test_a_caller_that_reads_no_answer_holds_back_its_own_input(autojump_clock: MockClock) -> None:
    """Back-pressure runs through: unread answers stop the engine, the engine its input, the input its caller."""
    network = MemoryNetwork(_slow_after_the_first())
    async with open_stage(echo, network=network) as stage, trio.open_nursery() as nursery:
        assert await stage.ask() == ""
        requests = await stage.accept()
        await requests.next_frame()
        responses = await stage.accept()
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(2000):
                await requests.stream.send_all(frame("x" * 10_000))
                sent += 1
            await requests.stream.send_all(SENTINEL)

        nursery.start_soon(send_all)
        await wait_all_tasks_blocked()
        held_at = sent
        assert 0 < held_at < 120  # of about 10 kB: two buffers of 256 KiB and change
        frames = 0
        while await responses.next_frame() != SENTINEL:
            frames += 1
        assert (sent, frames) == (2000, 2000 + 3)


def _slow_after_the_first() -> Callable[[], StreamPair]:
    made = itertools.count()

    def make_pair() -> StreamPair:
        return trio.testing.lockstep_stream_pair() if next(made) else trio.testing.memory_stream_pair()

    return make_pair


async def test_a_request_above_the_worker_s_limit_is_a_kill_as_soon_as_its_length_is_known() -> None:
    async with open_stage(echo, max_frame_size=2000) as stage:
        call = await stage.open()
        assert await call.responses.next_frame() == PROLOGUE
        fits = "x" * (2000 - 24 - 2)
        await call.requests.send(frame(fits))
        assert await call.responses.next_frame() == chunk(fits)
        await call.requests.send(frame(fits + "x")[:24])
        assert await call.both_end() == ([], [])
        assert stage.counted_ends() == {"cancellation": 1}


async def test_a_third_partys_decode_function_that_fails_ends_its_request_and_nothing_else() -> None:
    network = MemoryNetwork()
    context = RequestContext(request_id="r", endpoint=EndpointId("a", "b", "c"), metadata={}, headers={})

    def decode(body: bytes) -> Any:
        raise PluginError("no such codec")

    streams = DialledStreams()
    async with await network.open_listener(HOST, 5000) as listener, trio.open_nursery() as nursery:
        await nursery.start(streams.serve)
        with trio.fail_after(5):
            dial_backs = DialBacks(network, streams, DialGuard(DialPolicy("any")))
            async with dial_backs.of_request(context, HOST, open_memory) as dial_back:
                await dial_back.open_request_stream(request_stream(), decode)
                caller = await listener.accept()
                await caller.send_all(frame(1))
                await wait_all_tasks_blocked()
                assert context.is_killed
        nursery.cancel_scope.cancel()


def open_memory() -> HeldMemory:
    return RequestMemory().open(HOST)


def request_stream() -> StreamAddress:
    return ConnectionInfo(f"{HOST}:5000", "s2", "r", "request").to_address()


async def test_a_refused_request_stream_raises_before_anything_is_dialled() -> None:
    network = MemoryNetwork()
    context = RequestContext(request_id="r", endpoint=EndpointId("a", "b", "c"), metadata={}, headers={})

    guard = DialGuard(DialPolicy("cidr", allow=["10.0.0.0/8"]))
    dial_backs = DialBacks(network, DialledStreams(), guard)
    async with dial_backs.of_request(context, HOST, open_memory) as dial_back:
        with pytest.raises(ResponseStreamError, match="lies in none of dial_allow"):
            await dial_back.open_request_stream(request_stream(), bytes)
    assert network.connects == []


async def test_ten_thousand_frames_each_way_over_loopback() -> None:
    from ingress._network import TcpNetwork

    async with open_stage(echo, network=TcpNetwork()) as stage, trio.open_nursery() as nursery:
        with trio.fail_after(30):
            call = await stage.open(payload_codec="msgpack")

            async def send_all() -> None:
                for i in range(10_000):
                    await call.requests.stream.send_all(frame({"i": i}, "msgpack"))
                await call.requests.stream.send_all(SENTINEL)

            nursery.start_soon(send_all)
            codec = codec_named("msgpack")
            assert await call.responses.next_frame() == PROLOGUE
            for i in range(10_000):
                item = codec.decode_item((await call.responses.next_frame())[PREFIX.size :])
                assert item.annotated is not None and item.annotated.data == {"i": i}
            assert await call.responses.next_frame() == encode_two_part(body=codec.final)
            assert await call.requests.rest() == []


# -- both ends, in any order ------------------------------------------------------------------------------------------


@define
class Model:
    """What must be true of one conversation, whatever both ends do and in whatever order."""

    queued: list[int]
    """Sent by the caller and not yet taken by the engine."""

    taken: list[Any]
    heard: list[bytes]
    """What the caller has been sent on the response stream."""

    is_input_over: bool = False
    is_engine_over: bool = False
    ending: str = ""
    """``stopped`` or ``killed``: by the caller, before the engine was over."""

    is_waiting: bool = False
    """The engine has asked for input and there is none."""

    @property
    def is_open(self) -> bool:
        return not (self.is_engine_over or self.ending)

    def feed(self) -> None:
        """Give a waiting engine what there is."""
        if self.is_waiting and self.is_open and (self.queued or self.is_input_over):
            self.taken.append(self.queued.pop(0) if self.queued else "end")
            self.is_waiting = False


class BothEnds(RuleBasedStateMachine):
    """A caller made of sockets and an engine that does as it is told, beside the model.

    The rules move the model alone and write down what is to be done; at the end it is done, step by step, with a worker
    in memory, and after each step everything that can be seen must be as the model had it then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = Model([], [], [PROLOGUE])
        self.script: list[tuple[str, Any, Model]] = []
        self.counter = itertools.count()
        self.closed: set[str] = set()
        """The sockets the caller has closed or reset itself."""

    def write_down(self, act: str, argument: Any = None) -> None:
        self.model.feed()
        state = Model(
            list(self.model.queued),
            list(self.model.taken),
            list(self.model.heard),
            self.model.is_input_over,
            self.model.is_engine_over,
            self.model.ending,
            self.model.is_waiting,
        )
        self.script.append((act, argument, state))

    def end(self, how: str) -> None:
        if self.model.is_open:
            self.model.ending = how

    # The caller.

    @precondition(lambda self: "requests" not in self.closed)
    @rule()
    def send(self) -> None:
        value = next(self.counter)
        if self.model.is_open and not self.model.is_input_over:
            self.model.queued.append(value)
        self.write_down("send", frame(value))

    @precondition(lambda self: "requests" not in self.closed)
    @rule()
    def close_input(self) -> None:
        self.model.is_input_over = True
        self.write_down("send", SENTINEL)

    @precondition(lambda self: "requests" not in self.closed)
    @rule(
        word=st.sampled_from(
            [
                STOP,
                KILL,
                bytes(24),
                encode_two_part(b'"stop"', b"1"),
                encode_two_part(b'"?"'),
                encode_two_part(body=b"{"),
            ]
        )
    )
    def break_off_the_requests(self, word: bytes) -> None:
        if not self.model.is_input_over:
            self.end("stopped" if word == STOP else "killed")
        self.write_down("send", word)

    @precondition(lambda self: "responses" not in self.closed)
    @rule(word=st.sampled_from([STOP, KILL, SENTINEL, bytes(24), frame(1)]))
    def break_off_the_responses(self, word: bytes) -> None:
        self.end("stopped" if word == STOP else "killed")
        self.write_down("answer", word)

    @precondition(lambda self: "requests" not in self.closed)
    @rule(how=st.sampled_from(["aclose", "reset"]))
    def leave_the_requests(self, how: str) -> None:
        if not self.model.is_input_over:
            self.end("killed")
        self.closed.add("requests")
        self.write_down("leave", ("requests", how))

    @precondition(lambda self: "responses" not in self.closed)
    @rule(how=st.sampled_from(["aclose", "reset"]))
    def leave_the_responses(self, how: str) -> None:
        self.end("killed")
        self.closed.add("responses")
        self.write_down("leave", ("responses", how))

    @rule()
    def wait(self) -> None:
        """Nothing is done, and nothing may change."""
        self.write_down("wait")

    # The engine.

    @precondition(lambda self: self.model.is_open and not self.model.is_waiting)
    @rule()
    def take(self) -> None:
        self.model.is_waiting = True
        self.write_down("take")

    @precondition(lambda self: self.model.is_open and not self.model.is_waiting)
    @rule()
    def answer(self) -> None:
        value = next(self.counter)
        self.model.heard.append(chunk(value))
        self.write_down("yield", value)

    @precondition(lambda self: self.model.is_open and not self.model.is_waiting)
    @rule(fails=st.booleans())
    def finish(self, fails: bool) -> None:
        self.model.is_engine_over = True
        if fails:
            self.model.heard.append(b"boom")
        self.model.heard += [FINAL, SENTINEL]
        self.write_down("raise" if fails else "return")

    def teardown(self) -> None:
        if self.script:
            trio.run(play, self.script, clock=MockClock(autojump_threshold=0))


async def play(script: list[tuple[str, Any, Model]]) -> None:
    orders, ordered = trio.open_memory_channel[tuple[str, Any]](1)
    taken: list[Any] = []
    contexts: list[Context] = []

    @ingress.bidirectional
    async def obedient(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        contexts.append(context)
        async for act, argument in ordered:
            match act:
                case "take":
                    taken.append(await anext(requests, "end"))
                case "yield":
                    yield argument
                case "raise":
                    raise ValueError("boom")
                case "return":
                    return

    async with open_stage(obedient) as stage:
        call = await stage.open()
        heard: list[bytes] = []
        ended: set[str] = set()

        async def listen(name: str, socket: Socket) -> None:
            try:
                while data := await socket.next_frame(math.inf):
                    heard.append(b"boom" if b"boom" in data else data)
            except trio.ClosedResourceError:
                pass  # closed by this end
            else:
                ended.add(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, "responses", call.responses)
            nursery.start_soon(listen, "requests", call.requests)
            closed: set[str] = set()
            for act, argument, model in script:
                match act:
                    case "send":
                        await call.requests.send(argument)
                    case "answer":
                        await call.responses.send(argument)
                    case "leave":
                        which, how = argument
                        closed.add(which)
                        await getattr(getattr(call, which).stream, how)()
                    case "wait":
                        await trio.sleep(1)
                    case _:
                        await orders.send((act, argument))
                await wait_all_tasks_blocked()
                context = contexts[0]
                assert taken == model.taken
                assert heard == model.heard[: len(heard)]
                if "responses" not in closed:
                    assert heard == model.heard
                # Both sockets are closed once the caller has left; the request socket also at the end of the input or
                # of the answer; the response socket is the caller's to close, once the answer is whole.
                if "requests" not in closed:
                    assert ("requests" in ended) == bool(model.is_input_over or not model.is_open)
                if "responses" not in closed and model.is_open:
                    assert "responses" not in ended
                if "responses" not in closed and model.ending:
                    assert "responses" in ended
                if model.ending:
                    assert context.is_stopped
                    assert context.is_killed == (model.ending == "killed")
                    assert len(stage.worker.open_requests) == 0
                elif model.is_open:
                    assert not context.is_stopped
            last = script[-1][2]
            counted = {"cancellation": 1.0} if last.ending else {"generate": 1.0} if b"boom" in last.heard else {}
            assert stage.counted_ends() == counted
            nursery.cancel_scope.cancel()


TestBothEnds = BothEnds.TestCase


def test_the_bytes_of_a_whole_conversation_as_they_are_written_down() -> None:
    """The frames that the tests here compare with are those of the captures, not only what our encoder makes."""
    assert PROLOGUE.hex() == "000000000000000e000000000000000000000000000000007b226572726f72223a6e756c6c7d"
    assert FINAL[24:] == b'{"complete_final":true}' and FINAL[:24] == bytes(15) + b"\x17" + bytes(8)
    assert json.loads(chunk(1)[24:]) == {"data": {"data": 1}, "complete_final": False}
