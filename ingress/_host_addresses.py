"""Which addresses are this machine's own, and which are broadcast ones; asked of the system, without a packet."""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import struct
from collections.abc import Callable, Mapping

from .wire.addresses import IpAddress

# What rtnetlink(7) calls them.
_GET_ROUTE, _NEW_ROUTE, _ERROR, _REQUEST, _DESTINATION, _LOCAL = 26, 24, 2, 1, 1, 2
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

# How the system says that it would not send anything there.
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})

# Reserved for documentation: no machine's own.
_FOREIGN: Mapping[int, IpAddress] = {4: ipaddress.IPv4Address("192.0.2.1"), 6: ipaddress.IPv6Address("2001:db8::1")}

Question = Callable[[IpAddress], int | None]


def is_of_this_host(ip: IpAddress) -> bool:
    """Tell whether the address belongs to this machine, as its routes say, else whether it can be bound."""
    if ip.is_loopback or ip.is_unspecified:
        return ip.is_loopback
    try:
        return _asked(_kind_of_route, ip) == _LOCAL
    except OSError:  # not on this system, or not in its sandbox
        # Where foreign addresses can be bound (net.ipv4.ip_nonlocal_bind), that proves nothing.
        return _refusal(_bind, ip) is None and _refusal(_bind, _FOREIGN[ip.version]) is not None


def is_broadcast(ip: IpAddress) -> bool:
    """Tell whether it is the broadcast address of a network of this machine, as its routes say."""
    return ip.version == 4 and _refusal(_connect, ip) == errno.EACCES  # as without SO_BROADCAST


def _refusal(question: Question, ip: IpAddress) -> int | None:
    """Return with which errno the system refuses the address to a socket, None where it does not."""
    try:
        return _asked(question, ip)
    except OSError as exc:  # what we lack ourselves says nothing about an address, and is not remembered
        return exc.errno


@functools.lru_cache(maxsize=2048)
def _asked(question: Question, ip: IpAddress) -> int | None:
    return question(ip)


def _bind(ip: IpAddress) -> int | None:
    with _datagram_socket(ip) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError as exc:
            return exc.errno
    return None


def _connect(ip: IpAddress) -> int | None:
    with _datagram_socket(ip) as probe:
        try:
            probe.connect((str(ip), 9))
        except OSError as exc:
            return exc.errno
    return None


def _datagram_socket(ip: IpAddress) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM)


def _kind_of_route(ip: IpAddress) -> int:
    """Return the kind of the route to an address, 0 where there is none; raises OSError where that cannot be told."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, "no routes to ask for")
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(ip.packed), _DESTINATION) + ip.packed
    asked = _ROUTE.pack(family, ip.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _GET_ROUTE, _REQUEST, 1, 0) + asked)
        answer = kernel.recv(4096, socket.MSG_DONTWAIT)  # it is there: the kernel answers while it is asked
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        code = -_ERRNO.unpack_from(answer, _HEADER.size)[0]
        if code in _NO_ROUTE:
            return 0
        raise OSError(code, "the route cannot be asked for")
    if kind != _NEW_ROUTE:
        raise OSError(errno.EPROTO, f"the kernel answered with a message of kind {kind}")
    return int(_ROUTE.unpack_from(answer, _HEADER.size)[7])
