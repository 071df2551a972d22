"""A worker: one process's endpoints, one instance id, one request plane, one registration, and an orderly end."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import trio
from prometheus_client import CollectorRegistry

from ._admission import DEFAULT_ENGINE_REQUEST_LIMIT, DEFAULT_REQUEST_QUEUE_LIMIT, Admission
from ._checks import check_seconds
from ._context import OpenRequests
from ._descriptors import StreamDescriptors
from ._dial_policy import DialPolicy
from ._dialback import DialBacks
from ._dialled import DialledStreams
from ._drain import DEFAULT_DRAIN_BUDGET, DEFAULT_LINGER, drain
from ._engine import make_engine
from ._life import Life, Phase
from ._memory_watermark import DEFAULT_MEMORY_WATERMARK, MemoryWatermark, find_memory_limit
from ._open_doors import warn_of_open_doors
from ._plugins import load_discovery, load_plane, load_shapes
from ._request_memory import RequestMemory
from ._stream_limits import (
    DEFAULT_CLOSE_WAIT,
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_FRAME_TIMEOUT,
    DEFAULT_HANDSHAKE_TIMEOUT,
    DEFAULT_WRITE_STALL_TIMEOUT,
    StreamLimits,
)
from ._switchboard import Switchboard
from ._tallies import Tallies
from ._token import TokenGuard, TokenKeys
from ._tracing import Tracer
from ._version import __version__
from ._worker_parts import by_endpoint, find_stream_limit, make_dial_guard, make_metrics, make_network
from .abc import AdmissionPolicy, Discovery, Engine, IngressDispatch, Network, PlaneOptions, RequestPlane
from .errors import StartupError
from .metrics import WorkerMetrics
from .models import ModelLike, ModelSet
from .planes.tcp import DEFAULT_ACK_WRITE_TIMEOUT, DEFAULT_HOST, TcpRequestPlane
from .status import STARTING, StatusOptions, WorkerStatus
from .tls import TlsContexts, TlsNetwork, TlsOptions
from .wire.codec import DEFAULT_MAX_RESPONSE_CHUNK, codec_named
from .wire.records import EndpointId, InstanceRecord
from .wire.request_frame import DEFAULT_MAX_FRAME_SIZE

logger = logging.getLogger("ingress.worker")

# At the very end, for callers that have their sentinel and are about to close.
CLOSING_TIME = 0.75

DEFAULT_PLANE = "tcp"

# Not ready from then on: at the third missed renewal callers have dropped the records (docs/wire.md §7).
MAX_MISSED_RENEWALS = 2

EngineLike = Engine | Callable[..., Any] | Sequence[Engine | Callable[..., Any]]


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
        max_connections_per_peer: int | None = None,
        max_incomplete_bytes: int | None = None,
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
        max_request_memory: int | None = None,
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
        self.codec = codec_named(codec).name
        # -- its life --
        for name, seconds in (("stop_grace", stop_grace), ("linger", linger), ("drain_budget", drain_budget)):
            check_seconds(name, seconds)
        self.linger = linger
        self.drain_budget = drain_budget
        self._life = Life()
        self.closing = trio.Event()
        """Set when the drain is over; what has not ended :data:`CLOSING_TIME` later is cancelled."""
        # -- who comes in --
        limits = StreamLimits(
            connect_timeout=connect_timeout,
            handshake_timeout=handshake_timeout,
            write_stall_timeout=write_stall_timeout,
            close_wait=close_wait,
            max_response_chunk=max_response_chunk,
            frame_timeout=frame_timeout,
            max_frame_size=max_frame_size,
        )
        descriptors = StreamDescriptors()
        memory = None if memory_watermark is None else MemoryWatermark(memory_watermark, find_memory_limit())
        self.admission = Admission(
            engine_request_limit,
            request_queue_limit,
            policy=admission,
            queue_deadline=queue_deadline,
            max_inflight_per_peer=max_inflight_per_peer,
            memory=memory,
            request_memory=RequestMemory(max_request_memory, max_frame_size),
            descriptors=descriptors,
        )
        self.open_requests = OpenRequests()
        # -- where it is found, and how it is reached --
        self._discovery = load_discovery(discovery) if isinstance(discovery, str) else discovery
        network = make_network(write_stall_timeout, ack_write_timeout) if network is None else network
        self.tls = None if tls is None else TlsContexts(tls)
        """The certificates in use; None without TLS."""
        self._network = network if self.tls is None else TlsNetwork(network, self.tls)
        self._token_guard = None if token_keys is None else TokenGuard(token_keys)
        shapes = list(load_shapes() if shapes is None else shapes)
        self.plane = plane if isinstance(plane, str) else type(plane).__name__
        """The request plane's name."""
        if isinstance(plane, str):
            plane = load_plane(
                plane,
                PlaneOptions(
                    network=self._network,
                    host=host,
                    port=port,
                    advertise=advertise,
                    max_frame_size=max_frame_size,
                    max_connections=max_connections,
                    max_connections_per_peer=max_connections_per_peer,
                    max_incomplete_bytes=max_incomplete_bytes,
                    frame_timeout=frame_timeout,
                    idle_timeout=idle_timeout,
                    ack_write_timeout=ack_write_timeout,
                    environ=os.environ,
                    is_short_of_memory=None if memory is None else memory.is_exceeded,
                ),
            )
        self._plane = plane
        descriptors.set_total(find_stream_limit(plane, network, max_connections))
        self._tallies = plane.tallies if isinstance(plane, TcpRequestPlane) else Tallies()
        self._own_addresses: list[tuple[str, int]] = []
        self._dial_policy = DialPolicy() if dial_policy is None else dial_policy
        self._dial_guard = make_dial_guard(self._dial_policy, self._own_addresses, self._network, self._tallies)
        self._streams = DialledStreams(descriptors)
        # -- what it serves --
        engines = {name: make_engine(engine) for name, engine in by_endpoint(endpoints).items()}
        self.models = ModelSet(model, engines)
        """The cards that make models of endpoints for the real frontend; none by default."""
        self._engines = self.models.adapted(engines)
        labels = by_endpoint(metrics_labels or {})
        self.metrics = make_metrics(self.instance_id, self._engines, labels, registry, self.admission, self._tallies)
        self._watch(self.metrics)
        self._switchboard = Switchboard(
            self.instance_id,
            self._engines,
            shapes,
            life=self._life,
            dial_backs=DialBacks(self._network, self._streams, self._dial_guard, limits),
            metrics=self.metrics,
            labels=labels,
            admission=self.admission,
            open_requests=self.open_requests,
            token_guard=self._token_guard,
            stop_grace=stop_grace,
            tracer=tracer,
        )
        self.handlers = self._switchboard.handlers
        self.status = self._make_status(status or StatusOptions())

    def _watch(self, metrics: WorkerMetrics) -> None:
        """Have the metrics look at the worker at each scrape."""
        metrics.phases = [phase.value for phase in Phase]
        metrics.phase = lambda: self.phase.value
        metrics.discovery = self._discovery
        metrics.build_info = {"version": __version__, "codec": self.codec, "plane": self.plane}
        if self.tls is not None:
            metrics.certificate_expiries = self.tls.expiries

    def _make_status(self, options: StatusOptions) -> WorkerStatus:
        status = WorkerStatus(self._engines, self.metrics, options, details=self._details)
        status.health.add_check("discovery", self._discovery_trouble)
        for endpoint_id, notify in status.notifiers().items():
            self.handlers[endpoint_id].set_health_notifier(notify)
        return status

    @property
    def endpoints(self) -> Collection[EndpointId]:
        return self.handlers.keys()

    @property
    def engines(self) -> Mapping[EndpointId, Engine]:
        return self._engines

    @property
    def phase(self) -> Phase:
        return self._life.phase

    @property
    def phase_ends_at(self) -> float:
        """When the present phase ends at the latest, on trio's clock; a drain's phases have such an end."""
        return self._life.phase_ends_at

    @property
    def cancelled_by_drain(self) -> int:
        """Requests that the drain budget cut short; the command's exit code 4 tells of them."""
        return self._life.cancelled_by_drain

    @property
    def address(self) -> str:
        """Where callers are told to go, ``host:port`` on the TCP plane; valid while serving."""
        return self._plane.address

    @property
    def own_addresses(self) -> Sequence[tuple[str, int]]:
        """What it listens on, and therefore never dials; whole while serving."""
        return tuple(self._own_addresses)

    def keep_from(self, neighbour: str, address: tuple[str, int]) -> None:
        """Never dial this listener of another process either; it takes the place of the neighbour's one before."""
        self._dial_guard.keep_from(neighbour, address)

    def records(self) -> list[InstanceRecord]:
        """The discovery records of this worker; valid while serving."""
        return [
            InstanceRecord(handler.endpoint_id, self.instance_id, self._plane.transport(path), self.codec)
            for path, handler in self._switchboard.by_path.items()
        ]

    @property
    def is_draining(self) -> bool:
        return self._life.is_draining

    async def wait_draining(self) -> None:
        """Wait until :meth:`drain` has been asked for."""
        await self._life.drain_requested.wait()

    def drain(self) -> None:
        """Ask for the orderly end; returns at once, :meth:`serve` returns when it is over."""
        self._life.drain_requested.set()

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
            self._life.end()

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        # The plane outlives the requests, so that late pushes are refused and not reset; both outlive the record.
        async with trio.open_nursery() as plane_nursery:
            await plane_nursery.start(self._streams.serve)
            plane_nursery.start_soon(self.admission.request_memory.free_discarded)
            async with trio.open_nursery() as request_nursery:
                self._switchboard.start_request = request_nursery.start_soon
                try:
                    await self._serve_records(plane_nursery, task_status)
                    await drain(self._life, self.open_requests, self.status.health, self.linger, self.drain_budget)
                finally:  # also where all is cancelled from outside: the nursery takes no request from here on
                    self._life.enter(Phase.CLOSING, CLOSING_TIME)
                self.closing.set()
                request_nursery.cancel_scope.deadline = self.phase_ends_at
            # What is left has sent its sentinel and waits for its caller's FIN.
            with trio.CancelScope(deadline=self.phase_ends_at):
                await self._streams.wait_idle()
            plane_nursery.cancel_scope.cancel()

    async def _serve_records(self, plane_nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        """Open the door, tell discovery, and take the records back when a drain is wanted."""
        await plane_nursery.start(self._plane.serve, self._switchboard.receive)
        self._own_addresses.extend(self._plane.own_addresses)
        self._warn_of_open_doors()
        async with trio.open_nursery() as record_nursery:
            records = [*self.records(), *self.models.records(self.instance_id)]
            await record_nursery.start(self._discovery.serve_records, records)
            self._life.enter(Phase.SERVING)
            self.status.health.release(STARTING)
            record_nursery.start_soon(self.status.serve_canaries)
            task_status.started()
            await self._life.drain_requested.wait()
            # Withdraw: done when the nursery has closed.
            record_nursery.cancel_scope.cancel()

    def _warn_of_open_doors(self) -> None:
        warn_of_open_doors(
            [host for host, _ in self._plane.own_addresses],
            tls=None if self.tls is None else self.tls.options,
            has_tokens=self._token_guard is not None,
            dial_policy=self._dial_policy.name,
            status_host=None if self.status.address is None else self.status.address[0],
        )

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
