"""``ingress serve`` as a process under attack, and what the kernel and its pages say about it."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import trio
from attrs import define, field, frozen
from prometheus_client.parser import text_string_to_metric_families

from ingress._network import TcpNetwork, TcpStream
from ingress.wire.records import InstanceRecord
from tests.raw_caller import RawCaller, RawConnection, Transcript, open_raw_caller

NETWORK = TcpNetwork()

# Guards against hanging, ten times and more what things take.
PATIENCE = 30.0
ALIVE = 10.0

# Descriptors that come and go by themselves.
SPARE_DESCRIPTORS = 3

_TICKS = os.sysconf("SC_CLK_TCK")


@frozen
class Worker:
    """A running ``ingress serve`` with a status server."""

    process: subprocess.Popen[bytes]
    directory: Path
    record: InstanceRecord
    status_url: str

    @property
    def pid(self) -> int:
        return self.process.pid

    def records(self) -> list[InstanceRecord]:
        return [self.record]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.record.tcp_target[0].rpartition(":")
        return host, int(port)

    # -- what the kernel says ------------------------------------------------------------------------------------------

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_memory(self) -> int:
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())[0]) * 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    # -- what it says itself -------------------------------------------------------------------------------------------

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="surrogateescape")

    async def page(self) -> str:
        async with httpx2.AsyncClient() as http:
            return (await http.get(f"{self.status_url}/metrics", timeout=PATIENCE)).text

    async def samples(self) -> dict[str, float]:
        """The page as a mapping of series to values, label sets as they are printed."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(await self.page()):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    async def sample(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with these labels."""
        wanted = [f"{label}={value}" for label, value in labels.items()]
        return sum(
            value
            for series, value in (await self.samples()).items()
            if series.startswith(f"{name}{{") and all(each in series for each in wanted)
        )

    async def errors(self) -> dict[str, float]:
        """``errors_total`` by type, zeros left out."""
        found: dict[str, float] = {}
        for series, value in (await self.samples()).items():
            if series.startswith("dynamo_component_errors_total{") and value:
                (kind,) = re.findall("error_type=([a-z_]+)", series)
                found[kind] = value
        return found

    async def in_flight(self) -> float:
        return await self.sample("dynamo_component_inflight_requests")

    # -- callers -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open_caller(self) -> AsyncIterator[RawCaller]:
        with trio.fail_after(4 * PATIENCE):
            async with open_raw_caller(NETWORK) as caller:
                yield caller

    async def connect(self) -> TcpStream:
        return await NETWORK.connect(*self.address)

    async def ask(self, frame: bytes, acks: int = 1) -> tuple[list[str], bool]:
        """Send bytes on a connection of their own; return the acks, and whether the worker closed it after them."""
        async with await self.connect() as stream:
            connection = RawConnection(stream, self.record.tcp_target[1])
            with trio.fail_after(PATIENCE):
                await stream.send_all(frame)
                said = await connection.read_acks(acks)
                with trio.move_on_after(0.1):
                    return said, not await stream.receive_some()
            return said, False

    async def tell(self, caller: RawCaller, body: object = "hello?", **control: object) -> Transcript:
        """An ordinary request on a new connection, read to its end."""
        connection = await caller.connect(self)
        response = await caller.call(connection, body, **control)
        said = await response.read_to_sentinel()
        await response.aclose()
        await connection.stream.aclose()
        return said

    async def assert_alive(self) -> None:
        """An ordinary caller is served."""
        with trio.fail_after(ALIVE):
            async with self.open_caller() as caller:
                said = await self.tell(caller)
        assert said.is_whole and said.items == ["hello?"]
        assert self.process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@define
class Watch:
    """Takes a worker's gauge and descriptors before an attack, and holds them against those after it."""

    worker: Worker
    descriptors: int = field(init=False)
    memory: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.descriptors, self.memory = self.worker.descriptors(), self.worker.memory()

    async def assert_back(self, *, growth: int | None = None, within: float = PATIENCE) -> None:
        """The gauge is at zero and nothing stays open; memory grew by less than ``growth`` bytes where that is given.

        The worker serves others, too.
        """
        await self.worker.assert_alive()
        await self.assert_closed(growth=growth, within=within)

    async def assert_closed(self, *, growth: int | None = None, within: float = PATIENCE) -> None:
        """The same, without asking the worker to serve anybody."""
        deadline = trio.current_time() + within
        while left := await self._left(growth):
            assert trio.current_time() < deadline, left
            await trio.sleep(0.05)

    async def _left(self, growth: int | None) -> dict[str, float]:
        """What is not as it was, by name."""
        left: dict[str, float] = {
            "descriptors": max(0, self.worker.descriptors() - self.descriptors - SPARE_DESCRIPTORS),
            "bytes": max(0, self.worker.memory() - self.memory - growth) if growth is not None else 0,
        }
        if not any(left.values()):  # asking for the page opens a connection that takes its time to close
            left["requests in flight"] = await self.worker.in_flight()
        return {name: count for name, count in left.items() if count}


def environment(directory: Path, **extra: str) -> dict[str, str]:
    ours = ("DYN_", "INGRESS_", "OTEL_", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "DYN_FILE_KV": str(directory / "kv"), "PYTHONPATH": str(Path(__file__).parents[2]), **extra}


TARGETS = {"demo.backend.generate": "tests.reliability.engine:generate"}


@contextmanager
def open_worker(
    *flags: str,
    targets: Mapping[str, str] = TARGETS,
    file_kv: Path | None = None,
    grace: float = 0.0,
    before: Sequence[str] = (),
    descriptors: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Worker]:
    """Serve while inside, with the settings that a newcomer has.

    Args:
        targets: what to serve, by endpoint; the record is the first one's.
        file_kv: the directory of records; by default one of its own.
        grace: seconds of the linger.
        before: a command that the worker is the argument of.
        descriptors: the limit of descriptors of the process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        file_kv = directory / "kv" if file_kv is None else file_kv
        known = set(file_kv.rglob("*"))
        command = [*before, sys.executable, "-m", "ingress", "serve", *targets.values()]
        command += [word for endpoint in targets for word in ("--endpoint", endpoint)]
        command += ["--status-port", "0", "--grace", str(grace), "--file-kv", str(file_kv), *flags]

        def limit() -> None:
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env=environment(directory, DYN_LOGGING_JSONL="true", **(variables or {})),
                preexec_fn=limit,
            )
        try:
            yield _wait_started(process, directory, file_kv, known, next(iter(targets)))
        finally:
            process.kill()
            process.wait()


def _wait_started(
    process: subprocess.Popen[bytes], directory: Path, file_kv: Path, known: set[Path], endpoint: str
) -> Worker:
    deadline = time.monotonic() + PATIENCE
    while True:
        log = (directory / "log").read_text()
        if found := re.search(r"status on (http://[\d.:]+)", log):
            files = [path for path in file_kv.rglob("*") if path.is_file() and path not in known]
            for record in (InstanceRecord.decode(path.read_bytes()) for path in files):
                if str(record.endpoint_id) == endpoint:
                    return Worker(process, directory, record, found[1])
        assert process.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.02)
