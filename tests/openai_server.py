"""A real HTTP server with OpenAI's routes, whose answers a test writes."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import hypercorn.trio
import trio
from attrs import define, field
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

Answer = Callable[["Call"], Awaitable[Response]]


@define(eq=False)
class Call:
    """One request as the server saw it."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    client: tuple[str, int]
    """The address of the connection it came on."""

    sent: int = 0
    ended: trio.Event = field(factory=trio.Event)
    """Set when the server has ended with it, also because the client left."""


@define(eq=False)
class OpenAIServer:
    """Answers both routes with ``answer``, and keeps what it was asked."""

    answer: Answer
    base_url: str = ""
    calls: list[Call] = field(factory=list)
    called: trio.Event = field(factory=trio.Event)

    async def _handle(self, request: Request) -> Response:
        assert request.client is not None
        call = Call(
            request.url.path, await request.json(), dict(request.headers), (request.client.host, request.client.port)
        )
        self.calls.append(call)
        self.called.set()
        return await self.answer(call)

    def app(self) -> Starlette:
        routes = [Route(path, self._handle, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions")]
        return Starlette(routes=routes)


@asynccontextmanager
async def openai_server(answer: Answer) -> AsyncIterator[OpenAIServer]:
    """Serve on a free port of the loopback interface while inside."""
    server = OpenAIServer(answer)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = config.accesslog = None
    async with trio.open_nursery() as nursery:
        served = nursery.cancel_scope
        binds = await nursery.start(_serve, server.app(), config)
        server.base_url = f"{binds[0]}/v1"
        try:
            yield server
        finally:
            served.cancel()


@contextmanager
def openai_server_in_thread(answer: Answer) -> Iterator[OpenAIServer]:
    """The same for what runs an event loop of its own."""
    started: queue.SimpleQueue[tuple[OpenAIServer, trio.lowlevel.TrioToken, trio.CancelScope]] = queue.SimpleQueue()

    async def main() -> None:
        async with openai_server(answer) as server:
            with trio.CancelScope() as scope:
                started.put((server, trio.lowlevel.current_trio_token(), scope))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    server, token, scope = started.get(timeout=10)
    try:
        yield server
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(10)


async def _serve(app: Any, config: Config, *, task_status: trio.TaskStatus[list[str]]) -> None:
    await hypercorn.trio.serve(app, config, task_status=task_status)


# -- answers ----------------------------------------------------------------------------------------------------------


def chat_chunks(text: str, *, usage: bool = True) -> list[dict[str, Any]]:
    """The chunks of an answer: one a word, the finish reason, the usage."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    words = [
        {**base, "choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]}
        for word in text.split()
    ]
    last = {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    counted = {**base, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    return [*words, last, *([counted] if usage else [])]


def completion_chunks(text: str) -> list[dict[str, Any]]:
    base = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    ends = itertools.chain(itertools.repeat(None, len(text.split()) - 1), ["stop"])
    return [
        {**base, "choices": [{"index": 0, "text": f"{word} ", "finish_reason": end}]}
        for word, end in zip(text.split(), ends, strict=True)
    ]


def sse(chunks: list[dict[str, Any]], *, done: bool = True) -> bytes:
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*events, "data: [DONE]\n\n"] if done else events).encode()


class ClosingResponse(StreamingResponse):
    """Closes what it streams when its client leaves; starlette leaves that to the garbage collector."""

    async def stream_response(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


def streaming(pieces: Callable[[Call], AsyncGenerator[bytes, None]], **headers: str) -> Answer:
    """An answer of what ``pieces`` yields; the call ends when it does."""

    async def answer(call: Call) -> Response:
        async def counted() -> AsyncGenerator[bytes, None]:
            try:
                async with aclosing(pieces(call)) as source:
                    async for piece in source:
                        yield piece
                        call.sent += 1
            finally:
                call.ended.set()

        return ClosingResponse(counted(), media_type="text/event-stream", headers=headers)

    return answer


def whole(body: bytes) -> Answer:
    async def pieces(call: Call) -> AsyncGenerator[bytes, None]:
        yield body

    return streaming(pieces)


def refusing(status: int, body: Any) -> Answer:
    async def answer(call: Call) -> Response:
        return JSONResponse(body, status_code=status) if not isinstance(body, str) else Response(body, status)

    return answer
