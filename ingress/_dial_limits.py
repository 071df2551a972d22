"""How many dial-backs may be pending, and which addresses fail too often to be tried now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .wire.addresses import SocketAddress

# Peers wait for their own dials only: one that names a black hole holds at most its share, and what it has left serves
# its other addresses, for behind one peer there may be many callers.
MAX_PENDING_DIALS = 256
MAX_PENDING_DIALS_OF_PEER = 64
MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS = 48

# So many failures within a second, and the address is refused for the next one. Dials that succeed are never limited:
# a caller has one listener for all its streams.
MAX_FAILURES = 64
FAILURE_WINDOW = 1.0

# Addresses that failed lately; beyond it the one that failed first is forgotten.
_MAX_REMEMBERED = 1024


class DialLimits:
    """The dials of one worker; for its event loop."""

    def __init__(self) -> None:
        self._pending = trio.Semaphore(MAX_PENDING_DIALS)
        self._shares: dict[object, _Share] = {}
        self._failures: dict[SocketAddress, _Failures] = {}

    @asynccontextmanager
    async def turn(self, peer_host: str | None, target: object) -> AsyncIterator[None]:
        """Dial while inside; waits for a turn among the dials of the peer to the target, of the peer, and of all.

        The caller bounds the wait.
        """
        async with (
            self._share((peer_host, target), MAX_PENDING_DIALS_OF_PEER_TO_ADDRESS),
            self._share(peer_host, MAX_PENDING_DIALS_OF_PEER),
        ):
            await _acquire(self._pending)
            try:
                yield
            finally:
                self._pending.release()

    @asynccontextmanager
    async def _share(self, key: object, most: int) -> AsyncIterator[None]:
        share = self._shares.setdefault(key, _Share(most))
        share.users += 1
        try:
            await _acquire(share.semaphore)
            try:
                yield
            finally:
                share.semaphore.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[key]

    def record_failure(self, address: SocketAddress) -> None:
        """Note that a dial was refused or timed out."""
        failures = self._failures.pop(address, None) or _Failures()
        self._failures[address] = failures
        failures.add(trio.current_time())
        while len(self._failures) > _MAX_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def is_failing(self, address: SocketAddress) -> bool:
        """Tell whether the address is to be refused now."""
        if not self._failures or (failures := self._failures.get(address)) is None:
            return False
        return trio.current_time() < failures.refused_until


class _Share:
    """What pending dials of one kind have in common, while there are any."""

    def __init__(self, most: int) -> None:
        self.semaphore = trio.Semaphore(most)
        self.users = 0


class _Failures:
    """The failed dials to one address within the present window."""

    def __init__(self) -> None:
        self.refused_until = -1.0
        self._window_start = 0.0
        self._count = 0

    def add(self, now: float) -> None:
        if now - self._window_start > FAILURE_WINDOW:
            self._window_start, self._count = now, 0
        self._count += 1
        if self._count >= MAX_FAILURES:
            self.refused_until = now + FAILURE_WINDOW
            self._count = 0


async def _acquire(semaphore: trio.Semaphore) -> None:
    try:
        semaphore.acquire_nowait()  # a checkpoint less for nearly every request
    except trio.WouldBlock:
        await semaphore.acquire()
