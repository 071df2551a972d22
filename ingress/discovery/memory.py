"""Discovery inside one process: a worker and its callers share the object. For tests and demonstrations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from ..abc import Discovery, InstanceView
from ..wire.records import DiscoveryRecord, InstanceRecord, ModelRecord
from ._instances import InstanceSet


def memory_discovery(environ: Mapping[str, str]) -> MemoryDiscovery:
    """Make the plug-in ``mem`` of ``ingress.discovery``."""
    return MemoryDiscovery()


class MemoryDiscovery(Discovery):
    """Announces records to every view of the same object, at once and without I/O."""

    is_shared = False

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], DiscoveryRecord] = {}
        self._found = InstanceSet()

    @property
    def models(self) -> list[ModelRecord]:
        """The model cards that are announced now."""
        return [record for record in self._records.values() if isinstance(record, ModelRecord)]

    async def serve_records(
        self, records: Sequence[DiscoveryRecord], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Announce the records until cancelled; as with files, a second record of the same key replaces the first."""
        try:
            self._records.update(((record.bucket, record.key), record) for record in records)
            self._show()
            task_status.started()
            await trio.sleep_forever()
        finally:
            for record in records:
                if self._records.get((record.bucket, record.key)) is record:
                    del self._records[record.bucket, record.key]
            self._show()

    def _show(self) -> None:
        self._found.replace(record for record in self._records.values() if isinstance(record, InstanceRecord))

    @asynccontextmanager
    async def open_view(self) -> AsyncIterator[InstanceView]:
        """Watch for instances while inside."""
        await trio.lowlevel.checkpoint()
        yield self._found
