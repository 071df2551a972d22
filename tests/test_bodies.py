"""Bodies are decoded where they hold nobody up."""

from __future__ import annotations

import threading

import msgspec
import pytest
import trio

from ingress.bodies import LARGE_BODY, decode_body
from ingress.errors import DeserializationError
from ingress.wire import codec as codec_module
from ingress.wire.codec import codec_named
from ingress.wire.guards import has_exponent


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_bodies_of_every_size_read_the_same(codec: str) -> None:
    for size in (10, LARGE_BODY + 10):
        value = {"text": "x" * size}
        assert await decode_body(codec, codec_named(codec).encode(value)) == value


async def test_c13_large_bodies_leave_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    class Watched:
        def decode(self, body: bytes) -> int:
            threads.append(threading.get_ident())
            return len(body)

    monkeypatch.setitem(codec_module._CODECS, "json", Watched())
    await decode_body("json", b"x" * LARGE_BODY)
    await decode_body("json", b"x" * (LARGE_BODY + 1))
    assert threads[0] == threading.get_ident() != threads[1]


async def test_a_large_body_that_is_refused_says_why() -> None:
    with pytest.raises(DeserializationError, match="more than 1000000 values"):
        await decode_body("json", b"[" + b"[]," * 1_000_000 + b"1]")


async def test_a_caller_that_has_gone_waits_for_no_decoder() -> None:
    with trio.move_on_after(0) as scope:
        await decode_body("json", msgspec.json.encode(["x" * LARGE_BODY]))
    assert scope.cancelled_caught


@pytest.mark.parametrize("number", [b"1e5", b"1E+5", b"3.5e-7", b"0e0"])
@pytest.mark.parametrize("padding", [b"", b" " * 70_000, b'"e ee 0 e0", ' * 7000])
def test_exponents_are_found_in_small_and_large_bodies_alike(number: bytes, padding: bytes) -> None:
    assert has_exponent(b"[" + padding + number + b"]")
    assert not has_exponent(b"[" + padding.replace(b"0", b"") + b"12.5]")
    assert codec_named("json").decode(b"[" + padding + number + b"]")[-1] == float(number)
