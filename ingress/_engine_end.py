"""How an engine that has not finished is ended, and what it leaves behind: in its request's own task."""

from __future__ import annotations

import logging
import types
from typing import Any

import trio

from ._failures import is_cancellation
from ._text import quoted

logger = logging.getLogger("ingress.engine")


async def close_engine(chunks: types.AsyncGeneratorType[Any, None]) -> BaseException | None:
    """Let an unfinished engine clean up; returns what its cleanup raised, as far as it ends only its request."""
    try:
        await chunks.aclose()
    except BaseException as exc:
        # A nursery that was open across a yield wraps the GeneratorExit of aclose in a group.
        error = exc.split(GeneratorExit)[1] if isinstance(exc, BaseExceptionGroup) else exc
        if error is not None and is_cancellation(error):
            raise
        return error
    return None


async def end_nurseries_left_open(own: int = 0) -> bool:
    """End the nurseries that an engine has entered in this task and never left; tell whether there were any.

    A task that ended with one would take its parent's nursery along, and with it the worker.

    Args:
        own: how many nurseries the task had entered before the engine.
    """
    left = trio.lowlevel.current_task().child_nurseries[own:]
    for nursery in reversed(left):
        nursery.cancel_scope.cancel()
        # trio has no public way to end a nursery for somebody else.
        manager: Any = trio.open_nursery()
        manager._scope, manager._nursery = nursery.cancel_scope, nursery
        try:
            await manager.__aexit__(None, None, None)
        except BaseException as exc:  # of its tasks; whoever is cancelled from outside is told at the next checkpoint
            logger.debug("a nursery that was left open: %s", quoted(exc, 600))
    return bool(left)
