"""What the streams that a worker dials may take: seconds and bytes, checked once, at start."""

from __future__ import annotations

from attrs import field, frozen

from ._checks import a_count, a_deadline
from .wire.codec import DEFAULT_MAX_RESPONSE_CHUNK
from .wire.two_part import DEFAULT_MAX_MESSAGE_SIZE

DEFAULT_CONNECT_TIMEOUT = 5.0

# What the caller has to take our handshake on a request stream, on which nothing else is written.
DEFAULT_HANDSHAKE_TIMEOUT = 5.0

# A peer that takes next to nothing for this long is given up.
DEFAULT_WRITE_STALL_TIMEOUT = 60.0

# Released workers wait as long for the caller to close first (docs/wire.md §4).
DEFAULT_CLOSE_WAIT = 10.0

# From a frame's first byte to its last, beside a second for each 64 KiB that it announces: time enough for a slow link,
# and too little to hold connections open with a byte now and then.
DEFAULT_FRAME_TIMEOUT = 30.0
FRAME_BYTES_PER_SECOND = 64 * 1024


@frozen
class StreamLimits:
    """The limits of response and request streams; see :class:`ingress.WorkerOptions`.

    Raises:
        ValueError: a value can be no limit.
    """

    connect_timeout: float = field(default=DEFAULT_CONNECT_TIMEOUT, validator=a_deadline)
    """Seconds to dial a caller back, its TLS handshake included."""

    handshake_timeout: float = field(default=DEFAULT_HANDSHAKE_TIMEOUT, validator=a_deadline)
    """Seconds for a caller to take the handshake of a request stream."""

    write_stall_timeout: float = field(default=DEFAULT_WRITE_STALL_TIMEOUT, validator=a_deadline)
    """Seconds in which a caller must take a byte of what is written."""

    close_wait: float = field(default=DEFAULT_CLOSE_WAIT, validator=a_deadline)
    """Seconds for a caller to close first, after a whole answer."""

    max_response_chunk: int = field(default=DEFAULT_MAX_RESPONSE_CHUNK, validator=a_count)
    """Bytes of the largest chunk, as it is on the wire."""

    frame_timeout: float = field(default=DEFAULT_FRAME_TIMEOUT, validator=a_deadline)
    """Seconds from the first byte of a request stream's frame to its last, beside what its size needs."""

    max_frame_size: int = field(default=DEFAULT_MAX_MESSAGE_SIZE, validator=a_count)
    """Bytes of the largest frame of a request stream."""


DEFAULT_STREAM_LIMITS = StreamLimits()
