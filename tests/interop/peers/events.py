"""One JSON object a line: how the drivers report, and how items are hashed."""

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any


def emit(**event: Any) -> None:
    """Write one event on stdout and flush it, so that a reader sees it now.

    The line is ASCII whatever the locale. Bytes, which a msgpack stream may
    carry, appear as `{"$bytes": "<hex>"}`.
    """
    sys.stdout.write(json.dumps(event, default=_represent) + "\n")
    sys.stdout.flush()


class ItemHash:
    """SHA-256 over items in order; equal streams of equal values hash alike.

    Each item counts as its compact JSON, keys sorted, UTF-8, and a line feed.
    """

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, item: Any) -> None:
        """Count one more item."""
        text = json.dumps(item, default=_represent, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        # A lone surrogate is a value too; it must not break the count.
        self._sum.update(text.encode("utf-8", "surrogatepass") + b"\n")

    def hexdigest(self) -> str:
        """Return the sum so far, 64 hex digits."""
        return self._sum.hexdigest()


def items_sha(items: Iterable[Any]) -> str:
    """Return the hash which a driver reports for exactly these items."""
    total = ItemHash()
    for item in items:
        total.add(item)
    return total.hexdigest()


def _represent(value: object) -> Any:
    if isinstance(value, bytes | bytearray):
        return {"$bytes": value.hex()}
    return {"$repr": repr(value)}
