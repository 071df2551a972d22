"""A set of instances that can be watched: what every kind of discovery hands to callers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import trio

from ..wire.records import EndpointId, InstanceRecord


class InstanceSet:
    """The instances known now; implements :class:`ingress.abc.InstanceView`.

    Read by any task; ``replace`` is called by the one task that watches the store. Changes that follow each other
    before a waiting task runs again are seen as one.
    """

    def __init__(self) -> None:
        self._all: tuple[InstanceRecord, ...] = ()
        self._by_endpoint: dict[EndpointId, tuple[InstanceRecord, ...]] = {}
        self._changed = trio.Event()

    def instances(self, endpoint_id: EndpointId | None = None) -> Sequence[InstanceRecord]:
        """The usable instances now, of one endpoint or of all, sorted by instance id."""
        return self._all if endpoint_id is None else self._by_endpoint.get(endpoint_id, ())

    async def wait_changed(self) -> None:
        """Wait until the set of instances differs from what it was at the call."""
        await self._changed.wait()

    def replace(self, records: Iterable[InstanceRecord]) -> None:
        """Make these the instances; wakes those who wait if that is a change. The last record of a key counts."""
        by_key = {record.key: record for record in records}
        ordered = tuple(record for _, record in sorted(by_key.items(), key=lambda item: (item[1].instance_id, item[0])))
        if ordered == self._all:
            return
        grouped = defaultdict(list)
        for record in ordered:
            grouped[record.endpoint_id].append(record)
        self._all = ordered
        # Sorted once here, so that choosing an instance for each request costs one look-up.
        self._by_endpoint = {endpoint_id: tuple(group) for endpoint_id, group in grouped.items()}
        self._changed.set()
        self._changed = trio.Event()
