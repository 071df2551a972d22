"""The watermark under a control group's memory limit: which limit counts, and what happens above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ingress._admission import Admission
from ingress._memory_watermark import MemoryWatermark, find_memory_limit
from ingress.wire.request_frame import encode_request_frame

from .raw_caller import open_stage

MIB = 1 << 20


def group_v2(root: Path, path: str, limit: int | str, used: int = 0, inactive: int = 0) -> Path:
    """Write a control group of version 2 as the kernel shows it."""
    directory = root / "sys/fs/cgroup" / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\nactive_file 2\n")
    return directory


def process_in(root: Path, *lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root


def test_the_tightest_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    root = process_in(tmp_path, "0::/pod/worker")
    group_v2(root, "pod", 256 * MIB)
    group_v2(root, "pod/worker", 512 * MIB)
    found = find_memory_limit(root)
    assert found is not None
    assert found.limit == 256 * MIB


def test_inside_a_container_the_group_is_at_the_root_whatever_its_path_is_called(tmp_path: Path) -> None:
    root = process_in(tmp_path, "0::/kubepods/burstable/abc")
    group_v2(root, "", 256 * MIB)
    found = find_memory_limit(root)
    assert found is not None
    assert found.limit == 256 * MIB


def test_version_1_has_names_of_its_own_and_a_number_for_no_limit(tmp_path: Path) -> None:
    root = process_in(tmp_path, "4:memory:/a", "0::/")
    for name, limit in (("", 9223372036854771712), ("a", 256 * MIB)):
        directory = root / "sys/fs/cgroup/memory" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (directory / "memory.usage_in_bytes").write_text(f"{200 * MIB}\n")
        (directory / "memory.stat").write_text(f"total_inactive_file {50 * MIB}\n")
    found = find_memory_limit(root)
    assert found is not None
    assert (found.limit, found.used()) == (256 * MIB, 150 * MIB)


def test_where_there_is_no_limit_there_is_no_watermark(tmp_path: Path) -> None:
    assert find_memory_limit(tmp_path) is None
    root = process_in(tmp_path, "0::/a", "3:cpuset:/", "4:memory:/gone")
    group_v2(root, "a", "max")
    assert find_memory_limit(root) is None


async def test_l08_above_the_watermark_requests_that_have_not_come_whole_are_overloaded(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def engine(request: str) -> AsyncIterator[Any]:
        yield len(request)

    root = process_in(tmp_path, "0::/a")
    group_v2(root, "a", 100 * MIB, 80 * MIB)
    limit = find_memory_limit(root)
    monkeypatch.setattr("ingress._worker.find_memory_limit", lambda: limit)
    async with open_stage(engine, memory_watermark=0.9) as stage:
        connection = await stage.caller.connect(stage.worker)
        large = encode_request_frame(connection.path, {}, stage.caller.payload("x" * MIB))
        await connection.stream.send_all(large[: MIB // 2])
        await trio.sleep(1)
        group_v2(root, "a", 100 * MIB, 95 * MIB)
        await trio.sleep(1)
        await connection.stream.send_all(large[MIB // 2 : MIB // 2 + 1000])
        assert await connection.read_acks(2) == ["Server overloaded: worker is short of memory"]


async def test_l08_above_the_watermark_new_requests_are_overloaded_and_running_ones_go_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    root = process_in(tmp_path, "0::/a")
    group_v2(root, "a", 100 * MIB, 80 * MIB)

    async def engine(request: float) -> AsyncIterator[Any]:
        await trio.sleep(request)
        yield "done"

    async with open_stage(engine) as stage:
        stage.worker.admission._memory = MemoryWatermark(0.9, find_memory_limit(root))
        running = await stage.call(10)
        group_v2(root, "a", 100 * MIB, 95 * MIB)
        assert await stage.ask(stage.caller.payload(0)) == ""  # looked at once a second
        large = stage.caller.payload("x" * (1 << 20))
        assert await stage.ask(large) == "Server overloaded: worker is short of memory"  # and for large requests
        await trio.sleep(1)
        for _ in range(2):
            assert await stage.ask(stage.caller.payload(0)) == "Server overloaded: worker is short of memory"
        assert stage.sample("dynamo_rejection_request_total") == 3
        group_v2(root, "a", 100 * MIB, 95 * MIB, inactive=20 * MIB)  # the kernel has files to drop
        await trio.sleep(1)
        assert await stage.ask(stage.caller.payload(0)) == ""
        assert (await running.read_to_sentinel()).items == ["done"]


async def test_a_group_that_can_no_longer_be_read_refuses_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = process_in(tmp_path, "0::/a")
    directory = group_v2(root, "a", 100, 100)
    admission = Admission(memory=MemoryWatermark(0.9, find_memory_limit(root)))
    (directory / "memory.current").unlink()
    for _ in range(2):
        admission.admit()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("fraction", [0, -1, 1.1])
def test_a_watermark_that_makes_no_sense_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="memory_watermark must be more than 0 and at most 1"):
        MemoryWatermark(fraction, None)
