"""``check_shape``: does a wire shape keep what the handler relies on?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from .._plugins import installed, load_shape
from ..abc import IngressDispatch
from ..errors import PluginError
from ._outcome import Checker, OnOutcome, PropertyFailed
from ._payloads import payloads_of
from ._run import run_check
from ._shape_properties import ShapeProperties
from ._stage import DEFAULT_TIMEOUT
from ._watched_shape import KitEngine

DEFAULT_EXAMPLES = 200


def check_shape(
    shape: IngressDispatch[Any],
    payloads: Iterable[bytes] | Mapping[bytes, Any] | None = None,
    *,
    others: Iterable[IngressDispatch[Any]] | None = None,
    frames: Sequence[bytes] | None = None,
    is_framed: bool = True,
    seed: int = 0,
    examples: int = DEFAULT_EXAMPLES,
    timeout: float = DEFAULT_TIMEOUT,
    on_outcome: OnOutcome | None = None,
) -> None:
    """Check that a shape keeps what the handler relies on; returns in a few seconds.

    Each payload goes through the real handler over streams in memory, as it is, in parallel, byte by byte, and ended
    between any two steps of its tasks. So do garbage and cut payloads. After each request no stream and no task is
    left, and the in-flight gauge is zero. Time jumps, so nothing really sleeps. Runs an event loop of its own: call it
    from a plain test function.

    Args:
        shape: the shape.
        payloads: what callers push, or a mapping of that to the request an engine should get (of a bidirectional one
            the list of its requests). :func:`control_message` makes the control messages in them; recorded payloads
            will do as well, the check listens wherever they say. Without them what the shape's own
            ``example_payloads(control)`` returns, or of the built-in payloads those it accepts.
        others: the shapes it shall live with; by default those that are installed.
        frames: what the caller sends on a request stream; by default two values in the codec of the request.
        is_framed: False where the beginning of a payload may be a payload too.
        seed: where the random numbers of garbage and schedules begin.
        examples: how much garbage, and how many cuts, each property tries at most.
        timeout: seconds, in the time of the check, that an answer may take.
        on_outcome: is told of each property, and failures are not raised.

    Raises:
        PropertyFailed: a property does not hold.
    """
    expected = payloads if isinstance(payloads, Mapping) else {}
    examples_of_it = [bytes(payload) for payload in (payloads_of(shape) if payloads is None else payloads)]
    subject = type(shape).__name__
    if not examples_of_it:
        raise _unusable(subject, seed, "payloads to check it with", "none; give some, or write example_payloads()")
    if not shape.can_serve(KitEngine()):
        raise _unusable(subject, seed, "can_serve() to be true for an engine that answers both ways", "false")
    properties = ShapeProperties(
        shape,
        examples_of_it,
        expected,
        _installed_beside(shape) if others is None else list(others),
        frames,
        is_framed,
        examples,
        timeout,
    )
    run_check(partial(_check_all, Checker(subject, seed, on_outcome), properties), seed)


async def _check_all(checker: Checker, properties: ShapeProperties) -> None:
    for name, property_ in properties.all().items():
        await checker.check(name, property_)


def _installed_beside(shape: IngressDispatch[Any]) -> list[IngressDispatch[Any]]:
    """Return an instance of every other shape that is installed and loads."""
    others: list[IngressDispatch[Any]] = []
    for name in dict.fromkeys(point.name for point in installed("shapes")):
        with suppress(PluginError):  # another distribution's trouble; `ingress plugins` tells of it
            others.append(load_shape(name))
    return [other for other in others if type(other) is not type(shape)]


def _unusable(subject: str, seed: int, expected: str, got: str) -> PropertyFailed:
    failure = PropertyFailed(expected=expected, got=got)
    failure.subject, failure.property, failure.seed = subject, "can be checked", seed
    return failure
