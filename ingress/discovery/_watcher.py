"""Watches a record directory for callers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from .._tallies import RECORD_SKIPS
from ..wire.records import InstanceRecord
from ._directory import MAX_FILES, FileAccess, RecordDirectory
from ._instances import InstanceSet
from ._seldom import Seldom
from ._sightings import Sighting, look, spare

logger = logging.getLogger("ingress.discovery.file")

# Junk in the directory is usually left there by accident and stays: one line a file and hour.
LOG_PERIOD = 3600.0


# 10^4 records take 0.1 s to look at (2 shared cores, 2026-11): looking then pauses four times as long, so that it never
# costs more than a fifth of a core, but at most a second.
PAUSE_FACTOR, MAX_EXTRA_PAUSE = 4.0, 1.0


class DirectoryWatcher:
    """Polls a directory and keeps ``found`` up to date; owned by one task. Never writes anything.

    Polling and not inotify: it works on NFS and on every system, and costs one directory listing.
    """

    def __init__(
        self, access: FileAccess, *, poll_interval: float, expiry: float, skipped: dict[str, int] | None = None
    ) -> None:
        self.found = InstanceSet()
        self._access = access
        self._poll_interval = poll_interval
        self._expiry = expiry
        self._directory: RecordDirectory | None = None
        self._seen: Mapping[str, Sighting] = {}
        self._live: Mapping[str, InstanceRecord] = {}
        self._looked_at: float | None = None
        self._log_due = Seldom(LOG_PERIOD).is_due
        self.skipped = dict.fromkeys(RECORD_SKIPS, 0) if skipped is None else skipped
        """Files that were not taken for records, by reason; one that does not change is counted once."""
        self._is_closed = False

    async def watch(self) -> None:
        """Look for ever."""
        pause = self._poll_interval
        while True:
            await trio.sleep(pause)
            begun_at = trio.current_time()
            await self.look_once()
            took = trio.current_time() - begun_at
            pause = max(self._poll_interval, min(PAUSE_FACTOR * took, MAX_EXTRA_PAUSE))

    async def look_once(self) -> None:
        """Bring ``found`` up to date; a directory that cannot be read leaves its records to expire."""
        now = trio.current_time()
        self._forgive_oversleeping(now)
        try:
            seen = await self._access.run(self._look, self._seen, now)
        except Exception as exc:  # nearly always an OSError; no thread to be had is a RuntimeError
            if self._log_due(f"failure {type(exc).__name__} {getattr(exc, 'errno', '')}", now):
                logger.warning("looking for discovery records in %s failed: %.200r", self._access.base, exc)
        else:
            self._report(seen, now)
            self._seen = seen
        # As of when the look began: a pause in the middle of it is the next look's to forgive.
        self._update(now)

    async def aclose(self) -> None:
        """Release the directory; bounded, and safe to await in a cancelled task."""
        self._is_closed = True
        with trio.CancelScope(shield=True):
            try:
                await self._access.run(self._close)
            except Exception as exc:
                logger.debug("closing the record directory failed: %.200r", exc)

    def _forgive_oversleeping(self, now: float) -> None:
        # After a suspend or a stall of the loop every record looks motionless. One touched every 3.33 s outlives a
        # pause of half the expiry without help (3.33 + 5 < 10), so this begins where it might not.
        looked_at, self._looked_at = self._looked_at, now
        if looked_at is not None and now - looked_at > self._poll_interval + self._expiry / 2:
            self._seen = spare(self._seen, live_at=looked_at, now=now, expiry=self._expiry)

    def _report(self, seen: Mapping[str, Sighting], now: float) -> None:
        for name, sighting in seen.items():
            if sighting.reason is None or not _is_news(sighting, self._seen.get(name)):
                continue
            self.skipped[sighting.reason] += 1
            if self._log_due(name, now):
                logger.warning("discovery record %.200r is skipped: %.200r", name, sighting.problem)
        if len(seen) >= MAX_FILES > len(self._seen):
            self.skipped["crowded"] += 1
        if len(seen) >= MAX_FILES and self._log_due("", now):
            logger.warning("%s holds %d files or more; new ones are not looked at", self._access.base, MAX_FILES)

    def _update(self, now: float) -> None:
        live = {
            name: sighting.record
            for name, sighting in self._seen.items()
            if sighting.record is not None and sighting.is_live(now, self._expiry)
        }
        if live != self._live:
            self._live = live
            self.found.replace(live.values())

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _look(self, before: Mapping[str, Sighting], now: float) -> dict[str, Sighting]:
        if self._directory is not None and not self._directory.is_current():
            self._close()
        if self._directory is None:
            try:
                self._directory = self._access.open_directory(create=False)
            except FileNotFoundError:
                return {}  # no worker has been here yet
        wall_time = self._access.wall_time()
        try:
            return look(self._directory, before, now=now, wall_time=wall_time, expiry=self._expiry)
        finally:
            if self._is_closed:  # this call hung and was given up; nobody else will close what it used
                self._close()

    def _close(self) -> None:
        if self._directory is not None:
            self._directory.close()
            self._directory = None


def _is_news(sighting: Sighting, before: Sighting | None) -> bool:
    return before is None or (sighting.entry, sighting.reason) != (before.entry, before.reason)
