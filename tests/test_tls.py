"""TLS and mTLS on both planes: who gets in, who does not, and that nobody is kept waiting or lost."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

import ingress
from ingress._heavy_work import heavy_work
from ingress._network import TcpNetwork, TcpStream, close_now
from ingress._rotation import MAX_FILE_SIZE
from ingress.client import Client
from ingress.errors import StartupError, StreamIncomplete, Unavailable
from ingress.testing import MemoryNetwork
from ingress.testing._pipes import pipes
from ingress.tls import TlsContexts, TlsNetwork, TlsOptions, TlsStream
from ingress.tls._network import SECONDS_A_PASS, SECONDS_A_WORD, _PacedStream, handshakes, names_of
from ingress.wire.request_frame import encode_request_frame

from .certificates import Authority
from .passes import counted_passes, nobody_let_go

ENDPOINT = "demo.backend.generate"


async def generate(request: Any) -> AsyncIterator[Any]:
    for i in range(request["n"]):
        await trio.sleep(request.get("delay", 0))
        yield i


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def serve(tls: TlsOptions | None, network: Any = None, **options: Any) -> AsyncIterator[ingress.Worker]:
    options = {"discovery": ingress.MemoryDiscovery(), "linger": 0.0, "drain_budget": 0.0, **options}
    async with ingress.serving(generate, endpoint=ENDPOINT, network=network, tls=tls, **options) as worker:
        yield worker


@asynccontextmanager
async def serve_and_call(
    worker_tls: TlsOptions | None, caller_tls: TlsOptions | None, network: Any = None
) -> AsyncIterator[tuple[ingress.Worker, Client]]:
    """A worker and a caller; over loopback where no network is given."""
    discovery = ingress.MemoryDiscovery()
    async with (
        serve(worker_tls, network, discovery=discovery) as worker,
        ingress.open_client(
            discovery=discovery, network=network, tls=caller_tls, set_aside=0.0, dial_back_timeout=5.0
        ) as client,
    ):
        yield worker, client


async def call(client: Client, n: int = 3, delay: float = 0) -> list[Any]:
    async with client.stream(ENDPOINT, {"n": n, "delay": delay}) as responses:
        return [item async for item in responses]


def sample(worker: ingress.Worker, name: str, **labels: str) -> float:
    return worker.metrics.registry.get_sample_value(name, labels) or 0.0


def refused(worker: ingress.Worker) -> float:
    return sample(worker, "ingress_connections_refused_total", reason="tls")


# -- who gets in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_planes_are_encrypted(mutual: bool, host: str, authority: Authority) -> None:
    tls = authority.options("server", host, mutual=mutual)
    network = Wiretap()
    discovery = ingress.MemoryDiscovery()
    async with (
        serve(tls, network, discovery=discovery, host=host) as worker,
        ingress.open_client(discovery=discovery, network=network, host=host, tls=tls) as client,
    ):
        assert await call(client) == [0, 1, 2]
        async with client.stream(ENDPOINT, {"n": 10_000}) as responses:
            assert [item async for item in responses] == list(range(10_000))
        assert refused(worker) == 0
    assert len(network.heard) == 1 + 2, "one request connection and a dial-back a call"
    assert all(heard[:2] == b"\x16\x03" for heard in network.heard), "each begins with a handshake"
    assert not any(b"generate" in heard or b"prologue" in heard for heard in network.heard)


class Wiretap(TcpNetwork):
    """Keeps what the connecting end of every connection sends."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytearray] = []

    async def connect(self, host: str, port: int) -> Any:
        self.heard.append(bytearray())
        return _Tapped((await super().connect(host, port))._raw, self.heard[-1])


class _Tapped(TcpStream):
    def __init__(self, raw: socket.socket, heard: bytearray) -> None:
        super().__init__(raw)
        self._heard = heard

    async def send_all(self, data: Any) -> None:
        self._heard += data
        await super().send_all(data)


def a_caller_without_a_certificate(authority: Authority, tmp_path: Path) -> TlsOptions:
    return authority.options("caller")


def a_caller_of_another_authority(authority: Authority, tmp_path: Path) -> TlsOptions:
    return Authority(tmp_path, "strangers").options("stranger", mutual=True, ca_cert_path=authority.path)


def a_caller_whose_certificate_has_expired(authority: Authority, tmp_path: Path) -> TlsOptions:
    cert, key = authority.issue("late", expired=True)
    return authority.options("caller", mutual=True, client_cert_path=cert, client_key_path=key)


@pytest.mark.parametrize(
    "make", [a_caller_without_a_certificate, a_caller_of_another_authority, a_caller_whose_certificate_has_expired]
)
async def test_mtls_refuses(
    make: Callable[[Authority, Path], TlsOptions],
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One count and one line; nothing of the request is read, and others are served."""
    tls = authority.options(mutual=True)
    async with serve_and_call(tls, make(authority, tmp_path)) as (worker, client):
        with trio.fail_after(20), pytest.raises(Unavailable, match=r"certificate|unknown ca"):
            await call(client)
        await until(lambda: sample(worker, "ingress_connections_open") == 0)  # the peer knows first
        assert refused(worker) == 1
        lines = [record.getMessage() for record in caplog.records if "TLS handshake failed" in record.getMessage()]
        assert len(lines) == 1 and lines[0].startswith("request connection from 127.0.0.1 refused: ")
        discovery = worker._discovery
        async with ingress.open_client(discovery=discovery, tls=tls) as good:
            assert await call(good) == [0, 1, 2]


def a_worker_of_another_authority(authority: Authority, tmp_path: Path) -> TlsOptions:
    return Authority(tmp_path, "strangers").options("stranger", ca_cert_path=authority.path)


def a_worker_whose_certificate_has_expired(authority: Authority, tmp_path: Path) -> TlsOptions:
    cert, key = authority.issue("late", expired=True)
    return authority.options("server", cert_path=cert, key_path=key)


def a_worker_under_another_name(authority: Authority, tmp_path: Path) -> TlsOptions:
    return authority.options("server", "elsewhere.example")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_worker_of_another_authority, "unable to get local issuer certificate"),
        (a_worker_whose_certificate_has_expired, "certificate has expired"),
        (a_worker_under_another_name, "IP address mismatch"),
    ],
)
async def test_a_caller_sends_nothing_to(
    make: Callable[[Authority, Path], TlsOptions], reason: str, authority: Authority, tmp_path: Path
) -> None:
    async with serve_and_call(make(authority, tmp_path), authority.options("caller")) as (_, client):
        with trio.fail_after(20), pytest.raises(ingress.errors.NotAccepted, match=reason):
            await call(client)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_worker_of_another_authority, "unable to get local issuer certificate"),
        (a_worker_whose_certificate_has_expired, "certificate has expired"),
        (a_worker_under_another_name, "IP address mismatch"),
    ],
)
async def test_a_worker_answers_no_listener_with_a_bad_certificate(
    make: Callable[[Authority, Path], TlsOptions],
    reason: str,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same of the other plane: the dial-back fails, is counted as unreachable, and the answer stays here."""
    bad = make(authority, tmp_path)
    async with serve_and_call(authority.options("good"), bad) as (worker, client):
        with trio.fail_after(20), pytest.raises(Unavailable):
            await call(client)
        counted = [
            sample_.value
            for family in worker.metrics.registry.collect()
            for sample_ in family.samples
            if sample_.name == "dynamo_component_errors_total" and sample_.labels["error_type"] == "response_stream"
        ]
        assert counted == [1]
        assert any(reason in record.getMessage() for record in caplog.records)


async def test_a_server_name_stands_for_the_address(authority: Authority) -> None:
    tls = authority.options("server", "worker.example", server_name="worker.example")
    async with serve_and_call(tls, tls) as (_, client):
        assert await call(client) == [0, 1, 2]


async def test_insecure_checks_nobody(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "strangers").options("stranger", "elsewhere.example", insecure=True)
    async with serve_and_call(stranger, authority.options("caller", insecure=True)) as (_, client):
        assert await call(client) == [0, 1, 2]


async def test_only_allowed_names_get_in(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    tls = authority.options(mutual=True)
    names = {}
    for name in ("frontend.example", "intruder.example"):
        cert, key = authority.issue(name, name)
        names[name] = authority.options(f"of-{name}", mutual=True, client_cert_path=cert, client_key_path=key)
    picky = authority.options("picky", mutual=True, allowed_names=["Frontend.example"])
    async with serve_and_call(picky, names["frontend.example"]) as (worker, client):
        assert await call(client) == [0, 1, 2]
        assert refused(worker) == 0
    async with serve_and_call(picky, names["intruder.example"]) as (worker, client):
        with trio.fail_after(20), pytest.raises(Unavailable):
            await call(client)
        await until(lambda: refused(worker) == 1)
    assert "no allowed name in the certificate of intruder.example" in caplog.text
    assert tls.is_mutual


async def test_o01_the_names_of_a_certificate_show_where_they_end(
    authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.tls._network.names_of", lambda cert: ["a, b", "c", "d; refused: all"])
    tls = authority.options(mutual=True, allowed_names=["frontend.example"])
    async with serve_and_call(tls, tls) as (worker, client):
        with trio.fail_after(20), pytest.raises(Unavailable):
            await call(client)
        await until(lambda: refused(worker) == 1)
    assert 'no allowed name in the certificate of "a, b", c, "d; refused: all"' in caplog.text


def test_a_uri_that_looks_like_a_host_names_nobody() -> None:
    named = [("DNS", "a.example"), ("URI", "b.example"), ("URI", "spiffe://c/d"), ("IP Address", "10.0.0.1")]
    assert names_of({"subjectAltName": named}) == ["a.example", "spiffe://c/d", "10.0.0.1"]
    assert names_of({}) == []


# -- bytes that are not what they should be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        encode_request_frame("p", {}, b"x" * 40),
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
        b"\x16\x03\x01\xff\xff" + bytes(99),
    ],
    ids=["frame", "http", "zeros", "broken"],
)
async def test_plain_bytes_on_a_tls_port_are_refused(data: bytes, authority: Authority) -> None:
    tls = authority.options()
    async with serve_and_call(tls, tls) as (worker, client):
        host, _, port = worker.address.rpartition(":")
        plain = await TcpNetwork().connect(host, int(port))
        with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):
            await plain.send_all(data)
            while await plain.receive_some():
                pass
        await plain.aclose()
        await until(lambda: sample(worker, "ingress_connections_open") == 0)
        assert refused(worker) == 1
        assert await call(client) == [0, 1, 2]


async def test_f17_tls_on_a_plain_port_is_refused(authority: Authority) -> None:
    """The beginning of a handshake reads as a path of 5,635 bytes."""
    async with serve_and_call(None, None) as (worker, client):
        host, _, port = worker.address.rpartition(":")
        with trio.fail_after(20), pytest.raises(OSError, match="TLS handshake failed"):
            await TlsNetwork(TcpNetwork(), TlsContexts(authority.options())).connect(host, int(port))
        assert sample(worker, "ingress_frames_refused_total", reason="path") == 1
        assert await call(client) == [0, 1, 2]


@pytest.mark.parametrize("sent", [b"", b"\x16"], ids=["nothing", "one byte"])
async def test_a_stalled_handshake_is_closed_in_time_and_holds_up_nobody(
    sent: bytes, authority: Authority, autojump_clock: MockClock
) -> None:
    tls = authority.options()
    network = MemoryNetwork()
    async with serve_and_call(tls, tls, network) as (worker, client):
        host, _, port = worker.address.rpartition(":")
        began = trio.current_time()
        stalled = await network.connect(host, int(port))
        if sent:
            await stalled.send_all(sent)
        await wait_all_tasks_blocked()
        assert await call(client) == [0, 1, 2], "others are served meanwhile"
        assert trio.current_time() - began < 1
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stalled.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(10.0, abs=0.1)
        assert refused(worker) == 1
        assert await call(client) == [0, 1, 2]


async def test_peers_that_stall_in_their_handshake_keep_nobody_from_theirs(
    authority: Authority, autojump_clock: MockClock
) -> None:
    tls = authority.options()
    network = MemoryNetwork()
    async with serve_and_call(tls, tls, network) as (worker, client):
        host, _, port = worker.address.rpartition(":")
        for _ in range(30):
            await (await network.connect(host, int(port))).send_all(b"\x16\x03\x01")
        await wait_all_tasks_blocked()
        assert await call(client) == [0, 1, 2]
        assert trio.current_time() < 1


async def test_of_handshakes_that_come_together_a_few_compute_in_one_pass_of_the_loop() -> None:
    """So that other streams get their turns in between; what is received is computed with at once."""
    received_in: list[int] = []

    async def receive(stream: trio.abc.ReceiveStream) -> None:
        assert await stream.receive_some() == b"\x16hello"
        received_in.append(passes.count)

    pairs = [trio.testing.memory_stream_pair() for _ in range(100)]
    for theirs, _ in pairs:
        await theirs.send_all(b"\x16hello")
    async with counted_passes() as passes, trio.open_nursery() as nursery:
        for _, ours in pairs:
            nursery.start_soon(receive, _PacedStream(ours))
    assert len(received_in) == 100
    assert max(Counter(received_in).values()) <= SECONDS_A_PASS / SECONDS_A_WORD + 1


async def test_handshakes_that_wait_keep_no_reads_waiting_nor_the_other_way_round() -> None:
    handshakes().spent = 1.0
    assert not heavy_work().is_wait_expected
    handshakes().spent, heavy_work().spent = 0.0, 1.0
    assert not handshakes().is_wait_expected


async def shaken_hands(
    authority: Authority, ours: trio.abc.Stream, theirs: trio.abc.Stream
) -> tuple[TlsStream, TlsStream]:
    contexts, options = TlsContexts(authority.options()), authority.options()
    server = TlsStream(ours, contexts.server(), options)
    client = TlsStream(theirs, contexts.client(), options, server_hostname="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await client.do_handshake()
    return server, client


async def test_records_of_a_byte_are_read_many_at_once_and_nothing_is_lost(authority: Authority) -> None:
    """A hundred connections that had sent such had kept the worker busy for minutes after they were gone."""
    server, client = await shaken_hands(authority, *trio.testing.memory_stream_pair())
    sent = bytes(range(250)) + b"the end"
    for number in range(len(sent)):
        await client.send_all(sent[number : number + 1])
    received, reads = b"", 0
    with trio.fail_after(10):
        while len(received) < len(sent):
            received += await server.receive_some(100)
            reads += 1
        assert (received, reads < 10) == (sent, True)
        await client.send_all(b"x")
        await client.aclose()
        assert [await server.receive_some(), await server.receive_some()] == [b"x", b""]


async def test_two_may_close_a_stream_at_once(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears the caller leave, and who has told it everything: one in twenty answers had logged a traceback."""
    monkeypatch.setattr("ingress.tls._network.GOODBYE_TIMEOUT", 60)
    ours, theirs = trio.testing.lockstep_stream_pair()
    server, client = await shaken_hands(authority, ours, theirs)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(server.aclose)
        assert await client.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_who_speaks_no_tls_or_has_left_takes_no_turn_of_those_who_shake_hands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        nobody_let_go(monkeypatch, handshakes()) as let_go,
        await TcpNetwork().open_listener("127.0.0.1", 0) as listener,
    ):
        host, port = listener.address
        async with await TcpNetwork().connect(host, port) as stranger, await listener.accept() as accepted:
            await stranger.send_all(b"GET / HTTP/1.1")
            with trio.fail_after(5):
                assert await _PacedStream(accepted).receive_some() == b"GET / HTTP/1.1"
        leaving = await TcpNetwork().connect(host, port)
        async with await listener.accept() as accepted, trio.open_nursery() as nursery:
            await leaving.send_all(b"\x16\x03\x01")
            outcome: list[BaseException] = []

            async def receive() -> None:
                with trio.fail_after(5):
                    try:
                        await _PacedStream(accepted).receive_some()
                    except trio.BrokenResourceError as exc:
                        outcome.append(exc)

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            assert not accepted.has_peer_left
            await leaving.aclose()
            let_go.set()
            await wait_all_tasks_blocked(0.01)
            assert [str(exc) for exc in outcome] == ["the peer has left in the handshake"]


async def test_connections_that_are_there_are_accepted_at_once_where_the_network_below_can(
    authority: Authority,
) -> None:
    contexts = TlsContexts(authority.options())
    for network in (TcpNetwork(), MemoryNetwork()):
        tls = TlsNetwork(network, contexts)
        async with await tls.open_listener("127.0.0.1", 0) as listener:
            assert listener.accept_nowait() is None
            async with await network.connect(*tls.local_address(listener)):
                accepted = listener.accept_nowait()
                assert isinstance(accepted, TlsStream) == isinstance(network, TcpNetwork)
                if accepted is None:
                    accepted = await listener.accept()
                await trio.aclose_forcefully(accepted)


async def test_a_listener_that_stalls_costs_a_dial_back_its_connect_timeout(
    authority: Authority, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    tls = authority.options()
    async with trio.open_nursery() as nursery:
        listener = await network.open_listener("127.0.0.1", 0)
        nursery.start_soon(listener.accept)  # and not a byte
        began = trio.current_time()
        with trio.move_on_after(5):
            await TlsNetwork(network, TlsContexts(tls)).connect(*listener.address)
        assert trio.current_time() - began == pytest.approx(5)
        assert network.open_connections == [], "what was cut is closed"
        nursery.cancel_scope.cancel()


# -- how a stream ends -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_pair(authority: Authority, network: Any = None) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    """A client's and a server's end, hands shaken."""
    tls = TlsNetwork(MemoryNetwork(pipes()) if network is None else network, TlsContexts(authority.options()))
    async with await tls.open_listener("127.0.0.1", 0) as listener:
        streams: list[TlsStream] = []

        async def accept() -> None:
            streams.append(await listener.accept())
            await streams[0].do_handshake()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            ours = await tls.connect(*tls.local_address(listener))
        yield ours, streams[0]
        await trio.aclose_forcefully(ours)
        await trio.aclose_forcefully(streams[0])


async def test_an_end_with_a_goodbye_is_an_end_and_one_without_is_a_cut(authority: Authority) -> None:
    async with open_pair(authority) as (ours, theirs):
        await ours.send_all(b"last words")
        await close_now(ours)
        assert await theirs.receive_some() == b"last words"
        assert await theirs.receive_some() == b""
    async with open_pair(authority) as (ours, theirs):
        await ours.send_all(b"last words")
        await ours.transport.aclose()
        assert await theirs.receive_some() == b"last words"
        with pytest.raises(trio.BrokenResourceError, match="cut without a goodbye"):
            await theirs.receive_some()


async def test_closing_is_prompt_although_the_peer_reads_nothing(
    authority: Authority, autojump_clock: MockClock
) -> None:
    async with open_pair(authority) as (ours, _), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await ours.send_all(bytes(1_000_000))

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await close_now(ours)
        assert trio.current_time() - began <= 0.2


async def test_a_response_stream_that_is_cut_is_incomplete(authority: Authority) -> None:
    """Somebody on the way who closes the connection must not make half an answer look whole."""
    tls = authority.options()
    network = MemoryNetwork()
    async with serve_and_call(tls, tls, network) as (_, client):
        with pytest.raises(StreamIncomplete):
            async with client.stream(ENDPOINT, {"n": 100, "delay": 0.01}) as responses:
                async for item in responses:
                    if item == 1:
                        await responses._stream.transport.reset()  # type: ignore[union-attr]
    assert network.open_connections == []


async def test_leaving_early_cancels_the_engine(authority: Authority) -> None:
    tls = authority.options()
    async with serve_and_call(tls, tls) as (worker, client):
        async with client.stream(ENDPOINT, {"n": 1000, "delay": 0.01}) as responses:
            assert await anext(responses) == 0
        await until(lambda: len(worker.open_requests) == 0)
        assert sample(worker, "ingress_connections_open") == 1


# -- rotation --------------------------------------------------------------------------------------------------------


async def test_certificates_rotate_under_load_and_nothing_is_lost(authority: Authority) -> None:
    """Four rotations, the authority's among them, under callers that never pause."""
    tls = authority.options(mutual=True)
    answers, rotations = 0, 0
    is_over = False
    async with serve_and_call(tls, tls) as (worker, client), trio.open_nursery() as nursery:

        async def load() -> None:
            nonlocal answers
            while not is_over:
                assert await call(client, 20, delay=0.002) == list(range(20))
                answers += 1

        for _ in range(8):
            nursery.start_soon(load)
        assert worker.tls is not None
        for _ in range(4):
            before, seen = answers, worker.tls.server()
            authority.issue("server")
            authority.issue("server-client")
            await until(lambda seen=seen: worker.tls.server() is not seen)  # type: ignore[misc]
            rotations += 1
            await until(lambda before=before: answers > before + 16)  # type: ignore[misc]
        is_over = True
    assert rotations == 4 and answers > 64
    assert refused(worker) == 0


async def test_a_new_certificate_is_shown_from_the_next_connection_on(
    authority: Authority, autojump_clock: MockClock
) -> None:
    """And half of a rotation changes nothing: the old pair goes on, and a line says so."""
    contexts = TlsContexts(authority.options())
    first = contexts.server()
    cert, key = contexts.options.cert_path, contexts.options.key_path
    assert cert is not None and key is not None
    old_key = key.read_bytes()
    authority.issue("server")
    assert contexts.server() is first, "files are looked at once a second"
    await trio.sleep(1.1)
    second = contexts.server()
    assert second is not first
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    await trio.sleep(1.1)
    assert contexts.server() is second, "the certificate is of another key"
    key.write_bytes(new_key + b"\n")
    await trio.sleep(1.1)
    assert contexts.server() is not second


async def test_bad_new_files_are_told_and_change_nothing(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = TlsContexts(authority.options())
    before = contexts.server()
    assert contexts.options.cert_path is not None
    contexts.options.cert_path.unlink()
    assert not contexts.reload()
    assert contexts.server() is before
    assert "certificates cannot be read again, the old ones go on: " in caplog.text


FILES = ("cert_path", "key_path", "ca_cert_path", "client_ca_cert_path", "client_cert_path", "client_key_path")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", FILES)
async def test_a_fifo_in_the_place_of_a_file_is_refused_and_not_waited_for(
    name: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    options = authority.options(mutual=True)
    contexts = TlsContexts(options)
    before = contexts.server()
    path = getattr(options, name)
    path.rename(path.with_name("kept"))
    os.mkfifo(path, 0o600)
    assert not contexts.reload()
    assert contexts.server() is before
    assert f"{path.name} is no regular file" in caplog.text
    path.unlink()
    path.symlink_to("kept")  # as mounted secrets are
    assert contexts.reload()
    with path.open("ab") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    assert not contexts.reload()
    assert f"{path.name} of {MAX_FILE_SIZE + 1} bytes exceeds {MAX_FILE_SIZE} bytes" in caplog.text


async def test_expiry_is_a_metric(authority: Authority) -> None:
    tls = authority.options(mutual=True)
    async with serve(tls) as worker:
        for name in ("server", "client", "ca", "client_ca"):
            assert sample(worker, "ingress_tls_certificate_expiry_timestamp_seconds", certificate=name) > 1e9
    assert tls.cert_path is not None
    seen = ssl._ssl._test_decode_cert(str(tls.cert_path))  # type: ignore[attr-defined]  # what CPython's tests use
    assert ssl.cert_time_to_seconds(seen["notAfter"]) == TlsContexts(tls).expiries()["server"]


# -- configuration ---------------------------------------------------------------------------------------------------


def test_dynamos_variables_are_read(authority: Authority) -> None:
    tls = authority.options(mutual=True)
    environ = authority.environment(tls)
    more = {
        "DYN_TCP_TLS_SERVER_NAME": "w.example",
        "DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS": "3",
        "DYN_TCP_TLS_INSECURE": "0",
    }
    read = TlsOptions.from_environ({**environ, **more, "DYN_TCP_RPC_PORT": "1"})
    assert read is not None
    assert (read.server_name, read.handshake_timeout, read.insecure) == ("w.example", 3.0, False)
    assert set(read.files) == set(tls.files)
    assert TlsOptions.from_environ({"DYN_TCP_TLS_CERT_PATH": ""}) is None


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        ("KEY_PATH", "DYN_TCP_TLS_CERT_PATH and DYN_TCP_TLS_KEY_PATH come together"),
        ("CLIENT_KEY_PATH", "DYN_TCP_TLS_CLIENT_CERT_PATH and DYN_TCP_TLS_CLIENT_KEY_PATH come together"),
        ("CA_CERT_PATH", "TLS needs to know whom to trust"),
    ],
)
def test_half_of_it_is_refused(leave_out: str, message: str, authority: Authority) -> None:
    environ = authority.environment(authority.options(mutual=True))
    del environ[f"DYN_TCP_TLS_{leave_out}"]
    with pytest.raises(StartupError, match=message):
        TlsOptions.from_environ(environ)


def test_the_insecure_variable_alone_is_refused(authority: Authority) -> None:
    environ = {**authority.environment(authority.options()), "DYN_TCP_TLS_INSECURE": "true"}
    with pytest.raises(StartupError, match="--tcp-tls-insecure"):
        TlsOptions.from_environ(environ)
    read = TlsOptions.from_environ(environ, insecure=True)
    assert read is not None and read.insecure


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_a_key_that_others_can_read_is_refused(mode: int, authority: Authority) -> None:
    tls = authority.options()
    assert tls.key_path is not None
    tls.key_path.chmod(mode)
    with pytest.raises(StartupError, match=f"is open to others .mode {mode:04o}"):
        TlsContexts(tls)
    tls.key_path.chmod(0o640)  # as pods are given theirs
    TlsContexts(tls)


def test_files_that_cannot_be_used_are_told_at_start(authority: Authority, tmp_path: Path) -> None:
    _, other_key = authority.issue("other")
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"cert_path": tmp_path / "missing.pem"}, "missing.pem"),
        ({"key_path": other_key}, "do not belong together"),
        ({"cert_path": junk}, "no PEM"),
        ({"ca_cert_path": junk}, "no PEM"),
    ]
    for change, message in changes:
        with pytest.raises(StartupError, match=message):
            TlsContexts(authority.options("server", **change))


async def test_at_least_tls_1_2_and_no_renegotiation(authority: Authority) -> None:
    contexts = TlsContexts(authority.options(mutual=True))
    for context in (contexts.server(), contexts.client()):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert contexts.client().check_hostname


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not is_so():
            await trio.sleep(0.01)


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_f14_f15_a_tls_connection_that_never_sent_a_request_makes_room(
    authority: Authority, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tls = authority.options(handshake_timeout=60.0)
    async with serve(tls, max_connections=2, max_connections_per_peer=2) as worker:
        host, _, port = worker.address.rpartition(":")
        network = TlsNetwork(TcpNetwork(), TlsContexts(tls))

        async def connect() -> TlsStream:
            stream = await network.connect(host, int(port))
            assert isinstance(stream, TlsStream)
            await stream.do_handshake()
            return stream

        ready = await connect()
        mute = await TcpNetwork().connect(host, int(port))  # whose handshake never comes
        await wait_all_tasks_blocked(0.05)
        assert sample(worker, "ingress_connections_open") == 2
        mock_clock.jump(11)
        new = [await connect(), await connect()]
        with pytest.raises(trio.BrokenResourceError):
            await ready.receive_some()
        assert await mute.receive_some() == b""
        await wait_all_tasks_blocked(0.05)
        assert sample(worker, "ingress_connections_open") == 2
        assert sample(worker, "ingress_connections_refused_total", reason="silent") == 2
        assert "internal error" not in caplog.text
        for stream in (ready, mute, *new):
            await trio.aclose_forcefully(stream)


@pytest.mark.skipif(sys.platform != "linux", reason="only there every address of 127/8 is one's own")
@pytest.mark.parametrize("has_called", [False, True])
async def test_f15_tls_connections_that_one_address_has_most_of_make_room_for_others(
    authority: Authority, has_called: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tls = authority.options(handshake_timeout=60.0)
    async with serve(tls, max_connections=4, max_connections_per_peer=4) as worker:
        host, _, port = worker.address.rpartition(":")
        contexts, streams = TlsContexts(tls), list[trio.abc.Stream]()

        async def connect_from(peer: str) -> TlsStream:
            raw = trio.socket.socket()
            await raw.bind((peer, 0))
            await raw.connect((host, int(port)))
            stream = TlsStream(trio.SocketStream(raw), contexts.client(), tls, server_hostname=host)
            streams.append(stream)
            return stream

        async def call(stream: trio.abc.Stream) -> None:
            await stream.send_all(encode_request_frame("nope", {}, b""))
            assert await stream.receive_some()

        for _ in range(4):
            stream = await connect_from("127.0.0.2")  # whose handshake never comes
            if has_called:
                await call(stream)
        await until(lambda: sample(worker, "ingress_connections_open") == 4)
        await wait_all_tasks_blocked(0.05)
        await call(await connect_from("127.0.0.3"))
        assert sample(worker, "ingress_connections_refused_total", reason="displaced") == 1
        with pytest.raises(trio.BrokenResourceError):
            await streams[0].receive_some()
        await wait_all_tasks_blocked(0.05)
        assert sample(worker, "ingress_connections_open") == 4
        assert "internal error" not in caplog.text
        for each in streams:
            await trio.aclose_forcefully(each)
