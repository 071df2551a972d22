"""``ingress serve`` and callers beside hostile neighbours, on full and vanishing disks: real processes, real files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, frozen

import ingress
from ingress.errors import NoInstances, NotAccepted, Unavailable
from ingress.wire.records import InstanceRecord

PATIENCE = 30.0
ENDPOINT = "demo.backend.generate"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="FIFOs, signals and modes as POSIX has them")


@frozen
class Served:
    """A running ``ingress serve``; ``records`` is its directory, seen from here."""

    process: subprocess.Popen[bytes]
    log_file: Path
    records: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def lines(self, words: str) -> list[str]:
        return [record["message"] for record in self.log if words in record["message"]]

    @property
    def own(self) -> list[Path]:
        """The files that are records, whoever wrote them."""
        found = list(self.records.iterdir()) if self.records.exists() else []
        return [path for path in found if path.name.startswith("demo%2F") and path.is_file()]

    def page(self, path: str) -> tuple[int, str]:
        found = re.search(r"status on (http://[\d.:]+)", self.log_file.read_text())
        assert found is not None
        try:
            with urllib.request.urlopen(f"{found[1]}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def sample(self, series: str) -> float:
        (line,) = (line for line in self.page("/metrics")[1].splitlines() if line.startswith(f"{series} "))
        return float(line.rpartition(" ")[2])

    def wait_started(self) -> None:
        self.wait_for(lambda: self.own and "status on" in self.log_file.read_text())

    def wait_for(self, is_so: Callable[[], object]) -> float:
        begun = time.monotonic()
        while not is_so():
            assert time.monotonic() - begun < PATIENCE, self.log_file.read_text()
            assert self.process.poll() is None, self.log_file.read_text()
            time.sleep(0.02)
        return time.monotonic() - begun


@contextmanager
def serving(scratch: Path, kv: Path, *, before: tuple[str, ...] = (), seen: Path | None = None) -> Iterator[Served]:
    """Start a worker.

    Args:
        kv: the directory of discovery, as the worker knows it.
        before: a command that runs the worker.
        seen: ``kv`` as this process sees it; ``{pid}`` is the worker's.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "INGRESS_", "OTEL_"))}
    command = [*before, sys.executable, "-m", "ingress", "serve", "echo", "--endpoint", ENDPOINT]
    command += ["--status-port", "0", "--grace", "0", "--file-kv", str(kv)]
    log_file = scratch / f"log-{time.monotonic_ns()}"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, stderr=log, stdout=log, stdin=subprocess.DEVNULL, env={**kept, "DYN_LOGGING_JSONL": "true"}
        )
    try:
        base = Path(str(seen or kv).format(pid=process.pid))
        yield Served(process, log_file, base / "v1" / "instances")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, tmp_path / "kv") as served:
        served.wait_started()
        yield served


def discovery_of(served: Served) -> ingress.FileDiscovery:
    return ingress.FileDiscovery(served.records.parent.parent)


async def ask(client: ingress.Client, **options: Any) -> list[Any]:
    async with client.stream(ENDPOINT, "hello?", **options) as responses:
        return [item async for item in responses]


# -- neighbours ------------------------------------------------------------------------------------------------------


def put_hostile_neighbours(records: Path, good: bytes) -> set[str]:
    """Place what no worker of this project would; returns the names."""
    contents = {
        "bad-json": b"{",
        "empty": b"",
        "half": good[: len(good) // 2],
        "deep": b"[" * 100_000,
        "wrong-types": good.replace(b'"demo"', b"7"),
        "large": b" " * 2**20,
        "%2F..%2F..%2Fescape": good,
        "new\nline\x1b[31m\u202e": good,
        "x" * 250: good,
        "demo%2Fbackend%2Fgenerate%2Fbad": good.replace(b'"demo"', b'"../../demo"'),
        "demo%2Fbackend%2Fgenerate%2F1%00": good,
    }
    for name, content in contents.items():
        (records / name).write_bytes(content)
    os.mkfifo(records / "demo%2Fbackend%2Fgenerate%2Ff1f0")
    (records / "demo%2Fbackend%2Fgenerate%2F11").symlink_to("/etc/passwd")
    (records / "loop").symlink_to("loop")
    (records / "demo%2Fbackend%2Fgenerate%2Fd1").mkdir()
    return {path.name for path in records.iterdir()}


async def test_k02_k03_a_worker_and_its_callers_live_beside_hostile_neighbours(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    (own,) = served.own
    content, before = own.read_bytes(), own.stat().st_mtime
    names = put_hostile_neighbours(served.records, content)
    discovery = discovery_of(served)
    async with ingress.open_client(discovery=discovery) as client:
        with trio.fail_after(PATIENCE):
            for _ in range(8):  # across a renewal
                assert await ask(client) == ["hello?"]
                assert len(client.instances()) == 1
                await trio.sleep(0.5)
    assert own.read_bytes() == content and own.stat().st_mtime > before
    assert {path.name for path in served.records.iterdir()} == names, "nothing was touched"
    junk = names - {own.name}
    skipped = [line for line in caplog.messages if "is skipped" in line]
    assert len(skipped) == len(junk) == sum(discovery.skipped_records.values())
    assert all(line.isprintable() and len(line) < 1024 for line in skipped)
    assert served.sample("ingress_records_rewritten_total") == 0
    assert not [record for record in served.log if record["level"] in ("WARN", "ERROR")]


@pytest.mark.parametrize("harm", ["deleted", "altered", "replaced by a FIFO"])
def test_k06_a_served_record_that_was_harmed_is_back_within_one_renewal(served: Served, harm: str) -> None:
    (own,) = served.own
    content = own.read_bytes()
    if harm == "altered":
        own.write_bytes(content.replace(b"127.0.0.1", b"10.9.8.7"))
    else:
        own.unlink()
        if harm != "deleted":
            os.mkfifo(own)
    served.wait_for(lambda: own.is_file() and own.read_bytes() == content)
    served.wait_for(lambda: served.lines("written again"))
    assert len(served.lines("written again")) == 1
    assert served.sample("ingress_records_rewritten_total") == 1
    assert served.page("/health")[0] == 200


async def test_k01_when_the_only_worker_is_killed_callers_are_told_and_find_the_next(tmp_path: Path) -> None:
    kv = tmp_path / "kv"
    with serving(tmp_path, kv) as served:
        await trio.to_thread.run_sync(served.wait_started)
        async with ingress.open_client(discovery=discovery_of(served), set_aside=0.5) as client:
            with trio.fail_after(4 * PATIENCE):
                (dead,) = await client.wait_for_instances(ENDPOINT)
                assert await ask(client) == ["hello?"]
                served.process.send_signal(signal.SIGKILL)
                await trio.to_thread.run_sync(served.process.wait)
                begun = trio.current_time()
                with pytest.raises((NotAccepted, NoInstances, Unavailable)):
                    await ask(client)
                assert trio.current_time() - begun < 5, "told, long before the record expires"
                with serving(tmp_path, kv):
                    while not [each for each in client.instances() if each.instance_id != dead.instance_id]:
                        await trio.sleep(0.02)
                    await trio.sleep(0.6)
                    while dead in client.instances():
                        await trio.sleep(0.1)
                    assert trio.current_time() - begun < 20
                    assert await ask(client) == ["hello?"]
    assert (kv / "v1" / "instances" / dead.file_name).exists(), "a caller removes nothing"


async def test_k11_a_stale_record_that_leads_to_another_worker_is_refused_and_left_alone(served: Served) -> None:
    """The port of a worker that was killed may be another's by now; the path tells them apart."""
    (own,) = served.own
    living = InstanceRecord.decode(own.read_bytes(), file_name=own.name)
    address, path = living.tcp_target
    stale = evolve(living, instance_id=0xDEAD, transport={"tcp": f"{address}/dead/{path.partition('/')[2]}"})
    (served.records / stale.file_name).write_bytes(stale.encode())
    async with ingress.open_client(discovery=discovery_of(served)) as client:
        with trio.fail_after(PATIENCE):
            await client.wait_for_instances(ENDPOINT, 2)
            with pytest.raises(NotAccepted, match="unknown endpoint"):
                await ask(client, routing="direct", instance_id=0xDEAD)
            for _ in range(4):
                assert await ask(client) == ["hello?"]
            while stale in client.instances():
                await trio.sleep(0.1)
            assert await ask(client) == ["hello?"]
    assert served.page("/health")[0] == 200


# -- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def serving_on_small_disk(scratch: Path, options: str, run: str = 'exec "$@"') -> Iterator[Served]:
    """Serve with discovery on a file system of its own, which nobody but the worker and ``/proc/<pid>/root`` sees."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    disk = scratch / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o {options} none "$0" && cd "$0" && {run}'
    before = ("unshare", "-rm", "sh", "-c", mount, str(disk))
    probe = subprocess.run([*before, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.strip()}")
    with serving(scratch, disk / "kv", before=before, seen=Path(f"/proc/{{pid}}/root{disk}/kv")) as served:
        yield served


def remount(served: Served, how: str) -> None:
    pid = str(served.process.pid)
    disk = str(served.records).partition("/root")[2].removesuffix("/kv/v1/instances")
    enter = ["nsenter", "-t", pid, "-U", "-m", "--preserve-credentials"]
    subprocess.run([*enter, "mount", "-o", f"remount,{how}", disk], check=True)


@pytest.mark.parametrize(
    ("options", "prepare", "complaint"),
    [
        ("size=16k", "cp /dev/zero filler 2>/dev/null", "No space left on device"),
        ("nr_inodes=5", "true", "No space left on device"),
        ("size=16k", 'mount -o remount,ro "$0"', "Read-only file system"),
    ],
    ids=["full", "no inodes", "read-only"],
)
def test_k05_a_disk_that_takes_no_record_at_the_start_is_an_error_and_leaves_no_half(
    tmp_path: Path, options: str, prepare: str, complaint: str
) -> None:
    run = f'mkdir -p kv/v1/instances kv/v1/mdc; {prepare}; "$@"; code=$?; ls -RA kv; exit $code'
    with serving_on_small_disk(tmp_path, options, run) as served:
        assert served.process.wait(PATIENCE) == 3
        text = served.log_file.read_text()
        assert "cannot announce this worker in" in text and complaint in text and "Traceback" not in text
        assert "kv/v1/instances" in text and "demo%2F" not in text and ".tmp_" not in text


@pytest.mark.parametrize("trouble", ["full", "read-only", "removed and full"])
def test_k05_a_disk_that_takes_no_renewal_makes_the_worker_not_ready_until_it_does(
    tmp_path: Path, trouble: str
) -> None:
    with serving_on_small_disk(tmp_path, "size=64k") as served:
        served.wait_started()
        (own,) = served.own
        content, filler = own.read_bytes(), served.records.parents[2] / "filler"
        assert served.page("/health")[0] == 200
        if trouble == "read-only":
            remount(served, "ro")
        else:
            if trouble == "full":
                own.unlink()
            else:
                shutil.rmtree(served.records.parents[1])
            with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))
        served.wait_for(lambda: served.page("/health")[0] == 503)
        assert served.sample("ingress_missed_renewals") >= 2
        reasons = json.loads(served.page("/health?verbose")[1])["reasons"]
        assert "could not be renewed" in reasons["discovery"]
        assert served.page("/live")[0] == 200
        assert len(served.lines("renewing discovery records")) == 1
        assert not list(served.records.glob(".tmp_*"))

        if trouble == "read-only":
            remount(served, "rw")
        else:
            filler.unlink()
        assert served.wait_for(lambda: served.page("/health")[0] == 200) < 10
        assert own.read_bytes() == content
        assert served.sample("ingress_missed_renewals") == 0
