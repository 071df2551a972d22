"""Readiness: the body's layout, who holds whom back, and why."""

from __future__ import annotations

import json

import pytest

from ingress.status import DRAINING, STARTING, EndpointHealth, HealthState
from ingress.wire.records import EndpointId


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


GENERATE = EndpointId("demo", "backend", "generate")
EMBED = EndpointId("demo", "backend", "embed")


def made(*endpoints: EndpointHealth, starts_ready: bool = False) -> tuple[HealthState, Clock]:
    clock = Clock()
    state = HealthState(clock=clock, starts_ready=starts_ready)
    for endpoint in endpoints:
        state.add(endpoint)
    return state, clock


def endpoint(endpoint_id: EndpointId = GENERATE, *, needs_proof: bool = False) -> EndpointHealth:
    return EndpointHealth(endpoint_id, needs_proof=needs_proof, clock=Clock())


def test_the_body_has_a_released_workers_bytes() -> None:
    state, clock = made(endpoint())
    state.release(STARTING)
    clock.now += 3.599192667
    body = state.body().decode()
    nanos = json.loads(body)["uptime"]["nanos"]
    assert nanos == pytest.approx(599192667, abs=2)
    assert body == f'{{"status":"ready","uptime":{{"secs":3,"nanos":{nanos}}},"endpoints":{{"generate":"ready"}}}}'


def test_nothing_is_ready_and_no_endpoint_is_shown_before_they_are_served() -> None:
    state, _ = made(endpoint())
    assert state.to_json() == {"status": "notready", "uptime": {"secs": 0, "nanos": 0}, "endpoints": {}}
    assert state.reasons() == {"starting": "starting"}


def test_a_starting_worker_says_ready_where_that_is_asked_for() -> None:
    state, _ = made(endpoint(needs_proof=True), starts_ready=True)
    assert state.to_json()["status"] == "ready"
    state.release(STARTING)
    assert state.to_json()["status"] == "notready"  # as a released worker: the first canary decides


def test_status_is_ready_exactly_when_all_endpoints_are() -> None:
    first, second = endpoint(), endpoint(EMBED, needs_proof=True)
    state, _ = made(first, second)
    state.release(STARTING)
    assert state.to_json()["endpoints"] == {"generate": "ready", "embed": "notready"}
    assert state.to_json()["status"] == "notready"
    second.record_activity()
    assert state.to_json()["endpoints"] == {"generate": "ready", "embed": "ready"}
    assert state.to_json()["status"] == "ready"
    first.mark_not_ready("stuck")
    assert state.reasons() == {"demo.backend.generate": "stuck"}
    assert state.to_json()["status"] == "notready"


def test_a_worker_without_endpoints_is_never_ready() -> None:
    state, _ = made()
    state.release(STARTING)
    assert not state.is_ready


def test_of_two_endpoints_with_one_name_the_worse_shows() -> None:
    first, second = endpoint(), endpoint(EndpointId("demo", "other", "generate"))
    state, _ = made(first, second)
    state.release(STARTING)
    for sick, well in ((first, second), (second, first)):
        well.record_activity()
        sick.mark_not_ready("stuck")
        assert state.to_json()["endpoints"] == {"generate": "notready"}


def test_a_hold_makes_every_endpoint_not_ready_until_all_holds_are_released() -> None:
    healthy = endpoint()
    state, _ = made(healthy)
    state.release(STARTING)
    state.hold(DRAINING, "draining: refusing requests")
    state.hold("discovery", "record not renewed for 20 s")
    healthy.record_activity()
    assert state.to_json()["endpoints"] == {"generate": "notready"}
    assert state.reasons() == {"draining": "draining: refusing requests", "discovery": "record not renewed for 20 s"}
    state.release("discovery")
    assert not state.is_ready
    state.release(DRAINING)
    state.release("never held")
    assert state.is_ready


@pytest.mark.parametrize("uptime", [0.0, 0.999999999, 1.0, 86400.5, 1e9])
def test_nanos_are_always_less_than_a_second(uptime: float) -> None:
    state, clock = made()
    clock.now += uptime
    shown = state.to_json()["uptime"]
    assert 0 <= shown["nanos"] < 1_000_000_000
    assert shown["secs"] + shown["nanos"] / 1e9 == pytest.approx(uptime)


def test_k05_a_check_holds_every_endpoint_back_while_it_finds_something() -> None:
    state = HealthState()
    state.add(EndpointHealth(EndpointId("demo", "backend", "generate"), clock=lambda: 0.0))
    state.release(STARTING)
    found: list[str] = []
    state.add_check("discovery", lambda: found[0] if found else None)
    assert state.to_json()["status"] == "ready"
    found.append("records cannot be renewed")
    assert state.to_json()["status"] == "notready"
    assert state.reasons() == {"discovery": "records cannot be renewed"}
    assert state.to_json()["endpoints"] == {"generate": "notready"}
    found.clear()
    assert state.to_json()["status"] == "ready"
    assert state.to_json()["endpoints"] == {"generate": "ready"}
