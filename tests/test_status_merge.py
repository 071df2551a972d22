"""Several processes' metrics as one page: what is added up, what stays apart, and that sums never fall."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from ingress._admission import Admission
from ingress.metrics import WorkerMetrics
from ingress.status import exposition
from ingress.status._exposition import iter_families
from ingress.status._merge import MergedMetrics, merge_pages, parse_page
from ingress.wire.records import EndpointId

ENDPOINT = EndpointId("demo", "backend", "generate")


def text_of(families: Sequence[Metric], *, openmetrics: bool = False) -> str:
    return b"".join(iter_families(families, openmetrics=openmetrics)).decode()


def page_of(registry: CollectorRegistry) -> list[Metric]:
    return parse_page(exposition(registry).decode())


def worker(instance: int, *, requests: int = 0) -> WorkerMetrics:
    metrics = WorkerMetrics(instance, admission=Admission(8, 2))
    endpoint = metrics.endpoint(ENDPOINT)
    for _ in range(requests):
        endpoint.requests += 1
        endpoint.observe_first_response(0.02)
    return metrics


def lines_about(name: str, families: Sequence[Metric]) -> list[str]:
    return [line for line in text_of(families).splitlines() if line.startswith(name)]


def test_counters_and_histograms_without_a_worker_id_are_added_up() -> None:
    merged = merge_pages(
        [("0", page_of(worker(1, requests=2).registry)), ("1", page_of(worker(2, requests=3).registry))]
    )
    name = "dynamo_work_handler_time_to_first_response_seconds"
    assert lines_about(f"{name}_count", merged) == [f"{name}_count 5"]
    assert lines_about(f'{name}_bucket{{le="0.025"}}', merged) == [f'{name}_bucket{{le="0.025"}} 5']
    assert lines_about("dynamo_rejection_request_total", merged) == ["dynamo_rejection_request_total 0"]


def test_series_that_bear_a_worker_id_stay_apart() -> None:
    merged = merge_pages(
        [("0", page_of(worker(1, requests=2).registry)), ("1", page_of(worker(2, requests=3).registry))]
    )
    labels = 'dynamo_component="backend",dynamo_endpoint="generate",dynamo_namespace="demo",worker_id='
    assert lines_about("dynamo_component_requests_total", merged) == [
        f'dynamo_component_requests_total{{{labels}"1"}} 2',
        f'dynamo_component_requests_total{{{labels}"2"}} 3',
    ]


def test_gauges_are_told_apart_by_process() -> None:
    merged = merge_pages([("0", page_of(worker(1).registry)), ("1", page_of(worker(2).registry))])
    name = "dynamo_work_handler_pool_capacity"
    assert lines_about(name, merged) == [f'{name}{{process="0"}} 8', f'{name}{{process="1"}} 8']
    assert len(lines_about('dynamo_component_uptime_seconds{process="1",worker_id="2"} ', merged)) == 1


def test_each_family_has_its_help_and_its_type_once() -> None:
    merged = text_of(merge_pages([(str(number), page_of(worker(number).registry)) for number in range(3)]))
    heads = [line.split(" ")[1:3] for line in merged.splitlines() if line.startswith("#")]
    assert len(heads) == len({tuple(head) for head in heads})
    single = {line for line in exposition(worker(0).registry).decode().splitlines() if line.startswith("#")}
    assert {line for line in merged.splitlines() if line.startswith("#")} == single


def test_a_family_that_one_process_alone_has_is_shown() -> None:
    metrics = worker(2)
    metrics.endpoints[0].count_error("generate")
    merged = merge_pages([("0", page_of(worker(1).registry)), ("1", page_of(metrics.registry))])
    assert len(lines_about("dynamo_component_errors_total", merged)) == 1


def test_histograms_with_other_buckets_are_not_added_up() -> None:
    """A process that was started again after an upgrade has the buckets of the new version."""
    pages = []
    for number, buckets in enumerate([(1, 2), (1, 4)]):
        registry = CollectorRegistry()
        Histogram("h", "Of two versions", buckets=buckets, registry=registry).observe(3)
        pages.append((str(number), page_of(registry)))
    assert lines_about("h_", merge_pages(pages)) == [
        *('h_bucket{le="1"} 0', 'h_bucket{le="2"} 0', 'h_bucket{le="+Inf"} 1', "h_count 1", "h_sum 3"),
        *('h_bucket{process="1",le="1"} 0', 'h_bucket{process="1",le="4"} 1', 'h_bucket{process="1",le="+Inf"} 1'),
        *('h_count{process="1"} 1', 'h_sum{process="1"} 3'),
    ]


def test_a_family_of_another_type_is_left_out() -> None:
    counted, measured = CollectorRegistry(), CollectorRegistry()
    Counter("x", "As a counter", registry=counted).inc()
    Gauge("x", "As a gauge", registry=measured).set(7)
    assert text_of(merge_pages([("0", page_of(counted)), ("1", page_of(measured))])).splitlines()[1:] == [
        "# TYPE x_total counter",
        "x_total 1",
    ]


def test_summaries_are_told_apart_by_process() -> None:
    pages = []
    for number in range(2):
        registry = CollectorRegistry()
        Summary("s", "Of a library", registry=registry).observe(number)
        pages.append((str(number), page_of(registry)))
    assert lines_about("s_count", merge_pages(pages)) == ['s_count{process="0"} 1.0', 's_count{process="1"} 1.0']


@pytest.mark.parametrize("text", ["<html>", 'a{b="c 1\n', "a one\n"])
def test_what_is_no_page_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_page(text)


# -- over time ---------------------------------------------------------------------------------------------------------


def first_responses(merged: MergedMetrics, answering: Sequence[str]) -> str:
    (line,) = lines_about("dynamo_work_handler_time_to_first_response_seconds_count", merged.families(answering))
    return line.rpartition(" ")[2]


def test_sums_keep_what_a_process_had_counted_when_it_ended() -> None:
    merged = MergedMetrics()
    merged.update("0", page_of(worker(1, requests=4).registry))
    merged.update("1", page_of(worker(2, requests=3).registry))
    assert first_responses(merged, "01") == "7"
    merged.retire("0")
    assert first_responses(merged, "1") == "7"
    merged.update("0", page_of(worker(3, requests=1).registry))
    assert first_responses(merged, "01") == "8"
    merged.retire("0")
    merged.retire("1")
    assert first_responses(merged, "") == "8"


def test_the_series_of_an_instance_end_with_it() -> None:
    merged = MergedMetrics()
    merged.update("0", page_of(worker(0xABC, requests=4).registry))
    merged.retire("0")
    merged.update("0", page_of(worker(0xDEF).registry))
    text = text_of(merged.families("0"))
    assert 'worker_id="abc"' not in text
    assert 'worker_id="def"' in text


def test_a_process_that_does_not_answer_keeps_its_counts_and_shows_no_gauges() -> None:
    merged = MergedMetrics()
    merged.update("0", page_of(worker(1, requests=4).registry))
    merged.update("1", page_of(worker(2, requests=3).registry))
    silent = merged.families("1")
    assert first_responses(merged, "1") == "7"
    assert lines_about("dynamo_work_handler_pool_capacity", silent) == [
        'dynamo_work_handler_pool_capacity{process="1"} 8'
    ]
    assert len(lines_about("dynamo_component_requests_total", silent)) == 2


# -- any pages ---------------------------------------------------------------------------------------------------------

LABEL_VALUES = st.sampled_from(["", "a", "b", 'quo"te', "back\\slash", "new\nline"])
NUMBERS = st.integers(0, 2**40)


@st.composite
def registries(draw: st.DrawFn) -> CollectorRegistry:
    """A process's registry: some of a few families, with some series of each."""
    registry = CollectorRegistry()
    for name in draw(st.sets(st.sampled_from(["c1", "c2"]))):
        counter = Counter(name, "Counts\nthings", ["kind"], registry=registry)
        for kind in draw(st.sets(LABEL_VALUES, min_size=1)):
            counter.labels(kind).inc(draw(NUMBERS))
    for name in draw(st.sets(st.sampled_from(["g1", "g2"]))):
        gauge = Gauge(name, "Is \\ something", ["kind"], registry=registry)
        for kind in draw(st.sets(LABEL_VALUES, min_size=1)):
            gauge.labels(kind).set(draw(st.floats(allow_nan=False)))
    if draw(st.booleans()):
        histogram = Histogram("h1", "Spreads", ["kind"], buckets=(1, 2.5, 1000), registry=registry)
        for kind in draw(st.sets(LABEL_VALUES, min_size=1)):
            for value in draw(st.lists(st.integers(0, 2000), max_size=5)):
                histogram.labels(kind).observe(value)
    return registry


def totals(families: Sequence[Metric]) -> Tally[tuple[str, frozenset[tuple[str, str]]]]:
    """What each series of counters and histograms comes to."""
    found: Tally[tuple[str, frozenset[tuple[str, str]]]] = Tally()
    for family in families:
        if family.type in ("counter", "histogram"):
            for sample in family.samples:
                found[sample.name, frozenset(sample.labels.items())] += int(sample.value)
    return found


def gauges(families: Sequence[Metric], process: str | None = None) -> list[tuple[str, dict[str, str], float]]:
    own = {} if process is None else {"process": process}
    return [
        (sample.name, {**sample.labels, **own}, sample.value)
        for family in families
        if family.type == "gauge"
        for sample in family.samples
    ]


@given(st.lists(registries(), max_size=4))
def test_any_pages_make_one_that_both_parsers_take_and_that_loses_nothing(found: list[CollectorRegistry]) -> None:
    pages = [(str(number), page_of(registry)) for number, registry in enumerate(found)]
    merged = merge_pages(pages)
    expected: Tally[tuple[str, frozenset[tuple[str, str]]]] = Tally()
    for _, families in pages:
        expected.update(totals(families))
    for read in (
        parse_page(text_of(merged)),
        list(parse_openmetrics(text_of(merged, openmetrics=True))),  # type: ignore[no-untyped-call]  # the library's
    ):
        assert totals(read) == expected
        key = lambda each: (each[0], sorted(each[1].items()))  # noqa: E731 - of these lists only
        assert sorted(gauges(read), key=key) == sorted(
            [gauge for process, families in pages for gauge in gauges(families, process)], key=key
        )
