"""Streams that go wrong on purpose: late, in crumbs, cut, reset, half written."""

from __future__ import annotations

from collections.abc import Callable

import trio
import trio.testing
from attrs import frozen

from ._memory import StreamPair


@frozen
class Faults:
    """What goes wrong on one end of a connection; counts are bytes, and each fault is off where it is None or 0."""

    delay: float = 0.0
    """Seconds before everything that is received or sent."""

    trickle: int | None = None
    """At most so many bytes arrive, and leave, at a time."""

    cut_after: int | None = None
    """After so many bytes received the peer seems to have closed its side."""

    reset_after: int | None = None
    """After so many bytes received the connection is reset: nothing can be received or sent any more."""

    partial_write: int | None = None
    """After so many bytes sent the connection is reset, in the middle of whatever is being sent."""


class FaultyStream(trio.abc.Stream):
    """A stream with faults; everything else is passed on to the stream inside. Closing closes that one too."""

    def __init__(self, inner: trio.abc.Stream, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._received = 0
        self._sent = 0
        self._is_reset = False
        if hasattr(inner, "send_nowait"):
            self.send_nowait = self._send_nowait

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._wait()
        limits = [limit for limit in (max_bytes, self._faults.trickle) if limit is not None]
        for end in (self._faults.cut_after, self._faults.reset_after):
            if end is not None:
                limits.append(max(end - self._received, 0))
        if limits and not min(limits) and self._faults.reset_after == self._received:
            self._break()
        if limits and not min(limits):
            return b""
        data = bytes(await self._inner.receive_some(min(limits, default=None)))
        self._received += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._wait()
        rest = memoryview(bytes(data))
        while rest:
            piece = self._piece(rest)
            await self._inner.send_all(piece)
            self._sent += len(piece)
            rest = rest[len(piece) :]

    def _send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        self._check()
        sent: int = self._inner.send_nowait(self._piece(memoryview(bytes(data))))  # type: ignore[attr-defined]  # only wrapped where there is one
        self._sent += sent
        return sent

    async def wait_send_all_might_not_block(self) -> None:
        await self._wait()
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _piece(self, data: memoryview) -> memoryview:
        """Return what may be sent of it at once; a reset comes where nothing may be sent any more."""
        if self._faults.partial_write is not None:
            if self._sent >= self._faults.partial_write:
                self._break()
            data = data[: self._faults.partial_write - self._sent]
        return data[: self._faults.trickle]

    async def _wait(self) -> None:
        self._check()
        if self._faults.delay:
            await trio.sleep(self._faults.delay)
            self._check()

    def _break(self) -> None:
        self._is_reset = True
        self._check()

    def _check(self) -> None:
        if self._is_reset:
            raise trio.BrokenResourceError("connection reset by a fault that was asked for")


def with_faults(
    faults: Faults,
    make_pair: Callable[[], StreamPair] = trio.testing.memory_stream_pair,
    *,
    accepting: Faults | None = None,
) -> Callable[[], StreamPair]:
    """Return a ``make_pair`` for :class:`MemoryNetwork`: the connecting end has ``faults``, the other ``accepting``."""

    def make_faulty_pair() -> StreamPair:
        connecting, accepted = make_pair()
        return FaultyStream(connecting, faults), FaultyStream(accepted, accepting or Faults())

    return make_faulty_pair
