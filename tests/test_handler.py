"""The order of a request, what is counted on every way out, and that nobody is left hanging."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import tracemalloc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress import Annotated, ErrorEvent, IngressDispatch, ParsedRequest
from ingress._network import TcpNetwork
from ingress.errors import (
    CannotConnect,
    DeserializationError,
    EngineShutdown,
    InvalidArgument,
    InvalidMessage,
    PublishError,
    RemoteProtocolError,
)
from ingress.wire.messages import ControlWord, RequestControlMessage
from ingress.wire.two_part import encode_two_part
from shapes import HeaderAndData

from .raw_caller import Stage, open_stage


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


async def test_an_answer_is_handshake_prologue_items_final_sentinel_and_then_the_callers_fin() -> None:
    async with open_stage(echo) as stage:
        response = await stage.call({"a": [1, None]}, request_id="r1")
        said = await response.read_to_sentinel()
        assert said.subject == "subject-of-r1"
        assert said.items == [{"a": [1, None]}]
        assert said.is_whole
        assert said.end == ""  # the caller closes first
        await response.aclose()
        await wait_all_tasks_blocked()
        stage.assert_nothing_left()
        assert stage.sample("requests_total") == 1
        assert stage.counted_ends() == {}


@pytest.mark.parametrize("codec", ["json", "msgpack", None])
async def test_an_answer_comes_in_the_codec_of_its_request(codec: Any) -> None:
    async with open_stage(echo) as stage:
        said = await stage.tell({"n": 1.5}, codec=codec)
        assert said.items == [{"n": 1.5}]


async def test_d11_a_caller_that_never_closes_is_closed_after_ten_seconds_and_holds_no_slot(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(echo) as stage:
        response = await stage.call(1)
        await response.read_to_sentinel()
        started = trio.current_time()
        await wait_all_tasks_blocked()
        stage.assert_nothing_left()
        assert (await response.read_to_end()).end == "fin"
        assert trio.current_time() - started == pytest.approx(10)


async def test_request_and_response_bytes_are_counted_as_they_were_on_the_wire() -> None:
    async with open_stage(echo) as stage:
        payload = stage.caller.payload("ab")
        assert await stage.ask(payload) == ""
        response = await stage.caller.accept()
        await response.read_to_sentinel()
        await wait_all_tasks_blocked()
        assert stage.sample("request_bytes_total") == len(payload)
        body = len('{"data":{"data":"ab"},"complete_final":false}') + len('{"complete_final":true}')
        assert stage.sample("response_bytes_total") == body


# -- nobody is left hanging ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "body"),
    [
        ("C10", b"NaN"),
        ("C12", b"{'a': 1}"),
        ("C12", b'"\\ud800"'),
        ("C09", b"9" * 5000),
        ("C08", b"[" * 500 + b"]" * 500),
        ("C13", b"[" + b"0," * 1_000_001 + b"0]"),
    ],
)
async def test_c08_to_c13_a_body_that_cannot_be_read_is_told_and_counted_and_logged_once(
    row: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(echo) as stage:
        said = await stage.tell(body)
        assert said.is_whole
        (error,) = said.errors
        assert (error.kind, error.error_class) == ("InvalidArgument", "InvalidRequest")
        assert stage.counted_ends() == {"deserialization": 1}
        assert len(caplog.records) == 1
        await stage.assert_alive()


async def test_c15_msgpack_that_claims_more_than_it_holds_is_told() -> None:
    async with open_stage(echo) as stage:
        for body in (b"\xdd\xff\xff\xff\xff", b"\x81\xa1a\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"):
            said = await stage.tell(body, codec="msgpack")
            assert said.is_whole and said.errors[0].kind == "InvalidArgument"
        assert stage.counted_ends() == {"deserialization": 4}


@pytest.mark.parametrize(
    ("payload", "error_type"),
    [
        (b"", "invalid_message"),
        (b"x" * 23, "invalid_message"),
        (bytes(24), "invalid_message"),
        (encode_two_part(b"{}"), "invalid_message"),
        (encode_two_part(body=b"{}"), "invalid_message"),
        ((2**63).to_bytes(8) * 2 + bytes(8), "invalid_message"),
        (encode_two_part(b"not json", b"1"), "deserialization"),
        (encode_two_part(b'{"id":1}', b"1"), "deserialization"),
        (encode_two_part(b"[" * 100, b"1"), "deserialization"),
    ],
)
async def test_p01_to_c02_an_unreadable_control_message_is_refused_in_the_ack(
    payload: bytes, error_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(echo) as stage:
        assert await stage.ask(payload) == "Server unavailable: unreadable control message"
        assert stage.counted_ends() == {error_type: 1}
        assert stage.sample("requests_total") == 1
        assert stage.sample("request_duration_seconds_count") == 1
        assert len(caplog.records) == 1
        stage.assert_nothing_left()
        await stage.assert_alive()


class HostileShape(IngressDispatch[Any]):
    """A third party's shape with a bug."""

    def __init__(self, *, in_control: bool) -> None:
        self._in_control = in_control
        self._inner = HeaderAndData()

    def accepts(self, payload: bytes) -> bool:
        return True

    def read_control(self, payload: bytes) -> RequestControlMessage:
        if self._in_control:
            raise KeyError("bug in read_control")
        return self._inner.read_control(payload)

    async def parse_and_build_request(self, payload: bytes, control: Any, dialer: Any) -> ParsedRequest[Any]:
        raise KeyError("bug in parse")


async def test_a_shape_that_fails_unexpectedly_is_told_to_the_caller() -> None:
    async with open_stage(echo, shapes=[HostileShape(in_control=False)]) as stage:
        said = await stage.tell(1)
        assert said.is_whole and said.errors[0].kind == "Unknown"
        assert stage.counted_ends() == {"deserialization": 1}


async def test_a_shape_that_fails_before_the_ack_refuses_its_push_and_spares_the_connection() -> None:
    async with open_stage(echo, shapes=[HostileShape(in_control=True)]) as stage:
        for _ in range(2):
            assert await stage.ask(stage.caller.payload(1)) == "Server unavailable: unreadable control message"


# -- what engines raise ----------------------------------------------------------------------------------------------


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


RAISED: list[tuple[BaseException, str, str]] = [
    (ValueError("x"), "InvalidArgument", "ValueError: x"),
    (TypeError("x"), "InvalidArgument", "TypeError: x"),
    (TimeoutError("x"), "ConnectionTimeout", "TimeoutError: x"),
    (trio.TooSlowError(), "ConnectionTimeout", "TooSlowError: "),
    (ConnectionRefusedError("x"), "CannotConnect", "ConnectionRefusedError: x"),
    (BrokenPipeError("x"), "Disconnected", "BrokenPipeError: x"),
    (asyncio.CancelledError(), "Cancelled", "CancelledError: "),
    (GeneratorExit(), "EngineShutdown", "engine shutting down"),
    (SystemExit(3), "Unknown", "SystemExit: 3"),
    (KeyError("k"), "Unknown", "KeyError: 'k'"),
    (MemoryError("x"), "Unknown", "MemoryError: x"),
    (RecursionError("deep"), "Unknown", "RecursionError: deep"),
    (ExceptionGroup("g", [ValueError("x")]), "InvalidArgument", "ValueError: x"),
    (
        ExceptionGroup("g", [ValueError("x"), KeyError("k")]),
        "Unknown",
        "ExceptionGroup: g (2 sub-exceptions): ValueError: x; KeyError: 'k'",
    ),
    (BaseExceptionGroup("g", [SystemExit(1)]), "Unknown", "SystemExit: 1"),
    (InvalidArgument("no tools"), "InvalidArgument", "no tools"),
    (CannotConnect("no gpu"), "CannotConnect", "no gpu"),
    (EngineShutdown("bye"), "EngineShutdown", "bye"),
    (InvalidMessage("not ours"), "InvalidArgument", "not ours"),
    (PublishError("not ours", stage="publish_final"), "Unknown", "not ours"),
    (RemoteProtocolError("upstream"), "Unknown", "upstream"),
    (DeserializationError("upstream"), "InvalidArgument", "upstream"),
    (UnprintableError(), "Unknown", "UnprintableError: (its text cannot be shown)"),
    (OSError("/tmp/\udcff"), "Unknown", "OSError: /tmp/\\udcff"),
]


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize(("raised", "kind", "message"), RAISED, ids=lambda value: type(value).__name__)
async def test_e01_e02_e06_what_an_engine_raises_goes_home_as_an_error_event_and_is_counted(
    raised: BaseException, kind: str, message: str, before: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        for i in range(before):
            yield i
        raise raised

    async with open_stage(engine) as stage:
        said = await stage.tell(1)
        assert said.is_whole  # the prologue without error, the final frame, the sentinel
        assert said.items == list(range(before))
        (error,) = said.errors
        assert (error.kind, error.message) == (kind, message)
        assert said.annotated[-1].event == "error"
        assert stage.counted_ends() == {"generate": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert caplog.records[0].exc_info is None
        stage.assert_nothing_left()


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name == "__name__":
            raise RuntimeError("no name")
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=Nameless):
    pass


@pytest.mark.parametrize("before", [0, 2])
async def test_e02_a_failure_whose_class_does_not_tell_its_name_goes_home_too(
    before: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        for i in range(before):
            yield i
        raise NamelessError("x")

    async with open_stage(engine) as stage:
        said = await stage.tell(1)
        assert said.is_whole and said.items == list(range(before))
        assert [(error.kind, error.message) for error in said.errors] == [("Unknown", "NamelessError: x")]
        assert stage.counted_ends() == {"generate": 1}
        (record,) = caplog.records
        assert "failed: NamelessError: x (test_handler.py:" in record.getMessage()
        stage.assert_nothing_left()


async def test_an_error_text_of_a_megabyte_goes_home_clipped() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        if request:
            raise ValueError("ä" * 1_000_000)
        yield

    async with open_stage(engine) as stage:
        said = await stage.tell(1)
        assert len(said.errors[0].message) < 20_000
        assert said.errors[0].message.endswith("(1000000 characters)")


async def test_e04_a_chunk_that_cannot_be_encoded_or_is_too_large_ends_the_stream_with_an_error_event() -> None:
    async def engine(request: str) -> AsyncIterator[Any]:
        yield "first"
        yield (
            {"object": object(), "surrogate": "\ud800", "large": b"x"}[request]
            if request != "large"
            else "x" * (33 << 20)
        )
        yield "never"

    async with open_stage(engine) as stage:
        for request in ("object", "surrogate", "large"):
            said = await stage.tell(request)
            assert said.is_whole and said.items == ["first"] and len(said.errors) == 1, request
            assert said.errors[0].kind == "Unknown"
        assert stage.counted_ends() == {"generate": 3}
        # What was never sent is not counted.
        assert stage.sample("response_bytes_total") < 10_000


@pytest.mark.parametrize("returned", [None, 5, [1, 2], "text"])
async def test_an_engine_that_returns_no_async_iterable_is_told_as_the_engines_fault(returned: Any) -> None:
    from ingress import Engine

    class Odd(Engine):
        def generate(self, request: Any, context: Any) -> Any:
            return returned

    async with open_stage(Odd()) as stage:
        said = await stage.tell(1)
        assert said.is_whole and said.errors[0].kind == "Unknown"
        assert "expected an async iterable" in said.errors[0].message
        assert stage.counted_ends() == {"generate": 1}


@frozen
class Prompt:
    text: str
    count: int = 1


async def test_a_body_that_does_not_fit_the_annotated_type_goes_home_naming_the_field() -> None:
    async def engine(request: Prompt) -> AsyncIterator[Any]:
        yield request.text * request.count

    async with open_stage(engine) as stage:
        assert (await stage.tell({"text": "a", "count": 2, "extra": 1})).items == ["aa"]
        for body, path in [({"text": "a", "count": "x"}, "request.count"), ({}, "request.text"), (5, "request")]:
            said = await stage.tell(body)
            assert said.is_whole and said.errors[0].kind == "InvalidArgument"
            assert path in said.errors[0].message
        assert stage.counted_ends() == {"generate": 3}


# -- health ----------------------------------------------------------------------------------------------------------


def notified(stage: Stage) -> list[float]:
    (handler,) = stage.worker.handlers.values()
    calls: list[float] = []
    handler.set_health_notifier(lambda: calls.append(trio.current_time()))
    return calls


async def test_chunks_and_clean_ends_notify_health_and_errors_do_not() -> None:
    async def engine(request: str) -> AsyncIterator[Any]:
        if request == "chunk":
            yield 1
            await trio.sleep_forever()
        if request == "yielded":
            yield Annotated.from_error(ErrorEvent("bad"))
        if request == "raised":
            raise ValueError("bad")

    async with open_stage(engine) as stage:
        calls = notified(stage)
        for request in ("yielded", "raised"):
            await stage.tell(request)
            assert calls == [], request
        await stage.tell("empty")
        assert len(calls) == 1
        response = await stage.call("chunk")
        await response.read_items(1)
        assert len(calls) == 2
        await response.aclose()


async def test_a_second_health_notifier_is_refused() -> None:
    async with open_stage(echo) as stage:
        notified(stage)
        with pytest.raises(ValueError, match="already has a health-check notifier"):
            notified(stage)


async def test_c18_requests_with_one_id_are_told_apart() -> None:
    async with open_stage(echo) as stage:
        responses = [await stage.call(i, request_id="same") for i in range(20)]
        await responses[3].aclose()
        for i, response in enumerate(responses):
            if i != 3:
                assert (await response.read_to_sentinel()).items == [i]


# -- memory ----------------------------------------------------------------------------------------------------------


async def large_then_fails(request: Any) -> AsyncIterator[Any]:
    if request == "wait":
        await trio.sleep_forever()
    yield len(request)
    if request[0] != "o":
        raise ValueError("in the middle")


@pytest.mark.parametrize("how", ["overloaded", "unreadable", "bad body", "engine", "none"])
async def test_l11_a_request_gives_its_bytes_back_without_the_garbage_collector(how: str) -> None:
    """An exception that a frame of its own traceback refers to keeps the whole payload until a collection."""
    size, count = 1 << 20, 20
    async with open_stage(large_then_fails, engine_request_limit=1) as stage:
        if how == "overloaded":
            await stage.call("wait")
        bodies = {
            "none": b'"' + b"o" * size + b'"',
            "overloaded": b'"' + b"x" * size + b'"',
            "engine": b'"' + b"x" * size + b'"',
            "bad body": b"x" * size,
        }
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(count):
                if how == "unreadable":
                    assert await stage.ask(bytes(size)) != ""
                elif how == "overloaded":
                    assert (await stage.ask(stage.caller.payload(bodies[how]))).startswith("Server overloaded")
                else:
                    assert bool((await stage.tell(bodies[how])).errors) is (how != "none")
            assert tracemalloc.get_traced_memory()[0] < 5 * size
        finally:
            tracemalloc.stop()
            gc.enable()


class Held:
    """What an engine holds, to be looked for."""


@pytest.mark.parametrize("how", ["read", "killed", "stopped", "reset", "reset unread", "raised"])
async def test_l11_nothing_of_a_request_is_left_to_the_garbage_collector(how: str) -> None:
    async def remembering(request: Any, context: Any) -> AsyncIterator[Any]:
        held = Held()
        left.extend((weakref.ref(context), weakref.ref(held)))
        if how == "raised":
            raise ValueError("in the middle")
        while how == "reset unread":
            yield "x" * (1 << 20)
        yield request
        if how != "read":
            await trio.sleep_forever()

    left: list[weakref.ref[Any]] = []
    async with open_stage(remembering, network=TcpNetwork()) as stage:
        gc.collect()
        gc.disable()
        try:
            response = await stage.call("x")
            if how == "reset unread":
                await wait_all_tasks_blocked(0.01)
            elif how not in ("read", "raised"):
                await response.read_items(1)
            if how in ("killed", "stopped"):
                await response.send_word(ControlWord.KILL if how == "killed" else ControlWord.STOP)
            if how.startswith("reset"):
                linger = struct.pack("ii", 1, 0)  # for 0 s: a close is a reset
                response.stream._raw.setsockopt(  # type: ignore[attr-defined]  # of a real network
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                await response.aclose()
            elif how in ("killed", "stopped"):
                await response.read_to_end()
                await response.aclose()
            else:
                await response.read_to_sentinel()
                await response.aclose()
            await wait_all_tasks_blocked(0.01)
            assert [held() for held in left] == [None, None]
        finally:
            gc.enable()


async def test_e09_an_engine_that_is_silent_for_an_hour_keeps_its_stream(autojump_clock: MockClock) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield "begun"
        await trio.sleep(3600)
        yield "done"

    async with open_stage(engine) as stage:
        response = await stage.call()
        said = await response.read_to_sentinel()
        assert said.is_whole and said.items == ["begun", "done"]
        assert trio.current_time() >= 3600
