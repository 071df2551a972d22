"""What became of every good request, as its caller saw it, held against what the engines ran."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from attrs import define, field, frozen

from tests.soak.engine import Runs


class Outcome(enum.Enum):
    """How a request ends for its caller; each ends in exactly one of these, or is lost."""

    COMPLETE = "complete"
    TOLD = "told"
    """Of the failure that it asked for."""

    REFUSED = "refused"
    CANCELLED = "cancelled"
    """By its own caller: left, stopped, or cut by a cancellation."""

    LOST = "lost"
    """Whatever else; never good."""


@frozen
class Ending:
    """One request's."""

    request_id: str
    kind: str
    outcome: Outcome
    why: str = ""


@define
class Account:
    """The endings of all good requests, in their order."""

    endings: list[Ending] = field(factory=list)

    def counts(self) -> Counter[Outcome]:
        return Counter(ending.outcome for ending in self.endings)

    def kinds(self) -> Counter[str]:
        return Counter(ending.kind for ending in self.endings)


# How often the engine may have run a request that ended so.
_RUNS = {
    Outcome.COMPLETE: (1,),
    Outcome.TOLD: (1,),
    Outcome.REFUSED: (0,),
    Outcome.CANCELLED: (0, 1),
    Outcome.LOST: (0, 1),
}


def breaches(endings: Sequence[Ending], ledger: Mapping[str, Runs]) -> Iterator[str]:
    """Yield what is wrong with a history: requests lost, run twice or by nobody's wish, open at the end."""
    for request_id, count in Counter(ending.request_id for ending in endings).items():
        if count > 1:
            yield f"{request_id}: ended {count} times"
    for ending in endings:
        runs = ledger.get(ending.request_id, Runs())
        name = f"{ending.request_id} ({ending.kind}, {ending.outcome.value})"
        if ending.outcome is Outcome.LOST:
            yield f"{name}: {ending.why}"
        if runs.begun not in _RUNS[ending.outcome]:
            yield f"{name}: run {runs.begun} times"
        if runs.begun != runs.ended:
            yield f"{name}: begun {runs.begun} times, ended {runs.ended} times"
    for request_id in ledger.keys() - {ending.request_id for ending in endings}:
        yield f"{request_id}: run, and no ending of it is known"
