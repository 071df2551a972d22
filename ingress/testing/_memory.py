"""A network in memory: the same listeners, dial-backs and streams, and no sockets."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from .._serve import serving
from .._worker import EngineLike
from ..client import Client, open_client
from ..discovery import MemoryDiscovery

StreamPair = tuple[trio.abc.Stream, trio.abc.Stream]

MEMORY_HOST = "127.0.0.1"


class MemoryStream(trio.abc.Stream):
    """One end of a connection of a :class:`MemoryNetwork`: knows whether it was closed, and can be reset."""

    def __init__(self, inner: trio.abc.Stream, on_close: Callable[[MemoryStream], object]) -> None:
        self.is_closed = False
        self._inner = inner
        self._on_close = on_close
        self._peer: MemoryStream | None = None
        self._is_reset = False

    def __getattr__(self, name: str) -> Any:
        # What only some streams can do: ``send_nowait`` of those that are like TCP's, ``send_eof``.
        return getattr(self._inner, name)

    def join(self, peer: MemoryStream) -> None:
        """Make the two the ends of one connection."""
        self._peer, peer._peer = peer, self

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b"" if self._is_reset else bytes(await self._inner.receive_some(max_bytes))
        if self._is_reset:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("connection reset by peer")
        return data

    async def aclose(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._on_close(self)
        await self._inner.aclose()

    async def reset(self) -> None:
        """Close as a process that dies does: the peer gets an error and not the rest of the bytes."""
        if self._peer is not None:
            self._peer._is_reset = True
        await trio.aclose_forcefully(self)


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts the connections made to one address of a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: tuple[str, int]) -> None:
        self.address = address
        self._network = network
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](1024)

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel as exc:
            raise trio.ClosedResourceError from exc

    def connect_nowait(self, stream: trio.abc.Stream) -> None:
        """Put the peer's end in line to be accepted."""
        self._send.send_nowait(stream)

    async def aclose(self) -> None:
        self._network.listeners.pop(self.address, None)
        self._send.close()
        while True:
            try:
                await trio.aclose_forcefully(self._receive.receive_nowait())  # nobody accepts it any more
            except (trio.EndOfChannel, trio.WouldBlock, trio.ClosedResourceError):
                break
        self._receive.close()
        await trio.lowlevel.checkpoint()


class MemoryNetwork:
    """Implements :class:`ingress.abc.Network`; every connection is a pair of memory streams.

    ``open_connections`` tells what was connected and not closed again: a test of anything that dials asserts that it is
    empty.

    Args:
        make_pair: makes the two ends of a connection; for example ``trio.testing.lockstep_stream_pair`` to test
            back-pressure. By default an unbounded pair.
    """

    takes_descriptors = False

    def __init__(self, make_pair: Callable[[], StreamPair] = trio.testing.memory_stream_pair) -> None:
        self.listeners: dict[tuple[str, int], MemoryListener] = {}
        self.connects: list[tuple[str, int]] = []
        """Every address that was dialled, in order."""
        self._make_pair = make_pair
        self._next_port = 40001
        self._open: dict[MemoryStream, tuple[str, int]] = {}

    @property
    def open_connections(self) -> list[tuple[str, int]]:
        """The addresses of the connections whose connecting end is open, in the order they were made."""
        return list(self._open.values())

    async def open_listener(self, host: str, port: int) -> MemoryListener:
        await trio.lowlevel.checkpoint()
        if port == 0:
            port, self._next_port = self._next_port, self._next_port + 1
        listener = MemoryListener(self, (host, port))
        self.listeners[host, port] = listener
        return listener

    async def connect(self, host: str, port: int) -> MemoryStream:
        self.connects.append((host, port))
        await trio.lowlevel.checkpoint()
        listener = self.listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused")
        left, right = self._make_pair()
        ours, theirs = MemoryStream(left, self._forget), MemoryStream(right, self._forget)
        ours.join(theirs)
        try:
            listener.connect_nowait(theirs)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused: backlog full or closed") from exc
        self._open[ours] = (host, port)
        return ours

    def _forget(self, stream: MemoryStream) -> None:
        self._open.pop(stream, None)

    def local_address(self, listener: trio.abc.Listener[trio.abc.Stream]) -> tuple[str, int]:
        if not isinstance(listener, MemoryListener):
            raise TypeError(f"expected a listener of this network, got {type(listener).__name__}")
        return listener.address

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return MEMORY_HOST


@asynccontextmanager
async def memory_worker(
    engine: EngineLike | Mapping[str, EngineLike],
    *,
    endpoint: str | None = None,
    client_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Client]:
    """Serve an engine in memory and yield a client that calls it: no sockets, no files, no waiting.

    The worker and the client are the real ones; time is that of the test.

    Args:
        engine, endpoint: as :func:`ingress.serving` takes them.
        client_options: what :func:`ingress.open_client` takes.
        options: what :func:`ingress.serving` takes. The defaults differ in that leaving the block waits for nothing:
            no linger, no drain budget.
    """
    network, discovery = MemoryNetwork(), MemoryDiscovery()
    options = {"linger": 0.0, "drain_budget": 0.0, **options}
    async with (
        serving(engine, endpoint=endpoint, network=network, discovery=discovery, **options),
        open_client(network=network, discovery=discovery, **(client_options or {})) as client,
    ):
        yield client
