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

# Prefixes behind which 32 bits of IPv4 stand last: the well-known one of NAT64 (RFC 6052), IPv4-compatible (RFC 4291
# §2.5.5.1, deprecated and still routed), IPv4-translated (RFC 7915).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_LAST = (_NAT64, ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("::ffff:0:0:0/96"))

# NAT64 of one's own (RFC 8215), where prefixes of several lengths may be: the first bits of IPv4 for each of them, but
# for the eight bits from 64 on, which are skipped, and how many bits after them are zero (RFC 6052 §2.2).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_RFC6052 = ((48, 40), (56, 32), (64, 24))

# The middle of an interface identifier before 32 bits of IPv4 (RFC 5214 §6.1).
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


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
        """The address and the IPv4 addresses inside of it: what is dialled, and where that may lead."""
        return frozenset({self.ip, *embedded(self.ip)})


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


def split_advertised(text: str) -> tuple[str, int | None]:
    """Read HOST or HOST:PORT as callers are to be told it; of an IPv6 address with a port the host is in brackets.

    Raises:
        ValueError: callers would refuse it.
    """
    host, colon, port = text.rpartition(":")
    has_port = bool(colon) and (":" not in host or host.endswith("]"))
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535
    if not is_host(host if has_port else text) or (has_port and not is_port):
        raise ValueError("expected HOST or HOST:PORT, the port from 1 to 65535")
    return (host, int(port)) if has_port else (text.removeprefix("[").removesuffix("]"), None)


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


def embedded(ip: IpAddress) -> frozenset[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that translators and tunnels may find in an IPv6 address and forward to."""
    if isinstance(ip, ipaddress.IPv4Address) or ip.is_unspecified or ip.is_loopback:
        return frozenset()
    if ip.teredo is not None:  # relays send to both, the server and the client
        return frozenset(ip.teredo)
    if ip in _LOCAL_NAT64:
        return _local_nat64(int(ip))
    found = ip.ipv4_mapped or ip.sixtofour
    if found is not None:
        return frozenset({found})
    if any(ip in network for network in _IPV4_LAST) or int(ip) >> 32 & 0xFFFF_FFFF in _ISATAP:
        return frozenset({ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)})
    return frozenset()


def _local_nat64(value: int) -> frozenset[ipaddress.IPv4Address]:
    """Read an address by every length that its prefix may have; what reads as zeros alone is left out beside others."""
    found = {value & 0xFFFF_FFFF}
    without_octet = value >> 64 << 56 | value & (1 << 56) - 1  # 120 bits
    for start, zeros in _RFC6052:
        if value & (1 << zeros) - 1 == 0:
            found.add(without_octet >> 120 - start - 32 & 0xFFFF_FFFF)
    return frozenset(map(ipaddress.IPv4Address, found - {0} or {0}))


def unwrap(ip: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv6 form of a peer's address stands for, or the address itself."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip.sixtofour is not None:
            return ip.sixtofour
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
