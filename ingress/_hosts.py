"""Hosts and ports, as they are told and written."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket


@functools.lru_cache(maxsize=1024)
def is_literal(host: str) -> bool:
    """Tell whether a host is an address, and no name that has to be looked up, which takes its time."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def routable_host() -> str:
    """Return this machine's first address that is not loopback, or loopback where there is none; sends no packet."""
    for family, probe in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((probe, 9))
            host = str(sock.getsockname()[0])
            if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
                return host
    return "127.0.0.1"


def join_host_port(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
