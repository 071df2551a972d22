"""The status server over loopback: its routes as callers see them, and clients that mean no good (O03)."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import json
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx2
import pytest
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from trio.testing import wait_all_tasks_blocked

from ingress._engine import make_engine
from ingress._fair_line import FairLine
from ingress.errors import StartupError
from ingress.metrics import WorkerMetrics
from ingress.status import DRAINING, STARTING, StatusOptions, WorkerStatus
from ingress.status._app import StatusPages, make_app
from ingress.status._health import HealthState
from ingress.status._progress import read_progress
from ingress.status._server import MAX_REQUESTS, GuardedStream, serve_status
from ingress.wire.records import EndpointId

GENERATE = EndpointId("demo", "backend", "generate")
Address = tuple[str, int]


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


def made(details: Mapping[str, Any] | None = None, **options: Any) -> WorkerStatus:
    metrics = WorkerMetrics(1)
    metrics.endpoint(GENERATE)
    return WorkerStatus(
        {GENERATE: make_engine(echo)}, metrics, StatusOptions(port=0, **options), details=lambda: details or {}
    )


@asynccontextmanager
async def served(status: WorkerStatus) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve the pages and yield a client for them."""
    async with trio.open_nursery() as nursery:
        await nursery.start(status.serve_pages)
        assert status.address is not None
        host, port = status.address
        async with httpx2.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as client:
            yield client
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served_raw(**limits: Any) -> AsyncIterator[Address]:
    """Serve the pages with limits of one's own and yield the address."""
    metrics = WorkerMetrics(1)
    metrics.endpoint(GENERATE)
    pages = StatusPages(state=HealthState(), registry=metrics.registry, read_progress=lambda: read_progress([], 0.0))
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Address]) -> None:
            await serve_status(make_app(pages), task_status=task_status, **limits)

        yield await nursery.start(serve)
        with trio.fail_after(2):  # whatever the clients do, the end does not wait for them
            nursery.cancel_scope.cancel()


# -- routes ----------------------------------------------------------------------------------------------------------


async def test_health_is_503_until_served_then_200_and_503_again_while_refusing() -> None:
    status = made()
    async with served(status) as client:
        for change, code, word, endpoints in (
            (functools.partial(status.health.release, "nothing"), 503, "notready", {}),
            (functools.partial(status.health.release, STARTING), 200, "ready", {"generate": "ready"}),
            (functools.partial(status.health.hold, DRAINING, "refusing"), 503, "notready", {"generate": "notready"}),
        ):
            change()
            response = await client.get("/health")
            assert (response.status_code, response.headers["content-type"]) == (code, "text/plain; charset=utf-8")
            body = response.json()
            assert list(body) == ["status", "uptime", "endpoints"]
            assert (body["status"], body["endpoints"]) == (word, endpoints)


@pytest.mark.parametrize(("like_released", "code"), [(False, 200), (True, 503)])
async def test_live_is_200_while_the_loop_answers_unless_told_to_be_as_released_workers(
    like_released: bool, code: int
) -> None:
    async with served(made(is_live_when_ready=like_released)) as client:
        response = await client.get("/live")
        assert (response.status_code, response.json()["status"]) == (code, "notready")


async def test_verbose_health_is_json_with_reasons_and_what_the_worker_adds() -> None:
    async with served(made({"codec": "json", "limits": {"engine_request_limit": 8}})) as client:
        response = await client.get("/health?verbose")
        assert response.headers["content-type"] == "application/json"
        body = response.json()
        assert body["reasons"] == {"starting": "starting"}
        assert (body["codec"], body["limits"]) == ("json", {"engine_request_limit": 8})


async def test_paths_can_be_chosen() -> None:
    async with served(made(health_path="/readyz", live_path="/livez")) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/health")).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/live", "/metrics", "/progress"])
async def test_pages_can_be_asked_for_their_head_but_take_no_post(path: str) -> None:
    async with served(made()) as client:
        got, head, posted = [await client.request(method, path) for method in ("GET", "HEAD", "POST")]
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert (posted.status_code, posted.content) == (405, b"")
        assert "GET" in posted.headers["allow"]


@pytest.mark.parametrize("path", ["/nope", "/health/", "/metrics/", "/engine", "/engine/", "/%00"])
async def test_an_unknown_path_is_route_not_found(path: str) -> None:
    async with served(made()) as client:
        response = await client.get(path)
        assert response.status_code == 404
        assert "Route not found" in response.text


async def test_metrics_come_as_text_and_as_openmetrics_to_whom_asks_for_it() -> None:
    async with served(made()) as client:
        text = await client.get("/metrics")
        assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "dynamo_component_requests_total{" in text.text
        openmetrics = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert openmetrics.text.endswith("# EOF\n")


async def test_progress_is_503_only_when_stalled() -> None:
    status = made(stall_threshold=0.05)
    async with served(status) as client:
        assert (await client.get("/progress")).json()["status"] == "idle"
        (endpoint,) = status._metrics.endpoints
        with endpoint.request_in_flight(1):
            await trio.sleep(0.1)
            response = await client.get("/progress")
            assert (response.status_code, response.json()["status"]) == (503, "stalled")
            assert response.json()["running"] == 1


# -- callbacks -------------------------------------------------------------------------------------------------------


async def test_engine_routes_answer_as_those_of_a_released_worker() -> None:
    async def pause(body: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return {"paused": body}

    def fail(body: Any) -> Any:
        raise RuntimeError("no such adapter\n\x1b[31m")

    def odd(body: Any) -> Any:
        return object()

    routes = {"pause": pause, "plain": lambda body: [body], "fail": fail, "odd": odd}
    async with served(made(engine_routes=routes)) as client:

        async def call(name: str, content: bytes = b"", method: str = "POST") -> tuple[int, Any]:
            response = await client.request(method, f"/engine/{name}", content=content)
            return response.status_code, response.json()

        assert await call("pause", b'{"seconds":1}') == (200, {"paused": {"seconds": 1}})
        assert await call("plain") == (200, [{}])
        assert await call("plain", method="GET") == (200, [{}])
        code, body = await call("plain", b"{nope")
        assert (code, body["error"]) == (400, "Invalid JSON")
        assert (await call("plain", b"[" * 100_000))[0] == 400
        code, body = await call("fail")
        assert (code, body["error"]) == (500, "Handler error")
        assert body["message"] == "Python callback failed: RuntimeError: no such adapter\\n\\x1b[31m"
        assert (await call("odd"))[0] == 500
        expected = {"error": "Route not found", "message": "Route /engine/x not found"}
        assert await call("x") == (404, expected)
        assert (await call("plain", b" " * 1_100_000))[0] == 413


async def test_a_collector_that_fails_costs_its_scrape_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def collect(self) -> list[Metric]:
            raise OSError("the GPU is gone")

    status = made()
    async with served(status) as client:
        status._metrics.registry.register(Failing())
        response = await client.get("/metrics")
        assert (response.status_code, response.text) == (500, "Internal error")
        assert (await client.get("/live")).status_code == 200
    assert any(record.exc_info for record in caplog.records)


# -- where it listens ------------------------------------------------------------------------------------------------


async def test_r09_a_taken_port_is_a_startup_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status = made()
        status = WorkerStatus({}, WorkerMetrics(2), StatusOptions(port=port))
        with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            await status.serve_pages()


async def test_an_address_that_is_not_ours_is_a_startup_error() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        status = WorkerStatus({}, WorkerMetrics(2), StatusOptions(port=0, host=host))
        with pytest.raises(StartupError, match="status server: cannot listen on"):
            await status.serve_pages()


async def test_without_a_port_nothing_listens() -> None:
    status = WorkerStatus({}, WorkerMetrics(2), StatusOptions())
    async with trio.open_nursery() as nursery:
        await nursery.start(status.serve_pages)
        assert status.address is None
        nursery.cancel_scope.cancel()


async def test_ipv6_loopback_will_do() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    status = WorkerStatus({}, WorkerMetrics(2), StatusOptions(port=0, host="::1"))
    async with served_at(status) as (_, port):
        await assert_answers(("::1", port))


@asynccontextmanager
async def served_at(status: WorkerStatus) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(status.serve_pages)
        except* StartupError:
            pytest.skip("no IPv6 loopback here")
        assert status.address is not None
        yield status.address
        nursery.cancel_scope.cancel()


# -- hostile clients -------------------------------------------------------------------------------------------------


async def connect(address: Address) -> trio.SocketStream:
    return await trio.open_tcp_stream(*address)


async def ask(stream: trio.SocketStream, request: bytes) -> bytes:
    """Send and read what comes until the answer's head is there, or the connection ends."""
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(request)
    return await read_head(stream)


async def read_head(stream: trio.SocketStream) -> bytes:
    answer = b""
    with trio.move_on_after(20), contextlib.suppress(trio.BrokenResourceError):
        while b"\r\n\r\n" not in answer and (data := await stream.receive_some()):
            answer += bytes(data)
    return answer


async def assert_answers(address: Address) -> None:
    with trio.fail_after(5):
        async with await connect(address) as stream:
            assert (await ask(stream, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 1024 * 1024 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/1.1\r\n\r\n",
        b"get / http/9\r\n\r\n",
        b"GET /\x00\xff\n HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /engine/x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /engine/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /engine/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500,
        b"GET /nope HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: !!\r\n\r\n"
        + b"\x00" * 99,
        b"GET /nope HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\xff\xff\xff",
        b"\x00" * 100_000,
        b"",
    ],
    ids=lambda value: repr(value[:24]),
)
async def test_o03_bad_http_ends_its_own_connection_and_nothing_else(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_raw(deadline=1.0) as address:
        async with await connect(address) as stream:
            answer = await ask(stream, sent)
            assert not answer.startswith(b"HTTP/1.1 200")
        await assert_answers(address)
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


@pytest.mark.parametrize("key", [b"", b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"])
async def test_o03_who_asks_for_a_websocket_is_answered_and_has_the_same_time_as_others(key: bytes) -> None:
    """Without a key it had been refused, and kept until it left: 128 such connections are all there are."""
    asked = b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n" + key + b"\r\n"
    async with served_raw(deadline=0.2) as address, await connect(address) as stream:
        assert (await ask(stream, asked)).startswith(b"HTTP/1.1 200")
        with trio.fail_after(20):
            while await stream.receive_some():
                pass


async def test_o03_a_header_of_a_mebibyte_is_refused_with_431() -> None:
    async with served_raw() as address, await connect(address) as stream:
        # little enough to have been read when the refusal is sent, or the reset would overtake it
        answer = await ask(stream, b"GET /" + b"a" * 16_500)
        assert answer.startswith(b"HTTP/1.1 431") or answer == b""
        await assert_answers(address)


async def test_o03_nothing_of_a_connection_that_was_refused_waits_for_the_garbage_collector() -> None:
    """Four thousand of them held 330 MB."""
    gc.collect()
    gc.disable()
    try:
        async with served_raw() as address:
            for _ in range(5):
                async with await connect(address) as stream:
                    await ask(stream, b"GET /" + b"a" * 16_500)
        held = [each for each in gc.get_objects() if isinstance(each, h11.Connection) and vars(each)]
        assert held == []
    finally:
        gc.enable()


async def test_o03_a_hundred_at_once_are_all_served_in_time_and_the_loop_stays_free() -> None:
    async with served_raw() as address:
        answers: list[bytes] = []
        longest = 0.0

        async def scrape() -> None:
            async with await connect(address) as stream:
                answers.append(await ask(stream, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))

        async def feel_the_pulse() -> None:
            nonlocal longest
            while True:
                before = time.monotonic()
                await trio.sleep(0.001)
                longest = max(longest, time.monotonic() - before)

        started = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feel_the_pulse)
            async with trio.open_nursery() as scrapes:
                for _ in range(100):
                    scrapes.start_soon(scrape)
            nursery.cancel_scope.cancel()
        assert len(answers) == 100
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        assert time.monotonic() - started < 10  # a second where nothing else runs
        assert longest < 0.5  # some milliseconds there


async def test_o03_one_who_sends_a_byte_at_a_time_is_closed_at_the_deadline() -> None:
    async with served_raw(deadline=0.5) as address, await connect(address) as stream:
        started = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in b"GET /live HTTP/1.1\r\nx-slow: " + b"a" * 1000:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.05)
                if trio.current_time() - started > 10:
                    pytest.fail("still open")
        await assert_answers(address)


async def test_o03_one_who_does_not_read_is_closed_and_never_holds_up_the_end() -> None:
    for deadline in (0.3, 3600.0):
        async with served_raw(deadline=deadline) as address:
            raw = trio.socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await raw.connect(address)
            with trio.move_on_after(2), contextlib.suppress(OSError):
                while True:
                    await raw.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 50)
            await assert_answers(address)
        raw.close()


async def test_o03_whoever_hoards_connections_pushes_out_his_own() -> None:
    async with served_raw(max_connections=8) as address:
        hoard = [await connect(address) for _ in range(30)]
        await assert_answers(address)
        ended = 0
        for stream in hoard:
            with trio.move_on_after(0.05):
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.receive_some()
                ended += 1
            await stream.aclose()
        assert ended >= 22


async def test_o03_whoever_hoards_connections_pushes_out_nobody_elses() -> None:
    """Three hundred connections of one address had kept every probe out for as long as they came again."""
    async with served_raw(max_connections=8) as address:
        good = await trio.open_tcp_stream(*address, local_address="127.0.0.2")
        request = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
        assert b"HTTP/1.1 200" in await ask(good, request)
        hoard = [await connect(address) for _ in range(30)]
        await assert_answers(address)
        assert b"HTTP/1.1 200" in await ask(good, request)
        for stream in (good, *hoard):
            await stream.aclose()


async def test_o03_a_request_whose_connection_was_pushed_out_waits_for_no_turn() -> None:
    """Its answer would reach nobody: there had been work for 18 s after hundreds of slow readers had left."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(PIPELINED)
        turn = FairLine()
        stream = GuardedStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), turn, 5.0)
        requests: list[bytes] = []

        async def serve() -> None:
            with stream.use:
                requests.append(bytes(await stream.receive_some()))

        async with turn, trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await wait_all_tasks_blocked()
            stream.drop()
            with trio.fail_after(5):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
        assert requests == []


async def test_o03_a_client_that_waits_to_be_told_to_go_on_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each such request had put a traceback of 3 KB into the log."""
    async with served_raw() as address:
        for _ in range(20):
            async with await connect(address) as stream:
                await ask(
                    stream,
                    b"POST /metrics HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
                )
        await assert_answers(address)
    assert caplog.messages == []


PIPELINED = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("ends", ["reset", "fin", "silence"])
async def test_o03_nothing_is_done_for_a_client_that_is_gone(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 requests lie in the buffers when it leaves, without having read any answer, or when it is given up."""
    pages = 0

    async def metrics(self: StatusPages, *, openmetrics: bool) -> bytes:
        nonlocal pages
        pages += 1
        await trio.sleep(0.01)
        return bytes(256 * 1024)

    monkeypatch.setattr(StatusPages, "metrics", metrics)
    monkeypatch.setattr("ingress.status._server.MAX_REQUESTS", 1_000_000)
    async with served_raw(deadline=0.5) as address:
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await raw.connect(address)
        with trio.move_on_after(0.3):
            await raw.send(PIPELINED * 2000)
            await trio.sleep_forever()
        if ends == "reset":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if ends != "silence":
            raw.close()
        await trio.sleep(1)
        asked = pages
        await trio.sleep(0.5)
        assert 0 < pages == asked < 60
        await assert_answers(address)
        raw.close()


async def test_o03_one_connection_is_answered_so_often_and_then_closed() -> None:
    async with served_raw() as address, await connect(address) as stream:
        await stream.send_all(PIPELINED * 500)
        answer = bytearray()
        with contextlib.suppress(trio.BrokenResourceError):  # what was not read of the requests makes it a reset
            while data := await stream.receive_some():
                answer += data
        assert answer.count(b"HTTP/1.1 200") <= MAX_REQUESTS
        await assert_answers(address)


async def test_the_last_answer_of_a_connection_says_so_and_whoever_reconnects_gets_every_one() -> None:
    async with served(made()) as client:
        said = [(await client.get("/live")).headers.get("connection") for _ in range(2 * MAX_REQUESTS + 10)]
        assert [place for place, word in enumerate(said, 1) if word == "close"] == [MAX_REQUESTS, 2 * MAX_REQUESTS]


async def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.status._app.BODY_TIMEOUT", 0.2)
    status = made(engine_routes={"x": lambda body: body})
    async with served(status) as _:
        assert status.address is not None
        async with await connect(status.address) as stream:
            answer = await ask(stream, b"POST /engine/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{")
            assert answer.startswith(b"HTTP/1.1 408")


async def test_a_client_that_leaves_in_the_middle_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def forever(body: Any) -> Any:
        await trio.sleep(0.3)

    status = made(engine_routes={"x": forever})
    async with served(status) as client:
        assert status.address is not None
        for request in (
            b"POST /engine/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{",
            b"POST /engine/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
            b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
            b"GET /metr",
        ):
            for is_reset in (False, True):
                stream = await connect(status.address)
                if is_reset:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.send_all(request)
                await trio.sleep(0.02)
                await stream.aclose()
        await trio.sleep(0.4)
        assert (await client.get("/live")).status_code == 200
    assert not [record for record in caplog.records if record.name.startswith("ingress")]


async def test_l03_a_failing_accept_is_logged_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trio.SocketListener.accept
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted"), OSError()]

    async def accept(listener: trio.SocketListener) -> trio.SocketStream:
        if failures:
            await trio.lowlevel.checkpoint()
            raise failures.pop(0)
        return await real(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    async with served_raw() as address:
        await assert_answers(address)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["status"] * 3


async def test_o03_a_bug_below_the_application_ends_its_connection_and_nothing_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypercorn.protocol.h11 import H11Protocol

    real = H11Protocol.handle
    bugs = [RuntimeError("a bug\x1b[31m"), KeyError("another")]

    async def handle(protocol: H11Protocol, event: Any) -> None:
        if bugs:
            raise bugs.pop(0)
        await real(protocol, event)

    monkeypatch.setattr(H11Protocol, "handle", handle)
    async with served_raw() as address:
        for _ in range(2):
            async with await connect(address) as stream:
                assert await ask(stream, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        await assert_answers(address)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "\x1b" not in caplog.text


async def test_a_registry_of_its_own_is_shown() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(1, registry=registry)
    async with served(WorkerStatus({}, metrics, StatusOptions(port=0))) as client:
        assert "dynamo_component_uptime_seconds" in (await client.get("/metrics")).text
        assert json.loads((await client.get("/health")).content)["endpoints"] == {}


@pytest.mark.parametrize(
    "paths", [{"health_path": "/metrics"}, {"live_path": "/"}, {"live_path": "/engine/x"}, {"health_path": "/live"}]
)
def test_pages_that_would_hide_one_another_are_refused(paths: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="path"):
        made(**paths)
