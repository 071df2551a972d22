"""Reading request bodies without holding up the event loop; what shapes call in ``parse_and_build_request``."""

from __future__ import annotations

from typing import Any

import trio

from .wire.codec import codec_named

# 32 MiB of JSON takes up to 0.7 s to check and decode; a body of this size takes some 5 ms.
LARGE_BODY = 256 * 1024

# Large bodies wait for each other and not for the threads of engines.
_MAX_THREADS = 2

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("ingress body decoders")


async def decode_body(codec_name: str, body: bytes) -> Any:
    """Decode a request's body; a large one in a thread, while other requests go on.

    Raises:
        DeserializationError: the body is not what the codec promises, or more than the guards allow.
    """
    decode = codec_named(codec_name).decode
    if len(body) <= LARGE_BODY:
        return decode(body)
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_MAX_THREADS)
        _limiter.set(limiter)
    # Nobody waits for a decoder whose caller has gone: it ends by itself, and keeps its place until then.
    return await trio.to_thread.run_sync(decode, body, limiter=limiter, abandon_on_cancel=True)
