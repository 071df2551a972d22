"""The client as a whole: what a caller writes, what a worker sees, and whatever can come between them."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import ingress.client
from ingress._network import TcpNetwork
from ingress.client import open_client
from ingress.discovery import MemoryDiscovery
from ingress.errors import (
    IngressError,
    LocalProtocolError,
    MessageTooLarge,
    NoDialBack,
    NoInstances,
    NotAccepted,
    Overloaded,
    RemoteError,
    StreamIncomplete,
    Unavailable,
)
from ingress.wire.messages import Annotated, ErrorEvent
from ingress.wire.two_part import decode_two_part
from tests.test_client_doubles import (
    GENERATE,
    Call,
    FakeWorker,
    MemoryNetwork,
    Stage,
    accept,
    answer,
    collect,
    echo,
    never_ack,
    open_stage,
    refuse,
    silence,
)

ENDPOINT = "demo.backend.generate"


async def say_id(call: Call) -> None:
    """Answer with the instance id that is in the path."""
    dial = await call.dial()
    await dial.items(int(call.frame.path.partition("/")[0], 16))
    await dial.send(dial.sender.final())
    await dial.words()


# -- what is sent ----------------------------------------------------------------------------------------------------


async def test_the_request_is_written_as_a_released_client_writes_it() -> None:
    """Docs/wire.md §3.1, capture ``request-metadata-1.6.1``: these keys in this order, compact, not escaped."""
    async with open_stage() as stage:
        await collect(stage, {"sc": "ok"}, request_id="a7703b9e", metadata={"k": "v", "é": "ü"})
        call = stage.worker.calls[0]
        message = decode_two_part(call.frame.payload)
        assert message.body == b'{"sc":"ok"}'
        info = call.control.connection_info.info
        assert message.header.decode() == (
            '{"id":"a7703b9e","request_type":"single_in","response_type":"many_out","payload_codec":"json",'
            '"connection_info":{"transport":"tcp_server","info":' + json.dumps(info) + "},"
            '"metadata":{"k":"v","é":"ü"}}'
        )
        assert json.loads(info) == {
            "address": stage.client.address,
            "subject": call.info.subject,
            "context": "a7703b9e",
            "stream_type": "response",
        }


async def test_empty_metadata_is_left_out_and_the_request_id_is_made_up() -> None:
    async with open_stage() as stage:
        async with stage.client.stream(ENDPOINT, 1) as responses:
            assert [item async for item in responses] == [1]
            assert responses.instance_id == 1
        call = stage.worker.calls[0]
        assert b"metadata" not in call.frame.payload
        assert call.control.id == responses.request_id
        assert len(call.control.id) == 36


@pytest.mark.parametrize(
    ("too_large", "text"),
    [
        ({"metadata": {str(n): "" for n in range(65)}}, "metadata of 65 entries exceeds 64 entries or 16384 bytes"),
        ({"metadata": {"é": "x" * 16383}}, "metadata of 1 entries exceeds 64 entries or 16384 bytes"),
        ({"request_id": "x" * 1025}, "request id of 1025 bytes exceeds 1024"),
    ],
)
async def test_what_a_worker_could_only_refuse_is_not_sent(too_large: dict[str, Any], text: str) -> None:
    """Its refusal would say that it cannot read the message, and set it aside for everybody's calls."""
    async with open_stage() as stage:
        with pytest.raises(ValueError, match=text):
            await collect(stage, 1, **too_large)
        assert stage.worker.calls == []
        await collect(stage, 1, metadata={str(n): "" for n in range(64)})
        assert len(stage.worker.calls) == 1


async def test_headers_name_path_request_and_time_and_forward_the_trace() -> None:
    async with open_stage() as stage:
        before = time.time_ns()
        await collect(stage, 1, request_id="r1", headers={"traceparent": "00-1-2-01", "request-id": "spoofed"})
        headers = dict(stage.worker.calls[0].frame.headers)
        assert before <= int(headers.pop("x-frontend-send-ts-ns")) <= time.time_ns()
        assert headers == {
            "x-endpoint-path": "1/demo/backend/generate",
            "request-id": "r1",
            "traceparent": "00-1-2-01",
        }
        assert stage.worker.calls[0].frame.path == "1/demo/backend/generate"


async def test_a_request_that_no_codec_holds_is_a_type_error_and_sends_nothing() -> None:
    async with open_stage() as stage:
        with pytest.raises(TypeError, match="request cannot be encoded as json"):
            await collect(stage, {"f": object()})
        assert stage.worker.calls == []


async def test_a_request_above_the_limit_is_refused_here_and_disturbs_no_connection() -> None:
    async with open_stage(max_message_size=1000) as stage:
        with pytest.raises(MessageTooLarge, match="exceeds max_message_size of 1000 bytes"):
            await collect(stage, "x" * 1000)
        assert await collect(stage, 1) == [1]


@pytest.mark.parametrize("endpoint", ["generate", "a.b.c.d", "demo..generate", ""])
async def test_what_is_no_endpoint_is_a_value_error(endpoint: str) -> None:
    async with open_stage() as stage:
        with pytest.raises(ValueError, match=r"endpoint|component"):
            async with stage.client.stream(endpoint, 1):
                pass


# -- routing ---------------------------------------------------------------------------------------------------------


async def test_round_robin_random_and_direct_reach_whom_they_should() -> None:
    async with open_stage(say_id, workers=3, seed=1) as stage:
        assert [(await collect(stage))[0] for _ in range(6)] == [1, 2, 3, 1, 2, 3]
        assert [(await collect(stage, routing="direct", instance_id=2))[0] for _ in range(3)] == [2, 2, 2]
        reached = Counter([(await collect(stage, routing="random"))[0] for _ in range(60)])
        assert sorted(reached) == [1, 2, 3]


async def test_instances_are_listed_and_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with open_stage() as stage:
        assert [record.instance_id for record in stage.client.instances()] == [1]
        assert stage.client.instances(ENDPOINT) == stage.client.instances(GENERATE) == stage.client.instances()
        assert stage.client.instances("demo.backend.other") == ()
        late = FakeWorker(stage.network, stage.discovery, echo, instance_id=2)

        async def come_late() -> None:
            await trio.sleep(3)
            await late.serve()

        stage.nursery.start_soon(come_late)
        found = await stage.client.wait_for_instances(ENDPOINT, 2)
        assert [record.instance_id for record in found] == [1, 2]
        assert trio.current_time() == pytest.approx(3, abs=0.1)
        with pytest.raises(NoInstances, match=r"waited 4 s for 3 instances of demo\.backend\.generate, found 2"):
            await stage.client.wait_for_instances(ENDPOINT, 3, timeout=4)


async def test_a_record_with_an_unknown_codec_is_not_called_unless_overridden() -> None:
    async with open_stage(codec="cbor") as stage:
        with pytest.raises(NoInstances, match=r"can be called: no payload codec named 'cbor'"):
            await collect(stage)
    async with open_stage(codec="cbor", codec_override="json") as stage:
        assert await collect(stage, 1) == [1]


# -- refusals and failures, and how long they count ------------------------------------------------------------------


async def fails(stage: Stage, kind: type[IngressError], match: str | None = None) -> IngressError:
    with pytest.raises(kind, match=match) as caught:
        await collect(stage)
    assert type(caught.value) is kind
    return caught.value


async def test_an_instance_that_refuses_is_set_aside_for_five_seconds(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ingress.client")
    async with open_stage(say_id, workers=2) as stage:
        stage.worker.ack = refuse("Server unavailable: unknown endpoint 1/demo/backend/generate")
        await fails(stage, NotAccepted, "refused the request: Server unavailable: unknown endpoint")
        stage.worker.ack = accept
        assert [(await collect(stage))[0] for _ in range(3)] == [2, 2, 2]
        await trio.sleep(4.9)
        assert await collect(stage) == [2]
        await trio.sleep(0.2)
        assert await collect(stage) == [1]
    (line,) = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert line.startswith("instance 1 of demo.backend.generate set aside: 127.0.0.1:")


async def test_overload_is_told_apart_and_is_the_answer_while_all_are_overloaded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_stage(workers=2) as stage:
        for worker in stage.workers:
            worker.ack = refuse("Server overloaded: worker at capacity")
        for _ in range(2):
            await fails(stage, Overloaded, "Server overloaded: worker at capacity")
        await fails(stage, Overloaded, r"all 2 instances of .* are overloaded, try again in 5\.0 s")
        assert [len(worker.calls) for worker in stage.workers] == [1, 1]


async def test_the_only_instance_being_set_aside_is_said_with_the_seconds_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_stage() as stage:
        stage.worker.ack = refuse("no")
        await fails(stage, NotAccepted)
        await trio.sleep(2)
        await fails(stage, NoInstances, r"set aside, the first for 3\.0 s more")


async def ends_without_final(call: Call) -> None:
    dial = await call.dial()
    await dial.stream.aclose()


def reports(error: ErrorEvent) -> Callable[[Call], Awaitable[None]]:
    return answer(lambda dial: dial.sender.item(Annotated.from_error(error)) + dial.sender.final())


@pytest.mark.parametrize(
    ("script", "kind", "is_set_aside"),
    [
        (ends_without_final, StreamIncomplete, True),
        (reports(ErrorEvent.of_kind("EngineShutdown", "bye")), RemoteError, True),
        (reports(ErrorEvent("down", "CannotConnect", is_backend=False)), RemoteError, True),
        (reports(ErrorEvent.of_kind("InvalidArgument", "bad")), RemoteError, False),
        (reports(ErrorEvent.of_kind("CannotConnect", "upstream")), RemoteError, False),
        (answer(lambda _: b"\0" * 7 + b"\1" + b"\0" * 16 + b"x"), ingress.errors.RemoteProtocolError, False),
    ],
)
async def test_what_an_answer_ends_with_decides_about_the_instance(
    script: Callable[[Call], Awaitable[None]], kind: type[IngressError], is_set_aside: bool
) -> None:
    async with open_stage(script) as stage:
        await fails(stage, kind)
        await fails(stage, NoInstances if is_set_aside else kind)


async def test_a_dead_address_is_not_accepted_and_set_aside(autojump_clock: trio.testing.MockClock) -> None:
    async with open_stage() as stage:
        del stage.network.listeners[stage.worker.port]
        await fails(stage, NotAccepted, "Connection refused")
        await fails(stage, NoInstances)
    async with open_stage() as stage:
        stage.network.silent_ports.add(stage.worker.port)
        await fails(stage, NotAccepted, "cannot connect within 5 s")
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_no_ack_fails_after_five_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with open_stage(silence) as stage:
        stage.worker.ack = never_ack
        await fails(stage, Unavailable, "no ack from .* within 5 s")
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        await fails(stage, NoInstances)


# -- the dial-back ---------------------------------------------------------------------------------------------------


async def test_the_dial_back_may_come_before_the_ack_and_the_ack_never(autojump_clock: trio.testing.MockClock) -> None:
    async def answer_slowly(call: Call) -> None:
        dial = await call.dial()
        await trio.sleep(60)
        await dial.items("late")
        await dial.send(dial.sender.final())

    async with open_stage() as stage:

        async def answer_without_ack(call: Call) -> str | None:
            stage.nursery.start_soon(answer_slowly, call)
            return None

        stage.worker.script = silence
        stage.worker.ack = answer_without_ack
        assert await collect(stage) == ["late"]


@pytest.mark.parametrize("ack", [never_ack, refuse("Server unavailable: said in error")])
async def test_a_worker_that_has_called_home_has_the_request_whatever_its_ack(
    ack: Callable[[Call], Awaitable[str | None]], autojump_clock: trio.testing.MockClock
) -> None:
    async def think_before_the_prologue(call: Call) -> None:
        dial = await call.connect()
        await dial.send(dial.sender.handshake(call.info.subject))
        await trio.sleep(10)
        await dial.send(dial.sender.prologue() + dial.sender.item("late") + dial.sender.final())
        await dial.words()

    async with open_stage(silence) as stage:

        async def dial_first(call: Call) -> str | None:
            stage.nursery.start_soon(think_before_the_prologue, call)
            await trio.sleep(1)
            return await ack(call)

        stage.worker.ack = dial_first
        assert await collect(stage) == ["late"]


async def test_an_accepted_request_that_is_never_dialled_back_fails_in_bounded_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_stage(silence) as stage:
        await fails(stage, NoDialBack, r"instance 1 of .* did not dial back to 127\.0\.0\.1:\d+ within 30 s")
        assert trio.current_time() == pytest.approx(30, abs=0.1)
        # It may be the fault of this request: released workers fall silent on a bad body.
        stage.worker.script = echo
        assert await collect(stage, 1) == [1]


async def test_a_dial_back_without_a_prologue_fails_in_bounded_time(autojump_clock: trio.testing.MockClock) -> None:
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        dial = await call.connect()
        await dial.send(dial.sender.handshake(call.info.subject))
        words.append(await dial.words())

    async with open_stage(script, dial_back_timeout=3) as stage:
        await fails(stage, NoDialBack, "dialled back but sent no prologue")
        assert trio.current_time() == pytest.approx(3, abs=0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert words == [["kill"]]


async def test_a_dial_back_that_comes_too_late_is_turned_away(autojump_clock: trio.testing.MockClock) -> None:
    ended: list[list[str]] = []

    async def script(call: Call) -> None:
        await trio.sleep(4)
        ended.append(await (await call.dial()).words())

    async with open_stage(script, dial_back_timeout=3) as stage:
        await fails(stage, NoDialBack)
        await trio.sleep(2)
        assert ended == [[]]


async def test_a_handshake_for_nobody_leaves_the_call_waiting(autojump_clock: trio.testing.MockClock) -> None:
    async def script(call: Call) -> None:
        wrong = await call.connect()
        await wrong.send(wrong.sender.handshake("somebody-else"))
        assert await wrong.words() == []
        await echo(call)

    async with open_stage(script) as stage:
        assert await collect(stage, 1) == [1]


async def test_a_record_that_vanishes_before_the_dial_back_ends_the_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_stage(silence) as stage:

        async def vanish() -> None:
            await trio.sleep(4)
            stage.worker.withdraw()

        stage.nursery.start_soon(vanish)
        await fails(stage, NoDialBack, "instance 1 of .* disappeared from discovery before its response stream began")
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_a_record_that_is_written_again_does_not_end_the_wait(autojump_clock: trio.testing.MockClock) -> None:
    async def script(call: Call) -> None:
        stage.worker.withdraw()
        await trio.sleep(0.5)
        stage.nursery.start_soon(stage.discovery.serve_records, [stage.worker.record])
        await trio.sleep(5)
        await echo(call)

    async with open_stage() as stage:
        stage.worker.script = script
        assert await collect(stage, 1) == [1]


async def test_a_worker_that_drains_may_still_dial_back_after_its_record_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def script(call: Call) -> None:
        stage.worker.withdraw()
        await trio.sleep(0.5)
        await echo(call)

    async with open_stage() as stage:
        stage.worker.script = script
        assert await collect(stage, 1) == [1]


async def test_a_running_stream_is_not_cut_when_the_record_vanishes(autojump_clock: trio.testing.MockClock) -> None:
    async def script(call: Call) -> None:
        dial = await call.dial()
        await trio.sleep(1)
        stage.worker.withdraw()
        await trio.sleep(60)
        await dial.items(1)
        await dial.send(dial.sender.final())

    async with open_stage() as stage:
        stage.worker.script = script
        assert await collect(stage) == [1]


# -- many calls, and calls that are given up -------------------------------------------------------------------------


async def test_a_call_that_is_given_up_leaves_the_connection_usable_for_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow_ack(call: Call) -> str | None:
        await trio.sleep(1)
        return "" if call.request != "first" else "Server unavailable: this is for the first"

    async with open_stage() as stage:
        stage.worker.ack = slow_ack
        results: list[Any] = []

        async def first() -> None:
            with trio.move_on_after(0.5):
                await collect(stage, "first")

        async def second() -> None:
            await trio.sleep(0.1)
            results.append(await collect(stage, "second"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
        assert results == [["second"]]
        assert stage.network.connections_to(stage.worker.port) == 1


async def test_two_hundred_streams_at_once_share_one_request_connection() -> None:
    async def script(call: Call) -> None:
        dial = await call.dial()
        for number in range(5):
            await dial.items([call.request, number])
            await trio.lowlevel.checkpoint()
        await dial.send(dial.sender.final())
        await dial.words()

    async with open_stage(script) as stage:

        async def one(number: int) -> None:
            assert await collect(stage, number) == [[number, n] for n in range(5)]

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
        assert len(stage.worker.calls) == 200
        assert stage.network.connections_to(stage.worker.port) == 1


# -- the client's own life -------------------------------------------------------------------------------------------


async def test_what_the_block_raises_leaves_the_client_as_it_is() -> None:
    with pytest.raises(RemoteError, match="InvalidRequest: bad"):
        async with open_stage(reports(ErrorEvent.of_kind("InvalidArgument", "bad"))) as stage:
            await collect(stage)


async def test_leaving_the_client_kills_every_stream_and_ends_every_wait() -> None:
    words: list[list[str]] = []
    outcomes: list[str] = []

    async def script(call: Call) -> None:
        if call.request == "dial":
            dial = await call.dial()
            await dial.items(1)
            words.append(await dial.words())

    async def call(stage: Stage, request: str) -> None:
        try:
            await collect(stage, request)
        except IngressError as exc:
            outcomes.append(f"{type(exc).__name__}: {exc}")

    async with trio.open_nursery() as nursery, open_stage(script) as stage:
        nursery.start_soon(call, stage, "dial")
        nursery.start_soon(call, stage, "wait")
        await trio.testing.wait_all_tasks_blocked()
    assert words == [["kill"]]
    assert sorted(outcomes) == [
        "NoDialBack: the client was closed before the response stream of instance 1 of demo.backend.generate began",
        "StreamIncomplete: response stream was closed by this client",
    ]
    with pytest.raises(LocalProtocolError, match="the client is closed"):
        await collect(stage)


async def test_a_cancelled_client_leaves_in_bounded_time(autojump_clock: trio.testing.MockClock) -> None:
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        words.append(await (await call.dial()).words())

    network, discovery = MemoryNetwork(), MemoryDiscovery()
    worker = FakeWorker(network, discovery, script)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.serve)
        with trio.move_on_after(7):
            async with (
                open_client(discovery=discovery, network=network) as client,
                client.stream(ENDPOINT, 1) as answer,
            ):
                async for _ in answer:
                    pass
        assert trio.current_time() == pytest.approx(7, abs=0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert words == [["kill"]]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, "127.0.0.1:40001"),
        ({"host": "::1", "port": 9}, "[::1]:9"),
        ({"advertise_host": "192.0.2.7"}, "192.0.2.7:40001"),
        ({"host": "0.0.0.0", "advertise_host": "192.0.2.7"}, "192.0.2.7:40001"),
    ],
)
async def test_workers_are_told_an_address_they_can_dial(options: dict[str, Any], address: str) -> None:
    async with open_client(discovery=MemoryDiscovery(), network=MemoryNetwork(), **options) as client:
        assert client.address == address


async def test_a_wildcard_address_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client(discovery=MemoryDiscovery(), network=MemoryNetwork(), host="0.0.0.0") as client:
        assert not client.address.startswith("0.0.0.0")


# -- over loopback ---------------------------------------------------------------------------------------------------


async def test_over_loopback_an_answer_arrives_and_a_caller_that_leaves_is_noticed() -> None:
    words: list[list[str]] = []

    async def script(call: Call) -> None:
        dial = await call.dial()
        await dial.items(call.request)
        if call.request == "whole":
            await dial.send(dial.sender.final())
        words.append(await dial.words())
        await dial.stream.aclose()

    network, discovery = TcpNetwork(), MemoryDiscovery()
    worker = FakeWorker(network, discovery, script, codec="msgpack")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.serve)
            async with open_client(discovery=discovery) as client:
                async with client.stream(ENDPOINT, "whole") as responses:
                    assert [item async for item in responses] == ["whole"]
                async with client.stream(ENDPOINT, "part") as responses:
                    assert await responses.__anext__() == "part"
                while len(words) < 2:
                    await trio.lowlevel.checkpoint()
                assert words == [[], ["kill"]]
            nursery.cancel_scope.cancel()
