"""What one subclasses, and what one receives.

A third party implements one of the abstract classes here, points an entry point at it, and is done. The rest of the
package depends on these and not the other way round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import trio
from attrs import Attribute, field, frozen
from attrs.validators import optional

from ._checks import a_count, a_deadline
from ._stream_limits import DEFAULT_FRAME_TIMEOUT
from .errors import IngressError
from .wire.addresses import split_advertised
from .wire.messages import RequestControlMessage, StreamAddress
from .wire.records import DiscoveryRecord, EndpointId, InstanceRecord
from .wire.request_frame import DEFAULT_MAX_FRAME_SIZE

RequestT = TypeVar("RequestT")
InputT = TypeVar("InputT")


# -- one pushed request ----------------------------------------------------------------------------------------------


@frozen
class Push:
    """One payload as a request plane received it."""

    path: str | None
    """Names the endpoint; what the discovery record says, echoed by the caller. None where it is not UTF-8."""

    payload: bytes = field(repr=False)
    headers: Mapping[str, str] = field(factory=dict)
    """Tracing and timestamps; nothing in them is required."""

    peer_host: str | None = None
    """IP address the request came from, or None where the plane cannot tell."""

    refusal: IngressError | None = None
    """Set where the plane does not take the payload, and why: then ``payload`` is only its beginning."""


@frozen
class ParsedRequest(Generic[RequestT]):
    """What a shape makes of a payload: the request for the engine, and the control message it came with."""

    request: RequestT
    control: RequestControlMessage

    weight: int | None = None
    """Bytes of memory that the request takes, where :func:`ingress.bodies.decode_body` has told."""


class Context(Protocol):
    """What an engine may know of, and do to, the request it is working on."""

    @property
    def id(self) -> str:
        """The caller's request id."""

    @property
    def endpoint(self) -> EndpointId:
        """The endpoint that was called."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata map of the control message."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The request headers as they came; read-only. For the trace among them use :meth:`trace_headers`."""

    @property
    def trace_id(self) -> str | None:
        """The trace that the request belongs to, 32 hexadecimal digits; None where the caller named none.

        With an exporting tracer every request belongs to one.
        """

    @property
    def span_id(self) -> str | None:
        """The span that onward calls belong under: the request's own where spans are exported, else the caller's."""

    def trace_headers(self) -> dict[str, str]:
        """Return valid ``traceparent`` and ``tracestate`` headers for onward calls; empty where there is no trace."""

    @property
    def is_stopped(self) -> bool:
        """True once the caller wants no more, by stop, kill or going away."""

    @property
    def is_killed(self) -> bool:
        """True once nothing that is still produced can reach the caller."""

    async def stopped(self) -> None:
        """Wait until ``is_stopped``."""

    def stop(self) -> None:
        """End the answer here, as if the caller had asked for it."""

    def kill(self, reason: str) -> None:
        """Drop the request: nothing more is written."""


# -- shapes ----------------------------------------------------------------------------------------------------------


class Dialer(Protocol):
    """What a shape may ask of the network. The handler closes whatever was opened."""

    async def open_request_stream(
        self, stream: StreamAddress, decode: Callable[[bytes], InputT]
    ) -> AsyncIterable[InputT]:
        """Dial the caller for a request stream and shake hands; iterate the decoded frames until it ends its input.

        Raises:
            ResponseStreamError: the address is refused or unreachable.
        """


class IngressDispatch(ABC, Generic[RequestT]):
    """A wire shape: turns one pushed payload into a typed request.

    The first of an endpoint's shapes that accepts a payload gets it. A shape holds no state, opens no socket and owns
    no nursery; metrics, dial-back, prologue, pump and cancellation are the handler's.
    """

    @abstractmethod
    def accepts(self, payload: bytes) -> bool:
        """Tell, from a look at the framing alone, whether this payload is of this shape. Never raises."""

    @abstractmethod
    def read_control(self, payload: bytes) -> RequestControlMessage:
        """Read who asks and where the answer goes; pure and cheap, for it runs before the ack.

        Raises:
            IngressError: the control message cannot be read; the caller is refused in the ack.
        """

    @abstractmethod
    async def parse_and_build_request(
        self, payload: bytes, control: RequestControlMessage, dialer: Dialer
    ) -> ParsedRequest[RequestT]:
        """Build the request for the engine, awaiting the dialer where the shape needs a stream of its own.

        Cancelled where the caller wants no more, and while it waits also where its slot is given to another request.

        Raises:
            IngressError: the body is not what the control message promises; it goes home as an error event.
        """

    def read_control_of_start(self, start: bytes) -> RequestControlMessage | None:
        """Read the control message of a payload that is not taken whole, so that its caller can be told.

        Returns None where the beginning does not hold it, which by default it never does.

        Raises:
            IngressError: it cannot be read.
        """
        return None

    def can_serve(self, engine: Engine) -> bool:
        """Tell, once at start, whether this shape's requests can be put to the engine; by default to unary ones."""
        return engine.is_unary

    def request_streams(self, control: RequestControlMessage) -> Sequence[StreamAddress]:
        """Return the streams beside the response that will be dialled; they are checked before the ack."""
        return ()

    def invoke(self, engine: Engine, request: RequestT, context: Context) -> AsyncIterable[Any]:
        """Call the engine's method for this shape; unary shapes leave it as it is."""
        return engine.generate(request, context)


# -- admission -------------------------------------------------------------------------------------------------------


@frozen
class Arrival:
    """A push whose control message was read, as an admission policy sees it before the ack."""

    endpoint: EndpointId
    size: int
    """Bytes of the payload; it has not been decoded."""

    control: RequestControlMessage
    """Who asks, with which metadata."""

    headers: Mapping[str, str]
    peer_host: str | None
    """As in :class:`Push`."""


class Load(Protocol):
    """What a worker holds at this moment, over all its endpoints."""

    @property
    def engine_request_limit(self) -> int:
        """Requests that may be in the engines at a time."""

    @property
    def request_queue_limit(self) -> int:
        """Requests that may be in line."""

    @property
    def running(self) -> int:
        """Requests in the engines."""

    @property
    def queued(self) -> int:
        """Requests in line."""


class AdmissionPolicy(ABC):
    """Decides which requests come in, within the worker's two limits, which hold whatever it says.

    Called on the event loop between a push and its ack: pure and cheap, like :meth:`IngressDispatch.read_control`.
    """

    @abstractmethod
    def admit(self, arrival: Arrival, load: Load) -> None:
        """Return to let the request in; asked only where there is a slot or a place in line, or another request would
        give its own up, whose ``release`` comes after.

        Raises:
            Overloaded: refuse, as a worker that is full does; the text goes to the caller.
            Exception: anything else refuses this request as well, and is logged and counted as ``policy``.
        """

    def release(self, arrival: Arrival) -> None:  # noqa: B027 - a policy that keeps no account needs none
        """Note that a request which was let in is over, however it ended; called once for each."""


# -- engines ---------------------------------------------------------------------------------------------------------


class Engine(ABC):  # noqa: B024 - either method may be left out, so neither is abstract
    """Answers requests. A plain function becomes one by itself; subclass for state, for a life cycle, or for both ways.

    Implement :meth:`generate`, :meth:`generate_bidirectional`, or both. Either runs in the request's own task; whatever
    it raises, before or between chunks, goes home as an error event. When the caller stops, ``trio.Cancelled`` is
    raised at its current await, and its ``finally`` blocks run.
    """

    def generate(self, request: Any, context: Context) -> AsyncIterable[Any]:
        """Answer one request with any number of chunks."""
        raise NotImplementedError(f"{type(self).__qualname__} answers no unary requests")

    def generate_bidirectional(self, requests: AsyncIterable[Any], context: Context) -> AsyncIterable[Any]:
        """Answer a stream of requests with any number of chunks, each whenever it likes."""
        raise NotImplementedError(f"{type(self).__qualname__} answers no bidirectional requests")

    @property
    def is_unary(self) -> bool:
        """True where :meth:`generate` is implemented."""
        return type(self).generate is not Engine.generate

    @property
    def is_bidirectional(self) -> bool:
        """True where :meth:`generate_bidirectional` is implemented."""
        return type(self).generate_bidirectional is not Engine.generate_bidirectional

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold what the engine needs while a worker serves it: load before ``yield``, release after.

        A process that drains ends without an engine that has not released within linger and budget (docs/lifecycle.md).
        """
        yield

    def trouble(self) -> str | None:
        """Say, for people, why it can serve nothing any more; None while it can, which by default is always.

        Asked whenever readiness is, so it must not wait. While any engine has trouble its worker is not ready; requests
        come all the same, for callers go by the discovery record.
        """
        return None


# -- planes and discovery --------------------------------------------------------------------------------------------

PushReceiver = Callable[[Push], str]
"""What a plane calls for each push: takes it over, and returns the ack text (empty: accepted). Never waits."""


class Network(Protocol):
    """How byte streams are opened. TCP in real life, memory in tests; both halves of a conversation use it."""

    async def open_listener(self, host: str, port: int) -> trio.abc.Listener[trio.abc.Stream]:
        """Bind and listen; port 0 picks one. Raises StartupError when the address is taken or not ours."""

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Connect to a literal address; raises OSError. The caller bounds the wait."""

    def local_address(self, listener: trio.abc.Listener[trio.abc.Stream]) -> tuple[str, int]:
        """The host and port a listener is bound to."""

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        """The address of the other end, or None where it has none."""


class RequestPlane(ABC):
    """How pushes arrive."""

    @abstractmethod
    async def serve(
        self, receive: PushReceiver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hand every push to ``receive`` and answer with what it returns, until cancelled.

        Reports ``started`` once pushes can arrive. A peer's misbehaviour never ends it.
        """

    @abstractmethod
    def transport(self, path: str) -> Mapping[str, str]:
        """Return the ``transport`` of a discovery record whose pushes shall carry ``path``; valid once started."""

    @property
    def address(self) -> str:
        """Where callers reach it, for people to read; valid once started."""
        return ""

    @property
    def own_addresses(self) -> Sequence[tuple[str, int]]:
        """Hosts and ports it listens on, which nobody may have this worker dial; valid once started."""
        return ()


# Loopback unless told otherwise: the port takes bytes from anybody.
DEFAULT_HOST = "127.0.0.1"

# Acks are a few bytes each; a caller that leaves them unread for so long has stopped.
DEFAULT_ACK_WRITE_TIMEOUT = 60.0


def _an_advertised_address(_: object, attribute: Attribute[str | None], value: str | None) -> None:
    try:
        if value is not None:
            split_advertised(value)
    except ValueError as exc:
        raise ValueError(f"{attribute.name}: {exc}, got {value!r}") from None


@frozen(kw_only=True)
class PlaneOptions:
    """What a worker tells the maker of a request plane, which takes from it what concerns it.

    Raises:
        ValueError: a value can be no limit.
    """

    network: Network = field(repr=False)

    host: str = DEFAULT_HOST
    """Address to listen on."""

    port: int = 0
    """Port to listen on; 0 picks one."""

    advertise: str | None = field(default=None, validator=_an_advertised_address)
    """Host, or host:port, that callers are told; None for the bound one, and where all addresses are bound for the
    machine's first that is not loopback."""

    max_frame_size: int = field(default=DEFAULT_MAX_FRAME_SIZE, validator=a_count)
    """Bytes of the largest request."""

    max_connections: int | None = field(default=None, validator=optional(a_count))
    """How many may be open; more are closed as they come. None for half of what the limit of descriptors leaves room
    for, 8,192 at most; what is asked for is had as far as a quarter of that room remains for answers."""

    max_connections_per_peer: int | None = field(default=None, validator=optional(a_count))
    """How many of one address; None for three quarters. Of up to three quarters it may have three times as many as are
    left at most. At any limit the oldest connection that has not sent a whole request within 10 seconds makes room,
    unless it sends a large one, 64 KiB in each 10 seconds at least, or its address has fewer and some are left."""

    max_incomplete_bytes: int | None = field(default=None, validator=optional(a_count))
    """Bytes of requests of more than 64 KiB that have not arrived whole, of all callers; None for an eighth of the
    memory that the process may use, 64 MiB and one of the largest at least. A request that would be more is refused and
    its connection closed."""

    frame_timeout: float = field(default=DEFAULT_FRAME_TIMEOUT, validator=a_deadline)
    """Seconds from a request's first byte to its last, beside one for each 64 KiB that it announces."""

    idle_timeout: float | None = field(default=None, validator=optional(a_deadline))
    """Seconds a connection may rest between two requests; None for ever, for callers pool them."""

    ack_write_timeout: float = field(default=DEFAULT_ACK_WRITE_TIMEOUT, validator=a_deadline)
    """Seconds for a caller to take the acks of its requests."""

    environ: Mapping[str, str] = field(factory=dict, repr=False)
    """The process's environment, for whatever else it needs."""

    is_short_of_memory: Callable[[int], bool] | None = field(default=None, repr=False)
    """Whether so many bytes of a request more would be too much for the process; None where nobody knows."""


PlaneFactory = Callable[[PlaneOptions], RequestPlane]
"""What an entry point in ``ingress.planes`` names: makes a plane, or raises StartupError. Opens nothing yet."""


class InstanceView(Protocol):
    """A live view of who serves what; reading it costs no I/O."""

    def instances(self, endpoint_id: EndpointId | None = None) -> Sequence[InstanceRecord]:
        """The usable instances now, of one endpoint or of all, in a stable order."""

    async def wait_changed(self) -> None:
        """Wait until the set of instances differs from what it was at the call."""


class Discovery(ABC):
    """Where workers are announced and found."""

    is_shared: bool = True
    """False where nobody outside this process finds what is announced."""

    @property
    def location(self) -> str:
        """Where that is, for people to read: a directory, a URL without its password."""
        return ""

    # What a worker shows of it: metrics, and no readiness from the second missed renewal on.

    @property
    def missed_renewals(self) -> int:
        """Renewals in a row that failed, of the records that are served; from 2 on callers are about to lose them."""
        return 0

    @property
    def rewritten_records(self) -> int:
        """How often a record was put back that someone else had removed or altered."""
        return 0

    @property
    def skipped_records(self) -> Mapping[str, int]:
        """What views found and did not take for a record, by reason; the reasons are fixed words."""
        return {}

    @abstractmethod
    async def serve_records(
        self, records: Sequence[DiscoveryRecord], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Announce the records and keep them alive until cancelled; withdraw them before returning.

        Each goes under ``v1/<its bucket>/<its key>``, in the order given, and away in the opposite one. Reports
        ``started`` once callers can find them. Raises StartupError when they cannot be announced at all; later trouble
        is logged and retried.
        """

    @abstractmethod
    def open_view(self) -> AbstractAsyncContextManager[InstanceView]:
        """Watch for instances while inside; never removes or alters anything."""


DiscoveryFactory = Callable[[Mapping[str, str]], Discovery]
"""What an entry point in ``ingress.discovery`` names: makes a discovery from the environment, or raises StartupError.

Opens nothing yet. Flags of the command arrive under the names of their variables: ``--file-kv`` as ``DYN_FILE_KV``.
"""
