"""A request connection that is open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ._peers import Peer

# What a connection is about.
BEGUN: Final = 0  # its handshake or a request has begun to come, or its acks wait to be read
HELD: Final = 1  # a request is being handed over
RESTS: Final = 2  # it waits for the next request
WAITS: Final = 3  # a request has come and waits for its turn

NEVER: Final = -math.inf


class Connection:
    """One that is open; for the tasks of its plane."""

    __slots__ = (
        "begun_at",
        "gave_way",
        "incomplete_bytes",
        "is_open",
        "is_proven",
        "opened_at",
        "peer",
        "peer_host",
        "phase",
        "stream",
        "taken_at",
    )

    def __init__(self, stream: trio.abc.Stream, peer_host: str | None, opened_at: float) -> None:
        self.stream = stream
        self.peer_host = peer_host
        self.peer: Peer | None = None
        self.opened_at = opened_at
        self.begun_at = opened_at
        """When the frame began that is being read, or the last one did."""
        self.phase: int = BEGUN
        self.is_open = True
        self.is_proven = False
        """True once it has sent a whole request."""
        self.taken_at = NEVER
        """When the last request began that was taken; NEVER again after one that was refused as junk, or found no room
        long after."""
        self.incomplete_bytes = 0
        """Bytes of a large request that it has not sent whole yet; :class:`IncompleteFrames` keeps them."""
        self.gave_way = ""
        """Under which reason it was closed for another one, if it was."""
