"""What a message may make this worker dial: its connection info checked, its address against the policy.

Sends no packet but to look names up, where the operator asked for that; asks the system which addresses are its own.
Source: docs/wire.md §3.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Collection
from functools import partial

import trio

from ._dial_limits import DialLimits
from ._dial_policy import DialPolicy
from ._host_addresses import is_of_this_host, present_second
from ._hosts import join_host_port
from ._tallies import Tallies
from ._text import named
from .errors import DialBackRefused, DialsPending, ResponseStreamError, UnsupportedTransport
from .wire.addresses import HostName, SocketAddress, parse_address, parse_host_name
from .wire.messages import MAX_SUBJECT, ConnectionInfo, StreamAddress, StreamType

# Subjects of released callers are UUIDs.
_SUBJECT = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_SUBJECT}}}")

# Look-ups run in threads of their own, not to take those of engines; one that is given up keeps its thread until the
# resolver answers.
_MAX_LOOKUPS = 32

# Allowed pairs of an address and the peer that named it.
_MAX_REMEMBERED = 1024

DialTarget = SocketAddress | HostName


class DialGuard:
    """Decides what a message may make this worker dial; one a worker, asked before the ack."""

    def __init__(
        self,
        policy: DialPolicy,
        own_addresses: Collection[tuple[str, int]] = (),
        *,
        limits: DialLimits | None = None,
        tallies: Tallies | None = None,
        connects_at_once: bool = False,
    ) -> None:
        """
        Args:
            connects_at_once: the network does, on the same machine.
        """
        self.limits = DialLimits() if limits is None else limits
        self._policy = policy
        self._own_addresses = own_addresses
        self._tallies = Tallies() if tallies is None else tallies
        self._connects_at_once = connects_at_once
        self._lookups = trio.CapacityLimiter(_MAX_LOOKUPS)
        self._neighbours: dict[str, tuple[str, int]] = {}
        # A caller has one listener for all its streams; what was refused is looked at each time.
        self._allowed = functools.lru_cache(maxsize=_MAX_REMEMBERED)(self._read_allowed)

    def keep_from(self, neighbour: str, address: tuple[str, int]) -> None:
        """Never dial this listener either, another process's; it takes the place of the neighbour's one before."""
        self._neighbours[neighbour] = address
        self._allowed.cache_clear()

    def check(
        self, peer_host: str | None, request_id: str, stream: StreamAddress, stream_type: StreamType
    ) -> tuple[ConnectionInfo, DialTarget]:
        """Return whom to tell what, and where to dial; ``peer_host`` is who asks. Sends no packet.

        Raises:
            ResponseStreamError: unreadable, of another request, of another transport, or not allowed.
            DialsPending: too many others of this peer wait to be dialled.
        """
        try:
            info = read_connection_info(stream, request_id, stream_type)
            if self._policy.resolve_names and (name := parse_host_name(info.address)) is not None:
                self._policy.check_name(name)
                self._check_line(peer_host, name)
                return info, name
            address = self._allowed(info.address, peer_host, len(self._own_addresses), present_second())
            self._check_failing(address)
        except DialBackRefused as exc:
            self._tallies.dial_denied[exc.reason] += 1
            raise
        self._check_line(peer_host, address)
        return info, address

    def may_connect_at_once(self, target: DialTarget) -> bool:
        """Tell whether a connect to the target may be over as soon as it has begun, and then needs no turn."""
        return self._connects_at_once and isinstance(target, SocketAddress) and is_of_this_host(target.ip)

    async def resolve(self, peer_host: str | None, name: HostName) -> SocketAddress:
        """Look a name up once and return the literal address to dial; every answer must pass.

        The caller bounds the wait.

        Raises:
            ResponseStreamError: unknown, or an answer is not allowed.
        """
        try:
            find = partial(socket.getaddrinfo, name.host, name.port, type=socket.SOCK_STREAM)
            found = await trio.to_thread.run_sync(find, abandon_on_cancel=True, limiter=self._lookups)
        except OSError as exc:
            raise ResponseStreamError(f"dial-back name {name.host} cannot be looked up: {exc}") from exc
        ends = [(str(end[0]).partition("%")[0], int(end[1])) for _, _, _, _, end in found]
        addresses = [parse_address(join_host_port(host, port)) for host, port in ends]
        try:
            for address in addresses:
                self._check_policy(address, peer_host)
                self._check_failing(address)
        except DialBackRefused as exc:
            self._tallies.dial_denied[exc.reason] += 1
            raise
        return addresses[0]

    def _read_allowed(self, text: str, peer_host: str | None, _own_addresses: int, _second: int) -> SocketAddress:
        """Read an address and check it against the policy, once a second and for each number of own listeners."""
        address = parse_address(text)
        self._check_policy(address, peer_host)
        return address

    def _check_policy(self, address: SocketAddress, peer_host: str | None) -> None:
        denied = [*self._own_addresses, *self._neighbours.values()]
        self._policy.check(address, peer_host=peer_host, own_addresses=denied)

    def _check_line(self, peer_host: str | None, target: DialTarget) -> None:
        if self.limits.is_idle or self.may_connect_at_once(target):
            return
        if self.limits.is_line_long(peer_host, target):
            raise DialsPending("too many dial-backs of this caller's address are pending")

    def _check_failing(self, address: SocketAddress) -> None:
        if self.limits.outcomes.is_failing(address):
            raise DialBackRefused(f"dial-back address {address.host}:{address.port} keeps failing", reason="failing")


def read_connection_info(address: StreamAddress, request_id: str, stream_type: StreamType) -> ConnectionInfo:
    """Check a ``connection_info`` against its request.

    Raises:
        UnsupportedTransport: another transport than TCP is asked for.
        DialBackRefused: it is unreadable, for another request or kind of stream, or its subject is odd.
    """
    if address.transport != "tcp_server":
        raise UnsupportedTransport(f"response transport {named(address.transport, 40)} is not supported")
    try:
        info = ConnectionInfo.from_address(address)
    except Exception as exc:
        raise DialBackRefused(f"connection info cannot be read: {exc}") from exc
    if info.context != request_id:
        raise DialBackRefused("connection info is for another request id")
    if info.stream_type != stream_type:
        raise DialBackRefused(f"expected stream type {stream_type}, got {named(info.stream_type, 40)}")
    if not _SUBJECT.fullmatch(info.subject):
        raise DialBackRefused(f"subject {named(info.subject, 40)} must match [A-Za-z0-9._:-]{{1,{MAX_SUBJECT}}}")
    return info
