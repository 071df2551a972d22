"""Admission: N requests in the engine, Q more in line, and an immediate refusal for the rest.

Never refuses while a slot is free, never holds more than N + Q, and lets the line in order.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from .errors import Overloaded

# Dynamo's own default is 10,000 running and 40,000 queued; a Python engine is better told early (docs/design.md).
DEFAULT_ENGINE_REQUEST_LIMIT = 2048
DEFAULT_REQUEST_QUEUE_LIMIT = 0


class Admission:
    """The slots of one worker; for the worker's own tasks."""

    def __init__(
        self,
        engine_request_limit: int = DEFAULT_ENGINE_REQUEST_LIMIT,
        request_queue_limit: int = DEFAULT_REQUEST_QUEUE_LIMIT,
    ) -> None:
        if engine_request_limit < 1 or request_queue_limit < 0:
            raise ValueError(
                f"engine_request_limit must be at least 1 and request_queue_limit at least 0, "
                f"got {engine_request_limit} and {request_queue_limit}"
            )
        self.engine_request_limit = engine_request_limit
        self.request_queue_limit = request_queue_limit
        self.running = 0
        self.rejected = 0
        self._line: OrderedDict[Slot, None] = OrderedDict()

    @property
    def queued(self) -> int:
        return len(self._line)

    def admit(self) -> Slot:
        """Take a slot, or a place in line.

        Raises:
            Overloaded: both are full.
        """
        if self.running < self.engine_request_limit:
            self.running += 1
            return Slot(self, is_granted=True)
        if len(self._line) >= self.request_queue_limit:
            self.rejected += 1
            raise Overloaded("worker at capacity")
        slot = Slot(self, is_granted=False)
        self._line[slot] = None
        return slot

    def leave(self, slot: Slot) -> None:
        """Give up what the slot holds; the first in line moves up. Called by :meth:`Slot.release`."""
        if not slot.is_granted:
            self._line.pop(slot, None)
            return
        if self._line:
            following, _ = self._line.popitem(last=False)
            following.grant()
        else:
            self.running -= 1


class Slot:
    """One admitted request's right to run; release it exactly once, whatever happens."""

    __slots__ = ("_admission", "_granted", "_is_released", "is_granted")

    def __init__(self, admission: Admission, *, is_granted: bool) -> None:
        self._admission = admission
        self.is_granted = is_granted
        self._is_released = False
        self._granted: trio.Event | None = None

    def grant(self) -> None:
        self.is_granted = True
        if self._granted is not None:
            self._granted.set()

    async def wait_granted(self) -> None:
        """Wait for the turn; returns at once where there was no line."""
        if not self.is_granted:
            self._granted = trio.Event()
            await self._granted.wait()

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._admission.leave(self)
