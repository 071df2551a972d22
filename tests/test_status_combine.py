"""Several processes' health and progress as one page each."""

from __future__ import annotations

from typing import Any

import pytest

from ingress.status._combine import ProcessState, combine_health, combine_progress


def ready(number: int, **endpoints: str) -> ProcessState:
    page = {
        "status": "ready",
        "uptime": {},
        "endpoints": endpoints or {"generate": "ready"},
        "reasons": {},
        "tls": "off",
    }
    return ProcessState(number=number, pid=100 + number, instance=f"{number:x}", page=page)


def health(*processes: ProcessState, is_verbose: bool = True) -> dict[str, Any]:
    return combine_health(processes, uptime=2.5, is_verbose=is_verbose)


def test_ready_is_when_every_process_is() -> None:
    assert health(ready(0), ready(1), is_verbose=False) == {
        "status": "ready",
        "uptime": {"secs": 2, "nanos": 500_000_000},
        "endpoints": {"generate": "ready"},
    }
    away = ProcessState(number=1, pid=None, trouble="starting again in 0.5 s", is_running=False, restarts=1)
    shown = health(ready(0), away)
    assert (shown["status"], shown["endpoints"]) == ("notready", {"generate": "notready"})
    assert shown["reasons"] == {"process 1": "starting again in 0.5 s"}


def test_an_endpoint_is_ready_when_it_is_in_every_process() -> None:
    page = {"status": "notready", "endpoints": {"a": "notready", "b": "ready"}, "reasons": {"n.c.a": "canary failed"}}
    shown = health(ready(0, a="ready", b="ready"), ProcessState(number=1, pid=1, page=page))
    assert shown["endpoints"] == {"a": "notready", "b": "ready"}
    assert shown["reasons"] == {"process 1: n.c.a": "canary failed"}


def test_verbose_tells_of_each_process() -> None:
    one, other = health(ready(0), ready(1))["processes"]
    assert (one["process"], one["pid"], one["instance"], one["restarts"], one["tls"]) == (0, 100, "0", 0, "off")
    assert (other["process"], other["status"]) == (1, "ready")


def progress(*pages: dict[str, Any] | None) -> dict[str, Any]:
    return combine_progress(
        [
            ProcessState(number=number, pid=1, page=page or {}, trouble=None if page else "no answer within 3 s")
            for number, page in enumerate(pages)
        ],
        60,
    )


IDLE = {"status": "idle", "running": 0, "last_chunk_age_seconds": None}
BUSY = {"status": "ok", "running": 3, "last_chunk_age_seconds": 0.5}
STUCK = {"status": "stalled", "running": 2, "last_chunk_age_seconds": 70.0}


@pytest.mark.parametrize(
    ("pages", "status", "running", "age"),
    [
        ((IDLE, IDLE), "idle", 0, None),
        ((IDLE, BUSY), "ok", 3, 0.5),
        ((BUSY, STUCK), "stalled", 5, 0.5),
        ((BUSY, None), "stalled", 3, 0.5),
    ],
)
def test_progress_is_stalled_when_one_is_or_does_not_answer(
    pages: tuple[dict[str, Any] | None, ...], status: str, running: int, age: float | None
) -> None:
    assert progress(*pages) == {
        "status": status,
        "running": running,
        "last_chunk_age_seconds": age,
        "stall_threshold_seconds": 60,
    }


def test_a_process_that_is_not_there_stalls_nothing() -> None:
    away = ProcessState(number=1, pid=None, trouble="starting", is_running=False)
    assert combine_progress([ProcessState(number=0, pid=1, page=IDLE), away], 60)["status"] == "idle"
