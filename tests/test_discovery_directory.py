"""The record directory on disk: what is opened, and what is left after a crash."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.discovery._directory import FileAccess, RecordDirectory
from ingress.discovery._entries import Refusal
from ingress.errors import DeserializationError
from ingress.wire.records import MAX_RECORD_SIZE, EndpointId, InstanceRecord

INSTANCES = Path("v1", "instances")


class PowerCut(BaseException):
    """The machine is off: nobody cleans up."""


class MortalDirectory(RecordDirectory):
    """A real directory whose machine loses power after a number of steps.

    What was not synced is torn afterwards, which is what a journalling file system may do with a renamed file.
    """

    def __init__(self, base: Path, *, steps: int) -> None:
        super().__init__(base, create=True)
        self._steps = steps
        self._synced: set[int] = set()

    def _step(self) -> None:
        if self._steps == 0:
            raise PowerCut
        self._steps -= 1

    def _create(self, name: str, content: bytes) -> None:
        self._step()
        super()._create(name, content)
        self._step()

    def _sync_file(self, fd: int) -> None:
        self._step()
        super()._sync_file(fd)
        self._synced.add(os.fstat(fd).st_ino)

    def _replace(self, source: str, target: str) -> None:
        self._step()
        super()._replace(source, target)
        self._step()

    def _unlink(self, name: str) -> None:
        self._step()
        super()._unlink(name)

    def _sync(self) -> None:
        self._step()
        super()._sync()

    def tear(self) -> None:
        for path in self.path.iterdir():
            if path.stat().st_ino not in self._synced:
                os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def directory(tmp_path: Path) -> Any:
    directory = RecordDirectory(tmp_path, create=True)
    yield directory
    directory.close()


@pytest.mark.parametrize("old", [None, b"old content"])
@pytest.mark.parametrize("steps", range(7))
def test_r07_a_power_cut_at_any_step_leaves_the_whole_record_or_the_one_before(
    tmp_path: Path, steps: int, old: bytes | None
) -> None:
    if old is not None:
        before = MortalDirectory(tmp_path, steps=100)
        before.write("record", old)
        before.close()
    mortal = MortalDirectory(tmp_path, steps=steps)
    if old is not None:
        mortal._synced.add((mortal.path / "record").stat().st_ino)
    new = b"new content, longer than the old one"
    if steps < 6:
        with pytest.raises(PowerCut):
            mortal.write("record", new)
    else:
        mortal.write("record", new)
    mortal.tear()

    visible = {name: mortal.read(name) for name in mortal.scan()}
    assert visible in ([{}, {"record": new}] if old is None else [{"record": old}, {"record": new}])
    if steps >= 4:
        assert visible == {"record": new}
    mortal.close()


@pytest.mark.parametrize("step", ["_sync_file", "_replace"])
def test_r07_a_failed_write_leaves_no_temporary_file(
    directory: RecordDirectory, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory, step, fail)
    with pytest.raises(OSError, match="No space left"):
        directory.write("record", b"content")
    assert list(directory.path.iterdir()) == []


def test_created_directories_and_files_are_private(tmp_path: Path) -> None:
    base = tmp_path / "a" / "b"
    directory = RecordDirectory(base, create=True)
    directory.write("record", b"content")
    for path in (tmp_path / "a", base, base / "v1", directory.path):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "record").stat().st_mode & 0o777 == 0o600
    directory.close()


def test_a_directory_that_is_a_symbolic_link_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "v1").mkdir()
    (tmp_path / INSTANCES).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        RecordDirectory(tmp_path, create=True)


def test_k02_k03_only_small_regular_files_are_read(directory: RecordDirectory) -> None:
    path = directory.path
    (path / "good").write_bytes(b"content")
    os.mkfifo(path / "fifo")
    (path / "link").symlink_to(path / "good")
    (path / "loop").symlink_to(path / "loop")
    (path / "folder").mkdir()
    (path / "large").write_bytes(b"x" * (MAX_RECORD_SIZE + 1))
    (path / ".tmp_0123456789abcdef").write_bytes(b"content")
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(path, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{descriptor}/socket")  # the path itself is too long for a socket address
        os.close(descriptor)

        entries = directory.scan()
        junk = {"fifo", "link", "loop", "folder", "large", "socket"}
        assert {name for name, entry in entries.items() if entry.refusal} == junk
        assert set(entries) == junk | {"good"}
        for name in junk:
            with pytest.raises(DeserializationError):
                directory.read(name)
            assert not directory.touch(name, b"content")
            assert not directory.remove(name, b"content")
    assert directory.read("good") == b"content"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give a file away")
def test_k02_a_file_of_another_user_is_refused(directory: RecordDirectory) -> None:
    (directory.path / "record").write_bytes(b"content")
    os.chown(directory.path / "record", 54321, -1)
    assert directory.scan()["record"].refusal == Refusal("owner", "owned by user 54321 and not by 0")
    with pytest.raises(DeserializationError, match="owned by user 54321"):
        directory.read("record")


def test_r07_what_a_dead_writer_left_is_removed_and_what_moves_is_not(directory: RecordDirectory) -> None:
    path = directory.path
    for number in range(3):
        (path / f".tmp_{number:016x}").write_bytes(b"half")
    kept = [".tmp_0123", ".tmp_doctor_x", ".tmp_0123456789ABCDEF", "record", "x.tmp_0123456789abcdef"]
    for name in kept:
        (path / name).write_bytes(b"other")
    (path / ".tmp_00000000000000aa").symlink_to(path / "record")
    (path / ".tmp_00000000000000bb").mkdir()

    listed = directory.unfinished()
    assert set(listed) == {f".tmp_{number:016x}" for number in range(3)}
    (path / ".tmp_0000000000000001").write_bytes(b"whole")
    os.utime(path / ".tmp_0000000000000001", ns=(1, 1))
    (path / ".tmp_0000000000000002").rename(path / "came-to-its-end")
    assert directory.remove_unfinished(listed) == 1
    kept += [".tmp_0000000000000001", ".tmp_00000000000000aa", ".tmp_00000000000000bb", "came-to-its-end"]
    assert {each.name for each in path.iterdir()} == set(kept)


def test_k02_a_crowded_directory_is_listed_in_part_and_known_records_with_it(
    directory: RecordDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.discovery._directory.MAX_FILES", 10)
    for number in range(30):
        (directory.path / f"{number}").write_bytes(b"junk")
    known = {"3", "28", "29"}
    entries = directory.scan(known)
    assert known <= set(entries)
    assert 10 <= len(entries) <= 13


def test_others_who_can_interfere_are_named(directory: RecordDirectory) -> None:
    assert directory.exposure() is None
    directory.path.chmod(0o777)
    assert directory.exposure() == "its mode is 777"
    if os.geteuid() == 0:
        os.chown(directory.path, 54321, -1)
        assert directory.exposure() == "it belongs to user 54321"


def test_a_directory_is_current_until_its_path_leads_elsewhere(tmp_path: Path) -> None:
    directory = RecordDirectory(tmp_path, create=True)
    assert directory.is_current()
    directory.path.rename(tmp_path / "moved")
    assert not directory.is_current()
    directory.path.mkdir()
    assert not directory.is_current()
    (tmp_path / "v1" / "instances").rmdir()
    (tmp_path / "v1").rmdir()
    (tmp_path / "v1").write_text("a file")
    assert not directory.is_current()
    directory.close()


def test_paths_are_joined_where_directories_have_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, in short: the same behaviour without ``dir_fd``."""
    monkeypatch.setattr("ingress.discovery._directory._HAS_DIR_FD", False)
    with pytest.raises(FileNotFoundError):
        RecordDirectory(tmp_path, create=False)
    directory = RecordDirectory(tmp_path, create=True)
    directory.write("record", b"content")
    assert directory.is_current()
    assert list(directory.scan()) == ["record"]
    assert directory.touch("record", b"content")
    assert not directory.remove("record", b"other")
    assert directory.remove("record", b"content")
    assert list(directory.path.iterdir()) == []
    directory.close()


async def test_a_call_that_hangs_is_given_up_and_the_next_one_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.discovery._directory.CALL_TIMEOUT", 0.05)
    access = FileAccess(tmp_path)
    reading, writing = os.pipe()
    finished = []

    def hang() -> None:
        os.read(reading, 1)
        finished.append("hang")

    with pytest.raises(TimeoutError, match=r"did not answer within 0\.05 s"):
        await access.run(hang)
    with pytest.raises(TimeoutError):
        await access.run(finished.append, "never called")
    os.write(writing, b"x")
    while not finished:
        with monkeypatch.context() as patient:
            patient.setattr("ingress.discovery._directory.CALL_TIMEOUT", 60.0)
            await access.run(lambda: None)
    await access.run(finished.append, "next")
    assert finished == ["hang", "next"]
    os.close(reading)
    os.close(writing)


names = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,30}", fullmatch=True)
records = st.builds(
    InstanceRecord,
    st.builds(EndpointId, names, names, names),
    st.integers(0, 2**64 - 1),
    st.fixed_dictionaries(
        {}, optional={"tcp": st.text(max_size=40).map("127.0.0.1:1/{}".format), "nats_tcp": st.text(max_size=40)}
    ),
    st.sampled_from([None, "json", "msgpack"]),
)


@given(records)
def test_k04_every_allowed_name_makes_one_plain_file_name_that_reads_back(record: InstanceRecord) -> None:
    assert "/" not in record.file_name
    assert not record.file_name.startswith(".")
    assert InstanceRecord.decode(record.encode(), file_name=record.file_name) == record


@given(st.text() | st.sampled_from([".", "..", "", "a/b", "a%2Fb", "a\x00b", "a" * 129, "a\n", ".a", "ä"]))
@example("a\n")
def test_k04_any_other_name_is_refused_before_it_is_quoted(name: str) -> None:
    allowed = name.isascii() and 0 < len(name) <= 128 and name[:1] != "."
    allowed = allowed and all(letter.isalnum() or letter in "._-" for letter in name)
    try:
        EndpointId("demo", name, "generate")
    except ValueError:
        assert not allowed
    else:
        assert allowed


@given(raw=st.binary() | records.map(InstanceRecord.encode), name=st.none() | st.text() | st.binary().map(os.fsdecode))
@example(raw=b"[" * 100_000, name=None)
@example(raw=b'{"namespace":"a","component":"b","endpoint":"c","instance_id":-1,"transport":{}}', name=None)
@example(raw=b"", name="..%2F..%2Fetc%2Fpasswd")
def test_any_content_under_any_name_is_a_record_or_a_deserialization_error(raw: bytes, name: str | None) -> None:
    try:
        record = InstanceRecord.decode(raw, file_name=name)
    except DeserializationError:
        return
    assert InstanceRecord.decode(record.encode(), file_name=record.file_name) == record
