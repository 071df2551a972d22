"""Progress: idle, ok, stalled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from attrs import define
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress.status._progress import read_progress

from .raw_caller import open_stage


@define
class Endpoint:
    running: int = 0
    busy_since: float = 0.0
    last_chunk_at: float | None = None


@pytest.mark.parametrize(
    ("endpoints", "status", "age"),
    [
        ([], "idle", None),
        ([Endpoint()], "idle", None),
        ([Endpoint(last_chunk_at=10.0)], "idle", 990.0),
        ([Endpoint(running=1, busy_since=950.0)], "ok", None),
        ([Endpoint(running=1, busy_since=940.0)], "ok", None),
        ([Endpoint(running=1, busy_since=939.9)], "stalled", None),
        ([Endpoint(running=2, busy_since=100.0, last_chunk_at=999.5)], "ok", 0.5),
        ([Endpoint(running=2, busy_since=100.0, last_chunk_at=900.0)], "stalled", 100.0),
        # after an idle time the request's beginning counts
        ([Endpoint(running=1, busy_since=990.0, last_chunk_at=10.0)], "ok", 990.0),
        # one endpoint's chunks do not excuse another's silence
        ([Endpoint(1, 100.0, 999.0), Endpoint(1, 100.0, 200.0)], "stalled", 1.0),
    ],
)
def test_progress_is_read_from_what_each_endpoint_last_did(
    endpoints: list[Endpoint], status: str, age: float | None
) -> None:
    progress = read_progress(endpoints, 1000.0)
    assert (progress.status, progress.last_chunk_age) == (status, age)
    assert progress.is_stalled == (status == "stalled")


def test_the_page_has_the_fields_that_were_agreed() -> None:
    progress = read_progress([Endpoint(3, 990.0, 999.98)], 1000.0)
    assert progress.to_json() == {
        "status": "ok",
        "running": 3,
        "last_chunk_age_seconds": 0.02,
        "stall_threshold_seconds": 60,
    }


async def test_running_requests_are_seen_as_long_as_they_run(autojump_clock: MockClock) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        await trio.sleep(request)
        yield 1

    async with open_stage(engine) as stage:
        endpoints = stage.worker.metrics.endpoints
        assert read_progress(endpoints, trio.current_time()).status == "idle"
        response = await stage.call(100)
        for elapsed, status in ((1, "ok"), (60, "stalled")):
            await trio.sleep(elapsed)
            progress = read_progress(endpoints, trio.current_time())
            assert (progress.status, progress.running) == (status, 1)
        await response.read_to_sentinel()
        await wait_all_tasks_blocked()
        assert read_progress(endpoints, trio.current_time()).status == "idle"


async def test_after_an_idle_hour_a_request_has_its_time_from_its_beginning(autojump_clock: MockClock) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        await trio.sleep(request)
        yield 1

    async with open_stage(engine) as stage:
        endpoints = stage.worker.metrics.endpoints
        await stage.tell(0)
        await trio.sleep(3600)
        await stage.call(100)
        for elapsed, status in ((0, "ok"), (60, "ok"), (1, "stalled")):
            await trio.sleep(elapsed)
            assert read_progress(endpoints, trio.current_time()).status == status
        await stage.call(100)  # one that begins is no excuse for one that is silent
        progress = read_progress(endpoints, trio.current_time())
        assert (progress.status, progress.running) == ("stalled", 2)
