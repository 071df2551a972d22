"""Which files in a record directory count as live workers. No clock and no loop: the caller says what time it is.

Released peers compare a file's mtime with the wall clock, so a clock that jumps, or differs between hosts, empties the
list. Here a record lives as long as its mtime keeps *moving*, timed by our own monotonic clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Protocol

from attrs import evolve, field, frozen

from ..errors import DeserializationError
from ..wire.records import InstanceRecord
from ._entries import Entry, RefusedFile

# Characters that are kept of a complaint, which may quote the content.
_MAX_PROBLEM = 300


class Readable(Protocol):
    """What is needed of a directory."""

    def scan(self, known: Collection[str] = ()) -> Mapping[str, Entry]: ...

    def read(self, name: str) -> bytes: ...


@frozen
class Sighting:
    """What is known of one file."""

    entry: Entry
    moved_at: float | None
    """When its mtime was last seen to move, on our clock; None while all we saw is one old mtime."""

    digest: bytes = field(default=b"", repr=False)
    """Of the content; the content itself may be 64 KiB."""

    record: InstanceRecord | None = None
    problem: str | None = None
    """Why there is no record, or not the newest."""

    reason: str | None = None
    """The same as one of :data:`ingress._tallies.RECORD_SKIPS`."""

    def is_live(self, now: float, expiry: float) -> bool:
        return self.record is not None and self.moved_at is not None and now - self.moved_at <= expiry


def look(
    directory: Readable, before: Mapping[str, Sighting], *, now: float, wall_time: float, expiry: float
) -> dict[str, Sighting]:
    """List the directory and read what changed since ``before``, which is left as it is.

    Raises:
        OSError: the directory cannot be listed. A file that cannot be read only gets a ``problem``.
    """
    after = {}
    records = {name for name, sighting in before.items() if sighting.record is not None}
    for name, entry in directory.scan(records).items():
        known = before.get(name)
        if known is not None and known.entry == entry:
            after[name] = known
            continue
        if known is None:
            # Trusting an old mtime would call every worker that was ever killed here alive for another expiry period.
            is_fresh = abs(wall_time - entry.mtime_ns / 1e9) <= expiry
            moved_at = now if is_fresh else None
        else:
            moved_at = now if entry.mtime_ns != known.entry.mtime_ns else known.moved_at
        try:
            after[name] = _read(directory, name, entry, moved_at, known)
        except FileNotFoundError:
            continue  # removed since the directory was listed
    return after


def spare(sightings: Mapping[str, Sighting], *, live_at: float, now: float, expiry: float) -> dict[str, Sighting]:
    """Give what was live at ``live_at`` one more expiry period from now: time we slept through proves nothing."""
    return {
        name: evolve(sighting, moved_at=now) if sighting.is_live(live_at, expiry) else sighting
        for name, sighting in sightings.items()
    }


def _read(directory: Readable, name: str, entry: Entry, moved_at: float | None, known: Sighting | None) -> Sighting:
    if entry.refusal is not None:
        return Sighting(entry, moved_at, problem=entry.refusal.text, reason=entry.refusal.reason)
    try:
        raw = directory.read(name)
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        if known is not None and known.record is not None and known.digest == digest:
            # Nearly always: a touch. The same object again keeps comparing 10^4 records cheap.
            return evolve(known, entry=entry, moved_at=moved_at, problem=None, reason=None)
        return Sighting(entry, moved_at, digest, InstanceRecord.decode(raw, file_name=name))
    except RefusedFile as exc:
        return Sighting(entry, moved_at, problem=str(exc), reason=exc.reason)
    except DeserializationError as exc:
        return Sighting(entry, moved_at, problem=str(exc)[:_MAX_PROBLEM], reason="content")
    except FileNotFoundError:
        raise
    except OSError as exc:
        # Perhaps better luck next time: a size that no file has makes the next look read it again.
        kept = known or Sighting(entry, moved_at)
        problem = f"cannot be read: {exc}"
        return evolve(kept, entry=evolve(entry, size=-1), moved_at=moved_at, problem=problem, reason="unreadable")
