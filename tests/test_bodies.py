"""Bodies are decoded where they hold nobody up."""

from __future__ import annotations

import itertools
import threading

import msgspec
import pytest
import trio

from ingress._heavy_work import LARGE_BODY
from ingress.bodies import decode_body
from ingress.errors import DeserializationError
from ingress.wire import codec as codec_module
from ingress.wire.codec import codec_named
from ingress.wire.guards import between_steps, end_step, has_exponent


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_bodies_of_every_size_read_the_same(codec: str) -> None:
    for size in (10, LARGE_BODY + 10):
        value = {"text": "x" * size}
        decoded, _ = await decode_body(codec_named(codec).decode, codec_named(codec).encode(value))
        assert decoded == value


async def test_c13_large_bodies_leave_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    class Watched:
        def decode(self, body: bytes) -> int:
            threads.append(threading.get_ident())
            return len(body)

    monkeypatch.setitem(codec_module._CODECS, "json", Watched())
    await decode_body(codec_named("json").decode, b"x" * LARGE_BODY)
    await decode_body(codec_named("json").decode, b"x" * (LARGE_BODY + 1))
    assert threads[0] == threading.get_ident() != threads[1]


HUGE = b"x" * (4 << 20)


async def test_c13_the_loop_has_a_turn_between_the_steps_of_a_huge_body() -> None:
    turns = 0
    seen: list[int] = []

    async def neighbour() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    def decode(body: bytes) -> None:
        for _ in range(10):
            seen.append(turns)
            end_step()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour)
        await decode_body(decode, HUGE)
        nursery.cancel_scope.cancel()
    assert all(before < after for before, after in itertools.pairwise(seen))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_c13_the_guards_and_decoders_of_huge_bodies_have_steps(codec: str) -> None:
    ended = 0

    def count() -> None:
        nonlocal ended
        ended += 1

    value = {"text": "x" * (4 << 20)}
    body = codec_named(codec).encode(value)
    token = between_steps.set(count)
    assert codec_named(codec).decode(body) == value
    between_steps.reset(token)
    assert ended >= (5 if codec == "json" else 1)


async def test_c13_huge_bodies_are_decoded_one_after_the_other_and_keep_no_smaller_one_waiting() -> None:
    may_end, running, most = threading.Event(), 0, 0

    def decode_huge(body: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert may_end.wait(30)
        end_step()
        running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(decode_body, decode_huge, HUGE)
        await decode_body(lambda body: may_end.set(), b"x" * (LARGE_BODY + 1))
    assert (running, most) == (0, 1)


async def test_a_huge_body_whose_loop_has_ended_is_decoded_to_its_end() -> None:
    begun, may_go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def decode(body: bytes) -> None:
        begun.set()
        may_go_on.wait(30)
        end_step()
        ended.set()

    async def leave() -> None:
        with trio.move_on_after(30) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(decode_body, decode, HUGE)
                await trio.to_thread.run_sync(begun.wait)
                scope.cancel()

    await trio.to_thread.run_sync(trio.run, leave)
    may_go_on.set()
    assert await trio.to_thread.run_sync(ended.wait, 30)


async def test_a_large_body_that_is_refused_says_why() -> None:
    with pytest.raises(DeserializationError, match="more than 1000000 values"):
        await decode_body(codec_named("json").decode, b"[" + b"[]," * 1_000_000 + b"1]")


async def test_a_caller_that_has_gone_waits_for_no_decoder() -> None:
    with trio.move_on_after(0) as scope:
        await decode_body(codec_named("json").decode, msgspec.json.encode(["x" * LARGE_BODY]))
    assert scope.cancelled_caught


@pytest.mark.parametrize("number", [b"1e5", b"1E+5", b"3.5e-7", b"0e0"])
@pytest.mark.parametrize("padding", [b"", b" " * 70_000, b'"e ee 0 e0", ' * 7000])
def test_exponents_are_found_in_small_and_large_bodies_alike(number: bytes, padding: bytes) -> None:
    assert has_exponent(b"[" + padding + number + b"]")
    assert not has_exponent(b"[" + padding.replace(b"0", b"") + b"12.5]")
    assert codec_named("json").decode(b"[" + padding + number + b"]")[-1] == float(number)
