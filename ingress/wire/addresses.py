"""Addresses that others name: a strict grammar, decided by ``ipaddress`` and never by a resolver.

Of dial-backs are accepted ``a.b.c.d:port``, ``[v6]:port``, and a bare IPv6 address split at its last colon, which
released callers from 1.1.1 to 1.5.1 write; records may name hosts besides. Source: docs/wire.md §3, §7.
"""

from __future__ import annotations

import ipaddress
import re

from attrs import field, frozen

from ..errors import DialBackRefused

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_ADDRESS = re.compile(r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<bare>[0-9A-Fa-f:.]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@frozen
class SocketAddress:
    """A literal address and port."""

    ip: IpAddress
    port: int
    host: str = field(init=False, eq=False, repr=False)
    """The address as text."""

    @host.default
    def _text(self) -> str:
        return str(self.ip)

    @property
    def forms(self) -> frozenset[IpAddress]:
        """The address and the IPv4 address inside a 6to4 or NAT64 form: what is dialled, and where it leads."""
        return frozenset({self.ip, unwrap(self.ip)})


@frozen
class HostName:
    """A name that stands in an address's place, and a port; looked up only where the operator allows it."""

    host: str
    port: int


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(
    rf"(?P<host>(?=.{{1,253}}:)(?:{_LABEL}\.)*[A-Za-z](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?):(?P<port>[0-9]{{1,5}})",
    re.ASCII,
)


def parse_host_name(text: str) -> HostName | None:
    """Read ``name:port``; None where it is none. A last label that begins with a digit is no name's (RFC 1123 §2.1)."""
    match = _HOST_NAME.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        return None
    return HostName(match["host"], int(match["port"]))


# What resolvers take is more than RFC 1123 allows: names with underscores are about. A zone is that of an interface.
_ANY_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_RECORD_NAME = re.compile(rf"(?=.{{1,254}}$)(?:{_ANY_LABEL}\.)*{_ANY_LABEL}\.?", re.ASCII)
_RECORD_IPV6 = re.compile(r"(?P<ip>[0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._-]{1,15})?", re.ASCII)


def is_host(text: str) -> bool:
    """Tell whether a text is an IP address, IPv6 with or without brackets, or might be a host's name."""
    if _RECORD_NAME.fullmatch(text):
        return True
    match = _RECORD_IPV6.fullmatch(text[1:-1] if text[:1] + text[-1:] == "[]" else text)
    if match is None:
        return False
    try:
        return ipaddress.ip_address(match["ip"]).version == 6
    except ValueError:
        return False


def parse_address(text: str) -> SocketAddress:
    """Read a dial-back address; an IPv4-mapped one becomes IPv4.

    Raises:
        DialBackRefused: it is none of the three forms, or the port is not within 1 to 65535.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise DialBackRefused(f"dial-back address {text[:200]!r} is neither a.b.c.d:port nor [v6]:port")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise DialBackRefused(f"dial-back address {text[:200]!r}: port must be 1 to 65535")
    try:
        ip = ipaddress.ip_address(match["bracketed"] or match["bare"])
    except ValueError as exc:
        raise DialBackRefused(f"dial-back address {text[:200]!r}: {exc}") from exc
    if match["bracketed"] and ip.version == 4:
        raise DialBackRefused(f"dial-back address {text[:200]!r}: brackets are for IPv6")
    return SocketAddress(getattr(ip, "ipv4_mapped", None) or ip, port)


def unwrap(ip: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv6 form stands for, or the address itself."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip.sixtofour is not None:
            return ip.sixtofour
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
