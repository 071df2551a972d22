"""What one caller's address may take of what all of them share, so that the others find some."""

from __future__ import annotations

import math

# Callers of one address are often one program, and may need most of it; the rest need a place at all.
PEER_SHARE = 0.75


def share_of_peer(most: int) -> int:
    """Return how much of so much one address may have; one at least."""
    return max(math.ceil(most * PEER_SHARE), 1)
