"""What is asked of the kernel for a TCP connection: to find dead peers, and what a peer has not taken yet."""

from __future__ import annotations

import contextlib
import socket
import sys

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A silent peer on a dead link is noticed after 60 + 4 * 15 seconds.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4

# Milliseconds that the kernel can be told, 25 days; whoever has more patience has as much.
_MAX_USER_TIMEOUT = 2**31 - 1


def set_keepalive(raw: socket.socket, user_timeout: float) -> None:
    """Have the kernel give up a peer that is gone, after ``user_timeout`` seconds where bytes wait for it."""
    with contextlib.suppress(OSError):  # an option the system lacks is no reason to refuse a connection
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
            raw.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(round(user_timeout * 1000), _MAX_USER_TIMEOUT)
            )


def bytes_untaken(raw: socket.socket) -> int | None:
    """Return how many bytes were sent that the peer's system has not taken; None where this system does not tell."""
    if fcntl is None or raw.fileno() < 0:
        return None
    try:
        return int.from_bytes(fcntl.ioctl(raw, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return None
