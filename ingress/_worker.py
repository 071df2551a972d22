"""A worker: one process's endpoints, one instance id, one request plane, one registration, and an orderly end."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio

from ._context import OpenRequests
from ._descriptors import StreamDescriptors
from ._dial_policy import DialPolicy
from ._dialback import DialBacks
from ._dialled import DialledStreams
from ._drain import drain
from ._engine import make_engine, owners_by_name, trouble_of
from ._forks import guard_run
from ._life import Life, Phase
from ._memory_watermark import MemoryWatermark, find_memory_limit
from ._open_doors import warn_of_open_doors
from ._plugins import load_discovery, load_shapes
from ._switchboard import Switchboard
from ._tallies import Tallies
from ._token import TokenGuard
from ._version import __version__
from ._worker_options import WorkerOptions
from ._worker_parts import (
    by_endpoint,
    find_stream_limit,
    make_admission,
    make_dial_guard,
    make_metrics,
    make_network,
    make_plane,
)
from .abc import Engine
from .errors import StartupError
from .metrics import WorkerMetrics
from .models import ModelSet
from .planes.tcp import TcpRequestPlane
from .status import STARTING, StatusOptions, WorkerStatus
from .tls import TlsContexts, TlsNetwork
from .wire.codec import codec_named
from .wire.records import EndpointId, InstanceRecord

logger = logging.getLogger("ingress.worker")

# At the very end, for callers that have their sentinel and are about to close.
CLOSING_TIME = 0.75

# Not ready from then on: at the third missed renewal callers have dropped the records (docs/wire.md §7).
MAX_MISSED_RENEWALS = 2

EngineLike = Engine | Callable[..., Any] | Sequence[Engine | Callable[..., Any]]


class Worker:
    """Serves endpoints until told to drain; made by :func:`ingress.serving` and :func:`ingress.run`, or here.

    Args:
        endpoints: an engine, or several by modality, for each ``namespace.component.endpoint``.

    Raises:
        StartupError: there is no endpoint, or one cannot be served as it is asked for.
        ValueError: an option can be no limit.
    """

    def __init__(self, endpoints: Mapping[str, EngineLike], options: WorkerOptions) -> None:
        if not endpoints:
            raise StartupError("a worker needs at least one endpoint")
        self.instance_id = secrets.randbits(64) if options.instance_id is None else options.instance_id
        self.codec = codec_named(options.codec).name
        # -- its life --
        self.linger = options.linger
        self.drain_budget = options.drain_budget
        self._life = Life()
        self.closing = trio.Event()
        """Set when the drain is over; what has not ended :data:`CLOSING_TIME` later is cancelled."""
        self.releasing = trio.Event()
        """Set when all requests have ended after it, and the engines release what they hold."""
        # -- where it is found, and how it is reached --
        discovery = options.discovery
        self._discovery = load_discovery(discovery) if isinstance(discovery, str) else discovery
        network = make_network(options) if options.network is None else options.network
        self.tls = None if options.tls is None else TlsContexts(options.tls)
        """The certificates in use; None without TLS."""
        self._network = network if self.tls is None else TlsNetwork(network, self.tls)
        watermark = options.memory_watermark
        memory = None if watermark is None else MemoryWatermark(watermark, find_memory_limit())
        self.plane = options.plane if isinstance(options.plane, str) else type(options.plane).__name__
        """The request plane's name."""
        self._plane = make_plane(options, self._network, memory)
        # -- who comes in, and who is dialled --
        self._token_guard = None if options.token_keys is None else TokenGuard(options.token_keys)
        descriptors = StreamDescriptors(find_stream_limit(self._plane, network, options.max_connections))
        self.admission = make_admission(options, memory, descriptors)
        self.open_requests = OpenRequests()
        self._tallies = self._plane.tallies if isinstance(self._plane, TcpRequestPlane) else Tallies()
        self._own_addresses: list[tuple[str, int]] = []
        self._dial_policy = DialPolicy() if options.dial_policy is None else options.dial_policy
        self._dial_guard = make_dial_guard(self._dial_policy, self._own_addresses, self._network, self._tallies)
        self._streams = DialledStreams(descriptors)
        dial_backs = DialBacks(self._network, self._streams, self._dial_guard, options.stream_limits)
        # -- what it serves --
        engines = {name: make_engine(engine) for name, engine in by_endpoint(endpoints).items()}
        self.models = ModelSet(options.model, engines)
        """The cards that make models of endpoints for the real frontend; none by default."""
        self._engines = self.models.adapted(engines)
        self._owners = owners_by_name(self._engines)
        labels = by_endpoint(options.metrics_labels or {})
        registry = options.registry
        self.metrics = make_metrics(self.instance_id, self._engines, labels, registry, self.admission, self._tallies)
        self._watch(self.metrics)
        self._switchboard = Switchboard(
            self.instance_id,
            self._engines,
            list(load_shapes() if options.shapes is None else options.shapes),
            life=self._life,
            dial_backs=dial_backs,
            metrics=self.metrics,
            labels=labels,
            admission=self.admission,
            open_requests=self.open_requests,
            token_guard=self._token_guard,
            stop_grace=options.stop_grace,
            tracer=options.tracer,
        )
        self.handlers = self._switchboard.handlers
        self.status = self._make_status(options.status or StatusOptions())

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
        for name, owner in self._owners.items():
            status.health.add_check(name, partial(trouble_of, owner))
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
    def is_loading(self) -> bool:
        """True until callers can find it, as long as none has: there is nobody to drain for."""
        return self.phase is Phase.STARTING and not self.open_requests

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
        guard_run()
        try:
            async with trio.open_nursery() as status_nursery:
                # Before the engines: one that loads for minutes is live all the while.
                await status_nursery.start(self.status.serve_pages)
                if self.status.address is not None:
                    self._own_addresses.append(self.status.address)
                async with AsyncExitStack() as engines:
                    for owner in self._owners.values():
                        await engines.enter_async_context(owner.lifespan())
                    await self._serve(task_status)
                    self.releasing.set()
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
            # An engine may hold on to its canary: that must not hold up the drain, which ends before the plane.
            canaries: trio.CancelScope = await plane_nursery.start(self.status.serve_canaries)
            task_status.started()
            await self._life.drain_requested.wait()
            canaries.cancel()
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
