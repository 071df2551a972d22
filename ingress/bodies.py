"""Reading request bodies without holding up the event loop; what shapes call in ``parse_and_build_request``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from ._weight import weigh_in_steps
from .wire.codec import codec_named
from .wire.guards import between_steps, end_step

T = TypeVar("T")

# 32 MiB of JSON takes up to 0.7 s to check and decode, no more than 0.2 of it in one piece; a body of this size takes
# some 5 ms.
LARGE_BODY = 240 * 1024

# Bodies from here on are decoded one after the other, and in steps between which the event loop has a turn. With the
# interpreter in the hands of a decoder for most of the time, each system call of the loop was a wait for a step: among
# ten such bodies the loop was late by 0.5 to 1 s.
_HUGE_BODY = 2 << 20

# What large bodies wait for, and what huge ones do: each other, and not the threads of engines.
_limiters: trio.lowlevel.RunVar[tuple[trio.CapacityLimiter, trio.CapacityLimiter]] = trio.lowlevel.RunVar(
    "ingress body decoders"
)


async def decode_body(codec_name: str, body: bytes) -> Any:
    """Decode a request's body; a large one in a thread, while other requests go on.

    Raises:
        DeserializationError: the body is not what the codec promises, or more than the guards allow.
    """
    return await run_decoder(codec_named(codec_name).decode, body)


async def run_decoder(decode: Callable[[bytes], T], body: bytes) -> T:
    """Call a decode function; for a large body in a thread. Raises what it raises."""
    return (await decode_weighed(decode, body))[0]


async def decode_weighed(decode: Callable[[bytes], T], body: bytes) -> tuple[T, int | None]:
    """As :func:`run_decoder`; tells how many bytes of memory the result takes, too, for a :class:`ParsedRequest`.

    None of a smaller body, at which nobody has looked. A large one is weighed in its thread, before the next is
    decoded: what has not been counted yet is never more than one or two of them.
    """
    if len(body) <= LARGE_BODY:
        return decode(body), None
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = trio.CapacityLimiter(1), trio.CapacityLimiter(1)
        _limiters.set(limiters)
    # Nobody waits for a decoder whose caller has gone: it ends by itself, and keeps its place until then.
    is_huge = len(body) > _HUGE_BODY
    job = _Decoding(decode, body, trio.lowlevel.current_trio_token() if is_huge else None)
    await trio.to_thread.run_sync(job.run, limiter=limiters[is_huge], abandon_on_cancel=True)
    value: T = job.result()
    return value, job.weight


class _Decoding:
    """What a thread is to decode, and what came of it.

    trio's own frames round a call in a thread refer to each other, so that what they hold stays until a garbage
    collection: they hold this, and this gives the body and the result away.
    """

    def __init__(self, decode: Callable[[bytes], Any], body: bytes, loop: trio.lowlevel.TrioToken | None) -> None:
        self._decode = decode
        self._body = body
        self._loop = loop
        self._value: Any = None
        self.weight = 0
        self._error: Exception | None = None

    def run(self) -> None:
        """In the thread, which has a context of its own."""
        if self._loop is not None:
            between_steps.set(self._let_loop_run)
        try:
            self._value = self._decode(self._body)
            for weight in weigh_in_steps(self._value, len(self._body)):
                self.weight = weight
                end_step()
        except Exception as exc:
            self._error = exc
        self._body = b""

    def _let_loop_run(self) -> None:
        """Wait until every task that can go on has had a turn."""
        with contextlib.suppress(trio.RunFinishedError, trio.Cancelled):
            trio.from_thread.run(trio.lowlevel.cancel_shielded_checkpoint, trio_token=self._loop)

    def result(self) -> Any:
        """In the event loop, once."""
        value, self._value = self._value, None
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return value
        finally:
            del error
