"""Which files count as live: rules as sentences, then a state machine against a second opinion."""

from __future__ import annotations

import errno
from collections.abc import Collection

from attrs import define, field, frozen
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from ingress.discovery._entries import Entry
from ingress.discovery._sightings import Sighting, look, spare
from ingress.wire.records import EndpointId, InstanceRecord

EXPIRY = 10.0
WALL = 1_700_000_000.0
JUNK = b"{"


def record(instance_id: int = 1) -> InstanceRecord:
    return InstanceRecord(EndpointId("demo", "backend", "generate"), instance_id, {"tcp": "127.0.0.1:1/x"})


@frozen
class File:
    mtime: float
    raw: bytes
    inode: int = 1


class PaperDirectory:
    """A directory in memory that counts what is read."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.unreadable: set[str] = set()
        self.reads: list[str] = []

    def scan(self, known: Collection[str] = ()) -> dict[str, Entry]:
        return {name: Entry(int(f.mtime * 1e9), len(f.raw), f.inode) for name, f in self.files.items()}

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        if name in self.unreadable:
            raise OSError(errno.EIO, "Input/output error")
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "gone", name)
        return self.files[name].raw


@define
class Watch:
    """Looks with a clock that a test moves."""

    directory: PaperDirectory
    now: float = 0.0
    wall_jump: float = 0.0
    seen: dict[str, Sighting] = field(factory=dict)

    def put(self, name: str, raw: bytes, *, age: float = 0.0, inode: int = 1) -> None:
        self.directory.files[name] = File(WALL + self.now + self.wall_jump - age, raw, inode)

    def live(self, after: float = 0.0) -> list[str]:
        self.now += after
        wall_time = WALL + self.now + self.wall_jump
        self.seen = look(self.directory, self.seen, now=self.now, wall_time=wall_time, expiry=EXPIRY)
        return sorted(name for name, s in self.seen.items() if s.is_live(self.now, EXPIRY))


NAME = record().file_name
RAW = record().encode()


def watch_one(*, age: float = 0.0) -> Watch:
    watch = Watch(PaperDirectory())
    watch.put(NAME, RAW, age=age)
    return watch


def test_a_fresh_record_is_trusted_at_first_sight() -> None:
    assert watch_one().live() == [NAME]


def test_an_old_record_is_trusted_only_when_its_mtime_moves() -> None:
    watch = watch_one(age=11)
    assert watch.live() == []
    watch.put(NAME, RAW, age=9)  # still old enough to be doubted, but it moved
    assert watch.live(after=0.1) == [NAME]


def test_t01_an_mtime_far_in_the_future_is_no_sign_of_life() -> None:
    assert watch_one(age=-3600).live() == []


def test_a_record_that_stands_still_for_the_expiry_is_ignored() -> None:
    watch = watch_one()
    assert watch.live() == [NAME]
    assert watch.live(after=10) == [NAME]
    assert watch.live(after=0.1) == []


def test_t01_wall_clock_jumps_neither_kill_nor_revive_anything() -> None:
    watch = watch_one()
    assert watch.live() == [NAME]
    for jump in (3600.0, -3600.0, 10 * 365 * 86400.0, 0.0):
        watch.wall_jump = jump
        assert watch.live(after=2) == [NAME]
    assert watch.live(after=2.1) == []


def test_content_is_read_again_only_when_mtime_size_or_inode_changed() -> None:
    watch = watch_one()
    watch.live()
    first = watch.seen[NAME].record
    watch.live(after=1)
    assert watch.directory.reads == [NAME]
    watch.put(NAME, RAW)  # a touch
    watch.live()
    assert watch.directory.reads == [NAME, NAME]
    assert watch.seen[NAME].record is first


def test_a_record_altered_into_junk_is_dropped_and_comes_back_with_its_content() -> None:
    watch = watch_one()
    watch.live()
    watch.put(NAME, JUNK)
    assert watch.live(after=1) == []
    assert watch.seen[NAME].problem is not None
    watch.put(NAME, RAW)
    assert watch.live(after=1) == [NAME]


def test_a_file_that_cannot_be_read_keeps_its_record_and_is_read_again() -> None:
    watch = watch_one()
    watch.live()
    watch.now += 1
    watch.put(NAME, RAW)
    watch.directory.unreadable.add(NAME)
    assert watch.live() == [NAME]
    assert "Input/output error" in str(watch.seen[NAME].problem)
    watch.directory.unreadable.clear()
    assert watch.live(after=1) == [NAME]
    assert watch.seen[NAME].problem is None
    assert len(watch.directory.reads) == 3


def test_retrying_an_unreadable_file_is_no_sign_of_life() -> None:
    watch = watch_one(age=11)
    watch.directory.unreadable.add(NAME)
    assert watch.live() == []
    watch.directory.unreadable.clear()
    assert watch.live(after=1) == []


def test_a_file_removed_between_listing_and_reading_is_absent() -> None:
    class Racing(PaperDirectory):
        def scan(self, known: Collection[str] = ()) -> dict[str, Entry]:
            entries = super().scan(known)
            self.files.clear()
            return entries

    watch = Watch(Racing())
    watch.put(NAME, RAW)
    assert watch.live() == []
    assert watch.seen == {}


def test_the_content_under_a_foreign_name_is_no_record() -> None:
    watch = Watch(PaperDirectory())
    watch.put(record(2).file_name, RAW)
    assert watch.live() == []


def test_t02_spared_are_those_that_were_live_before_the_pause_and_no_others() -> None:
    watch = watch_one()
    old = record(2)
    watch.put(old.file_name, old.encode(), age=60)
    watch.live()
    watch.seen = spare(watch.seen, live_at=0.0, now=100.0, expiry=EXPIRY)
    assert watch.live(after=105) == [NAME]
    assert watch.live(after=10.1) == []


class LiveRecords(RuleBasedStateMachine):
    """Files come, move, change and go while clocks jump; the model remembers only what the rule speaks of."""

    files = Bundle("files")

    @initialize()
    def start(self) -> None:
        self.watch = Watch(PaperDirectory())
        self.counter = 0
        # The model: when each file's mtime was last seen to move, or None; and the mtime seen then.
        self.moved: dict[str, float | None] = {}
        self.mtimes: dict[str, float] = {}

    @rule(target=files, age=st.sampled_from([0.0, 9.0, 11.0, 1e6, -1e6]), good=st.booleans())
    def appear(self, age: float, good: bool) -> str:
        self.counter += 1
        new = record(self.counter)
        self.watch.put(new.file_name, new.encode() if good else JUNK, age=age)
        return new.file_name

    @rule(name=files)
    def touch(self, name: str) -> None:
        if name in self.watch.directory.files:
            self.watch.put(name, self.watch.directory.files[name].raw)

    @rule(name=files)
    def spoil(self, name: str) -> None:
        self.watch.put(name, JUNK)

    @rule(name=files)
    def mend(self, name: str) -> None:
        self.watch.put(name, record(int(name.rpartition("%2F")[2], 16)).encode(), inode=self.counter + 2)

    @rule(name=consumes(files))
    def vanish(self, name: str) -> None:
        self.watch.directory.files.pop(name, None)

    @rule(jump=st.sampled_from([3600.0, -3600.0, 3e8]))
    def jump_wall_clock(self, jump: float) -> None:
        self.watch.wall_jump = jump

    @rule(after=st.sampled_from([0.1, 3.0, 5.0, 9.9, 30.0]))
    def look(self, after: float) -> None:
        live = self.watch.live(after)
        now, wall_time = self.watch.now, WALL + self.watch.now + self.watch.wall_jump
        files = self.watch.directory.files
        for name in set(self.moved) - set(files):
            del self.moved[name], self.mtimes[name]
        for name, file in files.items():
            if name not in self.moved:
                self.moved[name] = now if abs(wall_time - file.mtime) <= EXPIRY else None
            elif file.mtime != self.mtimes[name]:
                self.moved[name] = now
            self.mtimes[name] = file.mtime
        moved_lately = {name for name, moved in self.moved.items() if moved is not None and now - moved <= EXPIRY}
        assert set(live) == {name for name in moved_lately if files[name].raw != JUNK}


TestLiveRecords = LiveRecords.TestCase
