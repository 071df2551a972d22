"""A worker's status as one thing: readiness, canaries, the watch over the event loop, the server that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import trio
from attrs import field, frozen

from .._checks import check_seconds
from .._hosts import join_host_port
from ..abc import Engine
from ..metrics import WorkerMetrics
from ..wire.records import EndpointId
from ._app import DEFAULT_HEALTH_PATH, DEFAULT_LIVE_PATH, EngineRoute, StatusPages, check_page_paths, make_app
from ._canary import DEFAULT_CANARY_TIMEOUT, DEFAULT_CANARY_WAIT, Canary
from ._health import EndpointHealth, HealthState
from ._loop import watch_loop
from ._progress import DEFAULT_STALL_THRESHOLD, Progress, read_progress
from ._server import DEFAULT_STATUS_HOST, serve_status


@frozen(kw_only=True)
class StatusOptions:
    """What an operator may choose; the command's flags and Dynamo's variables map to it one to one."""

    port: int | None = None
    """Where the status server listens: None for none, 0 for any port (``DYN_SYSTEM_PORT``)."""

    host: str = DEFAULT_STATUS_HOST
    """``DYN_SYSTEM_HOST``."""

    health_path: str = DEFAULT_HEALTH_PATH
    live_path: str = DEFAULT_LIVE_PATH
    is_live_when_ready: bool = False
    """Let ``/live`` answer what ``/health`` answers, as released workers do (``--compat-live``)."""

    starts_ready: bool = False
    """``DYN_SYSTEM_STARTING_HEALTH_STATUS=ready``."""

    stall_threshold: float = DEFAULT_STALL_THRESHOLD
    """Seconds without a chunk after which ``/progress`` says ``stalled``."""

    engine_routes: Mapping[str, EngineRoute] = field(factory=dict)
    """Callbacks under ``/engine/<name>``."""

    canaries: bool = False
    """``DYN_HEALTH_CHECK_ENABLED``."""

    canary_wait: float = DEFAULT_CANARY_WAIT
    """``DYN_CANARY_WAIT_TIME``."""

    canary_timeout: float = DEFAULT_CANARY_TIMEOUT
    """``DYN_HEALTH_CHECK_REQUEST_TIMEOUT``."""

    health_check_payloads: Mapping[str, Any] = field(factory=dict)
    """A canary's request by full endpoint name; endpoints without one are not probed."""

    loop_stall_limit: float | None = None
    """Watch the event loop, and report what blocks it for longer than this; None for no watch."""


class WorkerStatus:
    """One worker's status; built before the event loop runs, then for the worker's own tasks.

    :attr:`health` starts out held back: release ``STARTING`` when the endpoints are announced, and hold ``DRAINING``
    from the moment that requests are refused.

    Raises:
        ValueError: a payload is for no endpoint of this worker, or a duration makes no sense.
    """

    def __init__(
        self,
        engines: Mapping[EndpointId, Engine],
        metrics: WorkerMetrics,
        options: StatusOptions,
        *,
        details: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        unknown = set(options.health_check_payloads) - {str(endpoint_id) for endpoint_id in engines}
        if unknown:
            raise ValueError(f"health check payload for {', '.join(sorted(unknown))}, which is not served here")
        check_page_paths(options.health_path, options.live_path)
        if options.loop_stall_limit is not None:
            check_seconds("loop_stall_limit", options.loop_stall_limit)
        self.options = options
        self.health = HealthState(starts_ready=options.starts_ready)
        self.address: tuple[str, int] | None = None
        """Where the server listens; None before it does, and where there is none."""
        self._metrics = metrics
        self._details = details
        self._canaries: list[Canary] = []
        for endpoint_id, engine in engines.items():
            has_payload = str(endpoint_id) in options.health_check_payloads
            health = EndpointHealth(endpoint_id, needs_proof=options.canaries and has_payload)
            self.health.add(health)
            if options.canaries and has_payload:
                payload = options.health_check_payloads[str(endpoint_id)]
                self._canaries.append(
                    Canary(engine, payload, health, wait=options.canary_wait, timeout=options.canary_timeout)
                )

    @property
    def url(self) -> str | None:
        """``http://host:port`` of the pages; None where there are none."""
        return None if self.address is None else f"http://{join_host_port(*self.address)}"

    def notifiers(self) -> Mapping[EndpointId, Callable[[], None]]:
        """What the handlers of probed endpoints call after good chunks and clean ends; others need not bother."""
        return {canary.health.endpoint_id: canary.health.record_activity for canary in self._canaries}

    def progress(self) -> Progress:
        return read_progress(self._metrics.endpoints, trio.current_time(), self.options.stall_threshold)

    async def serve_pages(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the status server and the watch over the loop until cancelled; from before the engines start.

        Raises:
            StartupError: the port is taken.
        """
        options = self.options
        with ExitStack() as stack:
            if options.loop_stall_limit is not None:
                stack.enter_context(watch_loop(self._metrics, stall_limit=options.loop_stall_limit))
            if options.port is None:
                task_status.started()
                await trio.sleep_forever()
            else:
                report = _BoundReport(self, task_status)
                await serve_status(make_app(self._pages()), host=options.host, port=options.port, task_status=report)

    async def serve_canaries(
        self, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Probe until cancelled, from outside or by the scope that it reports; then it takes as long as engines do."""
        async with trio.open_nursery() as nursery:
            task_status.started(nursery.cancel_scope)
            for canary in self._canaries:
                nursery.start_soon(canary.serve)

    def _pages(self) -> StatusPages:
        options = self.options
        return StatusPages(
            state=self.health,
            registry=self._metrics.registry,
            read_progress=self.progress,
            details=self._details,
            engine_routes=options.engine_routes,
            health_path=options.health_path,
            live_path=options.live_path,
            is_live_when_ready=options.is_live_when_ready,
        )


class _BoundReport(trio.TaskStatus[tuple[str, int]]):
    """Notes the server's address and reports on."""

    def __init__(self, status: WorkerStatus, task_status: trio.TaskStatus[None]) -> None:
        self._status = status
        self._task_status = task_status

    def started(self, value: tuple[str, int] | None = None) -> None:
        self._status.address = value
        self._task_status.started()
