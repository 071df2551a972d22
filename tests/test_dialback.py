"""Dialling back: what is refused before a packet is sent, and what becomes of callers that cannot be reached."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress.testing import MemoryNetwork
from ingress.testing._memory import MemoryStream
from ingress.wire.messages import RequestControlMessage, StreamAddress

from .raw_caller import Stage, open_stage

REFUSED = "Server unavailable: dial-back address refused"


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


def dialled(stage: Stage) -> list[tuple[str, int]]:
    """Where the worker connected to; the first connection is the caller's own."""
    return list(stage.worker._network.connects[1:])


async def ask_with(stage: Stage, **changes: Any) -> str:
    return await stage.ask(stage.caller.payload(0, stage.caller.control(**changes)))


# -- refused before the ack ------------------------------------------------------------------------------------------

ADDRESSES = [
    "",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:99999",
    "127.0.0.1:+5000",
    "127.0.0.1:5000 ",
    " 127.0.0.1:5000",
    "127.0.0.1:5000\n",
    "127.0.0.1:5000/x",
    "user@127.0.0.1:5000",
    "localhost:5000",
    "127.1:5000",
    "2130706433:5000",
    "0x7f000001:5000",
    "0177.0.0.1:5000",
    "0:5000",
    "0.0.0.0:5000",
    "[::]:5000",
    "[127.0.0.1]:5000",
    "[fe80::1%lo]:5000",
    "unix:/tmp/x",
    "169.254.169.254:8000",
    "[::ffff:169.254.169.254]:8000",
    "[64:ff9b::a9fe:a9fe]:8000",
    "[2002:a9fe:a9fe::]:8000",
    "224.0.0.1:5000",
    "255.255.255.255:5000",
    "127.0.0.1:22",
    "192.0.2.1:5000",
    "[2001:db8::1]:5000",
    "127.0.0.1:５０００",
]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_c07_d03_an_address_that_is_not_allowed_is_refused_without_a_connect(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(echo) as stage:
        assert await ask_with(stage, info={"address": address}) == REFUSED
        assert dialled(stage) == []
        assert stage.counted_ends() == {"response_stream": 1}
        assert len(caplog.records) == 1
        assert caplog.records[0].getMessage().isprintable()
        stage.assert_nothing_left()


@pytest.mark.parametrize(
    "changes",
    [
        {"stream_type": "request"},
        {"context": "another"},
        {"subject": ""},
        {"subject": "a b"},
        {"subject": "x" * 257},
        {"subject": "line\nbreak"},
    ],
)
async def test_c07_connection_info_that_does_not_fit_is_refused(changes: dict[str, str]) -> None:
    async with open_stage(echo) as stage:
        assert await ask_with(stage, info=changes) == REFUSED
        assert dialled(stage) == []
        assert stage.counted_ends() == {"response_stream": 1}


@pytest.mark.parametrize("info", ["", "not json", "[]", "null", "{}", "[" * 100, '{"address":5}'])
async def test_c07_connection_info_that_cannot_be_read_is_refused(info: str) -> None:
    async with open_stage(echo) as stage:
        control = stage.caller.control()
        broken = RequestControlMessage(
            control.id, "single_in", "many_out", StreamAddress("tcp_server", info), payload_codec="json"
        )
        payload = stage.caller.payload(0, broken)
        assert await stage.ask(payload) == REFUSED
        assert dialled(stage) == []


@pytest.mark.parametrize(
    ("transport", "named"),
    [
        ("quic-response", "quic-response"),
        ("nats", "nats"),
        ("", '""'),
        ("TCP_SERVER", "TCP_SERVER"),
        ("a\nb is fine", '"a\\nb is fine"'),
    ],
)
async def test_c06_o01_a_foreign_response_transport_is_refused_by_its_name(
    transport: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As the whole of a refusal's line it could have been any other refusal."""
    async with open_stage(echo) as stage:
        ack = await ask_with(stage, transport=transport)
        assert ack == f"Server unavailable: response transport {named} is not supported"
        (line,) = caplog.messages
        assert line.endswith(f" refused: response transport {named} is not supported")
        assert stage.counted_ends() == {"response_stream": 1}


async def test_a_worker_never_dials_itself() -> None:
    async with open_stage(echo) as stage:
        assert await ask_with(stage, info={"address": stage.worker.address}) == REFUSED


# -- callers that cannot be reached ----------------------------------------------------------------------------------


async def test_d01_a_refused_connection_is_counted_and_the_engine_never_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[Any] = []

    async def engine(request: Any) -> AsyncIterator[Any]:
        called.append(request)
        yield

    async with open_stage(engine) as stage:
        payload = stage.caller.payload(0, stage.caller.control(info={"address": "127.0.0.1:9999"}))
        for _ in range(200):
            await stage.connection.send(payload)
        acks = await stage.connection.read_acks(200)
        assert set(acks) == {"", REFUSED}  # after 64 failures nobody tries for a second
        await wait_all_tasks_blocked()
        assert called == []
        assert stage.counted_ends() == {"response_stream": 200}
        assert len(dialled(stage)) == acks.count("")  # no retry
        assert len(caplog.records) <= 20  # rate-limited
        assert [record for record in caplog.records if record.exc_info] == []
        stage.assert_nothing_left()


class BlackHole(MemoryNetwork):
    """Connections to port 9999 never come about."""

    async def connect(self, host: str, port: int) -> MemoryStream:
        if port == 9999:
            self.connects.append((host, port))
            await trio.sleep_forever()
        return await super().connect(host, port)


class Stopped(BlackHole):
    """The first dial-back, the second connection of all, does not come about while the worker can see it."""

    async def connect(self, host: str, port: int) -> MemoryStream:
        return await super().connect(host, 9999 if len(self.connects) == 1 else port)


class Failing(MemoryNetwork):
    """Connections to port 9999 fail, and are counted."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.failed = 0
        self._number = number

    async def connect(self, host: str, port: int) -> MemoryStream:
        if port == 9999:
            self.fail()
        return await super().connect(host, port)

    def fail(self) -> NoReturn:
        self.failed += 1
        raise OSError(self._number, os.strerror(self._number))


class FailingAtOnce(Failing):
    """And fail as soon as they are begun, which those of real TCP are first."""

    def start_connect(self, host: str, port: int) -> NoReturn:
        self.fail()

    async def connect(self, host: str, port: int) -> MemoryStream:
        assert port != 9999, "it was not tried at once"
        return await super().connect(host, port)


async def test_d02_a_black_hole_is_given_up_after_five_seconds(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stage(echo, network=BlackHole()) as stage:
        control = stage.caller.control(info={"address": "127.0.0.1:9999"})
        for _ in range(100):
            assert await stage.ask(stage.caller.payload(0, control)) == ""
        await stage.assert_alive()
        await trio.sleep(4.9)
        assert stage.sample("inflight_requests") == 100
        await trio.sleep(0.2)
        assert stage.counted_ends() == {"response_stream": 100}
        stage.assert_nothing_left()
        assert "dial-back to 127.0.0.1:9999 timed out after 5 s" in caplog.records[0].getMessage()


@pytest.mark.parametrize("seconds", [5.1, 40])
async def test_d15_a_dial_back_that_ran_out_while_the_worker_was_stopped_is_tried_again(
    seconds: float, autojump_clock: MockClock
) -> None:
    async with open_stage(echo, network=Stopped()) as stage:
        assert await stage.ask(stage.caller.payload(0)) == ""
        await wait_all_tasks_blocked()
        autojump_clock.jump(seconds)
        await wait_all_tasks_blocked()
        if seconds == 40:
            assert (await (await stage.caller.accept()).read_to_sentinel()).is_whole
        else:
            assert stage.counted_ends() == {"response_stream": 1}


async def test_l04_a_dial_back_without_descriptors_is_counted_and_the_worker_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_stage(echo, network=Failing(errno.EMFILE)) as stage:
        control = stage.caller.control(info={"address": "127.0.0.1:9999"})
        assert await stage.ask(stage.caller.payload(0, control)) == ""
        await wait_all_tasks_blocked()
        assert stage.counted_ends() == {"response_stream": 1}
        assert "Too many open files" in caplog.records[0].getMessage()
        await stage.assert_alive()


@pytest.mark.parametrize("make_network", [Failing, FailingAtOnce])
@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("EMFILE", 100),
        ("ENFILE", 100),
        ("ENOBUFS", 100),
        ("ENOMEM", 100),
        ("EADDRNOTAVAIL", 100),
        ("ECONNREFUSED", 64),
        ("EHOSTUNREACH", 64),
    ],
)
async def test_d05_what_we_lack_ourselves_is_no_failure_of_the_address(
    make_network: type[Failing], name: str, taken: int, autojump_clock: MockClock
) -> None:
    network = make_network(getattr(errno, name))
    async with open_stage(echo, network=network) as stage:
        control = stage.caller.control(info={"address": "127.0.0.1:9999"})
        for number in range(100):
            assert await stage.ask(stage.caller.payload(0, control)) == ("" if number < taken else REFUSED)
            await wait_all_tasks_blocked()
        assert network.failed == taken
        assert stage.counted_ends() == {"response_stream": 100}


async def test_a_drain_does_not_wait_for_a_dial_back_that_hangs(autojump_clock: MockClock) -> None:
    async with open_stage(echo, network=BlackHole()) as stage:
        control = stage.caller.control(info={"address": "127.0.0.1:9999"})
        assert await stage.ask(stage.caller.payload(0, control)) == ""
        await wait_all_tasks_blocked()
    assert trio.current_time() < 7
    assert stage.counted_ends() == {"cancellation": 1}
