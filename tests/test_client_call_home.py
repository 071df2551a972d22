"""The call-home listener: the right dial-in to the right call, and the door for everyone else."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ingress.client import _call_home
from ingress.client._call_home import CallHome
from ingress.wire.messages import CallHomeHandshake, ConnectionInfo, StreamType
from ingress.wire.two_part import PREFIX, encode_two_part
from tests.test_client_doubles import MemoryListener, MemoryNetwork, MemoryStream


class Door:
    """A call-home listener being served, and a way to dial it."""

    def __init__(self, network: MemoryNetwork, listener: MemoryListener, call_home: CallHome) -> None:
        self.network = network
        self.listener = listener
        self.call_home = call_home

    async def dial(self, data: bytes = b"") -> MemoryStream:
        stream = await self.network.connect(*self.listener.address)
        if data:
            await stream.send_all(data)
        return stream


@asynccontextmanager
async def open_door() -> AsyncIterator[Door]:
    network = MemoryNetwork()
    listener = await network.open_listener("127.0.0.1", 0)
    assert isinstance(listener, MemoryListener)
    door = Door(network, listener, CallHome("127.0.0.1:40001"))
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(door.call_home.serve, listener)
        yield door
        nursery.cancel_scope.cancel()


def handshake(subject: str, stream_type: StreamType = "response") -> bytes:
    return encode_two_part(CallHomeHandshake(subject, stream_type).encode())


async def is_closed_by_the_listener(stream: MemoryStream) -> bool:
    return await stream.receive_some() == b""


async def test_a_dial_in_reaches_the_call_that_expects_it_with_all_its_bytes() -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        await door.dial(handshake(appointment.subject) + b"more")
        dial_in = await appointment.kept()
        assert dial_in.received == handshake(appointment.subject) + b"more"


async def test_a_handshake_may_come_byte_by_byte() -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        stream = await door.dial()
        for byte in handshake(appointment.subject):
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert (await appointment.kept()).received == handshake(appointment.subject)


async def test_one_listener_tells_many_streams_apart_by_their_subjects() -> None:
    async with open_door() as door:
        call_home = door.call_home
        async with call_home.appointment("request") as first, call_home.appointment("response") as second:
            await door.dial(handshake(second.subject) + b"2")
            await door.dial(handshake(first.subject, "request") + b"1")
            assert (await first.kept()).received.endswith(b"1")
            assert (await second.kept()).received.endswith(b"2")


async def test_a_subject_with_the_other_stream_type_is_turned_away_and_the_right_one_still_taken() -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        assert await is_closed_by_the_listener(await door.dial(handshake(appointment.subject, "request")))
        await door.dial(handshake(appointment.subject))
        await appointment.kept()


async def test_a_second_dial_in_for_the_same_subject_is_turned_away() -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        first = await door.dial(handshake(appointment.subject))
        assert await is_closed_by_the_listener(await door.dial(handshake(appointment.subject)))
        await (await appointment.kept()).stream.send_all(b"still open")
        assert await first.receive_some() == b"still open"


@pytest.mark.parametrize(
    "data",
    [
        handshake("nobody"),
        b"GET / HTTP/1.1\r\n\r\n" + bytes(24),
        encode_two_part(b"{}"),
        encode_two_part(b"\xff"),
        encode_two_part(b"[" * 1000),
        encode_two_part(b'{"subject":"x","stream_type":"sideways"}'),
        encode_two_part(b"", b"data"),
        encode_two_part(b"a", b"b"),
        bytes(24),
        PREFIX.pack(2**62, 0, 0),
        PREFIX.pack(100_000, 0, 0),
    ],
)
async def test_who_has_no_appointment_is_turned_away_and_the_next_one_served(data: bytes) -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        assert await is_closed_by_the_listener(await door.dial(data))
        await door.dial(handshake(appointment.subject))
        await appointment.kept()


async def test_who_says_nothing_is_turned_away_after_ten_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with open_door() as door:
        streams = [await door.dial(), await door.dial(handshake("x")[:30])]
        for stream in streams:
            assert await is_closed_by_the_listener(stream)
        assert trio.current_time() == pytest.approx(10, abs=0.1)


async def test_a_dial_in_that_closes_or_resets_before_its_handshake_harms_nobody() -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        await (await door.dial()).aclose()
        await (await door.dial(b"half")).reset()
        await door.dial(handshake(appointment.subject))
        await appointment.kept()


async def test_a_dial_in_after_its_call_has_gone_is_turned_away() -> None:
    async with open_door() as door:
        async with door.call_home.appointment("response") as appointment:
            pass
        assert await is_closed_by_the_listener(await door.dial(handshake(appointment.subject)))


async def test_leaving_an_appointment_closes_the_stream_that_came_for_it() -> None:
    async with open_door() as door:
        async with door.call_home.appointment("response") as appointment:
            stream = await door.dial(handshake(appointment.subject))
            await appointment.kept()
        assert await is_closed_by_the_listener(stream)


async def test_a_listener_out_of_descriptors_waits_and_goes_on_and_says_so_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        door.listener.errors = [OSError(errno.EMFILE, "Too many open files")] * 20
        first = await door.dial(handshake("nobody"))  # lets the accept that already waits return
        assert await is_closed_by_the_listener(first)
        await door.dial(handshake(appointment.subject))
        await appointment.kept()
        assert trio.current_time() == pytest.approx(2, abs=0.2)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "call-home listener 127.0.0.1:40001 cannot accept, trying again: [Errno 24] Too many open files"
    ]


async def test_a_bug_in_one_dial_in_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        with monkeypatch.context() as patch:
            patch.setattr(CallHome, "_keep", lambda *_: 1 / 0)
            assert await is_closed_by_the_listener(await door.dial(handshake("x")))
        await door.dial(handshake(appointment.subject))
        await appointment.kept()


async def test_too_many_silent_dial_ins_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call_home, "MAX_WAITING_HANDSHAKES", 3)
    async with open_door() as door, door.call_home.appointment("response") as appointment:
        silent = []
        for _ in range(3):
            silent.append(await door.dial())
            await trio.testing.wait_all_tasks_blocked()
        await door.dial(handshake(appointment.subject))
        await appointment.kept()
        assert await is_closed_by_the_listener(silent[0])
        assert not silent[1].peer.is_closed


def test_the_stream_address_is_what_a_released_client_writes() -> None:
    """Docs/wire.md §3.1: ``info`` is JSON in a string, keys in this order."""

    async def main() -> None:
        call_home = CallHome("127.0.0.1:46155")
        async with call_home.appointment("response") as appointment:
            address = call_home.stream_address(appointment, "the-id")
            assert address.transport == "tcp_server"
            assert address.info == (
                f'{{"address":"127.0.0.1:46155","subject":"{appointment.subject}",'
                '"context":"the-id","stream_type":"response"}'
            )
            assert ConnectionInfo.from_address(address).subject == appointment.subject

    trio.run(main)


@given(st.binary(min_size=1, max_size=200))
def test_whatever_is_dialled_in_the_listener_goes_on(garbage: bytes) -> None:
    async def main() -> None:
        async with open_door() as door, door.call_home.appointment("response") as appointment:
            await door.dial(garbage)
            await door.dial(handshake(appointment.subject))
            await appointment.kept()

    trio.run(main)
