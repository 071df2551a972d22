"""The request connections of a client, by address, and what their acks mean.

Source: docs/wire.md §1.2 and §1.
"""

from __future__ import annotations

import re

import trio

from .._text import printable
from ..abc import Network
from ..errors import IngressError, MessageTooLarge, NotAccepted, Overloaded
from ..wire.request_frame import OVERLOADED_PREFIX
from ._request_connection import (
    DEFAULT_ACK_TIMEOUT,
    DEFAULT_CONNECT_TIMEOUT,
    IDLE_TTL,
    Address,
    RequestConnection,
)

# A client that calls more worker processes than this within IDLE_TTL closes the connection that was idle longest.
MAX_CONNECTIONS = 512


class RequestConnections:
    """The connections of one client, by address; their tasks live in the client's nursery."""

    def __init__(
        self,
        nursery: trio.Nursery,
        network: Network,
        *,
        connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
        ack_timeout: float = DEFAULT_ACK_TIMEOUT,
        idle_ttl: float = IDLE_TTL,
    ) -> None:
        self._nursery = nursery
        self._network = network
        self._connect_timeout = connect_timeout
        self._ack_timeout = ack_timeout
        self._idle_ttl = idle_ttl
        self._connections: dict[Address, list[RequestConnection]] = {}

    async def push(self, address: Address, frame: bytes) -> None:
        """Send a request frame and wait until the worker has accepted it.

        Raises:
            NotAccepted: no connection, or the ack refuses; the request has not run.
            Overloaded: the worker has no room for it, or this client none for another connection.
            MessageTooLarge: above the worker's limit.
            Unavailable: no ack came; the request may have run.
        """
        connection = self._usable(address) or self._open(address)
        text = await connection.push(frame)
        if refusal := refusal_in(text, connection.name):
            raise refusal

    def _usable(self, address: Address) -> RequestConnection | None:
        return next((c for c in self._connections.get(address, ()) if c.takes_requests), None)

    def _open(self, address: Address) -> RequestConnection:
        everyone = [c for connections in self._connections.values() for c in connections if not c.is_closed]
        if len(everyone) >= MAX_CONNECTIONS:
            idle = [connection for connection in everyone if not connection.in_flight]
            if not idle:
                raise Overloaded(f"all {MAX_CONNECTIONS} request connections of this client are in use")
            min(idle, key=lambda connection: connection.idle_since).close()
        connection = RequestConnection(
            self._network,
            address,
            connect_timeout=self._connect_timeout,
            ack_timeout=self._ack_timeout,
            idle_ttl=self._idle_ttl,
        )
        self._connections.setdefault(address, []).append(connection)
        self._nursery.start_soon(self._run, address, connection)
        return connection

    async def _run(self, address: Address, connection: RequestConnection) -> None:
        try:
            await connection.run()
        finally:
            siblings = self._connections[address]
            siblings.remove(connection)
            if not siblings:
                del self._connections[address]


_TOO_LARGE = re.compile(r"message too large: (\d{1,20}) bytes \(max: (\d{1,20}) bytes\)")


def refusal_in(text: str, peer: str) -> IngressError | None:
    """Read an ack: None when it accepts.

    Every text refuses. Released callers take unknown texts for success and then wait for ever, yet no released worker
    ever wrote one to accept (docs/wire.md §1).
    """
    if not text:
        return None
    message = f"{peer} refused the request: {printable(text)}"
    if match := _TOO_LARGE.search(text):
        return MessageTooLarge(message, size=int(match[1]), limit=int(match[2]))
    if text.startswith(OVERLOADED_PREFIX.rstrip()):
        return Overloaded(message)
    return NotAccepted(message)
