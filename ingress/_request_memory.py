"""How much memory the requests of a worker may take together: their bytes as they come, and what is decoded of them.

A byte of msgpack can become a hundred bytes of objects, and an answer takes as long as its caller lets it: neither the
sizes of requests nor their number bound what all of them hold.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import trio

from ._checks import check_count
from ._heavy_work import LARGE_BODY, heavy_work
from ._memory_watermark import share_of_memory
from ._shares import SharedBudget
from ._weight import SECONDS_A_STEP, weigh, weigh_in_steps, worst_weight
from .errors import RequestMemoryExhausted
from .wire.two_part import DEFAULT_MAX_MESSAGE_SIZE

# Of the memory; and what a worker takes however little there is of it, and however much.
MEMORY_SHARE = 4
LEAST_REQUEST_MEMORY, MOST_REQUEST_MEMORY = 256 * 1024 * 1024, 2 * 1024 * 1024 * 1024

# Not counted while less than half is taken: 2,048 of them take 256 MiB at the very worst.
SMALL_REQUEST = 1024

# Freeing as much can take some milliseconds, and of the largest fifty: they are freed one at a time, and everybody has
# a turn between two of them.
LARGE_VALUE = 4 * 1024 * 1024


class RequestMemory(SharedBudget):
    """The account of one worker; for its event loop.

    Args:
        most: bytes that all requests may take, never less than one of the largest; None for a quarter of the memory,
            and 2 GiB at most.
        max_frame_size: the bytes of the largest.

    Raises:
        ValueError: ``most`` can be no limit.
    """

    def __init__(self, most: int | None = None, max_frame_size: int = DEFAULT_MAX_MESSAGE_SIZE) -> None:
        largest = worst_weight(max_frame_size) + 2 * max_frame_size
        if most is not None:
            check_count("max_request_memory", most)
        else:
            most = share_of_memory(MEMORY_SHARE, LEAST_REQUEST_MEMORY, MOST_REQUEST_MEMORY)
        super().__init__(most, largest)
        self.half = self.most // 2
        """Above it requests are looked at, instead of being counted as the worst that they can be."""
        self._discarded: deque[tuple[Any, str, int]] = deque()
        self._has_discarded = trio.Event()
        self._is_freeing = False

    def open(self, peer: str | None, size: int = 0) -> HeldMemory:
        """Begin to count one request; of whom, where that is known.

        Args:
            size: the bytes of its payload, which are taken twice: the body is cut out of it.

        Raises:
            RequestMemoryExhausted: there is no room for them.
        """
        return HeldMemory(self, peer or "", 2 * size)

    def complaint(self, peer: str, size: int = 0) -> str | None:
        """Say why so many bytes more would be too much, where they would be."""
        match self.excess(peer, size):
            case "peer":
                return f"requests of one caller would take more than {self.most_of_peer >> 20} MiB of memory"
            case "all":
                return f"requests would take more than {self.most >> 20} MiB of memory"
            case None:
                return None

    def discard(self, value: Any, peer: str, weight: int) -> None:
        """Free a large value when its turn comes, until when it counts; at once where nobody sees to turns."""
        if self._is_freeing:
            self._discarded.append((value, peer, weight))
            self._has_discarded.set()
        else:
            self.give_back(peer, weight)

    async def free_discarded(self) -> None:
        """Free large values, one in a turn of the loop, until cancelled."""
        self._is_freeing = True
        try:
            while True:
                await self._has_discarded.wait()
                while self._discarded:
                    await trio.lowlevel.checkpoint()
                    self._free_one()
                self._has_discarded = trio.Event()
        finally:
            self._is_freeing = False
            while self._discarded:
                self._free_one()

    def _free_one(self) -> None:  # which goes with its locals
        _value, peer, weight = self._discarded.popleft()
        self.give_back(peer, weight)

    def has_room_for_worst(self, size: int) -> bool:
        """Tell whether a value that came in so many bytes may count the worst that it can be, without a look at it.

        So it is while more than half is free, for to tell that costs nothing.
        """
        return self.held + worst_weight(size) <= self.half


class HeldMemory:
    """What one request holds, for its own tasks; released once it has ended, and nothing is counted after that.

    Raises:
        RequestMemoryExhausted: there is no room for what it begins with.
    """

    __slots__ = ("_is_released", "_large", "_memory", "_of_payload", "_peer", "held")

    def __init__(self, memory: RequestMemory, peer: str, of_payload: int = 0) -> None:
        self._memory = memory
        self._peer = peer
        self.held = 0
        self._large: list[tuple[Any, int]] = []
        self._is_released = False
        self._of_payload = of_payload
        if of_payload:
            self.take(of_payload)

    def take(self, size: int) -> None:
        """Hold so many bytes more.

        Raises:
            RequestMemoryExhausted: there is no room, and nothing has changed.
        """
        if not self._is_released and (complaint := self._memory.complaint(self._peer, size)) is not None:
            raise RequestMemoryExhausted(complaint)
        self.take_anyway(size)

    def take_anyway(self, size: int) -> None:
        """Hold so many bytes more that are there already: where that is too much, others are refused for it."""
        if not self._is_released:
            self._memory.take(self._peer, size)
            self.held += size

    def give_back(self, size: int) -> None:
        """Hold so many bytes less."""
        if not self._is_released:
            self._memory.give_back(self._peer, size)
            self.held -= size

    async def take_value(self, value: Any, size: int, weight: int | None) -> int:
        """Hold what has been decoded of so many bytes; returns what it counts.

        Args:
            weight: where it is known; None where nobody has looked.

        Raises:
            RequestMemoryExhausted: there is no room, and nothing has changed.
        """
        if weight is not None:
            weight = max(int(weight), size)
        elif self._memory.has_room_for_worst(size):
            weight = worst_weight(size)
        elif size <= LARGE_BODY:
            # In the turn in which it was decoded: of a thousand that waited for another, none would be counted yet.
            weight = heavy_work().do_at_once(partial(weigh, value, size))
        else:
            weight = await self._weigh_in_turns(value, size)
        self.take(weight)
        return weight

    async def _weigh_in_turns(self, value: Any, size: int) -> int:
        """Weigh what a shape has decoded by itself; it counts as the worst that it can be until then."""
        worst, weight = worst_weight(size), 0
        work, steps = heavy_work(), weigh_in_steps(value, size)
        self.take_anyway(worst)
        try:
            while (step := await work.do(partial(next, steps, None), SECONDS_A_STEP)) is not None:
                weight = step
        finally:
            self.give_back(worst)
        return weight

    async def settle(self, request: Any, size: int, weight: int | None) -> None:
        """Hold a request as what has been decoded of it, and no longer as its payload; see :meth:`take_value`.

        Does nothing of a payload that was not counted.
        """
        if self._of_payload:
            self.drop_payload()
            self.keep(request, await self.take_value(request, size, weight))

    def drop_payload(self) -> None:
        """Hold the payload no longer."""
        self.give_back(self._of_payload)
        self._of_payload = 0

    def keep(self, value: Any, weight: int) -> None:
        """Keep a value that is held already until the request has ended, if it is large: it is freed in its turn then.

        Otherwise all that many requests hold would be freed at once where all of them end at once.
        """
        if weight >= LARGE_VALUE:
            self._large.append((value, weight))

    def release(self) -> None:
        """Give everything back: at once, but for large values."""
        self._is_released = True
        left, self.held = self.held, 0
        while self._large:
            value, weight = self._large.pop()
            self._memory.discard(value, self._peer, weight)
            left -= weight
        self._memory.give_back(self._peer, left)
