"""The parts of a worker that take more than one line to make."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry

from ._admission import Admission
from ._checks import check_deadline
from ._descriptors import StreamDescriptors, present_descriptors, share_descriptors
from ._dial_guard import DialGuard
from ._dial_policy import DialPolicy
from ._memory_watermark import MemoryWatermark
from ._network import DEFAULT_USER_TIMEOUT, TcpNetwork
from ._plugins import load_plane
from ._request_memory import RequestMemory
from ._tallies import Tallies
from ._worker_options import WorkerOptions
from .abc import Network, PlaneOptions, RequestPlane
from .errors import StartupError
from .metrics import WorkerMetrics, reserved_labels
from .planes.tcp import TcpRequestPlane
from .wire.records import EndpointId

ValueT = TypeVar("ValueT")


def by_endpoint(named: Mapping[str, ValueT]) -> dict[EndpointId, ValueT]:
    """Parse the names of a mapping.

    Raises:
        StartupError: one is not ``namespace.component.endpoint``.
    """
    try:
        return {EndpointId.parse(name): value for name, value in named.items()}
    except ValueError as exc:
        raise StartupError(str(exc)) from exc


def make_admission(options: WorkerOptions, memory: MemoryWatermark | None, descriptors: StreamDescriptors) -> Admission:
    """Return what admits requests, as the options limit them."""
    return Admission(
        options.engine_request_limit,
        options.request_queue_limit,
        policy=options.admission,
        queue_deadline=options.queue_deadline,
        max_inflight_per_peer=options.max_inflight_per_peer,
        memory=memory,
        request_memory=RequestMemory(options.max_request_memory, options.max_frame_size),
        descriptors=descriptors,
    )


def make_network(options: WorkerOptions) -> TcpNetwork:
    """Return TCP whose own patience ends after that of the planes: our limits come first, and are counted."""
    check_deadline("ack_write_timeout", options.ack_write_timeout)
    longest = max(options.stream_limits.write_stall_timeout, options.ack_write_timeout)
    return TcpNetwork(user_timeout=max(DEFAULT_USER_TIMEOUT, longest + 3))


def make_plane(options: WorkerOptions, network: Network, memory: MemoryWatermark | None) -> RequestPlane:
    """Return the plane that the options have or name.

    Raises:
        StartupError: there is none of that name, or it cannot be made.
    """
    if not isinstance(options.plane, str):
        return options.plane
    return load_plane(
        options.plane,
        PlaneOptions(
            network=network,
            host=options.host,
            port=options.port,
            advertise=options.advertise,
            max_frame_size=options.max_frame_size,
            max_connections=options.max_connections,
            max_connections_per_peer=options.max_connections_per_peer,
            max_incomplete_bytes=options.max_incomplete_bytes,
            frame_timeout=options.frame_timeout,
            idle_timeout=options.idle_timeout,
            ack_write_timeout=options.ack_write_timeout,
            environ=os.environ,
            is_short_of_memory=None if memory is None else memory.is_exceeded,
        ),
    )


def find_stream_limit(plane: RequestPlane, network: Network, max_connections: int | None) -> int | None:
    """Return how many streams there are descriptors for beside the connections of the plane; None for no limit."""
    if not getattr(network, "takes_descriptors", True):
        return None
    if isinstance(plane, TcpRequestPlane):
        max_connections = plane.max_connections
    return share_descriptors(present_descriptors(), max_connections).streams


def make_dial_guard(
    policy: DialPolicy, own_addresses: Sequence[tuple[str, int]], network: Network, tallies: Tallies
) -> DialGuard:
    """Return the guard of what is dialled; addresses that are appended later are our own too."""
    # Only TCP of our own knows whether a connect is over when it has begun; on the same machine it is.
    connects_at_once = hasattr(network, "start_connect")
    return DialGuard(policy, own_addresses, tallies=tallies, connects_at_once=connects_at_once)


def make_metrics(
    instance_id: int,
    endpoints: Mapping[EndpointId, object],
    labels: Mapping[EndpointId, Mapping[str, str]],
    registry: CollectorRegistry | None,
    admission: Admission,
    tallies: Tallies,
) -> WorkerMetrics:
    """Register the families of a worker.

    Raises:
        StartupError: there are labels for an endpoint that is not served, or one has the name of a label of ours.
    """
    if strangers := labels.keys() - endpoints.keys():
        raise StartupError(f"metrics_labels name endpoints that are not served: {', '.join(map(str, strangers))}")
    names = sorted({label for of_endpoint in labels.values() for label in of_endpoint})
    if taken := reserved_labels().intersection(names):
        raise StartupError(
            f"metrics_labels cannot have {', '.join(sorted(taken))}: "
            f"the metrics have labels {', '.join(sorted(reserved_labels()))} of their own"
        )
    return WorkerMetrics(
        instance_id,
        registry=registry,
        extra_labels=names,
        admission=admission,
        tallies=tallies,
    )
