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
from typing import TYPE_CHECKING, Any, Protocol

import trio
from attrs import field, frozen
from prometheus_client import CollectorRegistry

from .._failures import class_name, text_of
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

# Those that cannot be given to the pages of readiness and liveness.
OTHER_PATHS = ("/", "/metrics", "/progress")
ENGINE_PATHS = "/engine/"

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


class Pages(Protocol):
    """What the routes show: of one worker, or of several processes together.

    A page is its HTTP status and what is printed as JSON.
    """

    @property
    def health_path(self) -> str: ...
    @property
    def live_path(self) -> str: ...
    @property
    def engine_routes(self) -> Mapping[str, EngineRoute]: ...

    async def health(self, *, is_verbose: bool) -> tuple[int, Any]: ...
    async def live(self, *, is_verbose: bool) -> tuple[int, Any]: ...
    async def metrics(self, *, openmetrics: bool) -> bytes: ...
    async def progress(self) -> tuple[int, Any]: ...


@frozen(kw_only=True)
class StatusPages:
    """The pages of one worker."""

    state: HealthState
    registry: CollectorRegistry
    read_progress: Callable[[], Progress]
    details: Callable[[], Mapping[str, Any]] = dict
    """More for ``/health?verbose``: codec, limits, drain."""

    engine_routes: Mapping[str, EngineRoute] = field(factory=dict)
    health_path: str = DEFAULT_HEALTH_PATH
    live_path: str = DEFAULT_LIVE_PATH
    is_live_when_ready: bool = False
    """As in released workers: ``/live`` turns 503 together with ``/health``."""

    # Pages are printed one at a time: a hundred scrapes at once take turns with the streams between their pieces.
    _printing: trio.Lock = field(factory=trio.Lock, init=False)

    async def health(self, *, is_verbose: bool) -> tuple[int, Any]:
        shown = self.state.to_json()
        if is_verbose:
            shown |= {"reasons": self.state.reasons(), **self.details()}
        return 200 if self.state.is_ready else 503, shown

    async def live(self, *, is_verbose: bool) -> tuple[int, Any]:
        if self.is_live_when_ready:
            return await self.health(is_verbose=is_verbose)
        return 200, self.state.to_json()

    async def metrics(self, *, openmetrics: bool) -> bytes:
        pieces = []
        async with self._printing:
            for piece in iter_exposition(self.registry, openmetrics=openmetrics):
                pieces.append(piece)
                await trio.lowlevel.checkpoint()
        return b"".join(pieces)

    async def progress(self) -> tuple[int, Any]:
        seen = self.read_progress()
        return 503 if seen.is_stalled else 200, seen.to_json()


def check_page_paths(health_path: str, live_path: str) -> None:
    """Raise ValueError where one of them would hide another page."""
    for path in (health_path, live_path):
        if path in OTHER_PATHS or path.startswith(ENGINE_PATHS):
            raise ValueError(f"{path} is the path of another page")
    if health_path == live_path:
        raise ValueError(f"readiness and liveness are two pages, and {health_path} is one path")


def make_app(pages: Pages) -> Starlette:
    """Build the application; imports starlette only now."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    log = RateLimitedLogger(logger)
    page = load_page(pages.health_path)

    async def index(request: Request) -> Response:
        return Response(page.body, headers=dict(page.headers), media_type="text/html")

    async def health(request: Request) -> Response:
        is_verbose = "verbose" in request.query_params
        code, shown = await pages.health(is_verbose=is_verbose)
        return _json(shown, code, "application/json" if is_verbose else _TEXT)

    async def live(request: Request) -> Response:
        code, shown = await pages.live(is_verbose="verbose" in request.query_params)
        return _json(shown, code, _TEXT)

    async def metrics(request: Request) -> Response:
        is_openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        media_type = OPENMETRICS_CONTENT_TYPE if is_openmetrics else TEXT_CONTENT_TYPE
        return Response(await pages.metrics(openmetrics=is_openmetrics), media_type=media_type)

    async def progress(request: Request) -> Response:
        code, shown = await pages.progress()
        return _json(shown, code, "application/json")

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
            Route(ENGINE_PATHS + "{name:path}", engine, methods=any_method),
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
        text = printable(f"{class_name(exc)}: {text_of(exc)}", 600)
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
