"""Where workers call home: one listener for all the streams of a client.

A call makes an :class:`Appointment` and sends its subject along with the request; the worker dials in and names the
subject in its handshake; the listener hands the connection over. Whoever has no appointment is shown the door. Source:
docs/wire.md §4 and §5.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import field, frozen

from ..errors import IngressError, RemoteProtocolError
from ..wire.messages import CallHomeHandshake, ConnectionInfo, StreamAddress, StreamType
from ..wire.response import MAX_CONTROL_FRAME
from ..wire.two_part import MessageKind, TwoPartDecoder

logger = logging.getLogger("ingress.client")

# Released callers reset a dial-in that has not said which stream it is after this long (docs/wire.md §5).
DEFAULT_HANDSHAKE_TIMEOUT = 10.0

# Workers shake hands at once, so whoever has waited longest behind this many others is no worker.
MAX_WAITING_HANDSHAKES = 1024

# How long accept(2) is left alone after it failed, as trio.serve_listeners does for EMFILE and its like.
ACCEPT_PAUSE = 0.1


@frozen
class DialIn:
    """A connection from a worker, its handshake read."""

    stream: trio.abc.Stream

    received: bytes = field(repr=False)
    """All bytes read so far, the handshake first: what came with it in one segment must not be lost."""


class Appointment:
    """One stream that a worker is about to open; for the task of the call."""

    def __init__(self, subject: str, stream_type: StreamType) -> None:
        self.subject = subject
        self.stream_type = stream_type
        self.dial_in: DialIn | None = None
        self._kept = trio.Event()

    async def kept(self) -> DialIn:
        """Wait until the worker has dialled in; the caller bounds the wait."""
        await self._kept.wait()
        assert self.dial_in is not None  # noqa: S101 - set before the event
        return self.dial_in

    def keep(self, dial_in: DialIn) -> None:
        self.dial_in = dial_in
        self._kept.set()


class CallHome:
    """The call-home listener of one client.

    ``address`` is what workers are told to dial.
    """

    def __init__(self, address: str, *, handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT) -> None:
        self.address = address
        self._handshake_timeout = handshake_timeout
        self._appointments: dict[str, Appointment] = {}
        self._handshakes: dict[trio.CancelScope, None] = {}  # a dict keeps the order in which they began

    @asynccontextmanager
    async def appointment(self, stream_type: StreamType) -> AsyncIterator[Appointment]:
        """Expect one stream while inside; a connection that came for it is closed on leaving."""
        appointment = Appointment(str(uuid.uuid4()), stream_type)
        self._appointments[appointment.subject] = appointment
        try:
            yield appointment
        finally:
            self._appointments.pop(appointment.subject, None)
            if appointment.dial_in is not None:
                await trio.aclose_forcefully(appointment.dial_in.stream)

    def stream_address(self, appointment: Appointment, request_id: str) -> StreamAddress:
        """Return the ``connection_info`` that sends a worker to this appointment."""
        info = ConnectionInfo(self.address, appointment.subject, request_id, appointment.stream_type)
        return info.to_address()

    async def serve(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """Accept workers until cancelled. Whatever a peer or ``accept`` does, it goes on."""
        is_failing = False
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await listener.accept()
                except (OSError, trio.BrokenResourceError) as exc:
                    if not is_failing:
                        logger.warning("call-home listener %s cannot accept, trying again: %s", self.address, exc)
                    is_failing = True
                    await trio.sleep(ACCEPT_PAUSE)
                    continue
                is_failing = False
                self._make_room()
                nursery.start_soon(self._greet, stream)

    def _make_room(self) -> None:
        if len(self._handshakes) >= MAX_WAITING_HANDSHAKES:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()

    async def _greet(self, stream: trio.abc.Stream) -> None:
        """Hand the connection to the call that waits for it, or close it. Raises nothing."""
        scope = trio.CancelScope(deadline=trio.current_time() + self._handshake_timeout)
        self._handshakes[scope] = None
        is_kept = False
        try:
            with scope:
                if (do_handshake := getattr(stream, "do_handshake", None)) is not None:
                    await do_handshake()  # that of TLS
                dial_in, handshake = await _receive_handshake(stream)
                is_kept = self._keep(dial_in, handshake)
            if not is_kept:
                logger.debug("call-home listener %s closed a dial-in that nobody expects", self.address)
        except (IngressError, trio.BrokenResourceError) as exc:
            logger.debug("call-home listener %s closed a dial-in: %s", self.address, exc)
        except Exception:  # the wall around every connection: a bug in one must not end the others
            logger.exception("call-home listener %s: dial-in failed", self.address)
        finally:
            self._handshakes.pop(scope, None)
            if not is_kept:
                await trio.aclose_forcefully(stream)

    def _keep(self, dial_in: DialIn, handshake: CallHomeHandshake) -> bool:
        appointment = self._appointments.get(handshake.subject)
        if appointment is None or appointment.stream_type != handshake.stream_type:
            return False
        # An appointment is kept once: a second dial-in for the same subject finds none.
        del self._appointments[handshake.subject]
        appointment.keep(dial_in)
        return True


async def _receive_handshake(stream: trio.abc.Stream) -> tuple[DialIn, CallHomeHandshake]:
    # The limit is that of a control frame: nobody has said yet that a large stream is to come.
    decoder = TwoPartDecoder(max_message_size=MAX_CONTROL_FRAME, what="call-home handshake")
    received = bytearray()
    while (message := next(iter(decoder), None)) is None:
        chunk = await stream.receive_some()
        if not chunk:
            raise RemoteProtocolError("closed before its handshake")
        received += chunk
        decoder.receive_data(chunk)
    if message.kind is not MessageKind.HEADER_ONLY:
        raise RemoteProtocolError(f"expected a header-only handshake, got a {message.kind.value} frame")
    return DialIn(stream, bytes(received)), CallHomeHandshake.decode(message.header)
