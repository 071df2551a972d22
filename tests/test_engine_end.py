"""What an unfinished engine raises where it is closed."""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator

import trio

from ingress._engine_end import close_engine
from ingress._failures import sole_exception


async def engine_that(levels: int, failure: Exception | None) -> AsyncGenerator[int, None]:
    """Let its cleanup raise the GeneratorExit, and a failure besides, in groups that share their members."""
    try:
        yield 1
    except GeneratorExit as exc:
        raised: BaseException = exc if failure is None else BaseExceptionGroup("both", [exc, failure])
        for _ in range(levels):
            raised = BaseExceptionGroup("shared", [raised, raised])
        raise raised from None


async def test_an_engines_cleanup_costs_nothing_however_its_groups_nest() -> None:
    """Split as Python splits them, 20 levels took 87 s of the event loop."""
    for failure in (None, ValueError("cleanup")):
        engine = engine_that(60, failure)
        assert isinstance(engine, types.AsyncGeneratorType)
        await anext(engine)
        with trio.fail_after(20):
            left = await close_engine(engine)
        assert (left and sole_exception(left)) is failure
