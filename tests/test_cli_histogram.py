"""The histogram of `ingress bench`: bounded memory, bounded error."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingress.cli._histogram import RELATIVE_ERROR, LogHistogram

SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)

nanoseconds = st.one_of(st.integers(0, 2**49), st.integers(0, 1000), st.integers(250, 260))


def histogram_of(values: list[int]) -> LogHistogram:
    histogram = LogHistogram()
    for value in values:
        histogram.record(value / 1e9)
    return histogram


@given(st.lists(nanoseconds, min_size=1, max_size=60), st.sampled_from(SHARES))
@example([0], 0.5)
@example([255, 256], 0.5)
def test_a_quantile_is_the_exact_one_or_a_little_more(values: list[int], share: float) -> None:
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    told = histogram_of(values).quantile(share) * 1e9
    assert exact - 1 <= told <= exact * (1 + RELATIVE_ERROR) + 1


@given(st.lists(nanoseconds, min_size=1, max_size=60))
def test_the_summary_is_in_order_and_its_ends_are_exact(values: list[int]) -> None:
    summary = histogram_of(values).summary()
    told = [summary.min, summary.p50, summary.p90, summary.p99, summary.p99_9, summary.max]
    assert told == sorted(told)
    assert summary.count == len(values)
    assert summary.min == pytest.approx(min(values) / 1e9, abs=1e-9)
    assert summary.max == pytest.approx(max(values) / 1e9, abs=1e-9)
    assert summary.mean == pytest.approx(sum(values) / len(values) / 1e9, rel=1e-9, abs=1e-9)


@given(st.lists(nanoseconds, min_size=1, max_size=60), st.integers(1, 20))
@example([1, 2], 12)
@example([2**49, 0], 12)
def test_the_spans_hold_every_value_once_and_meet_each_other(values: list[int], rows: int) -> None:
    spans = histogram_of(values).spans(rows)
    assert 1 <= len(spans) <= rows
    assert sum(span.count for span in spans) == len(values)
    assert [span.high for span in spans[:-1]] == [span.low for span in spans[1:]]
    assert spans[0].low == pytest.approx(min(values) / 1e9, abs=1e-9)
    assert spans[-1].high == pytest.approx(max(values) / 1e9, abs=1e-9)


def test_of_nothing_nothing_is_told() -> None:
    histogram = LogHistogram()
    assert histogram.quantile(0.99) == histogram.summary().max == histogram.summary().count == 0
    assert histogram.spans(12) == []


def test_a_value_counts_as_often_as_told() -> None:
    histogram = LogHistogram()
    histogram.record(0.0, 99)
    histogram.record(1.0)
    assert (histogram.quantile(0.99), histogram.quantile(0.991)) == (0.0, 1.0)
    assert histogram.summary().mean == pytest.approx(0.01)


def test_what_is_below_zero_or_longer_than_days_is_counted_at_the_ends() -> None:
    histogram = LogHistogram()
    histogram.record(-0.5)
    histogram.record(1e9)
    summary = histogram.summary()
    assert summary.count == 2
    assert summary.min == 0
    assert 86_400 < summary.max < 1e9


def test_a_million_values_take_no_more_room_than_one() -> None:
    few, many = histogram_of([5]), histogram_of([5])
    for value in range(100_000):
        many.record(value / 1e3)
    assert len(few._counts) == len(many._counts) < 10_000
