"""Counts by bucket, as the exposition shows them."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from ingress._bucket_counts import BucketCounts
from ingress.metrics import DURATION_BUCKETS


@given(st.lists(st.floats(0, 1000) | st.sampled_from(DURATION_BUCKETS)))
def test_counts_are_those_of_the_client_library(values: list[float]) -> None:
    ours, registry = BucketCounts(DURATION_BUCKETS), CollectorRegistry()
    theirs = Histogram("it", "It", buckets=DURATION_BUCKETS, registry=registry)
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    samples = [(s.labels["le"], s.value) for f in theirs.collect() for s in f.samples if s.name == "it_bucket"]
    assert ours.cumulative() == samples
    assert ours.total == registry.get_sample_value("it_sum")
