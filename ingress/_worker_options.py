"""What can be said of a worker: where it is found, who may come in, what a request may take, how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen
from prometheus_client import CollectorRegistry

from ._admission import DEFAULT_ENGINE_REQUEST_LIMIT, DEFAULT_REQUEST_QUEUE_LIMIT
from ._checks import a_duration
from ._dial_policy import DialPolicy
from ._drain import DEFAULT_DRAIN_BUDGET, DEFAULT_LINGER
from ._memory_watermark import DEFAULT_MEMORY_WATERMARK
from ._stream_limits import (
    DEFAULT_CLOSE_WAIT,
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_FRAME_TIMEOUT,
    DEFAULT_HANDSHAKE_TIMEOUT,
    DEFAULT_WRITE_STALL_TIMEOUT,
    StreamLimits,
)
from ._token import TokenKeys
from ._tracing import Tracer
from .abc import (
    DEFAULT_ACK_WRITE_TIMEOUT,
    DEFAULT_HOST,
    AdmissionPolicy,
    Discovery,
    IngressDispatch,
    Network,
    RequestPlane,
)
from .models import ModelLike
from .status import StatusOptions
from .tls import TlsOptions
from .wire.codec import DEFAULT_MAX_RESPONSE_CHUNK
from .wire.request_frame import DEFAULT_MAX_FRAME_SIZE

DEFAULT_PLANE = "tcp"


@frozen(kw_only=True)
class WorkerOptions:
    """Everything of a worker but its engines: the keyword arguments of :func:`ingress.serving` and :func:`ingress.run`.

    Where a limit may be None there is none, or the worker finds it out, as is said of each. Zero is never "no limit".

    Raises:
        ValueError: a value can be no limit; most are checked by what enforces them, when the worker is made.
    """

    # -- how it is reached --

    discovery: Discovery | str
    """Where its records are written: an object, or the name of an entry point in ``ingress.discovery``."""

    plane: RequestPlane | str = DEFAULT_PLANE
    """How requests arrive: an object, which has its own idea of ``host`` and of the limits of connections and frames,
    or the name of an entry point in ``ingress.planes``."""

    network: Network | None = None
    """What connects and listens; None for TCP."""

    host: str = DEFAULT_HOST
    """Address to listen on."""

    port: int = 0
    """Port to listen on; 0 picks one."""

    advertise: str | None = None
    """Host, or host:port, that callers are told; None for what is bound."""

    codec: str = "msgpack"
    """Codec that callers are asked for, ``msgpack`` or ``json``; both are read."""

    instance_id: int | None = None
    """64 bits that name the worker in discovery; None for random ones."""

    # -- what it serves --

    shapes: Sequence[IngressDispatch[Any]] | None = None
    """The wire shapes, tried in this order; None for those that are installed."""

    model: ModelLike | Mapping[str, ModelLike] | None = None
    """What makes a model of its endpoints for the real frontend: a card or its name, or one for each endpoint."""

    # -- who comes in --

    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE
    """Bytes of the largest request, and of the largest frame of a request stream."""

    max_connections: int | None = None
    """Request connections at a time; None for half of what the limit of open files leaves room for, 8,192 at most."""

    max_connections_per_peer: int | None = None
    """Request connections of one address; None for three quarters of all."""

    max_incomplete_bytes: int | None = None
    """Bytes of large requests that have not arrived whole, of all callers; None for an eighth of the memory."""

    frame_timeout: float = DEFAULT_FRAME_TIMEOUT
    """Seconds from a frame's first byte to its last, beside one for each 64 KiB that it announces."""

    idle_timeout: float | None = None
    """Seconds a request connection may rest between two requests; None for ever."""

    ack_write_timeout: float = DEFAULT_ACK_WRITE_TIMEOUT
    """Seconds for a caller to take the acks of its requests."""

    engine_request_limit: int = DEFAULT_ENGINE_REQUEST_LIMIT
    """Requests in the engines at a time."""

    request_queue_limit: int = DEFAULT_REQUEST_QUEUE_LIMIT
    """Requests in line; what comes on top is refused."""

    queue_deadline: float | None = None
    """Seconds a request may wait in line before its caller is told; None for ever."""

    max_inflight_per_peer: int | None = None
    """Requests of one address, running and in line together; None for no limit."""

    max_request_memory: int | None = None
    """Bytes of memory that requests take together, decoded; None for a quarter of the memory, 2 GiB at most."""

    memory_watermark: float | None = DEFAULT_MEMORY_WATERMARK
    """Part of the control group's memory above which requests are refused; None for never."""

    admission: AdmissionPolicy | None = None
    """Decides beside the limits whom to take; None takes everybody."""

    token_keys: TokenKeys | None = None
    """Keys of the tokens that requests must carry; None where they need none."""

    tls: TlsOptions | None = None
    """Certificates for both directions; None for plain bytes."""

    # -- whom it dials --

    dial_policy: DialPolicy | None = None
    """Whom answers may be sent to; None for who asked."""

    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    """Seconds to dial a caller back, its TLS handshake included."""

    handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT
    """Seconds for a caller to take the handshake of a request stream."""

    write_stall_timeout: float = DEFAULT_WRITE_STALL_TIMEOUT
    """Seconds in which a caller must take a byte of what is written."""

    close_wait: float = DEFAULT_CLOSE_WAIT
    """Seconds for a caller to close first, after a whole answer."""

    max_response_chunk: int = DEFAULT_MAX_RESPONSE_CHUNK
    """Bytes of the largest chunk of an answer, as it is on the wire."""

    # -- how it ends --

    stop_grace: float = field(default=0.0, validator=a_duration)
    """Seconds a stopped engine has for its last words."""

    linger: float = field(default=DEFAULT_LINGER, validator=a_duration)
    """Seconds to go on accepting after leaving discovery."""

    drain_budget: float = field(default=DEFAULT_DRAIN_BUDGET, validator=a_duration)
    """Seconds that running requests have to finish."""

    # -- who watches --

    registry: CollectorRegistry | None = None
    """Where the metrics are registered; None for one of the worker's own."""

    metrics_labels: Mapping[str, Mapping[str, str]] | None = None
    """For each endpoint the labels that its series carry beside the usual ones."""

    status: StatusOptions | None = None
    """The status page and the health of the engines; None for neither."""

    tracer: Tracer | None = None
    """Where spans go, as :class:`ingress.otel.OtelTracer`; None for nowhere."""

    @property
    def stream_limits(self) -> StreamLimits:
        """The limits of the streams that the worker dials.

        Raises:
            ValueError: a value can be no limit.
        """
        return StreamLimits(
            connect_timeout=self.connect_timeout,
            handshake_timeout=self.handshake_timeout,
            write_stall_timeout=self.write_stall_timeout,
            close_wait=self.close_wait,
            max_response_chunk=self.max_response_chunk,
            frame_timeout=self.frame_timeout,
            max_frame_size=self.max_frame_size,
        )
