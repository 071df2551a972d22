"""The options of ``ingress serve`` that make a worker; names and twins are Dynamo's wherever it has them."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from attrs import frozen
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from .._admission import DEFAULT_ENGINE_REQUEST_LIMIT, DEFAULT_REQUEST_QUEUE_LIMIT
from .._checks import LONGEST_WAIT
from .._dial_policy import DialPolicy
from .._drain import DEFAULT_DRAIN_BUDGET, DEFAULT_LINGER
from .._memory_watermark import DEFAULT_MEMORY_WATERMARK
from .._worker_options import DEFAULT_PLANE
from ..abc import DEFAULT_HOST
from ..metrics import reserved_labels
from ..wire.addresses import split_advertised
from ..wire.codec import DEFAULT_MAX_RESPONSE_CHUNK
from ..wire.request_frame import DEFAULT_MAX_FRAME_SIZE
from ._errors import usage
from ._options import DEFAULT_NAMESPACE, Namespace, named_in, parse_pairs

NETWORK = Group("Network", sort_key=1)
LIMITS = Group("Limits", sort_key=2)
ENDING = Group("Ending", sort_key=4)

# What 4 bytes of length can announce (docs/wire.md §1).
_LARGEST_FRAME = 2**32 - 1

# prometheus_client takes any UTF-8; scrapers of the format that released workers write do not.
_LABEL_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_seconds(kind: object, value: float) -> None:
    """Raise ValueError unless the value is a duration one can wait for."""
    if not math.isfinite(value) or value < 0:
        raise ValueError("expected seconds, 0 or more")
    if value > LONGEST_WAIT:
        raise ValueError(f"expected seconds, at most {LONGEST_WAIT:.0f}")


def check_deadline(kind: object, value: float | None) -> None:
    """Raise ValueError unless the value is a time that can be waited for, or None."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError("expected seconds, more than 0")


def check_networks(kind: object, values: Iterable[str] | None) -> None:
    """Raise ValueError unless every value is a network in CIDR notation, or an address."""
    for value in values or ():
        ipaddress.ip_network(value)


def check_advertise(kind: object, value: str | None) -> None:
    """Raise ValueError unless callers would take the value."""
    if value is not None:
        split_advertised(value)


def _networks(twin: str, text: str) -> Parameter:
    return Parameter(env_var=twin, negative=(), group=NETWORK, validator=check_networks, help=text)


def _seconds(twin: str, text: str) -> Parameter:
    return Parameter(env_var=twin, group=ENDING, validator=check_seconds, help=text)


def _number(twin: str | list[str], text: str, *, least: int, most: int | None = None) -> Parameter:
    return Parameter(env_var=twin, group=LIMITS, validator=Number(gte=least, lte=most), help=text)


@Parameter(name="*")
@frozen
class WorkerFlags:
    """Everything of a worker but its engines and its discovery."""

    namespace: Namespace = DEFAULT_NAMESPACE
    host: Annotated[str, Parameter(env_var="DYN_TCP_RPC_HOST", group=NETWORK, help="Address to listen on.")] = (
        DEFAULT_HOST
    )
    port: Annotated[
        int,
        Parameter(
            env_var="DYN_TCP_RPC_PORT",
            group=NETWORK,
            validator=Number(gte=0, lte=65535),
            help="Port to listen on; 0 picks one.",
        ),
    ] = 0
    plane: Annotated[
        str,
        Parameter(
            env_var="DYN_REQUEST_PLANE",
            group=NETWORK,
            validator=named_in("planes"),
            help="How requests arrive: tcp, or another that is installed.",
        ),
    ] = DEFAULT_PLANE
    advertise: Annotated[
        str | None,
        Parameter(
            env_var="INGRESS_ADVERTISE",
            group=NETWORK,
            validator=check_advertise,
            help="HOST or HOST:PORT that callers are told.",
        ),
    ] = None
    codec: Annotated[
        Literal["msgpack", "json"],
        Parameter(
            env_var="DYN_REQUEST_PLANE_CODEC", group=NETWORK, help="Codec that callers are asked for; both are read."
        ),
    ] = "msgpack"
    dial_policy: Annotated[
        Literal["peer", "cidr", "any"],
        Parameter(
            env_var="INGRESS_DIAL_POLICY",
            group=NETWORK,
            help="Whom answers may be sent to: who asked, listed networks, or anyone.",
        ),
    ] = "peer"
    dial_allow: Annotated[
        list[str] | None, _networks("INGRESS_DIAL_ALLOW", "Network that may be dialled; repeatable.")
    ] = None
    dial_deny: Annotated[
        list[str] | None, _networks("INGRESS_DIAL_DENY", "Network that may not be dialled; repeatable.")
    ] = None
    resolve_names: Annotated[
        bool,
        Parameter(
            env_var="INGRESS_RESOLVE_NAMES",
            group=NETWORK,
            negative=(),
            help="Look names of callers up; every answer must be allowed.",
        ),
    ] = False
    engine_request_limit: Annotated[
        int,
        _number(
            ["DYN_ENGINE_REQUEST_LIMIT", "DYN_TCP_WORKER_POOL_SIZE"], "Requests in the engines at a time.", least=1
        ),
    ] = DEFAULT_ENGINE_REQUEST_LIMIT
    request_queue_limit: Annotated[
        int,
        _number(
            ["DYN_DYNAMO_REQUEST_QUEUE_LIMIT", "DYN_TCP_WORK_QUEUE_SIZE"],
            "Requests in line; what comes on top is refused.",
            least=0,
        ),
    ] = DEFAULT_REQUEST_QUEUE_LIMIT
    queue_deadline: Annotated[
        float | None,
        Parameter(
            env_var="INGRESS_QUEUE_DEADLINE",
            group=LIMITS,
            validator=check_deadline,
            help="Seconds a request may wait in line before its caller is told.",
        ),
    ] = None
    max_inflight_per_peer: Annotated[
        int | None,
        _number("INGRESS_MAX_INFLIGHT_PER_PEER", "Requests of one address, running and in line together.", least=1),
    ] = None
    max_request_memory: Annotated[
        int | None,
        _number(
            "INGRESS_MAX_REQUEST_MEMORY",
            "Bytes of memory that requests take together, decoded; if not set, a quarter of the memory, 2 GiB at most.",
            least=1,
        ),
    ] = None
    memory_watermark: Annotated[
        int | None,
        _number(
            "INGRESS_MEMORY_WATERMARK",
            "Percent of the control group's memory limit above which requests are refused; none: never.",
            least=1,
            most=100,
        ),
    ] = round(DEFAULT_MEMORY_WATERMARK * 100)
    max_message_size: Annotated[
        int, _number("DYN_TCP_MAX_MESSAGE_SIZE", "Bytes of the largest request.", least=1, most=_LARGEST_FRAME)
    ] = DEFAULT_MAX_FRAME_SIZE
    max_response_chunk: Annotated[
        int, _number("INGRESS_MAX_RESPONSE_CHUNK", "Bytes of the largest chunk of an answer.", least=1)
    ] = DEFAULT_MAX_RESPONSE_CHUNK
    max_connections: Annotated[
        int | None,
        _number(
            "INGRESS_MAX_CONNECTIONS",
            "Request connections at a time; if not set, half of what the limit of open files leaves room for, 8192 at "
            "most.",
            least=1,
        ),
    ] = None
    max_connections_per_peer: Annotated[
        int | None,
        _number(
            "INGRESS_MAX_CONNECTIONS_PER_PEER",
            "Request connections of one address; if not set, three quarters of all that there may be.",
            least=1,
        ),
    ] = None
    max_incomplete_bytes: Annotated[
        int | None,
        _number(
            "INGRESS_MAX_INCOMPLETE_BYTES",
            "Bytes of large requests that have not arrived whole, of all callers; if not set, an eighth of the memory, "
            "64 MiB at least.",
            least=1,
        ),
    ] = None
    stop_grace: Annotated[float, _seconds("INGRESS_STOP_GRACE", "Seconds a stopped engine has for its last words.")] = (
        0.0
    )
    grace: Annotated[
        float,
        _seconds("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "Seconds to go on accepting after leaving discovery."),
    ] = DEFAULT_LINGER
    drain_budget: Annotated[
        float,
        _seconds("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "Seconds that running requests have to finish."),
    ] = DEFAULT_DRAIN_BUDGET
    metrics_label: Annotated[
        list[str] | None, Parameter(negative=(), help="KEY=VALUE on every metric of these endpoints; repeatable.")
    ] = None

    def keywords(self, endpoints: Iterable[str]) -> dict[str, Any]:
        """Return the fields of :class:`ingress.WorkerOptions`.

        Raises:
            CommandError: a label is not KEY=VALUE, or its key no label's name or one of ours.
        """
        labels = parse_pairs(self.metrics_label, "--metrics-label")
        for name in labels:
            if not _LABEL_NAME.fullmatch(name):
                why = "a label's name has letters, digits and underscores, the first no digit and no two underscores"
                raise usage(f"--metrics-label {name}={labels[name]} cannot be used", why, "--metrics-label team=search")
            if name in reserved_labels():
                why = f"the metrics have labels {', '.join(sorted(reserved_labels()))} of their own"
                raise usage(
                    f"--metrics-label {name}={labels[name]} cannot be used", why, f"--metrics-label my_{name}=…"
                )
        return {
            "plane": self.plane,
            "host": self.host,
            "port": self.port,
            "advertise": self.advertise,
            "codec": self.codec,
            "max_frame_size": self.max_message_size,
            "max_response_chunk": self.max_response_chunk,
            "max_connections": self.max_connections,
            "max_connections_per_peer": self.max_connections_per_peer,
            "max_incomplete_bytes": self.max_incomplete_bytes,
            "engine_request_limit": self.engine_request_limit,
            "request_queue_limit": self.request_queue_limit,
            "queue_deadline": self.queue_deadline,
            "max_inflight_per_peer": self.max_inflight_per_peer,
            "max_request_memory": self.max_request_memory,
            "memory_watermark": None if self.memory_watermark is None else self.memory_watermark / 100,
            "dial_policy": DialPolicy(
                self.dial_policy, self.dial_allow or (), self.dial_deny or (), resolve_names=self.resolve_names
            ),
            "stop_grace": self.stop_grace,
            "linger": self.grace,
            "drain_budget": self.drain_budget,
            "metrics_labels": dict.fromkeys(endpoints, labels) if labels else None,
        }


DEFAULT_WORKER = WorkerFlags()
