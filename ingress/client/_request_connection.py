"""A request connection: requests out, acks in, any number of them in flight.

Acks carry no id; the n-th ack answers the n-th frame. So a frame that has begun to leave keeps its place in the queue
of acks, whatever becomes of the caller that sent it. Source: docs/wire.md §1.
"""

from __future__ import annotations

import logging
import math
from collections import deque

import trio

from .._hosts import join_host_port
from .._text import printable
from ..abc import Network
from ..errors import IngressError, NotAccepted, RemoteProtocolError, Unavailable
from ..wire.request_frame import AckDecoder

logger = logging.getLogger("ingress.client")

# Dynamo's defaults of DYN_TCP_REQUEST_TIMEOUT, _CONNECT_TIMEOUT, _HOST_IDLE_TTL_SECS and _CHANNEL_BUFFER.
DEFAULT_ACK_TIMEOUT = 5.0
DEFAULT_CONNECT_TIMEOUT = 5.0
IDLE_TTL = 300.0
MAX_IN_FLIGHT = 1024

# Bytes after which a write is made although more frames wait.
MAX_BATCH = 256 * 1024

Address = tuple[str, int]


class _Push:
    """One frame and what became of it."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.is_abandoned = False
        self.patience = trio.CancelScope()
        """Has a deadline from the moment the frame has left; until then the connection's own bounds hold."""
        self.answer: str | Unavailable | None = None
        self.answered = trio.Event()

    def resolve(self, answer: str | Unavailable) -> None:
        self.answer = answer
        self.answered.set()


class RequestConnection:
    """One connection to one worker process: an actor with a task of its own (:meth:`run`) and callers that queue."""

    def __init__(
        self, network: Network, address: Address, *, connect_timeout: float, ack_timeout: float, idle_ttl: float
    ) -> None:
        self.name = printable(join_host_port(*address))
        self.idle_since = trio.current_time()
        self._network = network
        self._address = address
        self._connect_timeout = connect_timeout
        self._ack_timeout = ack_timeout
        self._idle_ttl = idle_ttl
        self._scope = trio.CancelScope()
        self._connected_or_failed = trio.Event()
        self._is_retired = False
        self._unsent: deque[_Push] = deque()
        self._unacked: deque[_Push] = deque()
        self._wake_writer = trio.Event()

    @property
    def in_flight(self) -> int:
        """How many frames wait for their ack, abandoned ones among them."""
        return len(self._unsent) + len(self._unacked)

    @property
    def is_closed(self) -> bool:
        """True from the decision on; its task may still be about to act on it."""
        return self._scope.cancel_called

    @property
    def takes_requests(self) -> bool:
        return not (self._is_retired or self.is_closed or self._is_overdue) and self.in_flight < MAX_IN_FLIGHT

    @property
    def _is_overdue(self) -> bool:
        """True while an ack has been due for some time, whether or not somebody still waits for it."""
        return bool(self._unacked) and self._unacked[0].patience.deadline <= trio.current_time()

    async def push(self, frame: bytes) -> str:
        """Send a frame and return the text of its ack; bounded by the connect and the ack timeout.

        Raises:
            NotAccepted: no byte of the frame was sent.
            Unavailable: no ack came; the worker may or may not have the request.
        """
        push = _Push(frame)
        self._unsent.append(push)
        self._wake_writer.set()
        self._update_deadline()
        try:
            with push.patience:
                await push.answered.wait()
        finally:
            push.is_abandoned = True
        if push.answer is None:
            # Whatever is wrong with this peer, the next request shall not wait behind this one.
            self.retire()
            raise Unavailable(f"no ack from {self.name} within {self._ack_timeout:g} s")
        if isinstance(push.answer, Unavailable):
            raise push.answer
        return push.answer

    def retire(self) -> None:
        """Take no more requests, and close when those in flight have had their time."""
        self._is_retired = True
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._ack_timeout)

    def close(self) -> None:
        """Close now."""
        self._is_retired = True
        self._scope.cancel()

    async def run(self) -> None:
        """Connect, serve the queue, and fail what is left in it. Raises nothing."""
        ending = "closed by this client"
        try:
            with self._scope:
                ending = await self._converse()
        except Exception:  # the wall around every connection: a bug in one must not end the others
            ending = "internal error"
            logger.exception("request connection to %s failed", self.name)
        finally:
            self._is_retired = True
            for push in self._unsent:
                push.resolve(NotAccepted(f"request connection to {self.name}: {ending}"))
            for push in self._unacked:
                push.resolve(Unavailable(f"request connection to {self.name}: {ending} before the ack"))
            self._connected_or_failed.set()

    async def _converse(self) -> str:
        """Return how the conversation ended."""
        try:
            with trio.fail_after(self._connect_timeout):
                stream = await self._network.connect(*self._address)
        except trio.TooSlowError:
            return f"cannot connect within {self._connect_timeout:g} s"
        except (OSError, ValueError) as exc:  # ValueError: a host that cannot even be looked up
            return f"cannot connect: {getattr(exc, 'strerror', None) or exc}"
        async with stream, trio.open_nursery() as nursery:
            self._connected_or_failed.set()
            nursery.start_soon(self._write_frames, stream)
            ending = await self._read_acks(stream)
            nursery.cancel_scope.cancel()
        return ending

    async def _write_frames(self, stream: trio.abc.Stream) -> None:
        while True:
            while batch := self._next_batch():
                # Their places among the acks are taken first: a refusal may come before a frame is out.
                self._unacked += batch
                try:
                    with trio.fail_after(self._ack_timeout):
                        await stream.send_all(b"".join(push.frame for push in batch))
                except trio.BrokenResourceError:
                    # The reader goes on: the ack that says why may be there already, and then the end of stream.
                    self.retire()
                    return
                except trio.TooSlowError:
                    for push in self._unacked:
                        push.resolve(Unavailable(f"no ack from {self.name} within {self._ack_timeout:g} s"))
                    self.close()  # half a frame may be out
                    return
                for push in batch:
                    push.frame = b""
                    push.patience.deadline = trio.current_time() + self._ack_timeout
            self._update_deadline()
            self._wake_writer = trio.Event()
            await self._wake_writer.wait()

    def _next_batch(self) -> list[_Push]:
        """Take what is to be sent now, in one write: a write a frame would cost a pass of the scheduler each."""
        batch: list[_Push] = []
        size = 0
        while self._unsent and size < MAX_BATCH:
            push = self._unsent.popleft()
            if not push.is_abandoned:
                batch.append(push)
                size += len(push.frame)
        return batch

    async def _read_acks(self, stream: trio.abc.Stream) -> str:
        decoder = AckDecoder()
        try:
            while chunk := await stream.receive_some():
                decoder.receive_data(chunk)
                for text in decoder:
                    if not self._unacked:
                        raise RemoteProtocolError(f"ack {printable(text)!r} without a request")
                    self._unacked.popleft().resolve(text)
                self._update_deadline()
        except trio.BrokenResourceError as exc:
            # With TLS 1.3 a worker that wants a certificate says so only here.
            return f"reset by the worker: {exc}" if getattr(stream, "closes_promptly", False) else "reset by the worker"
        except IngressError as exc:
            logger.warning("request connection to %s closed: %s", self.name, exc)
            return str(exc)
        return "closed by the worker"

    def _update_deadline(self) -> None:
        """Close after ``idle_ttl`` without a request, and as one that is retired once an ack is overdue."""
        if self._is_retired:
            return
        self.idle_since = trio.current_time()
        if self._unacked:  # none is due before its frame has left
            self._scope.deadline = self._unacked[0].patience.deadline + self._ack_timeout
        else:
            self._scope.deadline = math.inf if self._unsent else self.idle_since + self._idle_ttl
