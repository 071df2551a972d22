"""The OpenAI upstream engine in a worker, in front of a real HTTP server: what callers and the server see."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from engines._openai_api import as_chunk, failure_of, read_request
from engines.openai_upstream import OpenAIUpstream
from ingress import Client, InvalidArgument, MemoryDiscovery, RemoteError, open_client, serving
from ingress.errors import StartupError
from ingress.testing import check_engine, memory_worker

from .openai_server import (
    Answer,
    Call,
    OpenAIServer,
    chat_chunks,
    completion_chunks,
    openai_server,
    openai_server_in_thread,
    refusing,
    sse,
    streaming,
    whole,
)

ENDPOINT = "demo.backend.generate"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
COMPLETION = {"model": "m", "prompt": "hi", "stream": True}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_URL", "MODEL", "API_KEY", "CONNECT_TIMEOUT", "FIRST_BYTE_TIMEOUT", "CHUNK_TIMEOUT"):
        monkeypatch.delenv(f"OPENAI_{name}", raising=False)


@asynccontextmanager
async def behind(answer: Answer, **options: Any) -> AsyncIterator[tuple[OpenAIServer, Client]]:
    """Serve an upstream, the engine in front of it, and a caller; no wait is longer than half a minute."""
    with trio.fail_after(30):
        async with (
            openai_server(answer) as server,
            memory_worker(OpenAIUpstream(server.base_url, **options)) as client,
        ):
            yield server, client


async def asked(client: Client, request: Any, **options: Any) -> list[Any]:
    async with client.stream(ENDPOINT, request, **options) as responses:
        return [item async for item in responses]


async def failure(client: Client, request: Any = CHAT) -> tuple[int, RemoteError]:
    """Return how many chunks came before the failure, and the failure."""
    count = 0
    with pytest.raises(RemoteError) as caught:
        async with client.stream(ENDPOINT, request) as responses:
            async for _ in responses:
                count += 1
    return count, caught.value


@asynccontextmanager
async def cut_short(answer: bytes) -> AsyncIterator[str]:
    """Answer every connection with the bytes and close it; yield the base URL."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
        nursery.cancel_scope.cancel()


# -- answers ----------------------------------------------------------------------------------------------------------


async def test_the_chunks_of_a_chat_arrive_as_they_are() -> None:
    chunks = chat_chunks("one two three")
    async with behind(whole(sse(chunks))) as (server, client):
        assert await asked(client, CHAT) == chunks
    assert server.calls[0].path == "/v1/chat/completions"
    assert server.calls[0].body == CHAT


async def test_a_prompt_goes_to_the_route_of_completions() -> None:
    chunks = completion_chunks("one two")
    async with behind(whole(sse(chunks))) as (server, client):
        assert await asked(client, COMPLETION) == chunks
    assert server.calls[0].path == "/v1/completions"


async def test_a_chunk_is_passed_on_before_the_next_is_there() -> None:
    first, *rest = chat_chunks("one two")
    has_arrived = trio.Event()

    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        yield sse([first], done=False)
        await has_arrived.wait()
        yield sse(rest)

    async with behind(streaming(pieces)) as (_, client), client.stream(ENDPOINT, CHAT) as responses:
        async for item in responses:
            assert item == first
            has_arrived.set()
            break


@settings(max_examples=10)
@given(st.data())
def test_bytes_cut_anywhere_give_the_same_chunks(data: st.DataObject) -> None:
    chunks = chat_chunks("héllo wörld 日本")
    stream = sse(chunks)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=8)))
    bounds = [0, *cuts, len(stream)]

    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        for start, end in itertools.pairwise(bounds):
            yield stream[start:end]
            await trio.sleep(0)

    async def main() -> None:
        async with behind(streaming(pieces)) as (_, client):
            assert await asked(client, CHAT) == chunks

    trio.run(main)


async def test_an_answer_in_one_piece_becomes_one_chunk() -> None:
    message = {"role": "assistant", "content": "hi there"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }
    async with behind(refusing(200, answer)) as (_, client):
        (chunk,) = await asked(client, {**CHAT, "stream": False})
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"] == [{"index": 0, "delta": message, "finish_reason": "stop"}]
    assert chunk["usage"] == usage


async def test_the_model_and_the_key_are_those_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " secret-key \n")
    async with behind(whole(sse(chat_chunks("x"))), model="other", api_key_variable="SOME_KEY") as (server, client):
        await asked(client, CHAT)
    assert server.calls[0].body["model"] == "other"
    assert server.calls[0].headers["authorization"] == "Bearer secret-key"


async def test_trace_headers_go_on_where_they_are_valid() -> None:
    async with behind(whole(sse(chat_chunks("x")))) as (server, client):
        await asked(client, CHAT, headers={"traceparent": TRACEPARENT, "tracestate": "a=1", "cookie": "c"})
        await asked(client, CHAT, headers={"traceparent": "x\r\nevil: 1", "tracestate": "é"})
    sent, refused = (call.headers for call in server.calls)
    assert (sent["traceparent"], sent["tracestate"]) == (TRACEPARENT, "a=1")
    assert not {"cookie", "authorization"} & sent.keys()
    assert not {"traceparent", "tracestate", "evil"} & refused.keys()


async def test_connections_are_used_again_and_cookies_are_not() -> None:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        yield sse(chat_chunks("x"))

    async with behind(streaming(pieces, **{"set-cookie": "caller=one; Path=/"})) as (server, client):
        for _ in range(5):
            await asked(client, CHAT)
    assert len({call.client for call in server.calls}) == 1
    assert all("cookie" not in call.headers for call in server.calls)


async def test_a_refused_request_does_not_cost_its_connection() -> None:
    async with behind(refusing(400, {"error": {"message": "no"}})) as (server, client):
        for _ in range(3):
            await failure(client)
    assert len({call.client for call in server.calls}) == 1


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (400, {"error": {"message": "too long", "type": "invalid_request_error"}}, "InvalidRequest", "too long"),
        (422, {"error": "bad field"}, "InvalidRequest", "bad field"),
        (413, "<html>", "InvalidRequest", "upstream refused the request with HTTP 413"),
        (
            404,
            {"error": {"message": "The model `x` does not exist."}},
            "InvalidRequest",
            "The model `x` does not exist.",
        ),
        (404, {"detail": "Not Found"}, "Internal", "upstream: HTTP 404"),
        (401, {"error": {"message": "Incorrect API key: sk-12"}}, "Internal", "not admit this worker (HTTP 401)"),
        (429, {"error": {"message": "slow down"}}, "CapacityExhausted", "upstream: HTTP 429: slow down"),
        (503, {"error": {"message": "loading"}}, "CapacityExhausted", "upstream: HTTP 503: loading"),
        (529, "", "CapacityExhausted", "upstream: HTTP 529"),
        (504, "<html>", "DeadlineExceeded", "upstream: HTTP 504"),
        (500, {"error": {"message": "CUDA"}}, "Internal", "upstream: HTTP 500: CUDA"),
        (302, "", "Internal", "upstream: HTTP 302"),
    ],
)
async def test_a_status_goes_home_in_kind(status: int, body: Any, kind: str, text: str) -> None:
    async with behind(refusing(status, body)) as (_, client):
        count, error = await failure(client)
    assert (count, error.error_class) == (0, kind)
    assert text in error.message
    assert "sk-12" not in error.message


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'data: {"error": {"message": "boom", "code": 500}}\n\n', "Internal"),
        (b'data: {"error": {"message": "boom", "type": "BadRequestError", "code": 400}}\n\n', "InvalidRequest"),
        (b'event: error\ndata: {"message": "boom", "code": 503}\n\n', "CapacityExhausted"),
        (b'error: {"message": "boom", "type": "exceed_context_size_error"}\n\n', "InvalidRequest"),
        (b'data: {"error": "boom"}\n\n', "Internal"),
    ],
)
async def test_a_failure_in_mid_stream_follows_the_chunks(event: bytes, kind: str) -> None:
    async with behind(whole(sse(chat_chunks("one two")[:2], done=False) + event)) as (_, client):
        count, error = await failure(client)
    assert (count, error.error_class) == (2, kind)
    assert "boom" in error.message


@pytest.mark.parametrize("tail", [b"", b"data: {nope\n\n", b"data: 3\n\n"])
async def test_an_answer_that_ends_or_breaks_early_is_a_failure(tail: bytes) -> None:
    async with behind(whole(sse(chat_chunks("one two")[:2], done=False) + tail)) as (_, client):
        count, error = await failure(client)
    assert count == 2
    assert "upstream" in error.message


async def test_an_answer_with_a_finish_reason_needs_no_done() -> None:
    chunks = chat_chunks("one")
    async with behind(whole(sse(chunks, done=False))) as (_, client):
        assert await asked(client, CHAT) == chunks


async def test_a_connection_that_is_cut_is_a_disconnect() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\n"
    answer = head + sse(chat_chunks("one two")[:1], done=False)
    async with cut_short(answer) as base_url, memory_worker(OpenAIUpstream(base_url)) as client:
        count, error = await failure(client)
    assert (count, error.reason) == (1, "backend.disconnected")


async def test_nobody_listening_is_told_without_the_address() -> None:
    async with memory_worker(OpenAIUpstream("http://127.0.0.1:9/v1")) as client:
        _, error = await failure(client)
    assert error.reason == "backend.cannot_connect"
    assert "127.0.0.1" not in error.message


@pytest.mark.parametrize("before", [0, 1])
async def test_a_silent_upstream_is_given_up(before: int) -> None:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        for chunk in chat_chunks("one")[:before]:
            yield sse([chunk], done=False)
        await trio.sleep_forever()

    times = {"first_byte_timeout": 0.3} if before == 0 else {"chunk_timeout": 0.3}
    async with behind(streaming(pieces), **times) as (server, client):
        count, error = await failure(client)
        await server.calls[0].ended.wait()
    assert (count, error.reason) == (before, "backend.connection_timeout")


async def test_an_answer_without_end_is_given_up_at_its_limit() -> None:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        while True:
            yield sse(chat_chunks("one two")[:2], done=False)
            await trio.sleep(0)

    async with behind(streaming(pieces), max_response=100_000) as (server, client):
        _, error = await failure(client)
        await server.calls[0].ended.wait()
    assert "more than 100000 bytes" in error.message


@pytest.mark.parametrize("answer", [whole(b"data: " + b"x" * 5000), refusing(200, {"choices": [], "x": "y" * 5000})])
async def test_an_event_or_body_beyond_its_limit_is_given_up(answer: Answer) -> None:
    async with behind(answer, max_event=1000) as (_, client):
        _, error = await failure(client)
    assert "more than 1000 bytes" in error.message


async def test_a_request_that_gets_no_connection_is_told_of_an_overload() -> None:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        yield sse(chat_chunks("x")[:1], done=False)
        await trio.sleep_forever()

    async with (
        behind(streaming(pieces), max_connections=1, connect_timeout=0.2) as (_, client),
        client.stream(ENDPOINT, CHAT) as responses,
    ):
        async for _ in responses:
            break
        _, error = await failure(client)
    assert error.error_class == "CapacityExhausted"


@pytest.mark.parametrize("request_", [None, 3, "hi", [], {}, {"text": "x"}])
async def test_what_is_no_openai_body_never_reaches_the_upstream(request_: Any) -> None:
    async with behind(whole(b"")) as (server, client):
        _, error = await failure(client, request_)
    assert error.error_class == "InvalidRequest"
    assert server.calls == []


# -- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("end", ["leave", "stop"])
async def test_the_upstream_is_left_at_once_when_the_caller_ends(end: str, before: int) -> None:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        for chunk in chat_chunks("one two three")[:before]:
            yield sse([chunk], done=False)
        await trio.sleep_forever()

    async with behind(streaming(pieces)) as (server, client):
        async with client.stream(ENDPOINT, CHAT) as responses:
            for _ in range(before):
                await anext(responses)
            await server.called.wait()
            if end == "stop":
                await responses.stop()
                assert [item async for item in responses] == []
        await server.calls[0].ended.wait()
    assert server.calls[0].sent == before


async def test_a_slow_caller_holds_the_upstream_back() -> None:
    """Between the two stand only buffers of sockets and 256 KiB of the worker's own."""
    total, size = 400, 64 * 1024
    chunk = {"choices": [{"index": 0, "delta": {"content": "x" * size}}]}

    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        for _ in range(total):
            yield sse([chunk], done=False)

    discovery = MemoryDiscovery()
    async with (
        openai_server(streaming(pieces)) as server,
        serving(OpenAIUpstream(server.base_url), endpoint=ENDPOINT, discovery=discovery, linger=0.0),
        open_client(discovery=discovery) as client,
    ):
        async with client.stream(ENDPOINT, CHAT) as responses:
            await anext(responses)
            await trio.testing.wait_all_tasks_blocked(0.3)
            sent = server.calls[0].sent
        await server.calls[0].ended.wait()
    assert sent < total, "the whole answer was taken in though nobody reads it"


def test_the_check_passes() -> None:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        for chunk in chat_chunks("one two three"):
            yield sse([chunk], done=False)
        yield b"data: [DONE]\n\n"

    with openai_server_in_thread(streaming(pieces)) as server:
        check_engine(OpenAIUpstream(server.base_url), [CHAT], examples=10)


def test_the_example_streams_an_answer() -> None:
    example = Path(__file__).parent.parent / "docs" / "examples" / "05_openai_upstream.py"
    with openai_server_in_thread(whole(sse(chat_chunks("apples pears plums")))) as server:
        finished = subprocess.run(
            [sys.executable, example, "Name three fruits."],
            env={**os.environ, "OPENAI_BASE_URL": server.base_url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (finished.returncode, finished.stdout) == (0, "apples pears plums \n"), finished.stderr
    assert server.calls[0].body["messages"] == [{"role": "user", "content": "Name three fruits."}]


def test_it_is_served_by_name(tmp_path: Path) -> None:
    """As `ingress serve openai-upstream` is, and what it says where it does not know its server."""
    command = [sys.executable, "-m", "ingress", "serve", "openai-upstream"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    refused = subprocess.run(command, **options)
    assert refused.returncode == 3
    assert "OPENAI_BASE_URL=http://" in refused.stderr
    with openai_server_in_thread(whole(sse(chat_chunks("apples")))) as server:
        environment = {**os.environ, "OPENAI_BASE_URL": server.base_url, "DYN_FILE_KV": str(tmp_path)}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as worker:
            try:
                call = [sys.executable, "-m", "ingress", "call", "backend.generate", "-d", json.dumps(CHAT)]
                while not list(tmp_path.rglob("*generate*")):
                    assert worker.poll() is None
                    time.sleep(0.05)
                called = subprocess.run(call, env=environment, **options)
            finally:
                worker.terminate()
    assert called.returncode == 0, called.stderr
    assert '"content":"apples "' in called.stdout


# -- requests and settings --------------------------------------------------------------------------------------------


def sent_for(**fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(read_request({"prompt": "x", **fields}, None)[1])
    return body


def test_usage_is_asked_for_where_the_caller_would_have_got_it() -> None:
    usage = {"include_usage": True}
    assert sent_for() == {"prompt": "x", "stream": True, "stream_options": usage}
    assert sent_for(stream=False)["stream_options"] == usage
    assert "stream_options" not in sent_for(stream=True)
    frontend = {"include_usage": True, "continuous_usage_stats": False}
    assert sent_for(stream=True, stream_options=frontend)["stream_options"] == usage


def test_what_json_cannot_hold_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidArgument):
        read_request({"prompt": object()}, None)


def test_text_of_an_upstream_is_passed_on_in_one_bounded_line() -> None:
    assert str(failure_of({"error": {"message": "a\n b" * 10_000}}, 500)).count("\n") == 0
    assert len(str(failure_of({"error": {"message": "x" * 10_000}}, 400))) == 2000


def test_what_is_a_chunk_already_stays_as_it_is() -> None:
    completion = completion_chunks("x")[0]
    assert as_chunk(completion) is completion


@pytest.mark.parametrize(
    ("settings_", "complaint"),
    [
        ({"OPENAI_BASE_URL": "somewhere"}, "expected http"),
        ({"OPENAI_BASE_URL": "ftp://x/v1"}, "expected http"),
        ({"OPENAI_BASE_URL": "http://:80/v1"}, "expected http"),
        ({"OPENAI_BASE_URL": "http://user:pw@x/v1"}, "must not hold credentials"),
        ({"OPENAI_BASE_URL": "http://x/v1", "OPENAI_CHUNK_TIMEOUT": "soon"}, "OPENAI_CHUNK_TIMEOUT: expected seconds"),
        ({"OPENAI_BASE_URL": "http://x/v1", "OPENAI_CONNECT_TIMEOUT": "0"}, "expected seconds above 0"),
    ],
)
def test_settings_that_cannot_be_used_are_told_at_start(
    monkeypatch: pytest.MonkeyPatch, settings_: dict[str, str], complaint: str
) -> None:
    for name, value in settings_.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=complaint):
        OpenAIUpstream()


async def test_it_can_be_listed_without_an_address_but_not_started() -> None:
    with pytest.raises(StartupError, match="needs the address of a server"):
        async with OpenAIUpstream().lifespan():
            pass


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1/")
    monkeypatch.setenv("OPENAI_MODEL", "big")
    monkeypatch.setenv("OPENAI_CHUNK_TIMEOUT", "7")
    engine = OpenAIUpstream()
    assert (engine.base_url, engine.model, engine.chunk_timeout) == ("http://127.0.0.1:8000/v1", "big", 7.0)


async def test_a_key_that_fits_no_header_is_told_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sécret")
    with pytest.raises(StartupError, match="OPENAI_API_KEY holds characters") as caught:
        async with OpenAIUpstream("http://127.0.0.1:9/v1").lifespan():
            pass
    assert "cret" not in str(caught.value)
