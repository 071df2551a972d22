"""A worker: one process's endpoints, one instance id, one request plane, one registration, and an orderly end.

Phases: starting → serving → lingering (withdrawn, still accepting) → refusing → cancelling → closing → stopped.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import trio
from prometheus_client import CollectorRegistry

from ._admission import DEFAULT_ENGINE_REQUEST_LIMIT, DEFAULT_REQUEST_QUEUE_LIMIT, Admission
from ._checks import check_deadline, check_seconds
from ._context import OpenRequests
from ._dial_guard import DialGuard
from ._dial_policy import DialPolicy
from ._dialback import DEFAULT_CLOSE_WAIT, DEFAULT_CONNECT_TIMEOUT, DEFAULT_HANDSHAKE_TIMEOUT
from ._dialled import DialledStreams
from ._engine import make_engine
from ._failures import refusal_text
from ._handler import GOODBYE_TIMEOUT, PushHandler
from ._legacy import LegacyTeller
from ._memory_watermark import DEFAULT_MEMORY_WATERMARK, MemoryWatermark, find_memory_limit
from ._network import DEFAULT_USER_TIMEOUT, TcpNetwork
from ._open_doors import warn_of_open_doors
from ._plugins import load_discovery, load_plane, load_shapes
from ._response import StreamLimits
from ._response_writer import DEFAULT_WRITE_STALL_TIMEOUT
from ._tallies import Tallies
from ._text import RateLimitedLogger, printable, quoted
from ._token import TokenGuard, TokenKeys
from ._tracing import Tracer
from ._version import __version__
from .abc import AdmissionPolicy, Discovery, Engine, IngressDispatch, Network, PlaneOptions, Push, RequestPlane
from .errors import IngressError, StartupError, Unavailable
from .metrics import WorkerMetrics
from .models import ModelLike, ModelSet
from .planes.tcp import DEFAULT_ACK_WRITE_TIMEOUT, DEFAULT_FRAME_TIMEOUT, DEFAULT_HOST, TcpRequestPlane
from .status import DRAINING, STARTING, StatusOptions, WorkerStatus
from .tls import TlsContexts, TlsNetwork, TlsOptions
from .wire.codec import DEFAULT_MAX_RESPONSE_CHUNK, codec_named
from .wire.records import EndpointId, InstanceRecord
from .wire.request_frame import DEFAULT_MAX_FRAME_SIZE

logger = logging.getLogger("ingress.worker")

# Callers learn of a withdrawal within milliseconds; those that had chosen this worker just before are still served.
DEFAULT_LINGER = 2.0

# Five seconds under the grace period that Kubernetes gives by default.
DEFAULT_DRAIN_BUDGET = 25.0

# At the very end, for callers that have their sentinel and are about to close.
CLOSING_TIME = 0.75

DEFAULT_PLANE = "tcp"

# Not ready from then on: at the third missed renewal callers have dropped the records (docs/wire.md §7).
MAX_MISSED_RENEWALS = 2

EngineLike = Engine | Callable[..., Any] | Sequence[Engine | Callable[..., Any]]


class Phase(enum.Enum):
    """Where a worker is in its life; the order is the order of its life."""

    STARTING = "starting"
    SERVING = "serving"
    LINGERING = "lingering"
    REFUSING = "refusing"
    CANCELLING = "cancelling"
    CLOSING = "closing"
    STOPPED = "stopped"


# Starting too: callers see a record some milliseconds before we know that it has been written, and call at once.
_ACCEPTING = (Phase.STARTING, Phase.SERVING, Phase.LINGERING)


class Worker:
    """Serves endpoints until told to drain; see :func:`ingress.serving` for the arguments."""

    def __init__(
        self,
        endpoints: Mapping[str, EngineLike],
        *,
        discovery: Discovery | str,
        plane: RequestPlane | str = DEFAULT_PLANE,
        network: Network | None = None,
        host: str = DEFAULT_HOST,
        port: int = 0,
        advertise: str | None = None,
        codec: str = "msgpack",
        shapes: Sequence[IngressDispatch[Any]] | None = None,
        registry: CollectorRegistry | None = None,
        metrics_labels: Mapping[str, Mapping[str, str]] | None = None,
        max_frame_size: int = DEFAULT_MAX_FRAME_SIZE,
        max_connections: int | None = None,
        frame_timeout: float = DEFAULT_FRAME_TIMEOUT,
        idle_timeout: float | None = None,
        ack_write_timeout: float = DEFAULT_ACK_WRITE_TIMEOUT,
        connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
        handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
        write_stall_timeout: float = DEFAULT_WRITE_STALL_TIMEOUT,
        close_wait: float = DEFAULT_CLOSE_WAIT,
        max_response_chunk: int = DEFAULT_MAX_RESPONSE_CHUNK,
        engine_request_limit: int = DEFAULT_ENGINE_REQUEST_LIMIT,
        request_queue_limit: int = DEFAULT_REQUEST_QUEUE_LIMIT,
        queue_deadline: float | None = None,
        admission: AdmissionPolicy | None = None,
        max_inflight_per_peer: int | None = None,
        memory_watermark: float | None = DEFAULT_MEMORY_WATERMARK,
        dial_policy: DialPolicy | None = None,
        stop_grace: float = 0.0,
        linger: float = DEFAULT_LINGER,
        drain_budget: float = DEFAULT_DRAIN_BUDGET,
        instance_id: int | None = None,
        status: StatusOptions | None = None,
        tracer: Tracer | None = None,
        model: ModelLike | Mapping[str, ModelLike] | None = None,
        tls: TlsOptions | None = None,
        token_keys: TokenKeys | None = None,
    ) -> None:
        if not endpoints:
            raise StartupError("a worker needs at least one endpoint")
        self.instance_id = secrets.randbits(64) if instance_id is None else instance_id
        self.phase = Phase.STARTING
        self.phase_ends_at = math.inf
        """When the present phase ends at the latest, on trio's clock; a drain's phases have such an end."""
        self.cancelled_by_drain = 0
        """Requests that the drain budget cut short; the command's exit code 4 tells of them."""
        self.codec = codec_named(codec).name
        for name, seconds in (("stop_grace", stop_grace), ("linger", linger), ("drain_budget", drain_budget)):
            check_seconds(name, seconds)
        self.linger = linger
        self.drain_budget = drain_budget
        self.admission = Admission(
            engine_request_limit,
            request_queue_limit,
            policy=admission,
            queue_deadline=queue_deadline,
            max_inflight_per_peer=max_inflight_per_peer,
            memory=None if memory_watermark is None else MemoryWatermark(memory_watermark, find_memory_limit()),
        )
        self.open_requests = OpenRequests()
        self._discovery = load_discovery(discovery) if isinstance(discovery, str) else discovery
        stream_limits = StreamLimits(
            connect_timeout, handshake_timeout, write_stall_timeout, close_wait, max_response_chunk
        )
        if network is None:
            check_deadline("ack_write_timeout", ack_write_timeout)
            # Our own limits come first, and are counted.
            longest = max(DEFAULT_USER_TIMEOUT, write_stall_timeout + 3, ack_write_timeout + 3)
            network = TcpNetwork(user_timeout=longest)
        self._network = network
        self.tls = None if tls is None else TlsContexts(tls)
        """The certificates in use; None without TLS."""
        if self.tls is not None:
            self._network = TlsNetwork(self._network, self.tls)
        self._token_guard = token_guard = None if token_keys is None else TokenGuard(token_keys)
        self._shapes = list(load_shapes() if shapes is None else shapes)
        self.plane = plane if isinstance(plane, str) else type(plane).__name__
        """The request plane's name."""
        if isinstance(plane, str):
            plane = load_plane(
                plane,
                PlaneOptions(
                    self._network,
                    host,
                    port,
                    advertise,
                    max_frame_size,
                    max_connections,
                    frame_timeout,
                    idle_timeout,
                    ack_write_timeout,
                    os.environ,
                ),
            )
        self._plane = plane
        self._tallies = plane.tallies if isinstance(plane, TcpRequestPlane) else Tallies()
        self._own_addresses: list[tuple[str, int]] = []
        self._dial_policy = DialPolicy() if dial_policy is None else dial_policy
        dial_guard = DialGuard(
            self._dial_policy,
            self._own_addresses,
            tallies=self._tallies,
            connects_at_once=hasattr(self._network, "start_connect"),
        )
        self._streams = DialledStreams()
        self._drain_requested = trio.Event()
        self.closing = trio.Event()
        """Set when the drain is over; what has not ended :data:`CLOSING_TIME` later is cancelled."""
        self._log = RateLimitedLogger(logger)
        engines = {_endpoint_id(name): make_engine(engine) for name, engine in endpoints.items()}
        self.models = ModelSet(model, engines)
        """The cards that make models of endpoints for the real frontend; none by default."""
        engines = self.models.adapted(engines)
        extra = {_endpoint_id(name): labels for name, labels in (metrics_labels or {}).items()}
        if strangers := extra.keys() - engines.keys():
            raise StartupError(f"metrics_labels name endpoints that are not served: {', '.join(map(str, strangers))}")
        self.metrics = WorkerMetrics(
            self.instance_id,
            registry=registry,
            extra_labels=sorted({label for labels in extra.values() for label in labels}),
            admission=self.admission,
            tallies=self._tallies,
        )
        self.handlers = {
            endpoint_id: PushHandler(
                endpoint_id,
                engine,
                self._shapes,
                network=self._network,
                streams=self._streams,
                metrics=self.metrics.endpoint(endpoint_id, extra.get(endpoint_id)),
                admission=self.admission,
                open_requests=self.open_requests,
                dial_guard=dial_guard,
                token_guard=token_guard,
                limits=stream_limits,
                max_frame_size=max_frame_size,
                stop_grace=stop_grace,
                tracer=None if tracer is None else tracer.endpoint(endpoint_id, self.instance_id),
            )
            for endpoint_id, engine in engines.items()
        }
        self._engines = engines
        self.metrics.phases = [phase.value for phase in Phase]
        self.metrics.phase = lambda: self.phase.value
        self.metrics.discovery = self._discovery
        self.metrics.build_info = {"version": __version__, "codec": self.codec, "plane": self.plane}
        if self.tls is not None:
            self.metrics.certificate_expiries = self.tls.expiries
        self.status = WorkerStatus(engines, self.metrics, status or StatusOptions(), details=self._details)
        self.status.health.add_check("discovery", self._discovery_trouble)
        for endpoint_id, notify in self.status.notifiers().items():
            self.handlers[endpoint_id].set_health_notifier(notify)
        self._by_path = {self._path(endpoint_id): handler for endpoint_id, handler in self.handlers.items()}
        self._legacy = LegacyTeller(self._network, self._streams, self._shapes, dial_guard, stream_limits)

    @property
    def endpoints(self) -> Collection[EndpointId]:
        return self.handlers.keys()

    @property
    def engines(self) -> Mapping[EndpointId, Engine]:
        return self._engines

    @property
    def address(self) -> str:
        """Where callers are told to go, ``host:port`` on the TCP plane; valid while serving."""
        return self._plane.address

    def records(self) -> list[InstanceRecord]:
        """The discovery records of this worker; valid while serving."""
        return [
            InstanceRecord(endpoint_id, self.instance_id, self._plane.transport(self._path(endpoint_id)), self.codec)
            for endpoint_id in self.handlers
        ]

    @property
    def is_draining(self) -> bool:
        return self._drain_requested.is_set()

    async def wait_draining(self) -> None:
        """Wait until :meth:`drain` has been asked for."""
        await self._drain_requested.wait()

    def drain(self) -> None:
        """Ask for the orderly end; returns at once, :meth:`serve` returns when it is over."""
        self._drain_requested.set()

    def reload(self) -> None:
        """Read certificates and token keys again, as happens by itself when their files change. Raises nothing."""
        if self.tls is not None:
            self.tls.reload()
        if self._token_guard is not None:
            self._token_guard.keyring.reload()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until :meth:`drain` has been asked for and done, or until cancelled.

        Reports ``started`` once callers can find the endpoints.

        Raises:
            StartupError: the port is taken, discovery cannot be written, an engine cannot start.
        """
        try:
            async with trio.open_nursery() as status_nursery:
                # Before the engines: one that loads for minutes is live all the while.
                await status_nursery.start(self.status.serve_pages)
                if self.status.address is not None:
                    self._own_addresses.append(self.status.address)
                async with AsyncExitStack() as engines:
                    # An Engine object that serves several endpoints has one life.
                    owners = {id(owner): owner for engine in self._engines.values() for owner in engine.owners}
                    for owner in owners.values():
                        await engines.enter_async_context(owner.lifespan())
                    await self._serve(task_status)
                status_nursery.cancel_scope.cancel()
        finally:
            self.phase = Phase.STOPPED

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        # The plane outlives the requests, so that late pushes are refused and not reset; both outlive the record.
        async with trio.open_nursery() as plane_nursery:
            await plane_nursery.start(self._streams.serve)
            async with trio.open_nursery() as request_nursery:
                self._start_request = request_nursery.start_soon
                await plane_nursery.start(self._plane.serve, self._receive)
                self._own_addresses.extend(self._plane.own_addresses)
                self._warn_of_open_doors()
                async with trio.open_nursery() as record_nursery:
                    records = [*self.records(), *self.models.records(self.instance_id)]
                    await record_nursery.start(self._discovery.serve_records, records)
                    self.phase = Phase.SERVING
                    self.status.health.release(STARTING)
                    record_nursery.start_soon(self.status.serve_canaries)
                    task_status.started()
                    await self._drain_requested.wait()
                    # 1. Withdraw: done when the nursery has closed.
                    record_nursery.cancel_scope.cancel()
                await self._drain()
                self._enter(Phase.CLOSING, CLOSING_TIME)
                self.closing.set()
                request_nursery.cancel_scope.deadline = self.phase_ends_at
            # What is left has sent its sentinel and waits for its caller's FIN.
            with trio.CancelScope(deadline=self.phase_ends_at):
                await self._streams.wait_idle()
            plane_nursery.cancel_scope.cancel()

    def _warn_of_open_doors(self) -> None:
        warn_of_open_doors(
            [host for host, _ in self._plane.own_addresses],
            tls=None if self.tls is None else self.tls.options,
            has_tokens=self._token_guard is not None,
            dial_policy=self._dial_policy.name,
            status_host=None if self.status.address is None else self.status.address[0],
        )

    async def _drain(self) -> None:
        # 2. Linger: callers that chose this worker before it was withdrawn are still served.
        self._enter(Phase.LINGERING, self.linger)
        logger.info("draining: withdrawn, accepting for %g s more", self.linger)
        await trio.sleep(self.linger)
        # 3. Refuse, and let what runs finish.
        self._enter(Phase.REFUSING, self.drain_budget)
        self.status.health.hold(DRAINING, "draining: requests are refused")
        logger.info("draining: %d open, budget %g s", len(self.open_requests), self.drain_budget)
        with trio.move_on_after(self.drain_budget):
            await self.open_requests.wait_idle()
            return
        # 4. Tell and cancel what is over the budget.
        self._enter(Phase.CANCELLING, GOODBYE_TIMEOUT)
        overdue = list(self.open_requests)
        self.cancelled_by_drain = len(overdue)
        logger.warning(
            "draining: budget over, cancelling %s", ", ".join(quoted(context.id, 64) for context in overdue[:20])
        )
        for context in overdue:
            context.shut_down()
        with trio.move_on_after(GOODBYE_TIMEOUT):
            await self.open_requests.wait_idle()

    def _enter(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self.phase_ends_at = trio.current_time() + seconds

    def _discovery_trouble(self) -> str | None:
        missed = self._discovery.missed_renewals
        if missed < MAX_MISSED_RENEWALS:
            return None
        return f"discovery records could not be renewed {missed} times in a row, callers lose this worker"

    def _details(self) -> Mapping[str, Any]:
        """What ``/health?verbose`` says beyond readiness."""
        return {
            "codec": self.codec,
            "tls": "off" if self.tls is None else "mutual" if self.tls.options.is_mutual else "on",
            "limits": {
                "engine_request_limit": self.admission.engine_request_limit,
                "request_queue_limit": self.admission.request_queue_limit,
                "queue_deadline": self.admission.queue_deadline,
            },
            "drain": {"phase": self.phase.value, "open_requests": len(self.open_requests)},
        }

    # -- pushes --------------------------------------------------------------------------------------------------------

    def _path(self, endpoint_id: EndpointId) -> str:
        return f"{self.instance_id:x}/{endpoint_id.namespace}/{endpoint_id.component}/{endpoint_id.endpoint}"

    def _receive(self, push: Push) -> str:
        """Take a push over and return its ack text; the plane calls this for every frame."""
        try:
            handler = self._handler_of(push.path)
            admitted = handler.gate.admit(push)
        except IngressError as exc:
            return self._refuse(push, exc)
        self._start_request(handler.handle_payload, admitted)
        return ""

    def _handler_of(self, path: str | None) -> PushHandler:
        handler = self._by_path.get(path) if self.phase in _ACCEPTING and path else None
        if handler is None:
            self.metrics.count_unrouted("draining" if self.is_draining else "unknown_endpoint")
            complaint = "invalid endpoint path" if path is None else f"unknown endpoint {printable(path)}"
            self._log.log(logging.WARNING, "no such endpoint", "push refused: %s", quoted(complaint, 600))
            raise Unavailable(complaint)
        return handler

    def _refuse(self, push: Push, error: IngressError) -> str:
        text = refusal_text(error)
        # While closing there is no time left to tell anybody anything; and where tokens are wanted, nobody is dialled
        # without one.
        may_tell = self.phase is not Phase.CLOSING and self._token_guard is None
        if may_tell and (told := self._legacy.plan(push, error)) is not None:
            self._start_request(self._legacy.tell, told, text)
            return ""
        return text


def _endpoint_id(name: str) -> EndpointId:
    try:
        return EndpointId.parse(name)
    except ValueError as exc:
        raise StartupError(str(exc)) from exc
