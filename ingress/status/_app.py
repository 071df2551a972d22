"""The routes of the status server, as a starlette application.

``/health``, ``/live`` and ``/metrics`` answer as a released worker does (docs/wire.md §9) except that ``/live`` is 200
for as long as the event loop answers: a worker that warms up or is stuck is not to be restarted for it.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import trio
from attrs import field, frozen
from prometheus_client import CollectorRegistry

from .._text import RateLimitedLogger, printable
from ._exposition import OPENMETRICS_CONTENT_TYPE, TEXT_CONTENT_TYPE, iter_exposition, wants_openmetrics
from ._health import HealthState
from ._page import load_page
from ._progress import Progress

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger("ingress.status")

DEFAULT_HEALTH_PATH = "/health"
DEFAULT_LIVE_PATH = "/live"

# What a callback's request may hold, and how long its bytes may take.
MAX_BODY = 1024 * 1024
BODY_TIMEOUT = 5.0

# A callback that loads or unloads a model takes its time; one that never ends must not hold its connection for ever.
CALLBACK_TIMEOUT = 300.0

EngineRoute = Callable[[Any], Any]
"""Takes the decoded body of a request to ``/engine/<name>``, returns or awaits what is answered as JSON.

A plain function runs in a worker thread.
"""

_TEXT = "text/plain; charset=utf-8"


@frozen(kw_only=True)
class StatusPages:
    """What the routes show."""

    health: HealthState
    registry: CollectorRegistry
    progress: Callable[[], Progress]
    details: Callable[[], Mapping[str, Any]] = dict
    """More for ``/health?verbose``: codec, limits, drain."""

    engine_routes: Mapping[str, EngineRoute] = field(factory=dict)
    health_path: str = DEFAULT_HEALTH_PATH
    live_path: str = DEFAULT_LIVE_PATH
    is_live_when_ready: bool = False
    """As in released workers: ``/live`` turns 503 together with ``/health``."""


def make_app(pages: StatusPages) -> Starlette:
    """Build the application; imports starlette only now."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    log = RateLimitedLogger(logger)
    page = load_page(pages.health_path)
    # Pages are printed one at a time: a hundred scrapes at once take turns with the streams between their pieces.
    printing = trio.Lock()

    async def index(request: Request) -> Response:
        return Response(page.body, headers=dict(page.headers), media_type="text/html")

    async def health(request: Request) -> Response:
        code = 200 if pages.health.is_ready else 503
        if "verbose" not in request.query_params:
            return Response(pages.health.body(), code, media_type=_TEXT)
        verbose = {**pages.health.to_json(), "reasons": pages.health.reasons(), **pages.details()}
        return _json(verbose, code, "application/json")

    async def live(request: Request) -> Response:
        return await health(request) if pages.is_live_when_ready else Response(pages.health.body(), media_type=_TEXT)

    async def metrics(request: Request) -> Response:
        is_openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        pieces = []
        async with printing:
            for piece in iter_exposition(pages.registry, openmetrics=is_openmetrics):
                pieces.append(piece)
                await trio.lowlevel.checkpoint()
        media_type = OPENMETRICS_CONTENT_TYPE if is_openmetrics else TEXT_CONTENT_TYPE
        return Response(b"".join(pieces), media_type=media_type)

    async def progress(request: Request) -> Response:
        seen = pages.progress()
        return _json(seen.to_json(), 503 if seen.is_stalled else 200, "application/json")

    async def engine(request: Request) -> Response:
        return await _call_engine_route(pages.engine_routes, request.path_params["name"], request, log)

    async def on_http_error(request: Request, exc: Exception) -> Response:
        code = exc.status_code if isinstance(exc, HTTPException) else 500
        headers = exc.headers if isinstance(exc, HTTPException) else None
        return Response(b"Route not found" if code == 404 else b"", code, headers=headers, media_type=_TEXT)

    async def on_failure(request: Request, exc: Exception) -> Response:
        return Response(b"Internal error", 500, media_type=_TEXT)  # hypercorn logs what it was

    any_method = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app = Starlette(
        routes=[
            Route(pages.health_path, health),
            Route(pages.live_path, live),
            Route("/metrics", metrics),
            Route("/", index),
            Route("/progress", progress),
            Route("/engine/{name:path}", engine, methods=any_method),
        ],
        exception_handlers={HTTPException: on_http_error, Exception: on_failure},
    )
    app.router.redirect_slashes = False
    return app


async def _call_engine_route(
    routes: Mapping[str, EngineRoute], name: str, request: Request, log: RateLimitedLogger
) -> Response:
    """Run a callback: its answer as JSON, and errors as a released worker words them."""
    from starlette.requests import ClientDisconnect

    callback = routes.get(name)
    if callback is None:
        return _error(404, "Route not found", f"Route /engine/{printable(name)} not found")
    try:
        with trio.move_on_after(BODY_TIMEOUT) as reading:
            body = await _read_body(request)
    except ClientDisconnect:
        return _error(400, "Invalid JSON", "the body is incomplete")  # which nobody reads
    if reading.cancelled_caught:
        return _error(408, "Timeout", f"the body did not arrive within {BODY_TIMEOUT:g} s")
    if body is None:
        return _error(413, "Body too large", f"the limit is {MAX_BODY} bytes")
    try:
        argument = json.loads(body) if body else {}
    except (ValueError, RecursionError) as exc:
        return _error(400, "Invalid JSON", printable(exc))
    try:
        with trio.fail_after(CALLBACK_TIMEOUT):
            if inspect.iscoroutinefunction(callback):
                answer = await callback(argument)
            else:
                answer = await trio.to_thread.run_sync(callback, argument, abandon_on_cancel=True)
                if inspect.isawaitable(answer):
                    answer = await answer
        return _json(answer, 200, _TEXT)
    except Exception as exc:
        text = printable(f"{type(exc).__name__}: {exc}", 600)
        log.log(logging.WARNING, "engine route", "callback of /engine/%s failed: %s", printable(name), text)
        logger.debug("traceback", exc_info=exc)
        return _error(500, "Handler error", f"Python callback failed: {text}")


async def _read_body(request: Request) -> bytes | None:
    """Return the body, None where it is too large."""
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY:
                return None
    return bytes(body)


def _error(code: int, error: str, message: str) -> Response:
    return _json({"error": error, "message": message}, code, _TEXT)


def _json(value: object, code: int, media_type: str) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(value, separators=(",", ":")), code, media_type=media_type)
