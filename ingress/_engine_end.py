"""How an engine that has not finished is ended, and what it leaves behind: in its request's own task."""

from __future__ import annotations

import types
from typing import Any

import trio

from ._failures import describe_failure, is_a, is_cancellation, leaves_of
from .errors import GenerateError


async def end_engine(
    chunks: types.AsyncGeneratorType[Any, None] | None, own: int = 0
) -> tuple[BaseException | None, GenerateError | None]:
    """Let an engine clean up where it has not finished, and end the nurseries that it has entered and never left.

    A task that ended with one would take its parent's nursery along, and with it the worker.

    Args:
        own: how many nurseries the task had entered before the engine.

    Returns:
        what its cleanup has raised, as far as it ends only its request; and what is to be told of a nursery left open.

    Raises:
        trio.Cancelled: the cleanup was cut, and not by a nursery of its own.
    """
    error: BaseException | None = None
    cut: BaseException | None = None
    if chunks is not None and chunks.ag_frame is not None:
        try:
            error = await close_engine(chunks)
        except BaseException as exc:
            cut = exc
    left = await _end_nurseries_left_open(own)
    if left is None and cut is not None:
        try:
            raise cut
        finally:
            del cut  # its traceback holds this frame
    return error, left


async def close_engine(chunks: types.AsyncGeneratorType[Any, None]) -> BaseException | None:
    """Let an unfinished engine clean up; returns what its cleanup raised, as far as it ends only its request."""
    try:
        await chunks.aclose()
    except BaseException as exc:
        # A nursery that was open across a yield wraps the GeneratorExit of aclose in a group.
        error: BaseException | None = exc
        if is_a(exc, BaseExceptionGroup):
            leaves = list(leaves_of(exc))
            rest = [each for each in leaves if not is_a(each, GeneratorExit)]
            if len(rest) < len(leaves):
                error = BaseExceptionGroup("engine's cleanup", rest) if rest else None
        if error is not None and is_cancellation(error):
            raise
        return error
    return None


async def _end_nurseries_left_open(own: int) -> GenerateError | None:
    left = trio.lowlevel.current_task().child_nurseries[own:]
    if not left:
        return None
    failures = []
    for nursery in reversed(left):
        nursery.cancel_scope.cancel()
        # trio has no public way to end a nursery for somebody else.
        manager: Any = trio.open_nursery()
        manager._scope, manager._nursery = nursery.cancel_scope, nursery
        try:
            await manager.__aexit__(None, None, None)
        except BaseException as exc:  # whoever is cancelled from outside is told at the next checkpoint
            failures += [describe_failure(each) for each in leaves_of(exc) if not is_cancellation(each)]
    return GenerateError("; ".join(["engine left a nursery open", *failures]))
