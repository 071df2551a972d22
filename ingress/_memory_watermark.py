"""How near the process is to the memory limit of its control group, where the kernel would end it.

Read when a request comes, once a second or for each megabyte of requests: no task, no timer, a few microseconds.
Without a limit nothing is read at all. The limit may be a parent's: the tightest one on the way to the root counts.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import trio
from attrs import frozen

logger = logging.getLogger("ingress.admission")

# Under it there is room to finish what runs; above it one large request may be the last one.
DEFAULT_MEMORY_WATERMARK = 0.9

_SAMPLE_INTERVAL = 1.0

# Requests of so many bytes together are looked at again, however soon: a thousand large ones may come within a second.
_SAMPLE_BYTES = 1 << 20

# Version 1 says "no limit" with the largest number of pages; no machine has so much.
_NO_LIMIT = 1 << 60


@frozen
class MemoryLimit:
    """A limit and the files that tell what is used of it."""

    limit: int
    usage: Path
    stat: Path
    reclaimable: str
    """The line of ``stat`` with what the kernel takes back by itself: cached files that nobody uses."""

    def used(self) -> int:
        """Bytes in use that cannot be had back."""
        return max(int(self.usage.read_text()) - self._reclaimable_bytes(), 0)

    def _reclaimable_bytes(self) -> int:
        for line in self.stat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == self.reclaimable:
                return int(value)
        return 0


class MemoryWatermark:
    """Whether a process may take on more; for its event loop."""

    def __init__(self, fraction: float, limit: MemoryLimit | None) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"memory_watermark must be more than 0 and at most 1, got {fraction:g}")
        self.fraction = fraction
        self.limit = limit
        self._sampled_at = -float("inf")
        self._used = 0
        self._bytes_since = 0

    def is_exceeded(self, size: int = 0) -> bool:
        """Whether a request of that many bytes would be too much."""
        if self.limit is None:
            return False
        now = trio.current_time()
        self._bytes_since += size
        if not 0 <= now - self._sampled_at < _SAMPLE_INTERVAL or self._bytes_since >= _SAMPLE_BYTES:
            self._sampled_at, self._bytes_since = now, 0
            try:
                self._used = self.limit.used()
            except (OSError, ValueError) as exc:  # the group was removed or changed under us: no reason to refuse
                logger.warning("memory use cannot be read, the watermark is off: %s", exc)
                self.limit = None
                return False
        return self._used > self.fraction * self.limit.limit


def find_memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """Return the tightest memory limit over this process, None where there is none or none can be read.

    Args:
        root: the file system's; tests have their own.
    """
    found = []
    for candidate in _candidates(root):
        try:
            text = candidate[0].read_text().strip()
            limit = MemoryLimit(int(text), *candidate[1:])
            limit.used()
        except (OSError, ValueError):  # "max" is no number: no limit here
            continue
        if limit.limit < _NO_LIMIT:
            found.append(limit)
    return min(found, key=lambda each: each.limit, default=None)


def find_usable_memory() -> int | None:
    """Return how many bytes this process may use: the limit over it, or what the machine has; None where unknown."""
    if (limit := find_memory_limit()) is not None:
        return limit.limit
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no such question
        return None


def share_of_memory(share: int, least: int, most: int = sys.maxsize) -> int:
    """Return one of so many equal shares of the memory that this process may use, in bytes, within two bounds."""
    return min(max((find_usable_memory() or 0) // share, least), most)


def _candidates(root: Path) -> Iterator[tuple[Path, Path, Path, str]]:
    """Yield the files of every group from the process's own up to the root, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = base / path.lstrip("/")
        # Inside a container the path may be that of the host; the group itself is then mounted at the base.
        for directory in (group, *group.parents):
            yield directory / names[0], directory / names[1], directory / "memory.stat", names[2]
            if directory == base:
                break
