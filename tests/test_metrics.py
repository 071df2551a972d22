"""Our metrics against the page of a released 1.6.1 worker, and what they count."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import field, frozen
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from ingress._admission import Admission
from ingress.errors import GenerateError, IngressError
from ingress.metrics import ERROR_TYPES, WorkerMetrics
from ingress.wire.records import EndpointId
from shapes import HeaderAndData

from .raw_caller import open_stage

CAPTURE = Path(__file__).parent / "captures" / "metrics-1.6.1.txt"
GENERATE = EndpointId("demo", "backend", "generate")


@frozen
class Family:
    """What of a family a dashboard depends on."""

    name: str
    kind: str
    help: str
    samples: frozenset[str]
    labels: frozenset[str]
    buckets: tuple[float, ...] = field(default=())


def families(page: str) -> Iterator[Family]:
    for family in text_string_to_metric_families(page):
        if family.name.endswith("_created"):
            continue
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        labels = {label for sample in samples for label in sample.labels}
        buckets = {float(sample.labels["le"]) for sample in samples if "le" in sample.labels}
        yield Family(
            family.name,
            family.type,
            family.documentation,
            frozenset(sample.name for sample in samples),
            frozenset(labels - {"le"}),
            tuple(sorted(buckets)),
        )


def ours() -> str:
    """A page with every family in use."""
    metrics = WorkerMetrics(0xDA3721027B42EBEA, admission=Admission())
    endpoint = metrics.endpoint(GENERATE)
    for error_type in ERROR_TYPES:
        endpoint.count_error(error_type)
    return generate_latest(metrics.registry).decode()


REAL = {family.name: family for family in families(CAPTURE.read_text())}


def test_the_capture_is_the_page_of_a_worker() -> None:
    assert len(REAL) >= 19


@pytest.mark.parametrize("name", REAL)
def test_every_family_of_a_released_worker_is_ours_under_the_same_name_kind_help_labels_and_buckets(name: str) -> None:
    own = {family.name: family for family in families(ours())}
    assert own[name] == REAL[name]


def test_no_line_of_the_page_has_a_doubled_suffix() -> None:
    assert "_total_total" not in ours()


def test_label_values_are_those_of_the_endpoint_and_the_instance_in_lower_hex() -> None:
    line = next(line for line in ours().splitlines() if line.startswith("dynamo_component_requests_total{"))
    for label in (
        'dynamo_namespace="demo"',
        'dynamo_component="backend"',
        'dynamo_endpoint="generate"',
        'worker_id="da3721027b42ebea"',
    ):
        assert label in line


def test_every_series_exists_from_the_start_except_those_of_errors() -> None:
    metrics = WorkerMetrics(1, admission=Admission())
    endpoint = metrics.endpoint(GENERATE)

    def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in metrics.registry.collect()
            for sample in family.samples
        }

    before = series()
    assert not any(name == "dynamo_component_errors_total" for name, _ in before)
    with pytest.raises(ValueError, match="none of deserialization"):
        endpoint.count_error("surprise")
    endpoint.count_cancellation()
    endpoint.add_response_bytes(5)
    endpoint.observe_network_transit(1)
    endpoint.observe_permit_wait(0)
    endpoint.observe_first_response(0)
    assert series() == before


@pytest.mark.parametrize("extra", [{"model": "m"}, {"model": "m", "pool": "p"}])
def test_constant_labels_are_added_to_every_series_of_their_endpoint(extra: dict[str, str]) -> None:
    metrics = WorkerMetrics(1, extra_labels=["model", "pool"])
    endpoint = metrics.endpoint(GENERATE, extra)
    endpoint.count_error("generate")
    expected = {"model": "m", "pool": "", **extra}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.labels.get("dynamo_endpoint") == "generate":
                assert expected.items() <= sample.labels.items(), sample


async def test_the_guard_counts_on_every_way_out(autojump_clock: MockClock) -> None:
    metrics = WorkerMetrics(1)
    endpoint = metrics.endpoint(GENERATE)

    def value(name: str) -> float:
        found = metrics.registry.get_sample_value(
            f"dynamo_component_{name}",
            {
                "dynamo_namespace": "demo",
                "dynamo_component": "backend",
                "dynamo_endpoint": "generate",
                "worker_id": "1",
            },
        )
        assert found is not None
        return found

    with endpoint.request_in_flight(100):
        assert value("inflight_requests") == 1
        await trio.sleep(2)
    with pytest.raises(KeyError), endpoint.request_in_flight(10):
        raise KeyError
    with trio.move_on_after(1):
        with endpoint.request_in_flight(1):
            await trio.sleep_forever()
    assert value("inflight_requests") == 0
    assert value("requests_total") == 3
    assert value("request_bytes_total") == 111
    assert value("request_duration_seconds_count") == 3
    assert value("request_duration_seconds_sum") == pytest.approx(3)


def test_two_workers_do_not_share_a_registry_unless_told_to() -> None:
    WorkerMetrics(1)
    WorkerMetrics(2)
    shared = CollectorRegistry()
    WorkerMetrics(1, registry=shared)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        WorkerMetrics(2, registry=shared)


# -- as a handler observes them --------------------------------------------------------------------------------------


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.mark.parametrize(
    ("header", "field", "is_observed"),
    [
        ("now", None, True),
        (None, "now", True),
        ("junk", "now", True),
        ("0", "now", True),
        ("junk", None, False),
        ("-5", None, False),
        ("²", None, False),
        (None, 10**40, False),
        (None, 10**400, False),
        (None, -1, False),
        ("1", None, True),  # the year 1970: clamped
        (None, 2**64 - 1, True),  # the far future: clamped
    ],
    ids=lambda value: str(value)[:20],
)
async def test_t03_transit_time_comes_from_either_timestamp_and_odd_ones_are_ignored_or_clamped(
    header: str | None, field: Any, is_observed: bool
) -> None:
    now = time.time_ns() - 1_000_000
    headers = {} if header is None else {"x-frontend-send-ts-ns": str(now) if header == "now" else header}
    async with open_stage(echo) as stage:
        control = stage.caller.control(frontend_send_ts_ns=now if field == "now" else field)
        assert await stage.ask(stage.caller.payload(1, control), headers=headers) == ""
        assert (await (await stage.caller.accept()).read_to_sentinel()).is_whole
        assert stage.sample("dynamo_work_handler_network_transit_seconds_count") == is_observed
        assert 0 <= stage.sample("dynamo_work_handler_network_transit_seconds_sum") <= 3600


async def test_time_to_first_response_and_duration_are_observed(autojump_clock: MockClock) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        await trio.sleep(3)
        yield 1

    async with open_stage(engine) as stage:
        await stage.tell(1)
        assert stage.sample("request_duration_seconds_sum") == pytest.approx(3)
        assert stage.sample("dynamo_work_handler_time_to_first_response_seconds_count") == 1
        assert stage.sample("dynamo_work_handler_time_to_first_response_seconds_sum") == 0
        assert stage.sample("dynamo_work_handler_permit_wait_seconds_count") == 1


class SurpriseError(IngressError):
    """A third party's error with a label that no family has."""

    error_type = "surprise"


@pytest.mark.parametrize(
    "error", [SurpriseError("x"), GenerateError("x"), KeyError("x")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("when", ["before the ack", "after the ack"])
async def test_whatever_a_shape_raises_is_counted_under_one_of_the_known_labels(when: str, error: Exception) -> None:
    class Failing(HeaderAndData):
        def read_control(self, payload: bytes) -> Any:
            if when == "before the ack" and b"bad" in payload:
                raise error
            return super().read_control(payload)

        async def parse_and_build_request(self, payload: bytes, control: Any, dialer: Any) -> Any:
            if when == "after the ack" and b"bad" in payload:
                raise error
            return await super().parse_and_build_request(payload, control, dialer)

    async with open_stage(echo, shapes=[Failing()]) as stage:
        ack = await stage.ask(stage.caller.payload("bad"))
        if when == "before the ack":
            assert ack.startswith("Server unavailable")
        else:
            assert ack == ""
            said = await (await stage.caller.accept()).read_to_sentinel()
            assert said.is_whole
            assert len(said.errors) == 1
        await stage.assert_alive()
        known = isinstance(error, GenerateError)
        assert stage.errors() == {"generate" if known else "deserialization": 1}
        outcomes = {
            (sample.labels["outcome"], sample.labels["reason"])
            for family in stage.worker.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "ingress_outcome_total" and sample.value
        }
        refused = ("refused", "deserialization")
        failed = ("failed", "generate" if known else "deserialization")
        assert outcomes == {("completed", "ok"), refused if when == "before the ack" else failed}
