"""What one caller may take of what all of them share, so that the others find some; and who is one caller."""

from __future__ import annotations

import functools
import ipaddress
import math
from typing import Literal

# Callers of one address are often one program, and may need most of it; the rest need a place at all.
PEER_SHARE = 0.75

# Where a few callers have taken all of it, others that take no more than the first still find as much as the second.
_LITTLE_SHARE, _RESERVE_SHARE = 64, 4


def share_of_peer(most: int) -> int:
    """Return how much of so much one address may have; one at least."""
    return max(math.ceil(most * PEER_SHARE), 1)


@functools.lru_cache(maxsize=4096)
def caller_of(peer_host: str) -> str:
    """Return whose share an address counts against.

    Of IPv6 it is the network of 64 bits: whoever has one address of it can have any.
    """
    if ":" not in peer_host:
        return peer_host
    ip = ipaddress.IPv6Address(peer_host.partition("%")[0])
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))


class SharedBudget:
    """Bytes that all callers together may hold, and each its share of; with a reserve for those who hold little.

    Args:
        most: bytes of all; never less than ``largest``.
        largest: bytes that one caller may need at once, whatever its share is.
    """

    def __init__(self, most: int, largest: int) -> None:
        self.most = max(most, largest)
        self.most_of_peer = max(share_of_peer(self.most), largest)
        self.held = 0
        self._of_peers: dict[str, int] = {}  # only those that hold something

    def take(self, peer: str, size: int) -> None:
        """Count so many bytes more, whether or not there is room."""
        self.held += size
        self._of_peers[peer] = self._of_peers.get(peer, 0) + size

    def give_back(self, peer: str, size: int) -> None:
        """Count so many bytes less."""
        self.held -= size
        if left := self._of_peers.get(peer, 0) - size:
            self._of_peers[peer] = left
        else:
            self._of_peers.pop(peer, None)

    def excess(self, peer: str, size: int = 0) -> Literal["peer", "all"] | None:
        """Tell whose limit so many bytes more would be above: the caller's, where it is known, or that of all."""
        of_peer = self._of_peers.get(peer, 0) + size
        if peer and of_peer > self.most_of_peer:
            return "peer"
        takes_little = peer != "" and of_peer <= self.most // _LITTLE_SHARE
        most = self.most + self.most // _RESERVE_SHARE if takes_little else self.most
        return "all" if self.held + size > most else None
