"""Which addresses a worker may dial back to: the protocol tells it to connect where a message says.

Checked before the ack, without a packet and without a resolver. See docs/design.md, "What guards the worker".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import Literal

from attrs import field, frozen

from ._host_addresses import is_broadcast, is_of_this_host
from ._hosts import join_host_port
from .errors import DialBackRefused
from .wire.addresses import HostName, IpAddress, SocketAddress, unwrap

DialPolicyName = Literal["peer", "cidr", "any"]
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOWEST_PORT = 1024

# "This network", and what has never been given to anybody, with the broadcast address of all networks.
_RESERVED = (ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("240.0.0.0/4"))


def _networks(texts: Sequence[str]) -> tuple[IpNetwork, ...]:
    return tuple(_network(text) for text in texts)


def _network(text: str) -> IpNetwork:
    """Read a network; one of IPv4 addresses inside IPv6 is theirs, as such addresses are compared."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, expected an address or network without one")
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and (mapped := network.network_address.ipv4_mapped) is not None:
        if network.prefixlen < 96:
            return network
        return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


@frozen
class DialPolicy:
    """Decides about one address at a time.

    ``peer`` allows the address the request came from, or any address of this host if the request came from this host
    (a caller on the same machine connects from loopback and names its routable address: measured). ``cidr`` allows
    what lies in ``allow`` and not in ``deny``. ``any`` allows all but the always denied.
    """

    name: DialPolicyName = "peer"
    allow: tuple[IpNetwork, ...] = field(default=(), converter=_networks)
    deny: tuple[IpNetwork, ...] = field(default=(), converter=_networks)
    resolve_names: bool = False
    """Look names up; every address that is found must be allowed. By default an address is literal."""

    def check(
        self, address: SocketAddress, *, peer_host: str | None, own_addresses: Collection[tuple[str, int]] = ()
    ) -> None:
        """Return if the address may be dialled.

        Args:
            peer_host: where the request came from, None where the plane cannot tell.
            own_addresses: this worker's own listeners, which it never dials, whatever is allowed.

        Raises:
            DialBackRefused: it may not.
        """
        for ip in address.forms:
            self._check(address, ip, peer_host, own_addresses)

    def check_name(self, name: HostName) -> None:
        """Return if an address of that name may perhaps be dialled, as far as can be told without a look at it.

        Raises:
            DialBackRefused: whatever it is, it may not.
        """
        if name.port < LOWEST_PORT and not any(network.prefixlen == network.max_prefixlen for network in self.allow):
            raise DialBackRefused(
                f"dial-back address {_shown(name)}: the port is below {LOWEST_PORT}", reason="reserved"
            )

    def _check(
        self,
        address: SocketAddress,
        ip: IpAddress,
        peer_host: str | None,
        own_addresses: Collection[tuple[str, int]],
    ) -> None:
        _check_not_own(address, ip, own_addresses)
        # An entry that names exactly this address lifts the rules that hold otherwise.
        is_named = any(network.prefixlen == network.max_prefixlen and ip in network for network in self.allow)
        if not is_named:
            _check_not_reserved(address, ip)
        if any(ip in network for network in self.deny):
            raise DialBackRefused(f"dial-back address {_shown(address)} is denied by dial_deny", reason="denied")
        if self.name == "peer" and not is_named:
            _check_peer(address, ip, peer_host)
        if self.name == "cidr" and not any(ip in network for network in self.allow):
            raise DialBackRefused(f"dial-back address {_shown(address)} lies in none of dial_allow", reason="policy")


def _check_not_reserved(address: SocketAddress, ip: IpAddress) -> None:
    is_special = ip.is_unspecified or ip.is_multicast or ip.is_link_local
    if is_special or any(ip in network for network in _RESERVED) or is_broadcast(ip):
        raise DialBackRefused(
            f"dial-back address {_shown(address)} is unspecified, multicast, broadcast, reserved or link-local",
            reason="reserved",
        )
    if address.port < LOWEST_PORT:
        raise DialBackRefused(
            f"dial-back address {_shown(address)}: the port is below {LOWEST_PORT}", reason="reserved"
        )


def _check_not_own(address: SocketAddress, ip: IpAddress, own_addresses: Collection[tuple[str, int]]) -> None:
    """Whatever is allowed, no caller has a listener there: the system gave the port to us."""
    for own_host, own_port in own_addresses:
        if address.port == own_port and _is_own(ip, own_host):
            raise DialBackRefused(f"dial-back address {_shown(address)} is this worker's own", reason="reserved")


def _check_peer(address: SocketAddress, ip: IpAddress, peer_host: str | None) -> None:
    if peer_host is None:
        raise DialBackRefused(
            "dial policy peer allows no caller without an address: it has left, or its request plane knows none",
            reason="policy",
        )
    literal = ipaddress.ip_address(peer_host.partition("%")[0])
    if address.ip == literal:  # back where it came from: what is inside of the address came along
        return
    # A mapped address is the system's spelling of IPv4; what else is inside of one its owner has chosen.
    peer = getattr(literal, "ipv4_mapped", None) or literal
    if ip != peer and not (is_of_this_host(ip) and is_of_this_host(peer)):
        raise DialBackRefused(
            f"dial-back address {join_host_port(str(ip), address.port)} is not that of the requesting peer {peer}",
            reason="policy",
        )


def _is_own(ip: IpAddress, own_host: str) -> bool:
    own = ipaddress.ip_address(own_host)
    return unwrap(own) == ip or (own.is_unspecified and is_of_this_host(ip, otherwise=True))


def _shown(address: SocketAddress | HostName) -> str:
    return join_host_port(address.host, address.port)
