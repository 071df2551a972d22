"""File discovery as a whole: a worker's records and a caller's view of them, while the directory misbehaves."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress.abc import InstanceView
from ingress.discovery import FileDiscovery, default_directory
from ingress.discovery._directory import CALL_TIMEOUT, FileAccess, RecordDirectory
from ingress.discovery._entries import Entry
from ingress.errors import StartupError
from ingress.wire.records import EndpointId, InstanceRecord, ModelRecord

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

GENERATE = EndpointId("demo", "backend", "generate")
CLEAR = EndpointId("demo", "backend", "clear")
INSTANCES = Path("v1", "instances")
WALL = 1_700_000_000.0
CAPTURES = sorted((Path(__file__).parent / "captures").glob("discovery-record-*.json"))


def record(instance_id: int = 0xABC, endpoint_id: EndpointId = GENERATE) -> InstanceRecord:
    return InstanceRecord(
        endpoint_id, instance_id, {"tcp": f"127.0.0.1:9/{instance_id:x}/x"}, request_plane_codec="msgpack"
    )


class ShakyDisk:
    """A test's hold on the file system: what fails, what hangs, what the wall clock says, what was done."""

    def __init__(self, base: Path) -> None:
        self.records = base / INSTANCES
        self.failing: dict[str, int] = {}
        self.is_hanging = False
        self.pending: list[Callable[[], object]] = []
        self.wall_jump = 0.0
        self.done: list[str] = []
        self.during_scan: Callable[[], object] = lambda: None

    def step(self, name: str) -> None:
        self.done.append(name)
        if name in self.failing:
            raise OSError(self.failing[name], os.strerror(self.failing[name]))

    def wake(self) -> None:
        """Stop hanging: the call that was given up comes to its end."""
        self.is_hanging = False
        while self.pending:
            self.pending.pop(0)()

    def wall_time(self) -> float:
        return WALL + trio.current_time() + self.wall_jump

    def names(self) -> set[str]:
        return {path.name for path in self.records.iterdir()} if self.records.exists() else set()

    def put(self, name: str, content: bytes, *, age: float = 0.0) -> None:
        """Do as a neighbour does."""
        self.records.mkdir(parents=True, exist_ok=True)
        (self.records / name).write_bytes(content)
        self.set_mtime(name, age=age)

    def set_mtime(self, name: str, *, age: float = 0.0) -> None:
        mtime_ns = int((self.wall_time() - age) * 1e9)
        os.utime(self.records / name, ns=(mtime_ns, mtime_ns))


class ShakyDirectory(RecordDirectory):
    """The real directory; each step can fail, and mtimes follow trio's clock."""

    def __init__(self, base: Path, disk: ShakyDisk, *, create: bool) -> None:
        disk.step("open")
        super().__init__(base, create=create)
        self._disk = disk

    def scan(self, known: Collection[str] = ()) -> dict[str, Entry]:
        self._disk.step("scan")
        self._disk.during_scan()
        return super().scan(known)

    def touch(self, name: str, content: bytes) -> bool:
        self._disk.step("touch")
        self._disk.step(f"touch {name}")
        is_ours = super().touch(name, content)
        if is_ours:
            self._disk.set_mtime(name)
        return is_ours

    def _create(self, name: str, content: bytes) -> None:
        self._disk.step("create")
        super()._create(name, content)

    def _sync_file(self, fd: int) -> None:
        self._disk.step("sync_file")
        super()._sync_file(fd)

    def _replace(self, source: str, target: str) -> None:
        self._disk.step("replace")
        super()._replace(source, target)
        self._disk.set_mtime(target)

    def _unlink(self, name: str) -> None:
        self._disk.step("unlink")
        super()._unlink(name)

    def _sync(self) -> None:
        self._disk.step("sync")
        super()._sync()


class ShakyAccess(FileAccess):
    """Calls at once instead of in a thread, so that a mock clock may jump meanwhile."""

    def __init__(self, base: Path, disk: ShakyDisk, bucket: str) -> None:
        super().__init__(base, bucket)
        self._disk = disk

    def open_directory(self, *, create: bool) -> RecordDirectory:
        return ShakyDirectory(self.base, self._disk, create=create)

    def wall_time(self) -> float:
        return self._disk.wall_time()

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        if self._disk.is_hanging:
            if not self._disk.pending:  # later ones only wait for the first, and are never begun
                self._disk.pending.append(lambda: function(*args))
            await trio.sleep(CALL_TIMEOUT)
            raise TimeoutError(errno.ETIMEDOUT, "the file system did not answer")
        return function(*args)


@pytest.fixture
def disk(tmp_path: Path) -> ShakyDisk:
    return ShakyDisk(tmp_path)


# pytest-trio takes the clock only from a test's own arguments, so every test here names ``autojump_clock``.
@pytest.fixture
def discovery(tmp_path: Path, disk: ShakyDisk) -> FileDiscovery:
    return FileDiscovery(tmp_path, access=lambda base, bucket: ShakyAccess(base, disk, bucket))


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    listing = Path("/proc/self/fd")

    def directories() -> int:
        targets = [str(path.readlink()) for path in listing.iterdir() if path.is_symlink()]
        return sum("instances" in target for target in targets)

    if not listing.exists():
        yield
        return
    before = directories()
    yield
    assert directories() == before


@asynccontextmanager
async def announced(discovery: FileDiscovery, *records: InstanceRecord) -> Any:
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.serve_records, records or [record()])
        yield
        nursery.cancel_scope.cancel()


# -- the worker's half -----------------------------------------------------------------------------------------------


async def test_a_record_is_one_file_named_by_its_key_holding_the_json_of_a_real_worker(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    """docs/wire.md §7."""
    async with announced(discovery, record(0xABC), record(0xABC, CLEAR)):
        assert disk.names() == {"demo%2Fbackend%2Fgenerate%2Fabc", "demo%2Fbackend%2Fclear%2Fabc"}
        path = disk.records / "demo%2Fbackend%2Fgenerate%2Fabc"
        assert json.loads(path.read_bytes()) == {
            "type": "Endpoint",
            "component": "backend",
            "endpoint": "generate",
            "namespace": "demo",
            "instance_id": 0xABC,
            "transport": {"tcp": "127.0.0.1:9/abc/x"},
            "request_plane_codec": "msgpack",
        }
        assert path.stat().st_mode & 0o777 == 0o600


async def test_a_record_is_touched_every_three_seconds_and_keeps_its_inode(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    async with announced(discovery):
        path = disk.records / record().file_name
        inode = path.stat().st_ino
        for _ in range(10):
            before = path.stat().st_mtime
            await trio.sleep(3.1)
            assert path.stat().st_mtime - before == pytest.approx(3.0)
        assert path.stat().st_ino == inode
        assert discovery.rewritten_records == 0


async def test_the_record_is_gone_when_serving_returns_and_nothing_is_written_later(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    """A refresher once ran after the withdrawal and took the worker down."""
    async with trio.open_nursery() as nursery:
        async with announced(discovery):
            await trio.sleep(2.9)
        assert disk.names() == set()
        done = len(disk.done)
        nursery.start_soon(trio.sleep, 60)
    assert disk.names() == set()
    assert len(disk.done) == done


async def test_cancelling_at_the_moment_of_a_renewal_still_removes_the_record(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    for moment in (0.0, 3.0, 6.0):
        with trio.move_on_after(moment):
            await discovery.serve_records([record()])
        assert disk.names() == set()


async def test_changing_the_working_directory_does_not_move_the_records(
    disk: ShakyDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.chdir(tmp_path)
    async with announced(FileDiscovery(Path(), access=lambda base, bucket: ShakyAccess(base, disk, bucket))):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        await trio.sleep(10)
        assert disk.names() == {record().file_name}
        assert list((tmp_path / "elsewhere").iterdir()) == []
    assert disk.names() == set()


async def test_a_renewal_that_hangs_and_wakes_up_after_the_withdrawal_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.discovery._directory.CALL_TIMEOUT", 0.1)
    hanging, released, ended = threading.Event(), threading.Event(), threading.Event()
    written: list[str] = []

    class Hanging(RecordDirectory):
        def touch(self, name: str, content: bytes) -> bool:
            if self.path.joinpath(name).exists():
                hanging.set()
                released.wait(30)
                self._unlink(name)  # so that the renewal has something to write
            return super().touch(name, content)

        def write(self, name: str, content: bytes) -> str | None:
            written.append(name)
            return super().write(name, content)

        def close(self) -> None:
            super().close()
            ended.set()

    class Access(FileAccess):
        def open_directory(self, *, create: bool) -> RecordDirectory:
            return Hanging(self.base, create=create)

    discovery = FileDiscovery(tmp_path, touch_interval=0.01, access=Access)
    async with announced(discovery):
        await trio.to_thread.run_sync(hanging.wait, 30)
    assert (tmp_path / INSTANCES / record().file_name).exists()  # it could not be removed: the call still hangs
    released.set()
    assert await trio.to_thread.run_sync(ended.wait, 30)
    assert list((tmp_path / INSTANCES).iterdir()) == []
    assert written == [record().file_name], "once, at the start"


def delete(path: Path) -> None:
    path.unlink()


def alter(path: Path) -> None:
    path.write_bytes(b"{}")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [delete, alter, make_fifo, make_symlink, make_directory])
async def test_k06_a_record_deleted_or_altered_is_written_again_at_the_next_renewal(
    discovery: FileDiscovery,
    autojump_clock: MockClock,
    disk: ShakyDisk,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with announced(discovery, record(), record(0xABC, CLEAR)):
        path = disk.records / record().file_name
        harm(path)
        await trio.sleep(3.1)
        assert not path.is_symlink()
        assert path.read_bytes() == record().encode()
        assert discovery.rewritten_records == 1
        assert discovery.missed_renewals == 0
        for _ in range(5):
            harm(path)
            await trio.sleep(3.1)
    assert discovery.rewritten_records == 6
    assert [message for message in caplog.messages if "written again" in message] == [
        "discovery record 'demo%2Fbackend%2Fgenerate%2Fabc' was deleted or altered by someone; written again"
    ]


async def test_k06_a_directory_in_the_place_of_a_record_is_set_aside_with_all_that_is_in_it(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    async with announced(discovery):
        path = disk.records / record().file_name
        make_directory(path)
        (path / "of-somebody").write_text("else")
        await trio.sleep(3.1)
        assert path.read_bytes() == record().encode()
        [aside] = disk.records.glob(".aside_*")
        assert (aside / "of-somebody").read_text() == "else"
        assert discovery.missed_renewals == 0 and discovery.rewritten_records == 1
        assert f"a directory stood in its place, and is now {aside.name} in " in caplog.messages[-1]
    assert list(disk.records.iterdir()) == [aside]


async def test_k05_a_link_in_the_place_of_a_removed_directory_is_not_followed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    base, trap = tmp_path / "kv", tmp_path / "trap"
    trap.mkdir()
    disk = ShakyDisk(base)

    class Access(ShakyAccess):
        def open_directory(self, *, create: bool) -> RecordDirectory:
            return FileAccess.open_directory(self, create=create)

    discovery = FileDiscovery(base, access=lambda path, bucket: Access(path, disk, bucket))
    async with announced(discovery):
        shutil.rmtree(base)
        base.symlink_to(trap)
        await trio.sleep(10)
        assert list(trap.iterdir()) == []
        assert discovery.missed_renewals > 1
        base.unlink()
        await trio.sleep(10)
        assert (base / INSTANCES / record().file_name).exists()
        assert discovery.missed_renewals == 0


async def test_a_link_that_the_user_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "kv").symlink_to(tmp_path / "real")
    async with announced(FileDiscovery(tmp_path / "kv")):
        assert (tmp_path / "real" / INSTANCES / record().file_name).exists()


async def test_a_record_that_is_no_longer_ours_is_left_alone_on_leaving(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    async with announced(discovery):
        alter(disk.records / record().file_name)
    assert disk.names() == {record().file_name}


@pytest.mark.parametrize("step", ["open", "create", "sync_file", "replace", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EACCES])
async def test_k05_a_directory_that_cannot_be_written_at_the_start_is_a_startup_error(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, step: str, number: int
) -> None:
    disk.failing[step] = number
    with pytest.raises(StartupError) as caught:
        await discovery.serve_records([record(), record(0xABC, CLEAR)])
    assert str(discovery.directory) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert disk.names() == set()


async def test_k05_a_directory_that_is_a_file_is_a_startup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StartupError, match=r"cannot announce this worker in .*/file: (Not a directory|File exists)"):
        await FileDiscovery(tmp_path / "file").serve_records([record()])


async def test_k05_a_directory_that_hangs_at_the_start_is_a_startup_error(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    disk.is_hanging = True
    with trio.fail_after(2 * CALL_TIMEOUT + 0.1), pytest.raises(StartupError, match="did not answer"):
        await discovery.serve_records([record()])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE])
async def test_k05_renewals_that_fail_are_counted_and_retried_and_the_worker_is_back_by_itself(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with announced(discovery):
        disk.failing["touch"] = number
        await trio.sleep(3.1)
        assert discovery.missed_renewals == 1
        await trio.sleep(3.5)
        assert discovery.missed_renewals == 2
        await trio.sleep(300)
        assert discovery.missed_renewals >= 90
        assert disk.done.count("touch") < 120
        disk.failing.clear()
        await trio.sleep(3.1)
        assert discovery.missed_renewals == 0
        assert disk.wall_time() - (disk.records / record().file_name).stat().st_mtime < 3.1
    failures = [message for message in caplog.messages if "failed" in message]
    assert len(failures) == 6, "at most one line a minute"
    assert str(discovery.directory) in failures[0]
    assert caplog.messages[-1].startswith("discovery records are renewed again")


async def test_k05_the_first_retry_comes_soon_enough_to_save_the_record(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    async with discovery.open_view() as view, announced(discovery):
        disk.failing["touch"] = errno.EIO
        await trio.sleep(3.1)
        assert discovery.missed_renewals == 1
        disk.failing.clear()
        await trio.sleep(0.5)
        assert discovery.missed_renewals == 0
        assert len(view.instances()) == 1


async def test_k05_a_hanging_directory_counts_as_missed_and_does_not_hold_up_the_shutdown(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    async with announced(discovery):
        disk.is_hanging = True
        await trio.sleep(6.1)
        assert discovery.missed_renewals == 2
        disk.wake()
        await trio.sleep(3.1)
        assert discovery.missed_renewals == 0
        disk.is_hanging = True
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(CALL_TIMEOUT)
    assert "could not be removed and will expire" in caplog.text
    disk.wake()
    assert disk.names() == set()


async def test_k05_a_removed_directory_is_made_again_with_the_record_in_it(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, tmp_path: Path
) -> None:
    async with announced(discovery):
        (disk.records / record().file_name).unlink()
        disk.records.rmdir()
        disk.records.parent.rmdir()
        await trio.sleep(3.1)
        assert disk.names() == {record().file_name}

        disk.records.rename(tmp_path / "moved")  # everything still works in there, but nobody looks
        disk.records.mkdir()
        await trio.sleep(3.1)
        assert disk.names() == {record().file_name}
        assert discovery.missed_renewals == 0
    assert disk.names() == set()


async def test_k05_no_thread_to_be_had_is_a_failure_like_others(
    discovery: FileDiscovery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python says so with a RuntimeError, which nobody expects of a file system."""

    async def fail(*args: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    async with discovery.open_view() as view, announced(discovery):
        await trio.sleep(0.2)
        with monkeypatch.context() as exhausted:
            exhausted.setattr(ShakyAccess, "run", fail)
            await trio.sleep(6.5)
            assert discovery.missed_renewals == 2
            assert list(view.instances()) == [record()]
        await trio.sleep(3.1)
        assert discovery.missed_renewals == 0
        assert list(view.instances()) == [record()]
    with monkeypatch.context() as exhausted:
        exhausted.setattr(ShakyAccess, "run", fail)
        with pytest.raises(StartupError, match="can't start new thread"):
            await discovery.serve_records([record(2)])


async def test_r07_what_dead_writers_left_is_removed_when_it_has_not_moved_for_two_lifetimes(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dead, slow = ".tmp_0123456789abcdef", ".tmp_fedcba9876543210"
    disk.put(dead, b'{"half', age=10 * 365 * 86400)
    disk.put(slow, b'{"half')
    async with announced(discovery):
        for _ in range(18):
            await trio.sleep(1)
            disk.set_mtime(slow)
            disk.wall_jump += 3600  # what the wall clock says is no measure
            assert {dead, slow} < disk.names()
        await trio.sleep(6)
        assert disk.names() == {slow, record().file_name}
    assert [line for line in caplog.messages if "dead writers" in line] == [
        f"removed 1 unfinished records of dead writers in {discovery.directory}"
    ]


async def test_leftovers_that_cannot_be_removed_are_no_trouble(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    disk.put(".tmp_0123456789abcdef", b'{"half')
    async with announced(discovery):
        disk.failing["unlink"] = errno.EROFS
        await trio.sleep(60)
        assert discovery.missed_renewals == 0
        disk.failing.clear()


async def test_k04_endpoints_that_differ_by_nothing_but_case_are_refused_before_anything_is_written(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    """On a file system that folds case, both would be one file."""
    twin = EndpointId("demo", "Backend", "generate")
    with pytest.raises(
        StartupError, match=r"demo\.backend\.generate and demo\.Backend\.generate differ by nothing but"
    ):
        await discovery.serve_records([record(), record(0xABC, twin)])
    assert disk.done == []
    async with announced(discovery, record(0xABC), record(0xDEF, twin)):  # two workers' files have different names
        assert len(disk.names()) == 2


async def test_a_directory_that_others_can_write_is_warned_of_once(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.records.mkdir(parents=True)
    disk.records.chmod(0o1777)
    async with announced(discovery):
        await trio.sleep(60)
    assert caplog.messages == [f"others can remove this worker's records in {discovery.directory}: its mode is 1777"]


async def test_k05_one_record_that_cannot_be_renewed_does_not_let_the_others_expire(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    async with announced(discovery, record(), record(0xABC, CLEAR)):
        disk.failing[f"touch {record().file_name}"] = errno.EIO
        await trio.sleep(30)
        assert discovery.missed_renewals >= 2
        age = disk.wall_time() - (disk.records / record(0xABC, CLEAR).file_name).stat().st_mtime
        assert age < 3.1


async def test_a_record_that_no_reader_would_take_is_refused_before_anything_is_written(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    with pytest.raises(StartupError, match=r"cannot announce demo\.backend\.generate: .*u64"):
        await discovery.serve_records([record(2**64)])
    assert disk.done == []


async def test_k04_names_too_long_for_a_file_are_a_startup_error(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    full = EndpointId("n" * 128, "c" * 101, "e")
    async with announced(discovery, record(2**64 - 1, full)):
        assert len(disk.names()) == 1
    longer = EndpointId("n" * 128, "c" * 102, "e")
    with pytest.raises(StartupError, match=rf"cannot announce {longer}: .* file name has 256 bytes \(max: 255\)"):
        await discovery.serve_records([record(), record(2**64 - 1, longer)])
    assert disk.names() == set()


def test_the_directory_is_the_one_dynamo_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert default_directory({"DYN_FILE_KV": "/some/where"}) == Path("/some/where")
    assert default_directory({"DYN_FILE_KV": ""}) == default_directory({}) == tmp_path / "dynamo_store_kv"


# -- the caller's half -----------------------------------------------------------------------------------------------


async def test_the_directory_has_been_listed_when_a_view_is_entered(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    disk.put(record().file_name, record().encode())
    async with discovery.open_view() as view:
        assert list(view.instances(GENERATE)) == [record()]
        assert list(view.instances(CLEAR)) == []


@pytest.mark.parametrize("path", CAPTURES, ids=[path.stem for path in CAPTURES])
async def test_records_of_real_workers_are_found(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, path: Path
) -> None:
    capture = json.loads(path.read_text())
    disk.put(capture["file_name"], bytes.fromhex(capture["bytes_hex"]))
    async with discovery.open_view() as view:
        [found] = view.instances(GENERATE)
    assert found.instance_id == capture["decoded"]["instance_id"]
    assert found.transport == capture["decoded"]["transport"]
    assert found.request_plane_codec == capture["decoded"].get("request_plane_codec")


async def test_workers_are_seen_coming_and_going_within_two_looks(
    discovery: FileDiscovery, autojump_clock: MockClock
) -> None:
    async with discovery.open_view() as view:
        for _ in range(3):
            async with announced(discovery):
                with trio.fail_after(0.21):
                    await view.wait_changed()
                assert list(view.instances()) == [record()]
                await trio.sleep(30)
                assert list(view.instances()) == [record()]
            with trio.fail_after(0.21):
                await view.wait_changed()
            assert list(view.instances()) == []


async def test_a_view_neither_creates_nor_alters_anything(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, tmp_path: Path
) -> None:
    async with discovery.open_view() as view:
        await trio.sleep(1)
        assert list(view.instances()) == []
    assert list(tmp_path.iterdir()) == []

    disk.put(record().file_name, record().encode(), age=3600)
    disk.put("junk", b"junk", age=3600)
    before = {path.name: path.stat() for path in disk.records.iterdir()}
    async with discovery.open_view():
        await trio.sleep(60)
    assert {path.name: path.stat().st_mtime_ns for path in disk.records.iterdir()} == {
        name: status.st_mtime_ns for name, status in before.items()
    }


async def test_k01_the_record_of_a_killed_worker_is_ignored_after_ten_seconds_but_not_deleted(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    disk.put(record().file_name, record().encode())
    async with discovery.open_view() as view:
        await trio.sleep(9.9)
        assert len(view.instances()) == 1
        await trio.sleep(0.3)
        assert len(view.instances()) == 0
        assert disk.names() == {record().file_name}
        disk.set_mtime(record().file_name)
        await trio.sleep(0.2)
        assert len(view.instances()) == 1


async def test_t01_the_record_of_a_worker_killed_long_ago_is_never_listed(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    disk.put(record().file_name, record().encode(), age=11)
    async with discovery.open_view() as view:
        for _ in range(30):
            await trio.sleep(1)
            assert list(view.instances()) == []


async def test_t01_wall_clock_jumps_are_survived_by_both_halves(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    async with discovery.open_view() as view, announced(discovery):
        await trio.sleep(0.2)
        for second in range(60):
            disk.wall_jump = (3600.0, -3600.0, 10 * 365 * 86400.0, 0.0)[second % 4]
            await trio.sleep(1)
            assert len(view.instances()) == 1
        assert discovery.rewritten_records == 0


async def test_t02_nobody_is_declared_dead_for_the_time_this_process_slept(
    discovery: FileDiscovery, disk: ShakyDisk, autojump_clock: MockClock
) -> None:
    dead = record(1)
    disk.put(dead.file_name, dead.encode(), age=60)
    async with discovery.open_view() as view, announced(discovery):
        await trio.sleep(1)
        for pause in (4.0, 6.0, 11.0, 1000.0):
            autojump_clock.jump(pause)
            await trio.sleep(0)
            for _ in range(40):
                await trio.sleep(0.1)
                assert list(view.instances()) == [record()]
        assert discovery.missed_renewals == 0


async def test_t02_a_sleep_that_begins_in_the_middle_of_a_look_is_forgiven_too(
    discovery: FileDiscovery, disk: ShakyDisk, autojump_clock: MockClock
) -> None:
    disk.put(record().file_name, record().encode())

    def fall_asleep() -> None:
        disk.during_scan = lambda: None
        autojump_clock.jump(1000)

    async with discovery.open_view() as view:
        disk.during_scan = fall_asleep
        for _ in range(90):
            await trio.sleep(0.1)
            assert len(view.instances()) == 1


async def test_t02_a_worker_that_died_during_the_sleep_is_dropped_one_expiry_later(
    discovery: FileDiscovery, disk: ShakyDisk, autojump_clock: MockClock
) -> None:
    disk.put(record().file_name, record().encode())
    async with discovery.open_view() as view:
        autojump_clock.jump(1000)
        await trio.sleep(9.9)
        assert len(view.instances()) == 1
        await trio.sleep(0.4)
        assert len(view.instances()) == 0


def put_junk(disk: ShakyDisk) -> dict[str, str]:
    """Place one neighbour of each nasty kind; returns which words its log line must have."""
    good = record(0xBAD).encode()
    contents = {
        "bad-json": (b"{", ""),
        "empty": (b"", ""),
        "half": (good[:80], ""),
        "deep": (b"[" * 10_000, "deeper"),
        "wrong-types": (b'{"namespace":1}', ""),
        "list": (b"[]", ""),
        "large": (b" " * 1_048_576, "1048576 bytes"),
        "%2F..%2F": (good, "holds key"),
        "%2e%2e%2F..%2Fescape": (good, "holds key"),
        "new\nline": (good, "holds key"),
        "x" * 250: (good, "file"),
        "\udcff\udcfe": (good, "holds key"),
        "host": (good.replace(b"127.0.0.1:", b"a\\u001b[31mb:"), "names no host"),
        "traversal": (good.replace(b'"demo"', b'"../../demo"'), "must match"),
    }
    for name, (content, _) in contents.items():
        disk.put(name, content)
    (disk.records / "folder").mkdir()
    os.mkfifo(disk.records / "fifo")
    (disk.records / "link-out").symlink_to("/etc/passwd")
    (disk.records / "loop").symlink_to("loop")
    special = dict.fromkeys(("folder", "fifo", "link-out", "loop"), "not a regular file")
    return {name: words for name, (_, words) in contents.items()} | special


async def test_k02_k03_junk_in_the_directory_is_skipped_with_one_line_a_file_and_hour(
    tmp_path: Path, disk: ShakyDisk, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = FileDiscovery(tmp_path, poll_interval=1.0, access=lambda base, bucket: ShakyAccess(base, disk, bucket))
    junk = put_junk(disk)
    async with announced(discovery), discovery.open_view() as view:
        for minute in range(61):
            for name in junk:
                if (disk.records / name).is_file() and not (disk.records / name).is_symlink():
                    disk.set_mtime(name)  # read again each time
            if minute < 60:
                await trio.sleep(60)
                assert list(view.instances()) == [record()]
        lines = [line for line in caplog.messages if "is skipped" in line]
        assert len(lines) == len(junk)
        for name, words in junk.items():
            [line] = [line for line in lines if f"record {name!r:.200} " in line]
            assert words in line
            assert line.isprintable()
            assert len(line) < 500
        assert discovery.rewritten_records == 0
        await trio.sleep(2)
        assert sum("is skipped" in line for line in caplog.messages) == 2 * len(junk) - 4, "another line after an hour"
        # Those that moved were counted each time, the four that are no files once.
        looks = 61
        assert discovery.skipped_records == {
            "kind": 4, "owner": 0, "size": looks, "unreadable": 0, "content": (len(junk) - 5) * looks, "crowded": 0
        }  # fmt: skip
    assert disk.names() == set(junk)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give a file away")
async def test_k02_a_record_of_another_user_is_skipped(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.put(record().file_name, record().encode())
    os.chown(disk.records / record().file_name, 54321, -1)
    async with discovery.open_view() as view:
        assert list(view.instances()) == []
        await trio.sleep(60)
    assert "owned by user 54321" in caplog.text
    assert discovery.skipped_records["owner"] == 1


async def test_k02_a_crowded_directory_costs_bounded_memory_and_keeps_what_was_found_in_it(
    discovery: FileDiscovery,
    autojump_clock: MockClock,
    disk: ShakyDisk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("_directory", "_watcher"):
        monkeypatch.setattr(f"ingress.discovery.{module}.MAX_FILES", 20)
    async with discovery.open_view() as view, announced(discovery):
        await trio.sleep(0.2)
        assert list(view.instances()) == [record()]
        for number in range(100):
            disk.put(f"a-{number}", b"junk")
        await trio.sleep(60)
        assert list(view.instances()) == [record()]
        for number in range(100):
            (disk.records / f"a-{number}").unlink()
        disk.put(record(2).file_name, record(2).encode())
        await trio.sleep(0.2)
        assert list(view.instances()) == [record(2), record()]
    assert discovery.skipped_records["crowded"] == 1
    assert discovery.skipped_records["content"] <= 20
    assert [line for line in caplog.messages if "20 files or more" in line] == [
        f"{discovery.directory} holds 20 files or more; new ones are not looked at"
    ]


async def test_k05_a_file_that_cannot_be_read_for_long_is_counted_once(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.put(record().file_name, record().encode())
    monkeypatch.setattr(ShakyDirectory, "read", fail)
    async with discovery.open_view() as view:
        await trio.sleep(5)
        assert discovery.skipped_records["unreadable"] == 1
        monkeypatch.undo()
        await trio.sleep(0.2)
        assert list(view.instances()) == [record()]


async def test_dot_files_and_the_model_cards_beside_are_ignored_in_silence(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.put(".tmp_0123456789abcdef", record().encode())
    cards = disk.records.parent / "mdc"
    cards.mkdir()
    (cards / record().file_name).write_bytes(b"{}")
    async with discovery.open_view() as view:
        await trio.sleep(1)
        assert list(view.instances()) == []
    assert caplog.messages == []


@pytest.mark.parametrize("step", ["open", "scan"])
async def test_k05_a_view_outlives_a_directory_that_cannot_be_listed(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    disk.failing[step] = errno.EIO
    async with discovery.open_view() as view:
        assert list(view.instances()) == []
        disk.failing.clear()
        disk.put(record().file_name, record().encode())
        await trio.sleep(0.2)
        assert len(view.instances()) == 1
        disk.failing["scan"] = errno.EIO
        await trio.sleep(5)
        assert len(view.instances()) == 1, "not seeing is no proof of death"
        await trio.sleep(6)
        assert len(view.instances()) == 0, "but nor is it a sign of life"
        disk.set_mtime(record().file_name)
        disk.failing.clear()
        await trio.sleep(0.2)
        assert len(view.instances()) == 1
    assert len([line for line in caplog.messages if "looking for discovery records" in line]) == 1


async def test_k05_a_view_follows_a_directory_that_is_removed_and_made_again(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk, tmp_path: Path
) -> None:
    disk.put(record().file_name, record().encode())
    async with discovery.open_view() as view:
        (tmp_path / "v1").rename(tmp_path / "moved")
        await trio.sleep(0.2)
        assert list(view.instances()) == []
        disk.put(record(2).file_name, record(2).encode())
        await trio.sleep(0.2)
        assert list(view.instances()) == [record(2)]


async def test_a_view_that_hangs_is_left_within_a_bound_and_closes_the_directory_later(
    discovery: FileDiscovery, disk: ShakyDisk, autojump_clock: MockClock
) -> None:
    disk.put(record().file_name, record().encode())
    async with discovery.open_view():
        disk.is_hanging = True
        await trio.sleep(1)
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(CALL_TIMEOUT)
    disk.wake()


async def test_k10_a_directory_that_is_slow_to_list_is_listed_less_often(
    discovery: FileDiscovery, disk: ShakyDisk, autojump_clock: MockClock
) -> None:
    disk.put(record().file_name, record().encode())
    for slowness, looks in ((0.0, 100), (0.1, 20), (2.0, 4)):
        disk.during_scan = lambda slowness=slowness: autojump_clock.jump(slowness)  # type: ignore[misc]  # bound early
        async with discovery.open_view():
            disk.done.clear()
            with trio.move_on_after(10):
                await trio.sleep_forever()
            assert disk.done.count("scan") == pytest.approx(looks, abs=1)


async def test_what_is_raised_inside_a_view_comes_out_as_it_is(
    discovery: FileDiscovery, autojump_clock: MockClock
) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with discovery.open_view():
            raise KeyError("mine")


async def test_k10_a_hundred_workers_coming_together_are_one_change(
    discovery: FileDiscovery, autojump_clock: MockClock, disk: ShakyDisk
) -> None:
    async with discovery.open_view() as view:
        changes = 0

        async def count() -> None:
            nonlocal changes
            while True:
                await view.wait_changed()
                changes += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await wait_all_tasks_blocked()
            for instance_id in range(100):
                disk.put(record(instance_id).file_name, record(instance_id).encode())
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        assert changes == 1
        assert [found.instance_id for found in view.instances()] == list(range(100))


async def test_a_worker_and_a_caller_meet_on_a_real_disk_in_real_time(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path, touch_interval=0.05, poll_interval=0.01, expiry=5.0)

    async def until(view: InstanceView, count: int) -> None:
        while len(view.instances(GENERATE)) != count:
            await view.wait_changed()

    with trio.fail_after(30):
        async with discovery.open_view() as view:
            async with announced(discovery):
                await until(view, 1)
                before = (tmp_path / INSTANCES / record().file_name).stat().st_mtime_ns
                await trio.sleep(0.3)
                assert (tmp_path / INSTANCES / record().file_name).stat().st_mtime_ns > before
                (tmp_path / INSTANCES / record().file_name).unlink()
                while discovery.rewritten_records == 0:
                    await trio.sleep(0.01)
                await until(view, 1)
            await until(view, 0)


# -- model cards -----------------------------------------------------------------------------------------------------

MODEL = ModelRecord(GENERATE, 0xABC, {"display_name": "m"})


@asynccontextmanager
async def model_announced(discovery: FileDiscovery) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.serve_records, [record(), MODEL])
        yield
        nursery.cancel_scope.cancel()


async def test_a_model_card_lies_beside_its_instance_under_the_same_name(tmp_path: Path) -> None:
    async with model_announced(FileDiscovery(tmp_path)):
        (card,) = (tmp_path / "v1" / "mdc").iterdir()
        (instance,) = (tmp_path / "v1" / "instances").iterdir()
        assert card.name == instance.name == "demo%2Fbackend%2Fgenerate%2Fabc"
        assert json.loads(card.read_bytes()) == {
            "type": "Model",
            "namespace": "demo",
            "component": "backend",
            "endpoint": "generate",
            "instance_id": 0xABC,
            "card_json": {"display_name": "m"},
        }
    assert not card.exists()
    assert not instance.exists()


async def test_a_model_card_is_kept_alive_and_put_back(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path, touch_interval=0.01)
    async with model_announced(discovery):
        (card,) = (tmp_path / "v1" / "mdc").iterdir()
        os.utime(card, (0, 0))
        with trio.fail_after(10):
            while card.stat().st_mtime == 0:
                await trio.sleep(0.01)
        card.unlink()
        with trio.fail_after(10):
            while not discovery.rewritten_records:
                await trio.sleep(0.01)
        assert card.exists()
    assert discovery.rewritten_records == 1


async def test_a_model_is_not_listed_before_or_after_its_instance_is(tmp_path: Path) -> None:
    steps: list[str] = []

    class Noting(RecordDirectory):
        def _replace(self, source: str, target: str) -> None:
            super()._replace(source, target)
            steps.append(f"write {self.path.name}")

        def _unlink(self, name: str) -> None:
            super()._unlink(name)
            steps.append(f"remove {self.path.name}")

    class Access(FileAccess):
        def open_directory(self, *, create: bool) -> RecordDirectory:
            return Noting(self.base, create=create, bucket=self.bucket)

    async with model_announced(FileDiscovery(tmp_path, access=Access)):
        pass
    assert steps == ["write instances", "write mdc", "remove mdc", "remove instances"]


async def test_where_the_card_cannot_be_written_no_instance_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "mdc").write_text("no directory")
    with pytest.raises(StartupError, match="cannot announce this worker"):
        await FileDiscovery(tmp_path).serve_records([record(), MODEL])
    assert list((tmp_path / "v1" / "instances").iterdir()) == []
