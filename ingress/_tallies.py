"""What a worker's limits and guards did: plain numbers under fixed reasons, read at each scrape.

The planes, the dial-back and the pump count here; :mod:`ingress.metrics` shows it. Reasons are words of the code, so
the number of series is fixed, whatever a peer sends.
"""

from __future__ import annotations

from collections.abc import Mapping

# "silent" made room for another, having sent no request for a while, and "displaced" for one of an address that had far
# fewer; "peer" and "limit" found none; of "tls" the handshake failed.
CONNECTION_REFUSALS = ("limit", "peer", "silent", "displaced", "tls")
FRAME_REFUSALS = ("too_large", "path", "deadline", "overloaded")
DIAL_DENIALS = ("unreadable", "policy", "reserved", "denied", "failing")
SLOW_PEER_SIDES = ("request", "response")

# Why a file in the directory of records is no record: what kind of file it is, whose, how large; it cannot be read; it
# holds something else; there are too many.
RECORD_SKIPS = ("kind", "owner", "size", "unreadable", "content", "crowded")


class Tallies:
    """The counts of one worker; for its event loop."""

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections_refused = dict.fromkeys(CONNECTION_REFUSALS, 0)
        self.frames_refused = dict.fromkeys(FRAME_REFUSALS, 0)
        self.dial_denied = dict.fromkeys(DIAL_DENIALS, 0)
        self.slow_peer_closed = dict.fromkeys(SLOW_PEER_SIDES, 0)

    def by_reason(self) -> Mapping[str, tuple[str, str, Mapping[str, int]]]:
        """Return each family's help text, label and counts."""
        return {
            "ingress_connections_refused_total": (
                "Request connections refused, or closed to make room",
                "reason",
                self.connections_refused,
            ),
            "ingress_frames_refused_total": (
                "Request frames that ended their connection",
                "reason",
                self.frames_refused,
            ),
            "ingress_dial_denied_total": ("Dial-back addresses refused without a packet", "reason", self.dial_denied),
            "ingress_slow_peer_closed_total": (
                "Peers given up because they took next to nothing for too long",
                "side",
                self.slow_peer_closed,
            ),
        }
