"""The limit of open files of this process, and who may take how much of it.

Request connections come as others please, and each answer needs a descriptor or two that was promised with its ack. So
neither may take what the other needs, nor what the process needs for itself.
"""

from __future__ import annotations

import contextlib
import sys

from attrs import frozen

# Twice what the most connections and a full worker take together. More would do no good, and harms children that close
# or scan every descriptor they could have.
ENOUGH_DESCRIPTORS = 65_536

# For the standard streams, listeners, the event loop's own, records, logs, and the fewest connections that a status
# server has; and where there are enough, for the most that it takes.
RESERVED_DESCRIPTORS = 64
_LEAST_FOR_STATUS, _RESERVED_FOR_STATUS = 16, 128

MOST_CONNECTIONS = 8192

# Callers up to 1.2.1 are told of a refusal on a stream, also where it is for want of descriptors.
_SHARE_OF_REFUSALS = 16

_SHARE_OF_LINGERING = 4


@frozen
class DescriptorBudget:
    """How the descriptors of a worker are shared out."""

    connections: int
    """Request connections at a time."""

    streams: int | None
    """Streams that it has dialled or promised to dial; None where the system sets no limit."""


def status_connections(limit: int | None) -> int:
    """Return how many connections a status server may have at a time, given a limit of descriptors."""
    if limit is None:
        return _RESERVED_FOR_STATUS
    return min(max(limit // 32, _LEAST_FOR_STATUS), _RESERVED_FOR_STATUS)


def share_descriptors(limit: int | None, max_connections: int | None = None) -> DescriptorBudget:
    """Share a limit of descriptors out.

    Connections get half of it, 8,192 at most; or what is asked for, as far as a quarter remains for streams.

    Args:
        limit: None where there is none.
        max_connections: None for the default.
    """
    if limit is None:
        return DescriptorBudget(MOST_CONNECTIONS if max_connections is None else max_connections, None)
    room = max(limit - RESERVED_DESCRIPTORS - min(limit // 32, _RESERVED_FOR_STATUS), 4)
    connections = min(MOST_CONNECTIONS, room // 2) if max_connections is None else min(max_connections, room * 3 // 4)
    return DescriptorBudget(connections, room - connections)


class StreamDescriptors:
    """The descriptors that dialled streams have, or have been promised; one a worker, for its event loop.

    They are counted from the ack of a request until its streams are closed, in two numbers that everybody who promises
    and closes keeps up to date: a request pays for a comparison and two sums.
    """

    __slots__ = ("held", "limit", "most_lingering", "total")

    def __init__(self, total: int | None = None) -> None:
        self.held = 0
        self.set_total(total)

    def set_total(self, total: int | None) -> None:
        """Say how many there are; None where nothing limits them."""
        self.total = sys.maxsize if total is None else total
        """Those of the refusals that are told on a stream included."""
        self.limit = self.total - self.total // _SHARE_OF_REFUSALS
        """What requests may take."""
        self.most_lingering = max(self.limit // _SHARE_OF_LINGERING, 1)
        """How many whole answers may wait for their callers, so that most are for answers that are still wanted."""

    @property
    def has_room_for_refusal(self) -> bool:
        return self.held < self.total


def present_descriptors() -> int | None:
    """Return the limit of this process as it is now; None where there is none to be known."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which has no such limit
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def reachable_descriptors(enough: int = ENOUGH_DESCRIPTORS) -> int | None:
    """Return the limit that :func:`raise_descriptor_limit` leads to; None where there is none to be known."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which has no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return max(soft, enough if hard == resource.RLIM_INFINITY else min(hard, enough))


def raise_descriptor_limit(enough: int = ENOUGH_DESCRIPTORS) -> int | None:
    """Raise the soft limit to ``enough``, as far as the hard one allows; children inherit it.

    For whoever owns the process. Returns the limit that there is then, None where there is none.
    """
    wanted = reachable_descriptors(enough)
    if wanted is None:
        return None
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # what the system will not give, the process does without
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
