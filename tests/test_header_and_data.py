"""The unary shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from ingress.errors import DeserializationError, IngressError, InvalidMessage
from ingress.wire.two_part import encode_two_part
from shapes import HeaderAndData

from .raw_caller import open_stage

CONTROL = (
    b'{"id":"r","request_type":"single_in","response_type":"many_out",'
    b'"connection_info":{"transport":"tcp_server","info":"{}"}}'
)


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.mark.parametrize(
    ("payload", "is_accepted"),
    [
        (b"", False),
        (b"x" * 23, False),
        (bytes(24), False),
        (encode_two_part(b"h"), False),
        (encode_two_part(body=b"b"), False),
        (encode_two_part(b"h", b"b"), True),
        (encode_two_part(b"h", b"b") + b"trailing", True),
    ],
)
def test_it_accepts_what_announces_a_header_and_a_body(payload: bytes, is_accepted: bool) -> None:
    assert HeaderAndData().accepts(payload) is is_accepted


@given(st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: encode_two_part(CONTROL, b"1")[:-3] + tail))
def test_any_bytes_are_read_or_refused_on_purpose(payload: bytes) -> None:
    shape = HeaderAndData()
    shape.accepts(payload)
    with contextlib.suppress(IngressError):
        shape.read_control(payload)


@pytest.mark.parametrize(
    "body", [1, 1.5, "text", None, True, [1, [2]], {"a": {"b": []}}, {"ключ": "значение"}, 2**64 - 1, -(2**63)]
)
@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_c17_a_body_of_any_type_is_given_to_the_engine_as_it_is(body: Any, codec: Any) -> None:
    async with open_stage(echo) as stage:
        assert (await stage.tell(body, codec=codec)).items == [body]


async def test_binary_of_msgpack_reaches_the_engine_as_bytes() -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        yield [type(request["blob"]).__name__, len(request["blob"])]

    async with open_stage(engine) as stage:
        assert (await stage.tell({"blob": b"\0\xff"}, codec="msgpack")).items == [["bytes", 2]]


async def test_p05_bytes_after_the_body_are_ignored() -> None:
    async with open_stage(echo) as stage:
        assert await stage.ask(stage.caller.payload(5) + b"x" * 50) == ""
        assert (await (await stage.caller.accept()).read_to_sentinel()).items == [5]


async def test_p04_a_header_length_that_swallows_the_body_is_refused() -> None:
    async with open_stage(echo) as stage:
        control = stage.caller.control().encode()
        swallowed = encode_two_part(control + b'{"a":', b"1}")
        assert await stage.ask(swallowed) == "Server unavailable: unreadable control message"
        assert stage.counted_ends() == {"deserialization": 1}


@pytest.mark.parametrize("request_type", ["single_in", "many_in"])
@pytest.mark.parametrize("response_type", ["single_out", "many_out"])
async def test_a_unary_endpoint_serves_every_request_and_response_type(request_type: str, response_type: str) -> None:
    async with open_stage(echo) as stage:
        payload = stage.caller.payload(5)
        header_length = int.from_bytes(payload[:8])
        header = payload[24 : 24 + header_length].replace(b"single_in", request_type.encode())
        header = header.replace(b"many_out", response_type.encode())
        assert await stage.ask(encode_two_part(header, b"5")) == ""
        assert (await (await stage.caller.accept()).read_to_sentinel()).items == [5]


async def test_p06_checksums_are_ignored_unless_they_are_to_be_verified(autojump_clock: MockClock) -> None:
    pytest.importorskip("xxhash")
    async with open_stage(echo) as lenient, open_stage(echo, shapes=[HeaderAndData(verify_checksum=True)]) as strict:
        for stage in (lenient, strict):
            control = stage.caller.control().encode()
            right = encode_two_part(control, b"5", checksum=True)
            wrong = right[:16] + b"\1" * 8 + right[24:]
            assert await stage.ask(encode_two_part(control, b"5")) == ""
            assert await stage.ask(right) == ""
            ack = await stage.ask(wrong)
            assert ack == ("" if stage is lenient else "Server unavailable: unreadable control message")
        assert strict.errors() == {"invalid_message": 1}


async def test_an_empty_body_and_a_body_of_another_codec_say_whose_fault_it_is() -> None:
    shape = HeaderAndData()
    control = shape.read_control(encode_two_part(CONTROL, b"1"))
    with pytest.raises(InvalidMessage, match="expected a request body, got none"):
        await shape.parse_and_build_request(encode_two_part(CONTROL), control, None)  # type: ignore[arg-type]
    with pytest.raises(DeserializationError, match="not JSON"):
        await shape.parse_and_build_request(encode_two_part(CONTROL, b"\x81"), control, None)  # type: ignore[arg-type]
