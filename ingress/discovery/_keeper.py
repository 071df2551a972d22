"""Keeps a worker's records on disk: written, touched, put back, and in the end removed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from ..errors import StartupError
from ._directory import FileAccess, RecordDirectory
from ._entries import Entry
from ._seldom import Seldom

logger = logging.getLogger("ingress.discovery.file")

# Waits after failed renewals double from here up to the touch interval, so that a worker is back within one of them.
FIRST_RETRY = 0.5

# How often the same trouble is worth a line while it lasts.
LOG_PERIOD = 60.0

# A temporary file that nobody has touched for two lifetimes of a record has no writer any more.
LEFTOVER_AGE = 20.0


class RecordKeeper:
    """Owns the files of one ``serve_records`` call; that task alone uses it.

    Withdrawn is a state: nothing is written after ``withdraw`` was called, not even by a renewal that hangs in the
    file system and wakes up later.
    """

    def __init__(self, access: FileAccess, contents: Mapping[str, bytes], touch_interval: float) -> None:
        self._access = access
        self._contents = contents
        self._touch_interval = touch_interval
        self._directory: RecordDirectory | None = None
        self._is_withdrawn = False
        self._unfinished: Mapping[str, Entry] = {}
        self._unfinished_since = 0.0
        self._set_aside: dict[str, str] = {}  # the directories that stood in a record's place, by its name
        self._log_due = Seldom(LOG_PERIOD).is_due

        self.missed_renewals = 0
        """Touch intervals without a successful renewal; 0 again after the next one."""

        self.rewritten = 0
        """Records put back because somebody had deleted or altered them."""

    async def announce(self) -> None:
        """Write the records.

        Raises:
            StartupError: that failed; what was written already is removed by ``withdraw``.
        """
        try:
            await self._access.run(self._renew)
            exposure = await self._access.run(self._look_round)
        except Exception as exc:  # nearly always an OSError; no thread to be had is a RuntimeError
            raise StartupError(
                f"cannot announce this worker in {self._access.base}: {getattr(exc, 'strerror', None) or exc}"
                " (DYN_FILE_KV may name another directory)"
            ) from exc
        self._unfinished_since = trio.current_time()
        if exposure is not None:
            logger.warning("others can remove this worker's records in %s: %s", self._access.base, exposure)

    async def keep(self) -> None:
        """Renew the records for ever; failures are logged, counted and retried."""
        renewed_at = trio.current_time()
        delay, retry = self._touch_interval, FIRST_RETRY
        while True:
            await trio.sleep(delay)
            try:
                rewritten = await self._access.run(self._renew)
            except Exception as exc:  # whatever it is, it is no reason to serve no more
                silent = trio.current_time() - renewed_at
                self.missed_renewals = max(1, int(silent / self._touch_interval))
                delay, retry = min(retry, self._touch_interval), retry * 2
                self._log_failure(exc)
            else:
                if self.missed_renewals:
                    logger.info("discovery records are renewed again in %s", self._access.base)
                self.missed_renewals = 0
                renewed_at = trio.current_time()
                delay, retry = self._touch_interval, FIRST_RETRY
                self._log_rewritten(rewritten)
                await self._clear_up()

    async def withdraw(self) -> None:
        """Remove the records that are still ours; bounded, and safe to await in a cancelled task."""
        self._is_withdrawn = True
        with trio.CancelScope(shield=True):
            try:
                await self._access.run(self._remove)
            except Exception as exc:
                logger.warning(
                    "discovery records in %s could not be removed and will expire: %.200r", self._access.base, exc
                )

    async def _clear_up(self) -> None:
        """Remove, once, what writers that have died left here before this worker came."""
        if not self._unfinished or trio.current_time() - self._unfinished_since < LEFTOVER_AGE:
            return
        unfinished, self._unfinished = self._unfinished, {}
        try:
            removed = await self._access.run(self._remove_unfinished, unfinished)
        except Exception as exc:
            logger.debug("removing unfinished records in %s failed: %.200r", self._access.base, exc)
        else:
            if removed:
                logger.info("removed %d unfinished records of dead writers in %s", removed, self._access.base)

    def _log_failure(self, exc: Exception) -> None:
        if self._log_due(f"failure {type(exc).__name__} {getattr(exc, 'errno', '')}", trio.current_time()):
            logger.warning(
                "renewing discovery records in %s failed, callers lose this worker when they expire: %.200r",
                self._access.base,
                exc,
            )

    def _log_rewritten(self, names: list[str]) -> None:
        self.rewritten += len(names)
        now = trio.current_time()
        for name in names:
            if self._log_due(name, now):
                logger.warning("discovery record %.200r was deleted or altered by someone; written again", name)
            if (aside := self._set_aside.pop(name, None)) is not None and self._log_due(f"aside {name}", now):
                logger.warning("a directory stood in its place, and is now %s in %s", aside, self._access.base)

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _renew(self) -> list[str]:
        """Touch every record, write those that are not there as they should be, and return their names."""
        if self._directory is not None and not self._directory.is_current():
            self._directory.close()
            self._directory = None
        if self._directory is None:
            self._directory = self._access.open_directory(create=True)
        rewritten = []
        failure: OSError | None = None
        for name, content in self._contents.items():
            try:
                # Withdrawn: this call hung, was given up, and is awake only now.
                if not self._directory.touch(name, content) and not self._is_withdrawn:
                    aside = self._directory.write(name, content)
                    rewritten.append(name)
                    if aside is not None:
                        self._set_aside[name] = aside
            except OSError as exc:  # the other records shall not expire because of this one
                failure = exc
        if self._is_withdrawn:
            self._remove()
        if failure is not None:
            raise failure
        return rewritten

    def _look_round(self) -> str | None:
        """Note what may be left of dead writers, and return how others can interfere here."""
        assert self._directory is not None  # noqa: S101 - opened by the first renewal
        self._unfinished = self._directory.unfinished()
        return self._directory.exposure()

    def _remove_unfinished(self, unfinished: Mapping[str, Entry]) -> int:
        return 0 if self._directory is None else self._directory.remove_unfinished(unfinished)

    def _remove(self) -> None:
        directory, self._directory = self._directory, None
        if directory is None:
            return
        failure: OSError | None = None
        for name, content in self._contents.items():
            try:
                directory.remove(name, content)
            except OSError as exc:
                failure = exc
        directory.close()
        if failure is not None:
            raise failure
