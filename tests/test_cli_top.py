"""``ingress top``: what it reads, what it makes of it, and workers that vanish, change or are none."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from prometheus_client.metrics_core import GaugeMetricFamily
from rich.console import Console
from trio.testing import MockClock

from ingress import serving
from ingress._admission import Admission
from ingress.cli._errors import CommandError
from ingress.cli._readings import MAX_ENDPOINTS, Distribution, EndpointReading, Reading, read_metrics
from ingress.cli._scrape import MAX_PAGE, ScrapeError, StatusAddress, fetch, parse_address
from ingress.cli._top import _poll_all, _watch, find_addresses
from ingress.cli._top_screen import COLUMNS, as_document, live_table, number, plain_rows, seconds
from ingress.cli._watched import WINDOW, WatchedWorker, read_worker
from ingress.discovery import MemoryDiscovery
from ingress.metrics import WorkerMetrics
from ingress.status import StatusOptions, exposition
from ingress.status._exposition import iter_families
from ingress.status._merge import merge_pages, parse_page
from ingress.testing import MemoryNetwork
from ingress.wire.records import EndpointId

CAPTURES = Path(__file__).parent / "captures"
NAME = "demo.backend.generate"


def page_of(metrics: WorkerMetrics) -> str:
    return exposition(metrics.registry).decode()


def reading(at: float, *, instance: str = "1", uptime: float | None = None, **counts: Any) -> Reading:
    endpoint = EndpointReading(NAME, **counts)
    return Reading(at, instance=instance, uptime=at if uptime is None else uptime, endpoints={NAME: endpoint})


def watched(*readings: Reading) -> WatchedWorker:
    worker = WatchedWorker(StatusAddress("127.0.0.1", 9090))
    for each in readings:
        worker.add(each)
    worker.was_polled.set()
    return worker


def shown(workers: list[WatchedWorker], width: int = 200, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(live_table(workers, width, height))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


# -- reading ----------------------------------------------------------------------------------------------------------


def test_everything_is_read_off_our_own_page() -> None:
    metrics = WorkerMetrics(0xABC)
    metrics.phases, metrics.phase = ["serving", "lingering"], lambda: "lingering"
    metrics.build_info = {"version": "1.2.3", "codec": "json", "plane": "tcp"}
    endpoint = metrics.endpoint(EndpointId.parse(NAME))
    endpoint.chunks = 41
    endpoint.count_cancellation()
    endpoint.count_error("generate")
    endpoint.count_error("publish_final")
    metrics.first_response.observe(0.02)
    metrics.loop_lag.observe(0.002)
    metrics.count_unrouted("unknown_endpoint")
    found = read_metrics(page_of(metrics), 7.0)
    assert (found.at, found.instance, found.phase, found.version) == (7.0, "abc", "lingering", "1.2.3")
    assert (found.first_response.count, found.loop_lag and found.loop_lag.count) == (1, 1)
    (only,) = found.endpoints.values()
    assert (only.name, only.chunks, only.cancelled, only.errors, only.streams) == (NAME, 41, 1, 2, 0)


def test_a_released_workers_page_is_read_as_far_as_it_goes() -> None:
    """``docs/wire.md`` §9; it counts no chunks and tells of no phase."""
    found = read_metrics((CAPTURES / "metrics-1.6.1.txt").read_text(), 0.0)
    assert found.endpoints and found.uptime is not None
    assert all(endpoint.chunks is None for endpoint in found.endpoints.values())
    assert any(endpoint.duration.count > 0 for endpoint in found.endpoints.values())
    assert found.phase is None and found.loop_lag is None
    row = dict(zip((column.heading for column in COLUMNS), plain_rows([watched(found)])[0], strict=True))
    assert (row["chunks/s"], row["lag99"], row["phase"]) == ("-", "-", "up")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not those of a worker"),
        ("process_cpu_seconds_total 5\n", "not those of a worker"),
        ("<html>", "not those of a worker"),
        ("dynamo_component_uptime_seconds{worker_id= 5\n", "cannot be read"),
        ("dynamo_component_uptime_seconds five\n", "cannot be read"),
    ],
)
def test_what_is_no_page_of_a_worker_says_why(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_metrics(text, 0.0)


def test_a_hostile_page_is_cut_and_escaped() -> None:
    lines = [
        f'dynamo_component_inflight_requests{{dynamo_namespace="n\\n\x1b[2J",dynamo_component="c",'
        f'dynamo_endpoint="e{n}"}} 1'
        for n in range(MAX_ENDPOINTS + 50)
    ]
    lines.append("dynamo_work_handler_queue_depth NaN")
    lines.append("dynamo_component_uptime_seconds +Inf")
    found = read_metrics("\n".join(lines), 0.0)
    assert len(found.endpoints) == MAX_ENDPOINTS
    text = "\n".join(shown([watched(found)], height=60))
    assert "\x1b" not in text and "\\x1b[2J" in text
    assert f"{MAX_ENDPOINTS - 52} more rows do not fit" in text
    msgspec.json.encode(as_document([watched(found)]))


def test_several_processes_behind_one_page_are_one_row_with_their_sums() -> None:
    pages = []
    for instance, phase in ((1, "serving"), (2, "lingering")):
        metrics = WorkerMetrics(instance, admission=Admission(8, 3))
        metrics.phases, metrics.phase = ["serving", "lingering"], functools.partial(str, phase)
        metrics.endpoint(EndpointId.parse(NAME)).chunks = 10 * instance
        metrics.first_response.observe(0.02)
        pages.append((str(instance - 1), parse_page(page_of(metrics))))
    up = GaugeMetricFamily("ingress_process_up", "Up", labels=["process"])
    for process, value in (("0", 1.0), ("1", 1.0), ("2", 0.0)):
        up.add_metric([process], value)
    found = read_metrics(b"".join(iter_families([*merge_pages(pages), up])).decode(), 0.0)
    assert (found.instance, found.processes, found.phase) == ("1+2", (2, 3), "serving+lingering")
    assert (found.running_limit, found.queue_limit, found.first_response.count) == (16, 6, 2)
    assert found.endpoints[NAME].chunks == 30
    row = dict(zip((column.heading for column in COLUMNS), plain_rows([watched(found)])[0], strict=True))
    assert (row["instance"], row["phase"]) == ("2/3_up", "serving+lingering")
    (document,) = as_document([watched(found)])["workers"]
    assert document["processes"] == {"up": 2, "of": 3}


def test_processes_none_of_which_serves_yet_are_down_and_no_stranger() -> None:
    found = read_metrics('ingress_process_up{process="0"} 0\n', 0.0)
    assert (found.processes, found.phase) == ((0, 1), "down")


def test_quantiles_are_those_of_histogram_quantile() -> None:
    found = Distribution({0.1: 50.0, 1.0: 90.0, math.inf: 100.0})
    assert found.quantile(0.5) == pytest.approx(0.1)
    assert found.quantile(0.25) == pytest.approx(0.05)
    assert found.quantile(0.7) == pytest.approx(0.1 + 0.9 * 20 / 40)
    assert found.quantile(0.99) == 1.0, "beyond the last bound nothing is known but that bound"
    assert Distribution().quantile(0.5) is None


# -- what follows from several readings -------------------------------------------------------------------------------


def test_rates_are_over_the_last_seconds() -> None:
    worker = watched(reading(0, chunks=0), reading(10, chunks=1000), reading(11, chunks=1010), reading(13, chunks=1030))
    assert worker.rate(NAME, "chunks") == 10
    assert worker.rate(NAME, "requests") == 0
    assert watched(reading(0, chunks=0)).rate(NAME, "chunks") is None
    assert worker.rate("no.such.endpoint", "chunks") is None


def test_quantiles_are_of_the_window_where_something_ended_in_it() -> None:
    old = Distribution({0.1: 1000.0, 5.0: 1000.0, math.inf: 1000.0})
    new = Distribution({0.1: 1000.0, 5.0: 1010.0, math.inf: 1010.0})
    worker = watched(reading(0, duration=old), reading(1, duration=new))
    assert worker.request_quantiles(NAME).is_recent
    assert (worker.request_quantiles(NAME).p50 or 0) > 1
    quiet = watched(reading(0, duration=old), reading(1, duration=old))
    assert not quiet.request_quantiles(NAME).is_recent
    assert (quiet.request_quantiles(NAME).p50 or 0) < 0.1
    worker.is_lifelong = True
    assert (worker.request_quantiles(NAME).p50 or 0) < 0.1


def test_readings_older_than_the_window_are_let_go() -> None:
    worker = watched(*(reading(at) for at in range(500)))
    assert 499 - worker.readings[0].at <= WINDOW
    assert len(worker.readings) <= WINDOW + 1


@pytest.mark.parametrize("successor", [reading(9, instance="2", chunks=5), reading(9, uptime=1, chunks=5)])
def test_another_worker_at_the_same_address_starts_anew(successor: Reading) -> None:
    worker = watched(reading(0, chunks=1000), reading(8, chunks=2000), successor)
    assert list(worker.readings) == [successor]


# -- over a connection ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(handle: Any) -> AsyncIterator[StatusAddress]:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield StatusAddress("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def engine(request: Any) -> AsyncIterator[Any]:
    yield request


async def test_a_worker_is_seen_and_seen_to_go_and_to_come_back() -> None:
    options: dict[str, Any] = {"discovery": MemoryDiscovery(), "network": MemoryNetwork(), "linger": 0.0}
    async with serving(engine, endpoint=NAME, status=StatusOptions(port=0), **options) as worker:
        assert worker.status.address is not None
        address = StatusAddress(*worker.status.address)
        watched_worker = WatchedWorker(address)
        assert watched_worker.state == "…"
        await _poll_all([watched_worker])
        assert (watched_worker.state, watched_worker.problem) == ("serving", None)
        assert watched_worker.latest is not None
        assert (watched_worker.latest.progress, list(watched_worker.latest.endpoints)) == ("idle", [NAME])
    await _poll_all([watched_worker])
    assert (watched_worker.state, watched_worker.problem) == ("gone", "Connection refused")
    assert any(NAME in line and "gone" in line for line in shown([watched_worker])), "what was last known stays"
    status = StatusOptions(port=address.port)
    async with serving(engine, endpoint=NAME, status=status, **options | {"discovery": MemoryDiscovery()}):
        await _poll_all([watched_worker])
        assert (watched_worker.state, len(watched_worker.readings)) == ("serving", 1)


async def test_what_is_no_status_server_is_told_apart() -> None:
    answers = {
        b"SSH-2.0-OpenSSH_9\r\n": "no status server",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n": "got HTTP 404",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi": "not those of a worker",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi": "no status server",
        b"": "closed without an answer",
    }
    for answer, complaint in answers.items():

        async def handle(stream: trio.SocketStream, answer: bytes = answer) -> None:
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.aclose()

        async with served(handle) as address:
            with pytest.raises(ScrapeError, match=complaint):
                await read_worker(address)


async def test_a_page_without_end_is_cut_at_the_limit() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                await stream.send_all(b"x" * 65536)
        except trio.BrokenResourceError:
            pass

    async with served(handle) as address:
        with pytest.raises(ScrapeError, match=f"exceeds {MAX_PAGE} bytes"):
            await fetch(address, "/metrics")


async def test_a_server_that_does_not_answer_is_given_up_and_holds_up_nobody() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with served(handle) as address:
        with pytest.raises(ScrapeError, match=r"no answer within 0\.2 s"):
            await fetch(address, "/metrics", timeout=0.2)


async def test_the_plain_table_is_printed_again_at_every_interval(autojump_clock: MockClock) -> None:
    """Without a terminal; each worker is polled at its own pace, and one that fails stays in the list."""
    polled: list[float] = []

    class Polled(WatchedWorker):
        async def poll(self) -> None:
            polled.append(trio.current_time())
            self.add(reading(trio.current_time(), chunks=10 * len(polled)))
            self.was_polled.set()

    class Hanging(WatchedWorker):
        async def poll(self) -> None:
            await trio.sleep(3)
            self.problem = "no answer within 3 s"
            self.was_polled.set()

    console = Console(file=io.StringIO(), width=80)
    workers = [Polled(StatusAddress("a", 1)), Hanging(StatusAddress("b", 2))]
    with trio.move_on_after(4.5):
        await _watch(workers, 1.0, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("worker ")]) == 4
    assert len(polled) == 5
    assert [line for line in lines if line.startswith("b:2")][-1].split()[2] == "gone"
    rate = COLUMNS.index(next(column for column in COLUMNS if column.heading == "chunks/s"))
    assert [line for line in lines if line.startswith("a:1")][-1].split()[rate] == "10"


# -- the screen -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_live_table_fits_its_terminal(width: int) -> None:
    worker = watched(reading(0, chunks=0), reading(5, chunks=5_000_000, streams=2048))
    lines = shown([worker], width)
    assert max(map(len, lines)) <= width
    (heading,) = [line for line in lines if line.startswith("worker")]
    assert {"phase", "endpoint", "streams", "chunks/s", "p50", "p99", "cancels", "queue", "lag99"} <= set(
        heading.split()
    )
    assert ("instance" in heading) == (width == 200)
    (row,) = [line for line in lines if line.startswith(":9090")]
    assert "2048" in row and "1000000" in row and "generate" in row


def test_more_endpoints_than_lines_are_counted() -> None:
    many = Reading(0.0, endpoints={f"a.b.c{n}": EndpointReading(f"a.b.c{n}") for n in range(100)})
    lines = shown([watched(many)], height=24)
    assert len(lines) <= 24
    assert any("84 more rows do not fit" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0.00085, "850µs"),
        (0.0012, "1.2ms"),
        (0.5, "500ms"),
        (1.25, "1.2s"),
        (95.0, "95s"),
    ],
)
def test_times_are_short_and_without_spaces(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_numbers_stay_narrow() -> None:
    assert [number(value) for value in (None, math.nan, 0, 41900, 1e300)] == ["-", "-", "0", "41900", "1e+300"]


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["9090", ":9090", "127.0.0.1:9090", "http://127.0.0.1:9090/", "http://127.0.0.1:9090/metrics"]
)
def test_addresses_are_taken_as_people_write_them(text: str) -> None:
    assert parse_address(text) == StatusAddress("127.0.0.1", 9090)


def test_ipv6_addresses_have_brackets() -> None:
    assert parse_address("[::1]:80") == StatusAddress("::1", 80)
    assert str(StatusAddress("::1", 80)) == "[::1]:80"


@pytest.mark.parametrize(
    "text", ["", "host", "0", "70000", "host:x", "https://host:1", "http://u:p@host:1", "host:1/else", "[::1"]
)
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_address(text)
    assert caught.value.exit_code == 2
    assert "9090" in caught.value.remedy


def test_without_an_address_the_worker_of_this_host_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_PORT", "9091")
    assert find_addresses([]) == [StatusAddress("127.0.0.1", 9091)]
    assert find_addresses(["1", "2", "1"]) == [StatusAddress("127.0.0.1", 1), StatusAddress("127.0.0.1", 2)]


@pytest.mark.parametrize("port", [None, "0", "-1", "many", "99999"])
def test_without_any_address_the_way_to_one_is_told(port: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYN_SYSTEM_PORT", raising=False)
    if port is not None:
        monkeypatch.setenv("DYN_SYSTEM_PORT", port)
    with pytest.raises(CommandError) as caught:
        find_addresses([])
    assert caught.value.exit_code == 2
    assert "ingress" in caught.value.remedy


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(CommandError, match="65 workers are too many"):
        find_addresses([str(port) for port in range(1, 66)])
