"""Reading request bodies without holding up the event loop; what shapes call in ``parse_and_build_request``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import trio

from ._fair_line import FairLine
from ._heavy_work import LARGE_BODY, heavy_work
from ._per_run import PerRun
from ._weight import weigh_in_steps
from .abc import ParsedRequest
from .wire.codec import codec_named
from .wire.guards import between_steps, end_step
from .wire.messages import RequestControlMessage

T = TypeVar("T")

# Up to here a body takes 0.4 ms at the worst; larger ones are decoded in turns.
SMALL_BODY = 4 * 1024
SECONDS_A_BYTE = 1e-7

# Of JSON, whose values can be told from the bytes of their texts: most bodies are little else.
_SECONDS_A_BYTE_OF_TEXT, _SECONDS_A_VALUE = 5e-9, 1e-7

# Bodies from here on are decoded one after the other, and in steps between which the event loop has a turn. With the
# interpreter in the hands of a decoder for most of the time, each system call of the loop was a wait for a step: among
# ten such bodies the loop was late by 0.5 to 1 s.
_HUGE_BODY = 2 << 20


async def parse_body(control: RequestControlMessage, body: bytes) -> ParsedRequest[Any]:
    """Decode a body by the codec that its control message names; a large one in a thread, while other requests go on.

    Raises:
        DeserializationError: the body is not what the codec promises, or more than the guards allow.
    """
    request, weight = await decode_body(codec_named(control.codec_name).decode, body)
    return ParsedRequest(request, control, weight)


async def decode_body(decode: Callable[[bytes], T], body: bytes) -> tuple[T, int | None]:
    """Call a decode function, for a large body in a thread; raises what it raises.

    Returns:
        what was decoded, and the bytes of memory that it takes, None of a smaller one, at which nobody has looked. A
        large one is weighed in its thread, before the next is decoded, so that never more than two are not counted yet.
    """
    if len(body) <= SMALL_BODY:
        return decode(body), None
    if len(body) <= LARGE_BODY:
        work = heavy_work()
        expected = _seconds_to_decode(body) if work.is_wait_expected else len(body) * SECONDS_A_BYTE
        return await work.do(partial(decode, body), expected), None
    return await work_in_turn(partial(_decode_and_weigh, decode, body), len(body))


async def work_in_turn(work: Callable[[], T], size: int, *, is_of_engine: bool = False) -> T:
    """Do work that takes as long as a body of so many bytes: in its turn, and what is large in a thread.

    Raises what it raises. Cancelled while in a thread it leaves that to end by itself.

    Args:
        is_of_engine: an engine's code has a part in it, and might take long: it keeps only its like waiting.
    """
    if size <= LARGE_BODY:
        return await heavy_work().do(work, size * SECONDS_A_BYTE)
    is_huge = size > _HUGE_BODY
    line = _lines.get()[2 if is_of_engine else is_huge]
    job = _Job(work, trio.lowlevel.current_trio_token() if is_huge else None)
    del work
    async with line.turn:
        # Nobody waits for a thread whose caller has gone: it ends by itself, and keeps its place until then.
        await trio.to_thread.run_sync(job.run, limiter=line.thread, abandon_on_cancel=True)
    return job.result()


def _seconds_to_decode(body: bytes) -> float:
    """Estimate how long a body takes, of JSON by what stands between its values; so that long texts count as short."""
    worst = len(body) * SECONDS_A_BYTE
    if body[:1] not in (b"{", b"["):  # nor does a map or list of msgpack begin so
        return worst
    values = sum(map(body.count, (b",", b":", b"[", b"{")))
    return min(worst, len(body) * _SECONDS_A_BYTE_OF_TEXT + values * _SECONDS_A_VALUE)


def _decode_and_weigh(decode: Callable[[bytes], T], body: bytes) -> tuple[T, int]:
    value, weight = decode(body), 0
    for step in weigh_in_steps(value, len(body)):
        weight = step
        end_step()
    return value, weight


def is_wait_expected(size: int) -> bool:
    """Tell whether the body of a payload of so many bytes may have to wait until others have been decoded."""
    if size <= SMALL_BODY:
        return False
    if heavy_work().is_wait_expected:
        return True
    # The body may be a little smaller than its payload, and stand in the other line.
    return size > LARGE_BODY and any(line.turn.is_taken for line in _lines.get()[:2])


class _Line:
    """Where bodies wait for the one thread that decodes those of their size."""

    def __init__(self) -> None:
        self.turn = FairLine()
        self.thread = trio.CapacityLimiter(1)


# What large bodies wait for, what huge ones do, and typed requests: each other, and not the threads of engines.
_lines = PerRun("ingress body decoders", lambda: (_Line(), _Line(), _Line()))


class _Job(Generic[T]):
    """What a thread is to do, and what came of it.

    trio's own frames round a call in a thread refer to each other, so that what they hold stays until a garbage
    collection: they hold this, and this gives the work and its result away.
    """

    def __init__(self, work: Callable[[], T], loop: trio.lowlevel.TrioToken | None) -> None:
        self._work: Callable[[], T] | None = work
        self._loop = loop
        self._value: list[T] = []
        self._error: Exception | None = None

    def run(self) -> None:
        """In the thread, which has a context of its own."""
        if self._loop is not None:
            between_steps.set(self._let_loop_run)
        work, self._work = self._work, None
        try:
            if work is not None:
                self._value.append(work())
        except Exception as exc:
            self._error = exc

    def _let_loop_run(self) -> None:
        """Wait until every task that can go on has had a turn."""
        with contextlib.suppress(trio.RunFinishedError, trio.Cancelled):
            trio.from_thread.run(trio.lowlevel.cancel_shielded_checkpoint, trio_token=self._loop)

    def result(self) -> T:
        """In the event loop, once."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value.pop()
        finally:
            del error
