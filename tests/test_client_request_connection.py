"""Request connections: acks in order, whoever gives up, and what each ack means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ingress.client import _request_connection, _request_connections
from ingress.client._request_connections import RequestConnections, refusal_in
from ingress.errors import IngressError, MessageTooLarge, NotAccepted, Overloaded, Unavailable
from ingress.wire.request_frame import RequestFrameDecoder, encode_ack, encode_request_frame
from tests.test_client_doubles import MemoryNetwork, MemoryStream

ADDRESS = ("127.0.0.1", 5001)


def frame(number: int) -> bytes:
    return encode_request_frame(str(number), {}, b"payload")


class Acceptor:
    """A worker's request port, played by the test: one accepted connection at a time."""

    def __init__(self, network: MemoryNetwork, connections: RequestConnections, nursery: trio.Nursery) -> None:
        self.network = network
        self.connections = connections
        self.outcomes: dict[int, str] = {}
        self._nursery = nursery

    def push(self, number: int) -> None:
        """Push in a task of its own and note the outcome."""

        async def push() -> None:
            try:
                await self.connections.push(ADDRESS, frame(number))
                self.outcomes[number] = "accepted"
            except IngressError as exc:
                self.outcomes[number] = f"{type(exc).__name__}: {exc}"

        self._nursery.start_soon(push)

    async def accept(self) -> MemoryStream:
        stream = await self.network.listeners[ADDRESS[1]].accept()
        assert isinstance(stream, MemoryStream)
        return stream


@asynccontextmanager
async def open_acceptor(**options: Any) -> AsyncIterator[Acceptor]:
    network = MemoryNetwork()
    async with await network.open_listener(*ADDRESS), trio.open_nursery() as nursery:
        connections = RequestConnections(nursery, network, **options)
        yield Acceptor(network, connections, nursery)
        nursery.cancel_scope.cancel()


async def receive_paths(stream: MemoryStream, count: int) -> list[str]:
    decoder, paths = RequestFrameDecoder(), list[str]()
    while len(paths) < count:
        decoder.receive_data(await stream.receive_some())
        paths += [received.path for received in decoder]
    return paths


async def test_requests_share_one_connection_and_acks_answer_them_in_order() -> None:
    async with open_acceptor() as acceptor:
        for number in range(60):
            acceptor.push(number)
            await trio.testing.wait_all_tasks_blocked()
        stream = await acceptor.accept()
        assert await receive_paths(stream, 60) == [str(number) for number in range(60)]
        await stream.send_all(b"".join(encode_ack("no" if number % 2 else "") for number in range(60)))
        await trio.testing.wait_all_tasks_blocked()
        assert {number: outcome[:11] for number, outcome in acceptor.outcomes.items()} == {
            number: "NotAccepted" if number % 2 else "accepted" for number in range(60)
        }
        assert acceptor.network.connections_to(5001) == 1


async def test_what_is_said_of_a_connection_has_its_address_escaped() -> None:
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        with pytest.raises(NotAccepted) as caught:
            await RequestConnections(nursery, network).push(("a\x1b[31m\u202e", 9), frame(1))
        nursery.cancel_scope.cancel()
    assert str(caught.value).isprintable()
    assert "a\\x1b[31m\\u202e:9" in str(caught.value)


@given(st.data())
def test_acks_cut_anywhere_answer_the_same_requests(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(["", "no", "Server overloaded: x"]), min_size=1, max_size=6))
    raw = b"".join(map(encode_ack, texts))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))

    async def main() -> None:
        async with open_acceptor() as acceptor:
            for number in range(len(texts)):
                acceptor.push(number)
                await trio.testing.wait_all_tasks_blocked()
            stream = await acceptor.accept()
            for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
                await stream.send_all(raw[start:end])
                await trio.testing.wait_all_tasks_blocked()
            kinds = {"": "accepted", "no": "NotAccepted", "Server overloaded: x": "Overloaded"}
            assert [acceptor.outcomes[n].partition(":")[0] for n in range(len(texts))] == [kinds[t] for t in texts]

    trio.run(main)


async def test_a_caller_that_gives_up_leaves_the_others_their_own_acks() -> None:
    async with open_acceptor() as acceptor:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(acceptor.connections.push, ADDRESS, frame(0))
                await trio.testing.wait_all_tasks_blocked()
                acceptor.push(1)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        stream = await acceptor.accept()
        assert await receive_paths(stream, 2) == ["0", "1"]
        await stream.send_all(encode_ack("for the first") + encode_ack())
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor.outcomes == {1: "accepted"}


async def test_a_caller_that_gives_up_before_its_turn_sends_nothing() -> None:
    async with open_acceptor() as acceptor:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(acceptor.connections.push, ADDRESS, frame(0))
                await trio.lowlevel.checkpoint()
                scope.cancel()
        acceptor.push(1)
        assert await receive_paths(await acceptor.accept(), 1) == ["1"]


async def test_no_ack_within_five_seconds_fails_the_request_and_the_next_one_gets_a_new_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_acceptor() as acceptor:
        with pytest.raises(Unavailable, match=r"no ack from 127\.0\.0\.1:5001 within 5 s") as caught:
            await acceptor.connections.push(ADDRESS, frame(0))
        assert not isinstance(caught.value, NotAccepted)
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        acceptor.push(1)
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor.network.connections_to(5001) == 2
        await trio.sleep(6)
        assert [stream.is_closed for _, stream in acceptor.network.connections] == [True, False]


async def test_a_worker_that_hangs_is_left_by_callers_who_give_up_sooner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each had gone away before the ack was due, and so none had given the connection up: for ever."""
    async with open_acceptor() as acceptor:
        for number in range(12):
            with trio.move_on_after(0.5):
                await acceptor.connections.push(ADDRESS, frame(number))
        assert trio.current_time() == pytest.approx(6)
        assert acceptor.network.connections_to(5001) == 2  # from 5 s on
        await trio.sleep(9)
        assert [stream.is_closed for _, stream in acceptor.network.connections] == [True, False]
        await trio.sleep(2)
        assert [stream.is_closed for _, stream in acceptor.network.connections] == [True, True]


async def test_the_time_for_the_ack_begins_with_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with open_acceptor(connect_timeout=3, ack_timeout=1) as acceptor:
        acceptor.network.silent_ports.add(5001)
        with pytest.raises(NotAccepted, match="cannot connect within 3 s"):
            await acceptor.connections.push(ADDRESS, frame(0))
        assert trio.current_time() == pytest.approx(3, abs=0.1)


async def test_a_refused_connection_fails_all_that_wait_for_it_and_is_tried_anew_by_the_next() -> None:
    async with open_acceptor() as acceptor:
        listener = acceptor.network.listeners.pop(5001)
        for number in range(3):
            acceptor.push(number)
        await trio.testing.wait_all_tasks_blocked()
        failure = "NotAccepted: request connection to 127.0.0.1:5001: cannot connect: Connection refused"
        assert acceptor.outcomes == dict.fromkeys(range(3), failure)
        acceptor.network.listeners[5001] = listener
        acceptor.push(3)
        await (await acceptor.accept()).send_all(encode_ack())
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor.outcomes[3] == "accepted"


async def test_a_host_that_cannot_be_a_host_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_acceptor() as acceptor:

        async def connect(host: str, port: int) -> trio.abc.Stream:
            raise UnicodeError("label empty or too long")

        monkeypatch.setattr(acceptor.network, "connect", connect)
        with pytest.raises(NotAccepted, match="label empty or too long"):
            await acceptor.connections.push(ADDRESS, frame(0))


async def test_a_bug_in_one_connection_fails_its_requests_and_not_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_acceptor() as acceptor:
        with monkeypatch.context() as patch:
            patch.setattr(acceptor.network, "connect", lambda *_: 1 / 0)
            with pytest.raises(NotAccepted, match="internal error"):
                await acceptor.connections.push(ADDRESS, frame(0))
        assert "request connection to 127.0.0.1:5001 failed" in caplog.text
        acceptor.push(1)
        await (await acceptor.accept()).send_all(encode_ack())
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor.outcomes == {1: "accepted"}


@pytest.mark.parametrize(("end", "text"), [("aclose", "closed by the worker"), ("reset", "reset by the worker")])
async def test_a_connection_that_ends_before_the_ack_fails_its_requests(end: str, text: str) -> None:
    async with open_acceptor() as acceptor:
        acceptor.push(0)
        acceptor.push(1)
        stream = await acceptor.accept()
        await receive_paths(stream, 2)
        await stream.send_all(encode_ack())
        ending: Callable[[], Awaitable[None]] = getattr(stream, end)
        await ending()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(outcome.replace("accepted", "") for outcome in acceptor.outcomes.values()) == [
            "",
            f"Unavailable: request connection to 127.0.0.1:5001: {text} before the ack",
        ]


async def test_the_refusal_of_a_frame_is_heard_although_the_worker_hangs_up_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker judges a frame by its lengths, answers and closes with the payload unread (docs/wire.md §1.2)."""
    ours, theirs = trio.testing.lockstep_stream_pair()

    async def connect(host: str, port: int) -> trio.abc.Stream:
        return ours

    async with open_acceptor() as acceptor:
        monkeypatch.setattr(acceptor.network, "connect", connect)
        acceptor.push(0)
        assert await theirs.receive_some(5) == frame(0)[:5]
        await theirs.receive_stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await theirs.send_all(encode_ack("Read error: message too large: 70 bytes (max: 60 bytes)"))
        await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor.outcomes[0].startswith("MessageTooLarge: 127.0.0.1:5001 refused the request: Read error")


def test_the_sizes_of_a_refused_frame_are_kept() -> None:
    refusal = refusal_in("Read error: message too large: 70 bytes (max: 60 bytes)", "127.0.0.1:1")
    assert isinstance(refusal, MessageTooLarge)
    assert (refusal.size, refusal.limit) == (70, 60)


@pytest.mark.parametrize("data", [encode_ack(), b"\xff\xff\xff\xff"])
async def test_an_ack_that_nobody_asked_for_ends_the_connection_only(data: bytes) -> None:
    async with open_acceptor() as acceptor:
        acceptor.push(0)
        stream = await acceptor.accept()
        await stream.send_all(encode_ack() + data)
        assert await receive_paths(stream, 1) == ["0"]
        assert await stream.receive_some() == b""
        acceptor.push(1)
        await (await acceptor.accept()).send_all(encode_ack())
        await trio.testing.wait_all_tasks_blocked()
        assert acceptor.outcomes == {0: "accepted", 1: "accepted"}


async def test_an_idle_connection_is_kept_for_300_seconds_and_no_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_acceptor() as acceptor:
        streams: list[MemoryStream] = []
        for pause in (0.0, 299.0, 301.0):
            await trio.sleep(pause)
            acceptor.push(0)
            await trio.testing.wait_all_tasks_blocked()
            if len(streams) < acceptor.network.connections_to(5001):
                streams.append(await acceptor.accept())
            await streams[-1].send_all(encode_ack())
            await trio.testing.wait_all_tasks_blocked()
        assert [stream.is_closed for _, stream in acceptor.network.connections] == [True, False]


async def test_a_full_connection_is_helped_by_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_request_connection, "MAX_IN_FLIGHT", 2)
    async with open_acceptor() as acceptor:
        for number in range(3):
            acceptor.push(number)
            await trio.testing.wait_all_tasks_blocked()
        assert acceptor.network.connections_to(5001) == 2


async def test_the_number_of_connections_is_bounded_and_the_longest_idle_one_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_request_connection, "MAX_IN_FLIGHT", 1)
    monkeypatch.setattr(_request_connections, "MAX_CONNECTIONS", 2)
    async with open_acceptor() as acceptor:
        acceptor.push(0)
        await trio.testing.wait_all_tasks_blocked()
        acceptor.push(1)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="all 2 request connections of this client are in use"):
            await acceptor.connections.push(ADDRESS, frame(2))
        await (await acceptor.accept()).send_all(encode_ack())
        await trio.testing.wait_all_tasks_blocked()
        other = await acceptor.network.open_listener("127.0.0.1", 5002)
        with trio.move_on_after(0):
            await acceptor.connections.push(("127.0.0.1", 5002), frame(3))
        await trio.testing.wait_all_tasks_blocked()
        assert [stream.is_closed for _, stream in acceptor.network.connections] == [True, False, False]
        await other.aclose()


async def test_a_worker_that_reads_nothing_cannot_hold_a_caller_beyond_the_ack_timeout(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_acceptor() as acceptor:

        async def connect(host: str, port: int) -> trio.abc.Stream:
            return trio.testing.lockstep_stream_pair()[0]

        monkeypatch.setattr(acceptor.network, "connect", connect)
        acceptor.push(0)
        with pytest.raises(Unavailable, match="no ack"):
            await acceptor.connections.push(ADDRESS, frame(1))
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        await trio.sleep(6)
        assert acceptor.connections._connections == {}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Server unavailable: unknown endpoint 1/demo/backend/generate", NotAccepted),
        ("Unknown endpoint: 1/generate", NotAccepted),
        ("Invalid endpoint path", NotAccepted),
        ("anything else", NotAccepted),
        ("Server overloaded: worker at capacity", Overloaded),
        ("Server overloaded:", Overloaded),
        ("Read error: message too large: 70 bytes (max: 60 bytes)", MessageTooLarge),
        ("Server unavailable: message too large: 70 bytes (max: 60 bytes)", MessageTooLarge),
        ("Server unavailable: message too large: " + "9" * 5000 + " bytes (max: 1 bytes)", NotAccepted),
    ],
)
def test_every_text_of_an_ack_is_a_refusal_of_its_kind(text: str, kind: type[IngressError]) -> None:
    refusal = refusal_in(text, "127.0.0.1:1")
    assert type(refusal) is kind
    assert str(refusal).startswith(f"127.0.0.1:1 refused the request: {text[:100]}")


def test_an_empty_ack_accepts() -> None:
    assert refusal_in("", "127.0.0.1:1") is None


def test_control_characters_of_a_refusal_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in str(refusal_in("Server unavailable: \x1b[31m\n", "127.0.0.1:1"))
