"""Deadlines and limits as settings: each is an argument, a flag and a variable, is checked at start, and is obeyed."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import WorkerOptions, make_worker
from ingress._context import RequestContext
from ingress._dial_guard import DialGuard
from ingress._dial_policy import DialPolicy
from ingress._dialback import DialBacks
from ingress._dialled import DialledStreams
from ingress._network import TcpListener, TcpNetwork
from ingress._request_memory import RequestMemory
from ingress._stream_limits import StreamLimits
from ingress.cli._worker_flags import WorkerFlags
from ingress.discovery import MemoryDiscovery
from ingress.errors import ResponseStreamError, StartupError
from ingress.status import StatusOptions
from ingress.testing import MemoryNetwork
from ingress.wire.messages import ConnectionInfo
from ingress.wire.records import EndpointId

from .raw_caller import open_stage, slow_network
from .serve_options import serve_options
from .test_dialback import BlackHole

DEADLINES = (
    "ack_write_timeout",
    "close_wait",
    "connect_timeout",
    "frame_timeout",
    "handshake_timeout",
    "idle_timeout",
    "write_stall_timeout",
)
COUNTS = (
    "max_connections",
    "max_connections_per_peer",
    "max_frame_size",
    "max_incomplete_bytes",
    "max_request_memory",
    "max_response_chunk",
)
DURATIONS = ("drain_budget", "linger", "stop_grace")


async def engine(request: Any) -> AsyncIterator[Any]:
    if request == "flood":
        while True:
            yield "x" * 1000
    yield request


# -- checked at start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEADLINES)
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "5", True])
def test_a_deadline_that_can_be_none_keeps_a_worker_from_starting(name: str, value: Any) -> None:
    with pytest.raises(StartupError) as caught:
        make_worker(engine, discovery=MemoryDiscovery(), **{name: value})
    assert str(caught.value) == f"{name}: expected finite seconds, more than 0, got {value!r}"


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True])
def test_a_limit_of_nothing_keeps_a_worker_from_starting(name: str, value: Any) -> None:
    with pytest.raises(StartupError) as caught:
        make_worker(engine, discovery=MemoryDiscovery(), **{name: value})
    assert str(caught.value) == f"{name}: expected a whole number, 1 or more, got {value!r}"


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan, None])
def test_a_duration_that_never_ends_keeps_a_worker_from_starting(name: str, value: Any) -> None:
    with pytest.raises(StartupError) as caught:
        make_worker(engine, discovery=MemoryDiscovery(), **{name: value})
    assert str(caught.value) == f"{name}: expected finite seconds, 0 or more, got {value!r}"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {name: 1e20}) for name in DURATIONS),
        ("loop_stall_limit", {"status": StatusOptions(loop_stall_limit=1e20)}),
    ],
)
def test_a_duration_that_no_thread_can_wait_for_keeps_a_worker_from_starting(
    name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(StartupError, match=f"^{name}: expected seconds, at most [0-9]+, got 1e[+]20$"):
        make_worker(engine, discovery=MemoryDiscovery(), **options)


# The flags that are named after something of Dynamo's.
RENAMED = {"linger": "grace", "max_frame_size": "max_message_size"}


@pytest.mark.parametrize("name", [*DEADLINES, *COUNTS, *DURATIONS])
def test_a_limit_is_a_flag_with_a_variable_and_the_default_of_the_argument(name: str) -> None:
    flag = f"--{RENAMED.get(name, name).replace('_', '-')}"
    [option] = [option for option in serve_options() if flag in option.flags]
    assert option.default == inspect.signature(WorkerOptions).parameters[name].default
    assert len(option.variables) == 1


def test_names_are_looked_up_where_the_flag_says_so() -> None:
    assert not WorkerFlags().keywords([])["dial_policy"].resolve_names
    assert WorkerFlags(resolve_names=True).keywords([])["dial_policy"].resolve_names


# -- obeyed ----------------------------------------------------------------------------------------------------------


async def test_d02_a_dial_back_is_given_up_at_its_connect_timeout(autojump_clock: MockClock) -> None:
    async with open_stage(engine, network=BlackHole(), connect_timeout=1.5) as stage:
        assert await stage.ask(stage.caller.payload(0, stage.caller.control(info={"address": "127.0.0.1:9999"}))) == ""
        await trio.sleep(1.4)
        assert stage.counted_ends() == {}
        await trio.sleep(0.2)
        assert stage.counted_ends() == {"response_stream": 1}


async def test_d07_a_caller_that_takes_nothing_is_given_up_at_the_write_stall_timeout(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(engine, network=slow_network(), write_stall_timeout=7.0) as stage:
        await stage.call("flood")
        await trio.sleep(6.9)
        assert stage.counted_ends() == {}
        await trio.sleep(0.2)
        assert stage.counted_ends() == {"publish_response": 1}


async def test_d11_a_caller_that_never_closes_is_closed_after_the_close_wait(autojump_clock: MockClock) -> None:
    async with open_stage(engine, close_wait=3.0) as stage:
        response = await stage.call(1)
        await response.read_to_sentinel()
        began = trio.current_time()
        assert (await response.read_to_end()).end == "fin"
        assert trio.current_time() - began == pytest.approx(3)


async def test_f12_a_caller_that_reads_no_ack_is_closed_after_the_ack_write_timeout(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(trio.testing.lockstep_stream_pair)
    async with open_stage(engine, network=network, ack_write_timeout=2.0) as stage:
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stage.connection.stream.send_all(bytes(6))  # refused: an empty path
        assert trio.current_time() == pytest.approx(2)


async def test_f13_a_frame_is_due_at_the_frame_timeout(autojump_clock: MockClock) -> None:
    async with open_stage(engine, frame_timeout=4.0) as stage:
        await stage.connection.stream.send_all(b"\0")
        assert await stage.connection.stream.receive_some() == b""
        assert trio.current_time() == pytest.approx(4)


async def test_f14_an_idle_connection_is_closed_after_the_idle_timeout(autojump_clock: MockClock) -> None:
    async with open_stage(engine, idle_timeout=6.0) as stage:
        assert await stage.connection.stream.receive_some() == b""
        assert trio.current_time() == pytest.approx(6)


async def test_a_caller_that_takes_no_handshake_of_a_request_stream_is_given_up(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(trio.testing.lockstep_stream_pair)
    context = RequestContext(request_id="r", endpoint=EndpointId("a", "b", "c"), metadata={}, headers={})
    address = ConnectionInfo("127.0.0.1:5000", "s", "r", "request").to_address()
    guard = DialGuard(DialPolicy("any"))
    async with await network.open_listener("127.0.0.1", 5000):
        dial_backs = DialBacks(network, DialledStreams(), guard, StreamLimits(handshake_timeout=2.5))
        async with dial_backs.of_request(context, "127.0.0.1", lambda: RequestMemory().open(None)) as dial_back:
            with pytest.raises(ResponseStreamError, match="took no handshake"):
                await dial_back.open_request_stream(address, bytes)
        assert trio.current_time() == pytest.approx(2.5)
        assert network.open_connections == []


async def test_a_chunk_above_the_limit_is_the_engines_failure() -> None:
    async with open_stage(engine, max_response_chunk=500) as stage:
        assert (await stage.tell("x" * 400)).errors == []
        [error] = (await stage.tell("x" * 600)).errors
        assert "the limit is 500 bytes" in error.message
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"generate": 1}


@pytest.mark.skipif(not hasattr(trio.socket, "TCP_USER_TIMEOUT"), reason="the system has no user timeout")
@pytest.mark.parametrize(("stall", "expected"), [(5.0, 63_000), (300.0, 303_000)])
async def test_d13_the_kernel_does_not_give_a_peer_up_before_the_write_stall_timeout(
    stall: float, expected: int
) -> None:
    worker = make_worker({"a.b.c": engine}, discovery=MemoryDiscovery(), write_stall_timeout=stall)
    network = worker._network
    assert isinstance(network, TcpNetwork)
    async with await network.open_listener("127.0.0.1", 0) as listener:
        assert isinstance(listener, TcpListener)
        async with await network.connect(*listener.address) as ours, await listener.accept() as theirs:
            for stream in (ours, theirs):
                timeout = stream._raw.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_USER_TIMEOUT)
                assert timeout == expected
