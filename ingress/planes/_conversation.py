"""What is said on a request connection: frames come in, acks go out.

A connection carries any number of back-to-back frames. Its one task reads, decides and acks, in order and never behind
engine work; a caller that does not read its acks is not read from, and closed at the write deadline.
Source: docs/wire.md §1.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from .._fair_line import working_for
from .._heavy_work import SECONDS_A_COPIED_BYTE, SECONDS_A_READ_BYTE, heavy_work
from .._patience import read_until
from .._shares import caller_of
from .._stream_limits import FRAME_BYTES_PER_SECOND
from .._tallies import Tallies
from .._text import RateLimitedLogger, printable
from ..abc import PlaneOptions, Push, PushReceiver
from ..errors import IngressError, InvalidMessage, MessageTooLarge, Overloaded
from ..wire.messages import MAX_CONTROL_MESSAGE
from ..wire.request_frame import (
    OVERLOADED_PREFIX,
    UNAVAILABLE_PREFIX,
    RequestFrame,
    RequestFrameDecoder,
    encode_ack,
)
from ..wire.two_part import PREFIX
from ._connection import BEGUN, HELD, NEVER, RESTS, WAITS, Connection
from ._connections import Connections
from ._incomplete import LARGE_FRAME, IncompleteFrames
from ._peers import USED
from ._turns import FRAMES_A_TURN, TAKEN, Turns

logger = logging.getLogger("ingress.planes.tcp")

# After a refusal that ends the connection the caller may still be sending; reading on for a while lets the ack arrive
# before the reset that unread bytes would cause.
_LINGER_TIMEOUT = 1.0

# The beginning of a payload that is not taken: what the largest control message takes, and how long it is waited for.
_START_SIZE = MAX_CONTROL_MESSAGE + PREFIX.size
_START_WAIT = 0.5

# Most requests are smaller than the first, which is what thousands that flood hold each.
_FIRST_READ_SIZE = 16 * 1024
_READ_SIZE = 64 * 1024

# Of a large one; with a quarter of that 320 MB a second were read, and 520 with this.
_LARGE_READ_SIZE = 256 * 1024

# A control message is read before its ack, and a large one takes its time: each so many bytes of a frame count as one
# more frame, up to the largest control message.
_COUNTED_SIZE = 16 * 1024

# A frame is copied out of its buffer, and its body out of it: from here on that is work for which it waits its turn.
_HUGE_FRAME = 2 << 20


class Conversations:
    """Reads the frames of a plane's connections and writes their acks; each connection in a task of its own."""

    def __init__(
        self, options: PlaneOptions, connections: Connections, incomplete: IncompleteFrames, tallies: Tallies
    ) -> None:
        self.options = options
        self.connections = connections
        self.incomplete = incomplete
        self.tallies = tallies
        self.turns = Turns()
        """What the plane has to serve beside the connections."""
        self.log = RateLimitedLogger(logger)

    async def hold(self, connection: Connection, receive: PushReceiver) -> None:
        """Serve a connection until it has ended, which its caller closes.

        Raises:
            trio.BrokenResourceError: it was reset.
            trio.ClosedResourceError: it was closed under us.
        """
        working_for.set(caller_of(connection.peer_host or ""))
        conversation = _Conversation(self, connection, receive)
        if await conversation.shake_hands():
            await conversation.converse()


class _Conversation:
    """What is said on one connection; for its own task."""

    __slots__ = ("_connection", "_decoder", "_peer_host", "_receive", "_shared", "_stream")

    def __init__(self, shared: Conversations, connection: Connection, receive: PushReceiver) -> None:
        self._shared = shared
        self._connection = connection
        self._stream = connection.stream
        self._peer_host = connection.peer_host
        self._receive = receive
        self._decoder = RequestFrameDecoder(max_frame_size=shared.options.max_frame_size)

    async def shake_hands(self) -> bool:
        """Do what a connection begins with, which only TLS has; it bounds its time itself."""
        do_handshake: Callable[[], Awaitable[None]] | None = getattr(self._stream, "do_handshake", None)
        if do_handshake is None:
            return True
        try:
            await do_handshake()
        except trio.BrokenResourceError as exc:
            shared = self._shared
            shared.tallies.connections_refused["tls"] += 1
            text = "request connection from %s refused: %s"
            shared.log.log(logging.WARNING, "tls", text, self._peer_host, printable(exc))
            return False
        return True

    async def converse(self) -> None:
        """Read, decide and ack until the caller leaves, or says what ends the connection."""
        connection, decoder, turns = self._connection, self._decoder, self._shared.turns
        frames = 0
        while data := await self._receive_some():
            if decoder.is_idle:
                connection.begun_at = trio.current_time()
            decoder.receive_data(data)
            del data  # while it waits for the next, a connection holds nothing of what it has sent
            if _HUGE_FRAME < decoder.announced_size <= decoder.held_bytes:
                await heavy_work().spend(2 * decoder.announced_size * SECONDS_A_COPIED_BYTE)
            most = FRAMES_A_TURN
            if turns.left <= 0 and decoder.held_bytes >= decoder.announced_size:
                most = await self._wait_turn()
            if not connection.is_open:  # given up meanwhile to make room: its acks would reach nobody
                return
            connection.phase = HELD
            acks, refusal, has_more = self._push_some(most)
            if not connection.is_proven and decoder.frames:
                self._shared.connections.prove(connection)
            while has_more:
                is_welcome = not any(acks)  # nothing but zeros is the ack of a request that is taken
                if not await self._send_acks(acks):
                    return
                if not (most := await self._go_on(is_welcome=is_welcome)):
                    return
                connection.phase = HELD
                acks, refusal, has_more = self._push_some(most)
            last_ack: str | None = None
            if refusal is not None:
                last_ack = await self._refuse(refusal)
            else:
                if decoder.frames != frames:  # what is left over began with this read
                    frames, connection.begun_at = decoder.frames, trio.current_time()
                if connection.incomplete_bytes or decoder.announced_size > LARGE_FRAME:
                    overload = self._shared.incomplete.note(connection, decoder.held_bytes)
                    if overload is not None:
                        last_ack = await self._refuse_unfinished(overload)
            if last_ack is not None:
                acks += encode_ack(last_ack)
            if acks and not await self._send_acks(acks):
                return
            if last_ack is not None:
                connection.phase, connection.taken_at = BEGUN, NEVER
                await _close_after_refusal(self._stream)
                return
        if not decoder.is_idle:
            logger.debug("request connection from %s ended inside a frame", self._peer_host)

    async def _receive_some(self) -> bytes | bytearray:
        """Read until the frame that has begun is due; b"" then, as at the end of the stream."""
        options, decoder, connection = self._shared.options, self._decoder, self._connection
        if decoder.is_idle:
            connection.phase = RESTS
            if options.idle_timeout is None:
                return await self._stream.receive_some(_FIRST_READ_SIZE)
            with trio.move_on_after(options.idle_timeout):
                return await self._stream.receive_some(_FIRST_READ_SIZE)
            logger.debug("request connection from %s idle for %g s, closing", self._peer_host, options.idle_timeout)
            return b""
        connection.phase = BEGUN
        if decoder.announced_size > LARGE_FRAME:  # its parts are many
            size = _LARGE_READ_SIZE
            connection.begun_at += await _wait_to_read(size)
        else:
            size = _READ_SIZE if decoder.announced_size > _FIRST_READ_SIZE else _FIRST_READ_SIZE
        deadline = connection.begun_at + options.frame_timeout + decoder.announced_size / FRAME_BYTES_PER_SECOND
        data, put_off = await read_until(self._stream, size, deadline)
        connection.begun_at += put_off
        if data is not None:
            return data
        shared = self._shared
        shared.tallies.frames_refused["deadline"] += 1
        text = "%s sent no whole frame within %g s, closing"
        shared.log.log(logging.WARNING, "frame deadline", text, self._peer_host, deadline - connection.begun_at)
        return b""

    async def _wait_turn(self) -> int:
        """Wait for the connection's turn, and return how many frames it is for."""
        decoder, connection = self._decoder, self._connection
        connection.phase = WAITS
        waits_from = trio.current_time()
        surplus = decoder.held_bytes - decoder.announced_size
        is_junk_expected = connection.is_proven and connection.taken_at == NEVER
        frames = await self._shared.turns.wait(
            is_bulk=surplus >= _FIRST_READ_SIZE, expected=1 if is_junk_expected else TAKEN
        )
        connection.begun_at += trio.current_time() - waits_from  # what is due is its caller's part
        return frames

    async def _go_on(self, *, is_welcome: bool) -> int:
        """Wait for the connection's next turn, and return how many frames it is for; 0 where it was given up."""
        connection = self._connection
        connection.phase = WAITS if is_welcome else BEGUN
        frames = await self._shared.turns.go_on(is_welcome=is_welcome)
        return frames if connection.is_open else 0

    def _push_some(self, most: int) -> tuple[bytearray, InvalidMessage | None, bool]:
        """Hand over frames that are complete, so many at most, and take them off what is left of the pass.

        Returns their acks, what is wrong with the frame after them, and whether there may be more for another turn.

        A function of its own, so that the last frame goes with its locals: a connection may rest for ever.
        """
        connection, decoder, receive, turns = self._connection, self._decoder, self._receive, self._shared.turns
        acks = bytearray()
        left = turns.left
        last = left - most
        try:
            for frame in decoder:
                text = receive(Push(_path_of(frame), frame.payload, frame.headers, self._peer_host))
                acks += encode_ack(text)
                if not text:
                    connection.taken_at = connection.begun_at
                    left -= TAKEN - 1
                elif not text.startswith(OVERLOADED_PREFIX) or connection.begun_at - connection.taken_at >= USED:
                    connection.taken_at = NEVER  # to find no room is no fault of its caller's, for a while
                left -= 1
                if len(frame.payload) >= _COUNTED_SIZE:
                    left -= min(len(frame.payload), MAX_CONTROL_MESSAGE) // _COUNTED_SIZE
                turns.left = left
                if left <= last:
                    return acks, None, not decoder.is_idle
        except InvalidMessage as exc:
            return acks, exc.with_traceback(None), False  # a traceback holds the last frame too
        return acks, None, False

    async def _refuse(self, refusal: InvalidMessage) -> str:
        """Return the ack of a frame that ends its connection; empty where its caller is told on a stream instead."""
        shared, oversized = self._shared, self._decoder.oversized
        text = str(refusal) if isinstance(refusal, MessageTooLarge) else "invalid endpoint path"
        shared.tallies.frames_refused["too_large" if isinstance(refusal, MessageTooLarge) else "path"] += 1
        if oversized is None or not isinstance(refusal, MessageTooLarge):
            shared.log.log(logging.WARNING, "frame refused", "frame from %s refused: %s", self._peer_host, text)
            return UNAVAILABLE_PREFIX + text
        return await self._hand_over_start(oversized, refusal, _START_SIZE)

    async def _refuse_unfinished(self, reason: str) -> str:
        """Return the ack of a frame of which no more is taken, and let go of what is held of it."""
        shared = self._shared
        started = self._decoder.discard(_START_SIZE)
        shared.incomplete.note(self._connection, 0)
        shared.tallies.frames_refused["overloaded"] += 1
        shared.log.log(logging.WARNING, reason, "frame from %s refused: %s", self._peer_host, reason)
        if started is None:
            return OVERLOADED_PREFIX + reason
        # No more is waited for than any connection may hold outside the budget, that of small frames.
        return await self._hand_over_start(started, Overloaded(reason), LARGE_FRAME)

    async def _hand_over_start(self, started: RequestFrame, refusal: IngressError, wanted: int) -> str:
        """Hand over a frame that is not taken, for its ack; its beginning may name a caller who understands none."""
        shared = self._shared
        start = bytearray(started.payload)
        with trio.move_on_after(_START_WAIT) as patience:
            while len(start) < wanted and (data := await self._stream.receive_some(_READ_SIZE)):
                start += data
                if len(start) > LARGE_FRAME and shared.incomplete.note(self._connection, len(start)) is not None:
                    break
                patience.deadline += await _wait_to_read(_READ_SIZE)
        shared.incomplete.note(self._connection, 0)
        if shared.turns.left <= 0:
            await shared.turns.wait(is_bulk=False)
        shared.turns.left -= 1 + len(start) // _COUNTED_SIZE
        push = Push(_path_of(started), bytes(start[:_START_SIZE]), started.headers, self._peer_host, refusal)
        try:
            return self._receive(push)
        finally:
            refusal.__traceback__ = None  # it holds the push, which holds it

    async def _send_acks(self, acks: bytearray) -> bool:
        """Send them all; False where the caller does not take them, which ends the connection."""
        # Nearly always the kernel takes them at once, and then no deadline is needed: that is a tenth of a request.
        send_nowait: Callable[[bytearray], int] | None = getattr(self._stream, "send_nowait", None)
        if send_nowait is not None:
            del acks[: send_nowait(acks)]
            if not acks:
                return True
        shared = self._shared
        self._connection.phase = BEGUN  # who does not read has this place no longer than others
        with trio.move_on_after(shared.options.ack_write_timeout):
            await self._stream.send_all(bytes(acks))
            return True
        shared.tallies.slow_peer_closed["request"] += 1
        text = "%s read no ack for %g s, closing"
        shared.log.log(logging.WARNING, "acks unread", text, self._peer_host, shared.options.ack_write_timeout)
        return False


async def _wait_to_read(size: int) -> float:
    """Wait for the turn of a read that is one of many, and count it; returns the seconds that were waited."""
    work = heavy_work()
    waits_from = trio.current_time() if work.is_wait_expected else None
    await work.spend(size * SECONDS_A_READ_BYTE)
    return 0.0 if waits_from is None else trio.current_time() - waits_from


async def _close_after_refusal(stream: trio.abc.Stream) -> None:
    with trio.move_on_after(_LINGER_TIMEOUT):
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()  # TLS has no such thing; reading on serves it all the same
        while await stream.receive_some(_READ_SIZE):
            await _wait_to_read(_READ_SIZE)


def _path_of(frame: RequestFrame) -> str | None:
    try:
        return frame.path
    except InvalidMessage:
        return None  # refused like an unknown one, so that callers who understand no refusal are told too
