"""hypercorn's connection, held to HTTP/1.1; imported when a status server starts and not before.

hypercorn 0.18 also offers WebSocket, and HTTP/2 to whoever sends its preface or asks for an upgrade. There a client
that says nothing more is kept for ever, and two answers collide on one connection (``tests/test_status_server.py`` asks
for all three). Nothing that probes or scrapes a worker needs them.
"""

from __future__ import annotations

import h11
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr


class Http1Protocol(H11Protocol):
    """HTTP/1.1 whatever else is asked for, as RFC 9110 §7.8 allows."""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method, headers=headers, target=request.target, http_version=request.http_version
            )
        )


class Http1Connection(TCPServer):
    """One connection without TLS: ``TCPServer.run`` with the other protocol."""

    async def run(self) -> None:
        try:
            raw = self.stream.socket
            client = parse_socket_addr(raw.family, raw.getpeername())
            server = parse_socket_addr(raw.family, raw.getsockname())
            async with TaskGroup() as task_group:
                self._task_group = task_group
                self.protocol = Http1Protocol(  # type: ignore[assignment]  # has what TCPServer uses of its wrapper
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            try:
                await self._close()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        """Have what was received, up to 64 KiB, freed now: the parts of a connection and its errors form cycles."""
        if (protocol := getattr(self, "protocol", None)) is not None:
            vars(protocol.connection).clear()
            vars(protocol).clear()
        vars(self).clear()
