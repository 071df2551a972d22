"""Requests passed on to an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, or OpenAI's own."""

from __future__ import annotations

import http.cookiejar
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio

from ingress import Context, Engine
from ingress.errors import CannotConnect, ConnectionTimeout, Disconnected, GenerateError, Overloaded, StartupError

from ._openai_api import as_chunk, failure_of, failure_of_body, has_finished, read_object, read_request
from ._settings import checked_key, checked_url, seconds
from ._sse import DEFAULT_MAX_EVENT, SseDecoder

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger("ingress.engines.openai_upstream")

# Seconds. Prompts may wait in the upstream's own line and take long to be read, so the first byte may take its time;
# after that a healthy server is silent for as long as one token takes, or sends comments.
DEFAULT_CONNECT_TIMEOUT = 5.0
DEFAULT_FIRST_BYTE_TIMEOUT = 120.0
DEFAULT_CHUNK_TIMEOUT = 60.0

# 64 MiB is some 200,000 chunks of one token each.
DEFAULT_MAX_RESPONSE = 64 * 1024 * 1024

DEFAULT_MAX_CONNECTIONS = 1024

# Below the 5 s after which uvicorn, in front of vLLM and SGLang, closes an idle connection: a request that meets that
# close is lost, and is not sent again because it may have run.
KEEPALIVE = 4.0

# An answer that is whole is read to its end, so that its connection can be used again; so long and so far.
_TAIL_TIMEOUT = 1.0
_MAX_TAIL = 64 * 1024

_MAX_ERROR_BODY = 64 * 1024


class OpenAIUpstream(Engine):
    """Streams every request from ``/chat/completions`` or ``/completions`` of one server, chunk by chunk as they are.

    A request is the OpenAI body, with ``messages`` or with ``prompt``. The upstream's connection is closed at once when
    the caller wants no more, and used again when the answer is whole. HTTP 400, 413 and 422 go home as invalid
    arguments with the upstream's text, 429, 503 and 529 as an overload, others as failures of the engine.

    Args:
        base_url: up to and with ``/v1``. Default: ``OPENAI_BASE_URL``.
        model: takes the place of the ``model`` of every request. Default: ``OPENAI_MODEL``, or nothing.
        api_key_variable: the environment variable with the key; unset or empty for none. The key is never logged.
        connect_timeout: seconds for a connection.
        first_byte_timeout: seconds from the request to the first byte of the answer, connecting included.
        chunk_timeout: seconds of silence within an answer.
        max_response: bytes of one answer.
        max_event: bytes of one chunk, or of an answer that is not streamed.
        max_connections: to the upstream at once; a request that gets none within ``connect_timeout`` is refused.

    Raises:
        StartupError: a base URL that cannot be used, or a value that is no number.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        model: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        connect_timeout: float | None = None,
        first_byte_timeout: float | None = None,
        chunk_timeout: float | None = None,
        max_response: int = DEFAULT_MAX_RESPONSE,
        max_event: int = DEFAULT_MAX_EVENT,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
    ) -> None:
        url = base_url or os.environ.get("OPENAI_BASE_URL", "")
        # Without an address it can be made, listed and described, but not started.
        self.base_url = checked_url(url) if url else ""
        self.model = model or os.environ.get("OPENAI_MODEL") or None
        self.connect_timeout = seconds(connect_timeout, "OPENAI_CONNECT_TIMEOUT", DEFAULT_CONNECT_TIMEOUT)
        self.first_byte_timeout = seconds(first_byte_timeout, "OPENAI_FIRST_BYTE_TIMEOUT", DEFAULT_FIRST_BYTE_TIMEOUT)
        self.chunk_timeout = seconds(chunk_timeout, "OPENAI_CHUNK_TIMEOUT", DEFAULT_CHUNK_TIMEOUT)
        self.max_response = max_response
        self.max_event = max_event
        self.max_connections = max_connections
        self._api_key_variable = api_key_variable
        self._client: httpx2.AsyncClient | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold the one HTTP client, and with it the connections.

        Raises:
            StartupError: no base URL, a key that fits no header, or httpx2 is not installed.
        """
        if not self.base_url:
            raise StartupError(
                "openai-upstream needs the address of a server → OPENAI_BASE_URL=http://127.0.0.1:8000/v1"
            )
        try:
            import httpx2
        except ImportError as exc:
            raise StartupError("openai-upstream needs httpx2: pip install 'ingress-dispatch[openai]'") from exc
        key = checked_key(os.environ.get(self._api_key_variable, "").strip(), self._api_key_variable)
        headers = {
            "accept": "text/event-stream, application/json",
            "accept-encoding": "identity",  # what is compressed has no known size
            "content-type": "application/json",
            "user-agent": "ingress-dispatch",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }
        # What one caller is given must not be told for another: no cookie is kept.
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        async with httpx2.AsyncClient(
            headers=headers,
            cookies=no_cookies,
            follow_redirects=False,  # the key is for this server alone
            # Reading and writing are bounded below, where it is known what is waited for.
            timeout=httpx2.Timeout(None, connect=self.connect_timeout, pool=self.connect_timeout),
            limits=httpx2.Limits(
                max_connections=self.max_connections,
                max_keepalive_connections=self.max_connections,
                keepalive_expiry=KEEPALIVE,
            ),
        ) as self._client:
            try:
                yield
            finally:
                self._client = None

    async def generate(self, request: Any, context: Context) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the upstream's chunks.

        Raises:
            InvalidArgument: the request is no OpenAI body, or the upstream says that it is the caller's mistake.
            Overloaded: the upstream has no room, or every connection is taken.
            ConnectionTimeout, CannotConnect, Disconnected, GenerateError: as their names say.
        """
        path, body = read_request(request, self.model)
        with self._failures_translated():
            deadline = trio.current_time() + self.first_byte_timeout
            async with (
                self._open(path, body, context.trace_headers(), deadline) as response,
                self._read(response) as pieces,
            ):
                first = await self._next(pieces, deadline - trio.current_time())
                if response.status_code != 200:
                    raise failure_of_body(await self._join(first, pieces, _MAX_ERROR_BODY), response.status_code)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise GenerateError("upstream compresses its answer though asked not to")
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    whole = await self._join(first, pieces, self.max_event)
                    if len(whole) > self.max_event:
                        raise GenerateError(f"upstream sent an answer of more than {self.max_event} bytes")
                    yield as_chunk(read_object(whole))
                    return
                async with aclosing(self._chunks(first, pieces)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    # -- the answer, piece by piece -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _open(
        self, path: str, body: bytes, trace: Mapping[str, str], deadline: float
    ) -> AsyncIterator[httpx2.Response]:
        if self._client is None:
            raise RuntimeError("OpenAIUpstream.generate is called outside lifespan()")
        request = self._client.build_request("POST", f"{self.base_url}{path}", content=body, headers=trace)
        with trio.fail_at(deadline):
            response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    @asynccontextmanager
    async def _read(self, response: httpx2.Response) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        import httpx2

        pieces = response.aiter_raw()
        assert isinstance(pieces, AsyncGenerator)  # noqa: S101 - for the type checker
        try:
            yield pieces
        finally:
            # Ended from the inside, at the read of the socket: where the outermost is closed instead, httpx2 leaves
            # the generators below it to the garbage collector, and the connection with them.
            with trio.CancelScope() as scope, suppress(httpx2.HTTPError):
                scope.cancel()
                async for _ in pieces:
                    pass

    async def _next(self, pieces: AsyncGenerator[bytes, None], timeout: float) -> bytes:
        """Return the next bytes, none at the end."""
        with trio.fail_after(max(timeout, 0)):
            return await anext(pieces, b"")

    async def _join(self, piece: bytes, pieces: AsyncGenerator[bytes, None], limit: int) -> bytes:
        """Return the rest of the answer, and little more of it than ``limit``."""
        whole = bytearray()
        while piece:
            whole += piece
            if len(whole) > limit:
                break
            piece = await self._next(pieces, self.chunk_timeout)
        return bytes(whole)

    async def _chunks(self, piece: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[dict[str, Any], None]:
        decoder = SseDecoder(self.max_event)
        received, is_finished = 0, False
        while piece:
            received += len(piece)
            if received > self.max_response:
                raise GenerateError(f"upstream sent an answer of more than {self.max_response} bytes")
            decoder.receive_data(piece)
            for event in decoder:
                if event.data == b"[DONE]":
                    await self._read_tail(pieces)
                    return
                chunk = read_object(event.data)
                if event.event == "error":
                    raise failure_of(chunk)
                is_finished = is_finished or has_finished(chunk)
                yield chunk
            piece = await self._next(pieces, self.chunk_timeout)
        if not is_finished:
            raise Disconnected("upstream ended its answer before [DONE]")

    async def _read_tail(self, pieces: AsyncGenerator[bytes, None]) -> None:
        size = 0
        with trio.move_on_after(_TAIL_TIMEOUT):
            async for piece in pieces:
                size += len(piece)
                if size > _MAX_TAIL:
                    return

    # -- failures -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _failures_translated(self) -> Iterator[None]:
        """Raise what callers understand; the address of the upstream is told to the log alone."""
        import httpx2

        try:
            yield
        except httpx2.PoolTimeout as exc:
            raise Overloaded(f"all {self.max_connections} connections to the upstream are in use") from exc
        except httpx2.ConnectTimeout as exc:
            raise ConnectionTimeout(f"no connection to the upstream within {self.connect_timeout:g} s") from exc
        except (httpx2.ConnectError, httpx2.ProxyError) as exc:
            logger.info("cannot connect to %s: %s", self.base_url, exc)
            raise CannotConnect("cannot connect to the upstream") from exc
        except trio.TooSlowError as exc:
            raise ConnectionTimeout(
                f"upstream was silent: more than {self.first_byte_timeout:g} s before its first byte, "
                f"or {self.chunk_timeout:g} s after it"
            ) from exc
        except httpx2.TransportError as exc:
            raise Disconnected(f"upstream closed the connection in mid-answer ({type(exc).__name__})") from exc
