"""The metrics page: what a released worker's page has, as it prints it, and nothing that grows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, Summary
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from trio.testing import MockClock

from ingress._admission import Admission
from ingress.metrics import OUTCOMES, UNROUTED_REASONS, WorkerMetrics, WorkHandlerMetrics, cancelled_by
from ingress.status import exposition
from ingress.status._exposition import iter_exposition, wants_openmetrics
from ingress.wire.records import EndpointId

from .raw_caller import open_stage

CAPTURE = (Path(__file__).parent / "captures" / "metrics-1.6.1.txt").read_text()
ENDPOINTS = [EndpointId("demo", "backend", name) for name in ("generate", "wait", "chat")]

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def made() -> tuple[WorkerMetrics, list[WorkHandlerMetrics]]:
    metrics = WorkerMetrics(0xDA3721027B42EBEA, admission=Admission(10000, 40000))
    return metrics, [metrics.endpoint(endpoint_id) for endpoint_id in ENDPOINTS]


def page(metrics: WorkerMetrics, *, openmetrics: bool = False) -> str:
    return exposition(metrics.registry, openmetrics=openmetrics).decode()


def openmetrics_families(text: str) -> list[Metric]:
    return list(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # the library's


def without_values(text: str) -> set[str]:
    return {line if line.startswith("#") else line.rpartition(" ")[0] for line in text.splitlines()}


# -- against the real worker -----------------------------------------------------------------------------------------


def test_every_line_of_a_released_workers_page_is_on_ours_but_for_its_number() -> None:
    metrics, (generate, _, _) = made()
    for error_type in ("deserialization", "invalid_message", "publish_response", "response_stream"):
        generate.count_error(error_type)
    assert without_values(CAPTURE) <= without_values(page(metrics))


def test_what_the_page_has_beyond_a_released_workers_is_ours() -> None:
    metrics, _ = made()
    surplus = without_values(page(metrics)) - without_values(CAPTURE)
    assert surplus
    assert {re.split(r"[ {]", line.removeprefix("# HELP ").removeprefix("# TYPE "))[0][:8] for line in surplus} == {
        "ingress_"
    }


def test_numbers_are_printed_as_released_workers_print_them() -> None:
    metrics, (generate, _, _) = made()
    generate.requests += 13
    generate.request_bytes += 12_345_678
    generate.duration.observe(1.218763604)
    lines = page(metrics).splitlines()
    labels = (
        'dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="demo",worker_id="da3721027b42ebea"'
    )
    name = "dynamo_component_request"
    assert f"{name}s_total{{{labels}}} 13" in lines
    assert f"{name}_bytes_total{{{labels}}} 12345678" in lines
    assert f'{name}_duration_seconds_bucket{{{labels},le="1"}} 0' in lines
    assert f'{name}_duration_seconds_bucket{{{labels},le="2.5"}} 1' in lines
    assert f"{name}_duration_seconds_sum{{{labels}}} 1.218763604" in lines


def test_buckets_have_the_same_name_in_both_formats() -> None:
    """Prometheus 2 takes ``le="1"`` and ``le="1.0"`` for two series, and asks for OpenMetrics first."""
    metrics, _ = made()
    bounds = [re.findall(r'le="[^"]+"', page(metrics, openmetrics=is_open)) for is_open in (False, True)]
    assert bounds[0] == bounds[1]
    assert not [bound for bound in bounds[0] if bound.endswith('.0"')]


# -- formats ---------------------------------------------------------------------------------------------------------


def test_both_formats_can_be_read_by_the_reference_parsers() -> None:
    metrics, _ = made()
    text = {family.name for family in parse_text(page(metrics))}
    openmetrics = {family.name for family in openmetrics_families(page(metrics, openmetrics=True))}
    assert "ingress_outcome" in openmetrics
    assert text == openmetrics


@pytest.mark.parametrize("openmetrics", [False, True])
def test_there_is_no_created_series(openmetrics: bool) -> None:
    metrics, _ = made()
    assert "_created" not in page(metrics, openmetrics=openmetrics)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        (PROMETHEUS_2_42, True),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=junk", False),
        ("application/openmetrics-text;version=abc;;;", True),
        (",;,;" * 1000, False),
    ],
)
def test_openmetrics_is_for_those_who_ask_for_it_first(accept: str, expected: bool) -> None:
    assert wants_openmetrics(accept) is expected


def test_what_else_a_shared_registry_holds_is_printed_too() -> None:
    registry = CollectorRegistry()
    Info("build", "An info", registry=registry).info({"version": "1.0"})
    Summary("size", "A summary", registry=registry).observe(2)
    Counter("odd", 'A "quoted" \\ help\ntext', ["who"], registry=registry).labels('a"b\\c\nd').inc()
    Gauge("limits", "At the ends", ["at"], registry=registry).labels("top").set(float("inf"))
    text = exposition(registry).decode()
    families = {family.name: family for family in parse_text(text)}
    assert families["build_info"].samples[0].labels == {"version": "1.0"}
    assert families["size"].samples[0].value == 1
    assert families["odd"].samples[0].labels == {"who": 'a"b\\c\nd'}
    assert 'limits{at="top"} +Inf\n' in text
    assert "_created" not in text
    assert len(openmetrics_families(exposition(registry, openmetrics=True).decode())) == 4


def test_a_page_comes_in_pieces_of_one_family_each() -> None:
    metrics, _ = made()
    pieces = list(iter_exposition(metrics.registry))
    assert len(pieces) > 20
    assert all(piece.count(b"# TYPE") == 1 for piece in pieces)


# -- ours ------------------------------------------------------------------------------------------------------------


def samples(metrics: WorkerMetrics, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one name by their label values, empty and endpoint ones left out."""
    return {
        tuple(
            value
            for label, value in sample.labels.items()
            if not label.startswith("dynamo_") and label != "worker_id" and value
        ): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.labels.get("dynamo_endpoint", "generate") in ("generate", "")
    }


def test_every_outcome_has_its_series_from_the_start_and_no_other_can_be_made() -> None:
    metrics, (generate, _, _) = made()
    pairs = {(outcome, reason) for outcome, reasons in OUTCOMES.items() for reason in reasons}
    unrouted = {("refused", reason) for reason in UNROUTED_REASONS}
    assert set(samples(metrics, "ingress_outcome_total")) == pairs | unrouted
    generate.count_outcome("cancelled", "stop")
    metrics.count_unrouted("draining")
    counted = samples(metrics, "ingress_outcome_total")
    assert (counted["cancelled", "stop"], counted["refused", "draining"], sum(counted.values())) == (1, 1, 2)
    with pytest.raises(ValueError, match="no outcome of a request"):
        generate.count_outcome("cancelled", "because\x1b")
    with pytest.raises(KeyError):
        metrics.count_unrouted("because")


@pytest.mark.parametrize(
    ("ending", "kill_reason", "expected"),
    [
        ("stopped", "", "stop"),
        ("stopped", "kill from the caller", "stop"),
        ("killed", "kill from the caller", "kill"),
        ("killed", "caller closed the response stream", "disconnect"),
        ("killed", "response stream failed: anything a peer sent", "disconnect"),
        ("killed", "protocol error on the request stream", "protocol"),
        ("killed", "the worker was cancelled", "shutdown"),
        ("shut down", "", "shutdown"),
    ],
)
def test_whatever_cancels_a_request_has_one_of_five_names(ending: str, kill_reason: str, expected: str) -> None:
    assert cancelled_by(ending, kill_reason) == expected
    assert expected in OUTCOMES["cancelled"]


async def test_flushes_are_counted_by_size_and_chunks_beside_them(autojump_clock: MockClock) -> None:
    metrics, (generate, _, _) = made()
    for size in (1, 64, 65, 1_048_576, 1_048_577, 40_000_000):
        generate.record_flush(size)
    generate.record_chunks(12, 0.0)
    assert samples(metrics, "ingress_chunks_total") == {(): 12}
    assert samples(metrics, "ingress_flush_bytes_sum") == {(): 1 + 64 + 65 + 1_048_576 + 1_048_577 + 40_000_000}
    buckets = samples(metrics, "ingress_flush_bytes_bucket")
    assert [int(buckets[bound,]) for bound in ("64", "256", "1048576", "+Inf")] == [2, 3, 4, 6]
    await trio.sleep(1)
    assert generate.last_chunk_at == trio.current_time() - 1


async def test_a_slow_reader_shows_while_it_is_slow_and_leaves_its_seconds(autojump_clock: MockClock) -> None:
    metrics, (generate, _, _) = made()
    with generate.slow_reader():
        await trio.sleep(2.5)
        assert samples(metrics, "ingress_slow_readers") == {(): 1}
    assert samples(metrics, "ingress_slow_readers") == {(): 0}
    assert samples(metrics, "ingress_slow_reader_seconds_total") == {(): 2.5}


def test_phase_build_and_dropped_log_lines_are_looked_up_at_each_scrape() -> None:
    metrics, _ = made()
    assert samples(metrics, "ingress_drain_phase") == samples(metrics, "ingress_build_info") == {}
    metrics.phases = ("serving", "refusing")
    metrics.phase = lambda: "refusing"
    metrics.build_info = {"version": "1", "codec": "json", "plane": "tcp"}
    metrics.log_lines_dropped = lambda: 7
    assert samples(metrics, "ingress_drain_phase") == {("serving",): 0, ("refusing",): 1}
    assert samples(metrics, "ingress_build_info") == {("1", "json", "tcp"): 1}
    assert samples(metrics, "ingress_log_lines_dropped_total") == {(): 7}


# -- bounded ---------------------------------------------------------------------------------------------------------


async def test_l10_hostile_requests_make_no_new_series() -> None:
    async def echo(request: object) -> object:
        return request

    hostile = 'x"} 1\nfake_total{a="\x1b[31m\u202e\u2028' + "y" * 200
    async with open_stage(echo) as stage:
        registry = stage.worker.metrics.registry
        await stage.tell(hostile)
        before = without_values(exposition(registry).decode())
        for number in range(100):
            text = f"{hostile}{number}"
            control = stage.caller.control(request_id=text, metadata={text: text}, info={"subject": f"s{number}"})
            assert await stage.ask(stage.caller.payload(text, control), headers={text: text, "traceparent": text}) == ""
            response = await stage.caller.accept()
            await response.read_to_sentinel()
            await response.aclose()
            await stage.ask(b"junk", path=text)
            await stage.ask(stage.caller.payload(text, stage.caller.control(transport=text)))
        after = without_values(exposition(registry).decode())
        new = {line for line in after - before if "errors_total" not in line}
        assert not new
        assert len(after - before) <= 2  # of the six error types those that had not been seen
        assert "fake_total" not in {line.partition("{")[0] for line in after}
