"""Admission: N requests in the engine, Q more in line, and an immediate refusal for the rest.

Never refuses while a slot is free, never holds more than N + Q, and lets the line in order. A policy may refuse more,
as may a limit for each peer and a watermark of memory. Where no slot is free, a request that waits to be decoded, or
for its caller to be reached, may have to give its own to an address that has fewer; no more than N / 8 are being told
so at a time.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ._descriptors import StreamDescriptors
from ._failures import class_name, describe_failure, must_pass
from ._memory_watermark import MemoryWatermark
from ._request_memory import SMALL_REQUEST, HeldMemory, RequestMemory
from ._text import RateLimitedLogger, printable
from ._unstarted import Unstarted
from .abc import AdmissionPolicy, Arrival
from .errors import Overloaded, PolicyFailed, QueueDeadlinePassed, ResponseStreamError

logger = logging.getLogger("ingress.admission")

# Dynamo's own default is 10,000 running and 40,000 queued; a Python engine is better told early (docs/design.md).
DEFAULT_ENGINE_REQUEST_LIMIT = 2048
DEFAULT_REQUEST_QUEUE_LIMIT = 0

_GAVE_WAY = "worker at capacity, and others have fewer requests"

# Seconds of a dial before its request gives its slot up. Its caller is not told; most are reached in a part of that.
_DIAL_PATIENCE = 0.5

# What a policy may say to a caller; callers log and show it.
_MAX_POLICY_TEXT = 200


class Admission:
    """The slots of one worker; for the worker's own tasks.

    Args:
        policy: asked in addition, where there is room; None lets everything in that the two limits do.
        queue_deadline: seconds that a request may wait in line; None for ever.
        max_inflight_per_peer: slots and places in line that one peer's address may hold; None for all of them.
        memory: refuses while it is exceeded.
        request_memory: what requests take of it; one for which there is none left is refused.
        descriptors: those of answers; a request for whose streams there are none left is refused.
    """

    def __init__(
        self,
        engine_request_limit: int = DEFAULT_ENGINE_REQUEST_LIMIT,
        request_queue_limit: int = DEFAULT_REQUEST_QUEUE_LIMIT,
        *,
        policy: AdmissionPolicy | None = None,
        queue_deadline: float | None = None,
        max_inflight_per_peer: int | None = None,
        memory: MemoryWatermark | None = None,
        request_memory: RequestMemory | None = None,
        descriptors: StreamDescriptors | None = None,
    ) -> None:
        if engine_request_limit < 1 or request_queue_limit < 0:
            raise ValueError(
                f"engine_request_limit must be at least 1 and request_queue_limit at least 0, "
                f"got {engine_request_limit} and {request_queue_limit}"
            )
        if queue_deadline is not None and not queue_deadline > 0:
            raise ValueError(f"queue_deadline must be more than 0 s, got {queue_deadline:g} s")
        if max_inflight_per_peer is not None and max_inflight_per_peer < 1:
            raise ValueError(f"max_inflight_per_peer must be at least 1, got {max_inflight_per_peer}")
        self.engine_request_limit = engine_request_limit
        self.request_queue_limit = request_queue_limit
        self.queue_deadline = queue_deadline
        self.max_inflight_per_peer = max_inflight_per_peer
        self.has_policy = policy is not None
        self.running = 0
        self.rejected = 0
        self._policy = policy
        self._memory = memory
        self.request_memory = RequestMemory() if request_memory is None else request_memory
        self.descriptors = StreamDescriptors() if descriptors is None else descriptors
        self._of_peers: dict[str, int] = {}  # only those that hold something
        self.unstarted = Unstarted(engine_request_limit)
        self._line: OrderedDict[Slot, None] = OrderedDict()
        # Whose deadline has passed and who are being told so: out of the line's order, still in its places, so that
        # no crowd of them can grow beside it.
        self._overdue: set[Slot] = set()
        self._log = RateLimitedLogger(logger)

    @property
    def queued(self) -> int:
        return len(self._line) + len(self._overdue)

    def admit(
        self, arrival: Arrival | None = None, *, peer: str | None = None, size: int = 0, streams: int = 1
    ) -> Slot:
        """Take a slot, or a place in line.

        Args:
            arrival: what the policy is asked about; may be left out where there is no policy.
            peer: whose request it is, where that is known.
            size: its bytes.
            streams: how many its caller is dialled for.

        Raises:
            Overloaded: both are full, the peer has its share, descriptors or memory are short, or the policy refuses.
            PolicyFailed: the policy raised something else.
        """
        refusal = giving_way = None
        if self.running >= self.engine_request_limit and self.queued >= self.request_queue_limit:
            giving_way = None if peer is None else self.unstarted.least_missed(peer, self._of_peers)
            refusal = "worker at capacity" if giving_way is None else None
        refusal = refusal or self._shortage(peer, size, streams)
        held, memory = None, self.request_memory
        if refusal is None and (size > SMALL_REQUEST or memory.held > memory.half):
            try:
                held = memory.open(peer, size)
            except Overloaded as exc:
                refusal = str(exc)
        if refusal is not None:
            self.rejected += 1
            raise Overloaded(refusal)
        if self._policy is not None and arrival is not None:
            try:
                self._ask(self._policy, arrival)
            except BaseException:
                if held is not None:
                    held.release()
                raise
        if giving_way is not None:
            self.unstarted.give_up(giving_way)
            giving_way.release()
        is_granted = self.running < self.engine_request_limit
        slot = Slot(self, arrival, peer, streams, held, is_granted=is_granted)
        self.descriptors.held += streams
        if is_granted:
            self.running += 1
        else:
            self._line[slot] = None
        if peer is not None:
            self._of_peers[peer] = self._of_peers.get(peer, 0) + 1
        return slot

    def _shortage(self, peer: str | None, size: int, streams: int) -> str | None:
        """Say what there is too little of for a request, slots and its bytes apart; None where there is enough."""
        of_peer, descriptors = self.max_inflight_per_peer, self.descriptors
        if of_peer is not None and self._of_peers.get(peer or "", 0) >= of_peer:
            return f"{of_peer} requests of one caller are in flight"
        if descriptors.held + streams > descriptors.limit:
            return "worker is short of descriptors"
        if self._memory is not None and self._memory.is_exceeded(size):
            return "worker is short of memory"
        return None

    def leave(self, slot: Slot) -> None:
        """Give up what the slot holds; the first in line moves up. Called by :meth:`Slot.release`."""
        if (peer := slot.peer) is not None:
            if left := self._of_peers[peer] - 1:
                self._of_peers[peer] = left
            else:
                del self._of_peers[peer]
        if not slot.is_granted:
            self._line.pop(slot, None)
            self._overdue.discard(slot)
        elif self._line:
            following, _ = self._line.popitem(last=False)
            following.grant()
        else:
            self.running -= 1
        if self._policy is not None and slot.arrival is not None:
            try:
                self._policy.release(slot.arrival)
            except BaseException as exc:  # it ends nothing but the policy's own account
                if must_pass(exc):
                    raise
                self._log.log(
                    logging.ERROR, class_name(exc), "admission policy failed in release: %s", describe_failure(exc)
                )

    def expire(self, slot: Slot) -> None:
        """Take a slot out of the line's order; it keeps its place until it is released."""
        if slot in self._line:
            del self._line[slot]
            self._overdue.add(slot)

    def _ask(self, policy: AdmissionPolicy, arrival: Arrival) -> None:
        try:
            policy.admit(arrival, self)
        except Overloaded as exc:
            self.rejected += 1
            raise Overloaded(printable(exc, _MAX_POLICY_TEXT)) from exc
        except BaseException as exc:
            if must_pass(exc):
                raise
            raise PolicyFailed(f"admission policy failed: {describe_failure(exc)}") from exc


class Slot:
    """One admitted request's right to run, to the descriptors of its streams, and to memory.

    Close it whatever happens; release it before where the engine has ended, and streams are still open.
    """

    __slots__ = (
        *("_admission", "_descriptors", "_granted", "_is_released", "_streams", "arrival", "has_given_way"),
        *("held_memory", "is_granted", "peer"),
    )

    def __init__(
        self,
        admission: Admission,
        arrival: Arrival | None = None,
        peer: str | None = None,
        streams: int = 1,
        held_memory: HeldMemory | None = None,
        *,
        is_granted: bool,
    ) -> None:
        self._admission = admission
        self._descriptors = admission.descriptors
        self._streams = streams
        self.peer = peer
        self.held_memory = held_memory
        """None where none is counted: a small request has no account."""
        self.arrival = arrival
        self.is_granted = is_granted
        self.has_given_way = False
        """True once it has been given to another request: this one must not run any more."""
        self._is_released = False
        self._granted: trio.Event | None = None

    def grant(self) -> None:
        self.is_granted = True
        if self._granted is not None:
            self._granted.set()

    async def wait_granted(self) -> None:
        """Wait for the turn; returns at once where there was no line.

        Raises:
            QueueDeadlinePassed: it did not come in time, and will not come any more.
        """
        if self.is_granted:
            return
        self._granted = trio.Event()
        deadline = self._admission.queue_deadline
        if deadline is None:
            await self._granted.wait()
            return
        with trio.move_on_after(deadline):
            await self._granted.wait()
        if not self.is_granted:  # granted in the same moment is granted
            self._admission.expire(self)
            raise QueueDeadlinePassed(f"no slot became free within {deadline:g} s")

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Inside it the request waits to be decoded, and may have to give its slot to another address.

        Raises:
            Overloaded: it had to.
        """
        with self._admission.unstarted.waiting(self, 0.0):
            yield
        self.check()

    @contextmanager
    def dialling(self) -> Iterator[None]:
        """Inside it the request's caller is dialled; where that takes long, as :meth:`decoding`.

        Raises:
            ResponseStreamError: it had to.
        """
        with self._admission.unstarted.waiting(self, _DIAL_PATIENCE):
            yield
        if self.has_given_way:
            raise ResponseStreamError(f"dial-back given up: {_GAVE_WAY}")

    def check(self) -> None:
        """Raise Overloaded where the request had to give its slot up."""
        if self.has_given_way:
            raise Overloaded(_GAVE_WAY)

    def open_memory(self) -> HeldMemory:
        """Return the request's account of memory."""
        if self.held_memory is None:
            self.held_memory = self._admission.request_memory.open(self.peer)
            if not self._streams:  # let go already
                self.held_memory.release()
        return self.held_memory

    def let_go(self) -> None:
        """Give descriptors and memory back: nobody needs them any more, or streams that linger are counted there."""
        self._descriptors.held -= self._streams
        self._streams = 0
        if self.held_memory is not None:
            self.held_memory.release()

    def close(self) -> None:
        """Release it and let go of the rest, as far as that has not been done."""
        self.release()
        self.let_go()
        if self.has_given_way:
            self._admission.unstarted.untold.discard(self)

    def release(self) -> None:
        """Give the right to run back, or the place in line."""
        if not self._is_released:
            self._is_released = True
            self._admission.leave(self)
