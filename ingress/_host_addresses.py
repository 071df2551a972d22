"""Which addresses are this machine's own, and which are broadcast ones; asked of the system, without a packet.

What it says is remembered for a second: addresses move from one machine to another.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Mapping
from operator import methodcaller

from .wire.addresses import IpAddress

# What rtnetlink(7) calls them.
_GET_ROUTE, _NEW_ROUTE, _ERROR, _REQUEST, _DESTINATION, _PROTOCOL, _LOCAL = 26, 24, 2, 1, 1, 27, 2
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

# How the system says that it would not send anything there.
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})

# Reserved for documentation: no machine's own.
_FOREIGN: Mapping[int, IpAddress] = {4: ipaddress.IPv4Address("192.0.2.1"), 6: ipaddress.IPv6Address("2001:db8::1")}

Question = Callable[[IpAddress], int | None]


def is_of_this_host(ip: IpAddress, *, otherwise: bool = False) -> bool:
    """Tell whether the address belongs to this machine, as its routes say, else whether it can be bound.

    Args:
        otherwise: what is returned where the system tells neither.
    """
    if ip.is_loopback or ip.is_unspecified:
        return ip.is_loopback
    now = present_second()
    try:
        return _asked(_kind_of_route, ip, now) == _LOCAL
    except OSError:  # not on this system, or not in its sandbox
        pass
    try:
        if (refusal := _asked(_bind, ip, now)) is not None:
            return False if refusal == errno.EADDRNOTAVAIL else otherwise
        # Where foreign addresses can be bound (net.ipv4.ip_nonlocal_bind), that proves nothing.
        return True if _asked(_bind, _FOREIGN[ip.version], now) is not None else otherwise
    except OSError:
        return otherwise


def is_broadcast(ip: IpAddress) -> bool:
    """Tell whether it is the broadcast address of a network of this machine, as its routes say."""
    try:
        return ip.version == 4 and _asked(_connect, ip, present_second()) == errno.EACCES  # as without SO_BROADCAST
    except OSError:
        return False


def present_second() -> int:
    """Return what changes when answers have to be asked for again."""
    return int(time.monotonic())


@functools.lru_cache(maxsize=2048)
def _asked(question: Question, ip: IpAddress, second: int) -> int | None:
    """Ask; raises OSError, which is not remembered, where we lack ourselves what it takes."""
    return question(ip)


def _bind(ip: IpAddress) -> int | None:
    return _refusal(ip, methodcaller("bind", (str(ip), 0)))


def _connect(ip: IpAddress) -> int | None:
    return _refusal(ip, methodcaller("connect", (str(ip), 9)))


def _refusal(ip: IpAddress, call: Callable[[socket.socket], None]) -> int | None:
    """Return with which errno the system refuses a call on a datagram socket, None where it does not."""
    with socket.socket(_family(ip), socket.SOCK_DGRAM) as probe:
        try:
            call(probe)
        except OSError as exc:
            return exc.errno
    return None


def _family(ip: IpAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if ip.version == 6 else socket.AF_INET


def _kind_of_route(ip: IpAddress) -> int:
    """Return the kind of the route to an address, 0 where there is none; raises OSError where that cannot be told."""
    if not hasattr(socket, "AF_NETLINK"):
        raise OSError(errno.EAFNOSUPPORT, "no routes to ask for")
    asked = _ROUTE.pack(_family(ip), ip.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    asked += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(ip.packed), _DESTINATION) + ip.packed
    # Of TCP: a rule may send datagrams another way, and without this the kernel answers for those.
    asked += _ATTRIBUTE.pack(_ATTRIBUTE.size + 1, _PROTOCOL) + bytes([socket.IPPROTO_TCP, 0, 0, 0])
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
