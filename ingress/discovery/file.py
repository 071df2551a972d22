"""File discovery: a directory shared by workers and callers, with one small file an endpoint and instance.

    <directory>/v1/instances/<namespace>%2F<component>%2F<endpoint>%2F<instance id, lower hex>
    <directory>/v1/mdc/<the same>, for an endpoint that is a model

The file holds the record's JSON; its mtime is the sign of life, moved on every 3 s. Released callers delete what is
older than 10 s by the wall clock; this project's callers ignore it and delete nothing.
Source: docs/wire.md §7, captures ``discovery-record-*``.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from .._tallies import RECORD_SKIPS
from ..abc import Discovery, InstanceView
from ..errors import DeserializationError, StartupError
from ..wire.records import DiscoveryRecord, EndpointId, InstanceRecord
from ._directory import FileAccess
from ._keeper import RecordKeeper
from ._watcher import DirectoryWatcher

# The TTL of 10 s is the released peers' (they touch every third of it); it cannot be negotiated.
DEFAULT_EXPIRY = 10.0
DEFAULT_TOUCH_INTERVAL = 3.0
DEFAULT_POLL_INTERVAL = 0.1
MAX_FILE_NAME = 255
"""Bytes that any file system takes. Separators and an instance id leave 230 of them for an endpoint's three names."""


def default_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory that ``DYN_FILE_KV`` names, else the one released peers fall back to."""
    named = environ.get("DYN_FILE_KV")
    return Path(named) if named else Path(tempfile.gettempdir()) / "dynamo_store_kv"


def file_discovery(environ: Mapping[str, str]) -> FileDiscovery:
    """Make the plug-in ``file`` of ``ingress.discovery``: the directory that ``DYN_FILE_KV`` names."""
    return FileDiscovery(default_directory(environ))


class FileDiscovery(Discovery):
    """Workers and callers that share a directory, for one user on one host or one shared file system.

    Args:
        directory: what ``DYN_FILE_KV`` names; created with mode 0700 when the first worker is announced.
        touch_interval: seconds between signs of life of the records served here; at most 3 beside released peers.
        poll_interval: seconds between looks of a view.
        expiry: seconds without a sign of life after which a view drops a record.
        access: how a bucket of the directory is reached; tests pass one that fails.
    """

    def __init__(
        self,
        directory: Path,
        *,
        touch_interval: float = DEFAULT_TOUCH_INTERVAL,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        expiry: float = DEFAULT_EXPIRY,
        access: Callable[[Path, str], FileAccess] = FileAccess,
    ) -> None:
        # Absolute, so that a later chdir does not make the worker write somewhere else.
        self.directory = directory.absolute()
        self.touch_interval = touch_interval
        self.poll_interval = poll_interval
        self.expiry = expiry
        self._access = access
        self._keepers: set[RecordKeeper] = set()
        self._rewritten_before = 0
        self._skipped = dict.fromkeys(RECORD_SKIPS, 0)

    @property
    def location(self) -> str:
        """The directory."""
        return str(self.directory)

    @property
    def missed_renewals(self) -> int:
        """Touch intervals in a row without a successful renewal; from 2 on, callers are about to lose this worker."""
        return max((keeper.missed_renewals for keeper in self._keepers), default=0)

    @property
    def rewritten_records(self) -> int:
        """How often a record was put back that someone else had deleted or altered."""
        return self._rewritten_before + sum(keeper.rewritten for keeper in self._keepers)

    @property
    def skipped_records(self) -> Mapping[str, int]:
        """How many files the views did not take for records, by reason; one that does not change is counted once."""
        return self._skipped

    async def serve_records(
        self, records: Sequence[DiscoveryRecord], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Write the records, keep them fresh until cancelled, and remove them before returning.

        After the start nothing that happens to the directory ends this: it is logged, counted in ``missed_renewals``
        and retried. A file whose content is no longer ours is put back while serving, and left alone when leaving.
        Model cards are written last and removed first, so that no model is listed that nobody serves. Temporary files
        of writers that have died are removed once they have not moved for two lifetimes of a record.

        Raises:
            StartupError: the records cannot be written, or two would be one file; none is left behind.
        """
        keepers = [
            RecordKeeper(self._access(self.directory, bucket), _contents(records, bucket), self.touch_interval)
            for bucket in dict.fromkeys(record.bucket for record in records)
        ]
        self._keepers.update(keepers)
        try:
            for keeper in keepers:
                await keeper.announce()
            task_status.started()
            async with trio.open_nursery() as nursery:
                for keeper in keepers:
                    nursery.start_soon(keeper.keep)
        finally:
            for keeper in reversed(keepers):
                await keeper.withdraw()
                self._keepers.remove(keeper)
                self._rewritten_before += keeper.rewritten

    @asynccontextmanager
    async def open_view(self) -> AsyncIterator[InstanceView]:
        """Watch the directory while inside; it has been listed once on entry, and need not exist."""
        watcher = DirectoryWatcher(
            self._access(self.directory, InstanceRecord.bucket),
            poll_interval=self.poll_interval,
            expiry=self.expiry,
            skipped=self._skipped,
        )
        failure: Exception | None = None
        try:
            await watcher.look_once()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watcher.watch)
                try:
                    yield watcher.found
                except Exception as exc:
                    failure = exc  # raised inside the nursery it would reach our user wrapped in a group
                nursery.cancel_scope.cancel()
        finally:
            await watcher.aclose()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure


def _contents(records: Sequence[DiscoveryRecord], bucket: str) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    spellings: dict[str, EndpointId] = {}
    for record in records:
        if record.bucket != bucket:
            continue
        name, content = record.file_name, record.encode()
        if (size := len(name)) > MAX_FILE_NAME:  # percent-quoted, so a byte each
            text = (
                f"cannot announce {record.endpoint_id}: its record's file name has {size} bytes (max: {MAX_FILE_NAME})"
            )
            raise StartupError(text)
        twin = spellings.setdefault(name.casefold(), record.endpoint_id)
        if twin != record.endpoint_id:  # one file on many file systems, where each would take away the other's
            raise StartupError(f"endpoints {twin} and {record.endpoint_id} differ by nothing but case")
        try:
            record.decode(content, file_name=name)  # with the eyes of those who shall find it
        except DeserializationError as exc:
            raise StartupError(f"cannot announce {record.endpoint_id}: {exc}") from exc
        contents[name] = content
    return contents
