"""Several processes' ``/metrics`` as one page. Pure: pages in, families out.

Counters and histograms are added up where their labels are the same; those that bear ``worker_id``, which is another in
each process, stay apart by themselves. Whatever else there is, gauges above all, gets the label ``process``: a depth, a
phase and the time at which a certificate expires add up to nothing alike, and who wants a sum of them can ask for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby

from attrs import define, field, frozen
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ..metrics import PROCESS_LABEL

_ADDED_UP = frozenset(("counter", "histogram"))

_OF_ONE_INSTANCE = "worker_id"


def parse_page(text: str) -> list[Metric]:
    """Read a page of the text format.

    Raises:
        ValueError: it is none.
    """
    try:
        return list(text_string_to_metric_families(text))
    except (KeyError, IndexError) as exc:  # which the library lets through
        raise ValueError(f"no page of metrics: {exc!r}") from exc


def merge_pages(pages: Iterable[tuple[str | None, Iterable[Metric]]]) -> list[Metric]:
    """Merge the families of each process's page, in the order of the first that has them.

    Args:
        pages: with the value of the label ``process``. None is what processes that have ended leave behind: it only
            adds to what others have in the same form, or stands alone.
    """
    merged: dict[str, _Family] = {}
    for process, families in pages:
        for family in families:
            known = merged.setdefault(family.name, _Family(family.documentation, family.type, family.unit))
            if known.type == family.type:  # else one of them is of another version, and the first stays valid
                known.take(process, family.samples)
    return [family.metric(name) for name, family in merged.items()]


class MergedMetrics:
    """The page of all processes over time: sums that never fall, also when processes end and others begin.

    Prometheus takes a fall of a counter for a restart from 0, and would count again what the others have counted.
    So the last known counts of a process stay in the sums: while it does not answer, and after its end.
    """

    def __init__(self) -> None:
        self._latest: dict[str, list[Metric]] = {}
        self._retired: list[Metric] = []

    def update(self, process: str, families: list[Metric]) -> None:
        """Take in the page that a process has just shown."""
        self._latest[process] = families

    def retire(self, process: str) -> None:
        """Keep the sums of a process that has ended; its instance is gone with it, and so are that one's series."""
        families = self._latest.pop(process, [])
        self._retired = merge_pages([(None, self._retired), (None, _sums_only(families, without=_OF_ONE_INSTANCE))])

    def families(self, answering: Collection[str]) -> list[Metric]:
        """Return the merged page; of processes that are not ``answering`` it has the counts and no gauges."""
        shown = [
            (process, families if process in answering else list(_sums_only(families)))
            for process, families in self._latest.items()
        ]
        return merge_pages([*sorted(shown, key=lambda page: page[0]), (None, self._retired)])


def _sums_only(families: Iterable[Metric], without: str | None = None) -> Iterator[Metric]:
    for family in families:
        if family.type in _ADDED_UP:
            kept = Metric(family.name, family.documentation, family.type, family.unit)
            kept.samples = [sample for sample in family.samples if without not in sample.labels]
            yield kept


_Labels = frozenset[tuple[str, str]]


@frozen
class _Form:
    """What one series of a family consists of: the names of its samples and the bounds of its buckets."""

    parts: tuple[tuple[str, str | None], ...]


@define
class _Series:
    labels: Mapping[str, str]
    form: _Form
    values: list[float]


@define
class _Family:
    """One family while it is merged."""

    documentation: str
    type: str
    unit: str
    _series: dict[_Labels, _Series] = field(factory=dict)
    _apart: list[Sample] = field(factory=list)

    def take(self, process: str | None, samples: Iterable[Sample]) -> None:
        if self.type not in _ADDED_UP:
            self._apart += [_labelled(sample, process) for sample in samples]
            return
        for key, group in groupby(samples, key=_key_of):
            self._add(key, process, list(group))

    def _add(self, key: _Labels, process: str | None, samples: list[Sample]) -> None:
        form = _Form(tuple((sample.name, sample.labels.get("le")) for sample in samples))
        known = self._series.get(key)
        if known is None:
            self._series[key] = _Series(dict(key), form, [sample.value for sample in samples])
        elif known.form == form:
            known.values = [ours + sample.value for ours, sample in zip(known.values, samples, strict=True)]
        elif process is not None:
            # Buckets of another version: a sum of the two would be no histogram.
            self._apart += [_labelled(sample, process) for sample in samples]

    def metric(self, name: str) -> Metric:
        made = Metric(name, self.documentation, self.type, self.unit)
        for series in self._series.values():
            for (sample_name, bound), value in zip(series.form.parts, series.values, strict=True):
                labels = dict(series.labels) if bound is None else {**series.labels, "le": bound}
                made.samples.append(Sample(sample_name, labels, value))
        made.samples += self._apart
        return made


def _key_of(sample: Sample) -> _Labels:
    return frozenset((name, value) for name, value in sample.labels.items() if name != "le")


def _labelled(sample: Sample, process: str | None) -> Sample:
    return sample if process is None else sample._replace(labels={**sample.labels, PROCESS_LABEL: process})
