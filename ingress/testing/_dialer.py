"""The dialer of a shape's own tests: what the caller would send, without a caller."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence

import trio

from ..abc import InputT
from ..errors import ResponseStreamError
from ..wire.messages import StreamAddress


class MemoryDialer:
    """Implements :class:`ingress.abc.Dialer`: every request stream holds the same frames, and then ends.

    Args:
        frames: the bodies of the frames, as the caller would send them.
        failure: raised instead of opening a stream.
    """

    def __init__(self, frames: Sequence[bytes] = (), *, failure: ResponseStreamError | None = None) -> None:
        self.opened: list[StreamAddress] = []
        """What the shape asked for, in order."""
        self._frames = tuple(frames)
        self._failure = failure

    async def open_request_stream(
        self, stream: StreamAddress, decode: Callable[[bytes], InputT]
    ) -> AsyncIterable[InputT]:
        self.opened.append(stream)
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure
        return self._decoded(decode)

    async def _decoded(self, decode: Callable[[bytes], InputT]) -> AsyncIterator[InputT]:
        for frame in self._frames:
            await trio.lowlevel.checkpoint()
            yield decode(frame)
