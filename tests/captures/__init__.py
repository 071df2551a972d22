"""The golden vectors beside this file, as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

HERE = Path(__file__).parent


@frozen
class Capture:
    """Bytes that crossed one socket in one direction."""

    name: str
    version: str
    """The Dynamo release that sent them, or answered them where a test client did."""

    direction: str
    data: bytes = field(repr=False)
    decoded: Any = field(repr=False)
    """What whoever recorded them read in them."""

    record: Mapping[str, Any] = field(repr=False)
    """The whole JSON object, for the fields that only some vectors have."""

    @property
    def is_from_worker(self) -> bool:
        return self.direction.startswith("worker")

    @property
    def request(self) -> bytes:
        """The request frame that an ack answers."""
        return bytes.fromhex(self.record["request_hex"])


def names(prefix: str = "", *, version: str = "") -> list[str]:
    """Return the names of the single vectors that begin with ``prefix``, of one release or of all."""
    found = (path.stem for path in HERE.glob(f"{prefix}*.json") if not path.stem.startswith("bidi_"))
    return sorted(name for name in found if name.endswith(f"-{version}" if version else ""))


def load(name: str) -> Capture:
    """Return a single vector."""
    return _capture(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")))


def exchange_names() -> list[str]:
    """Return the names of the recorded bidirectional exchanges."""
    return sorted(path.stem for path in HERE.glob("bidi_*.json"))


def load_exchange(name: str) -> list[Capture]:
    """Return the vectors of one bidirectional exchange, in the order they were seen."""
    return [_capture(record) for record in json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))]


def _capture(record: dict[str, Any]) -> Capture:
    return Capture(
        record["name"],
        record["dynamo_version"],
        record["direction"],
        bytes.fromhex(record["bytes_hex"]),
        record["decoded"],
        record,
    )
