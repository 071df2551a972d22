"""Reading request bodies without holding up the event loop; what shapes call in ``parse_and_build_request``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from .wire.codec import codec_named

T = TypeVar("T")

# 32 MiB of JSON takes up to 0.7 s to check and decode, no more than 0.2 of it in one piece; a body of this size takes
# some 5 ms.
LARGE_BODY = 240 * 1024

# Large bodies wait for each other and not for the threads of engines.
_MAX_THREADS = 2

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("ingress body decoders")


async def decode_body(codec_name: str, body: bytes) -> Any:
    """Decode a request's body; a large one in a thread, while other requests go on.

    Raises:
        DeserializationError: the body is not what the codec promises, or more than the guards allow.
    """
    return await run_decoder(codec_named(codec_name).decode, body)


async def run_decoder(decode: Callable[[bytes], T], body: bytes) -> T:
    """Call a decode function; for a large body in a thread. Raises what it raises."""
    if len(body) <= LARGE_BODY:
        return decode(body)
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_MAX_THREADS)
        _limiter.set(limiter)
    # Nobody waits for a decoder whose caller has gone: it ends by itself, and keeps its place until then.
    job = _Decoding(decode, body)
    await trio.to_thread.run_sync(job.run, limiter=limiter, abandon_on_cancel=True)
    value: T = job.result()
    return value


class _Decoding:
    """What a thread is to decode, and what came of it.

    trio's own frames round a call in a thread refer to each other, so that what they hold stays until a garbage
    collection: they hold this, and this gives the body and the result away.
    """

    def __init__(self, decode: Callable[[bytes], Any], body: bytes) -> None:
        self._decode = decode
        self._body = body
        self._value: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        """In the thread."""
        try:
            self._value = self._decode(self._body)
        except Exception as exc:
            self._error = exc
        self._body = b""

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
