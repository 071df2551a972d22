"""``check_engine``: does an engine behave on a bad day as it does on a good one?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from attrs import evolve

from .._engine import make_engine
from .._worker import EngineLike
from ..wire.messages import CodecName
from ._engine_properties import Case, EngineProperties
from ._outcome import Checker, OnOutcome
from ._run import run_check
from ._stage import DEFAULT_TIMEOUT

DEFAULT_EXAMPLES = 50

DEFAULT_MAX_CHUNKS = 100

PLAUSIBLE_REQUESTS: tuple[Any, ...] = (
    {"prompt": "hello world", "text": "hello world", "n": 3, "delay": 0.01, "max_words": 8},
    {"prompt": "hello world"},
    {"text": "hello world"},
    {"token_ids": [1, 2, 3]},
    "hello world",
    [1, 2, 3],
    3,
    {},
    None,
)
"""What an engine is asked where nobody says what it understands; the first that it answers is taken."""


def check_engine(
    engine: EngineLike,
    requests: Sequence[Any] | None = None,
    *,
    codecs: Sequence[CodecName] = ("json", "msgpack"),
    seed: int = 0,
    examples: int = DEFAULT_EXAMPLES,
    timeout: float = DEFAULT_TIMEOUT,
    max_chunks: int = DEFAULT_MAX_CHUNKS,
    on_outcome: OnOutcome | None = None,
) -> None:
    """Check that an engine answers, and that it ends whatever becomes of its caller; returns in a few seconds.

    The engine runs in the real handler over streams in memory. It is asked in every codec, 100 times at once, by a
    reader that is slow; it is stopped and killed before its first chunk, between chunks, and at each of its awaits; it
    is made to fail; it gets requests it was not made for. Time jumps while it waits for time, so an engine that sleeps
    is checked without sleeping, one that waits for a thread or a socket is waited for. Its ``lifespan`` is entered
    once. Runs an event loop of its own: call it from a plain test function.

    Args:
        engine: whatever :func:`ingress.serving` takes as one.
        requests: what it is asked; it has to answer each without an error. A bidirectional engine gets all of them in
            one call. Without them the first of a few plausible ones that it answers.
        codecs: those in which its chunks must arrive unchanged.
        seed: where the random numbers of choices and schedules begin.
        examples: at how many awaits it is ended at most.
        timeout: seconds, in the time of the check, that it may take for a chunk and for an end.
        max_chunks: a longer answer is asked to stop there.
        on_outcome: is told of each property, and failures are not raised.

    Raises:
        PropertyFailed: a property does not hold.
        StartupError: it is no engine.
    """
    checked = make_engine(engine)
    checker = Checker(_name_of(engine), seed, on_outcome)
    properties = EngineProperties(checked, (), codecs, examples, timeout, max_chunks)
    run_check(partial(_check_all, checker, properties, requests), seed)


async def _check_all(checker: Checker, properties: EngineProperties, requests: Sequence[Any] | None) -> None:
    engine = properties.engine
    async with engine.lifespan():
        if engine.is_unary:
            await _check_cases(checker, properties, [Case([request], False) for request in requests or ()], "")
        if engine.is_bidirectional:
            cases = [Case(list(requests), True)] if requests else []
            await _check_cases(checker, properties, cases, " (bidirectional)" if engine.is_unary else "")


async def _check_cases(checker: Checker, properties: EngineProperties, cases: list[Case], suffix: str) -> None:
    if not cases:
        plausible = [Case([request], bool(suffix) or not properties.engine.is_unary) for request in PLAUSIBLE_REQUESTS]

        async def find(_: object) -> None:
            cases.append(await properties.first_answered(plausible))

        await checker.check(f"understands a plausible request{suffix}", find)
        if not cases:
            return  # there is nothing to ask it
    for name, property_ in evolve(properties, cases=cases).all().items():
        await checker.check(name + suffix, property_)


def _name_of(engine: EngineLike) -> str:
    name = getattr(engine, "__qualname__", None)
    return name if isinstance(name, str) else type(engine).__qualname__
