"""A network whose every connection is TLS, over any other network."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import trio

from .._heavy_work import HeavyWork
from .._per_run import PerRun
from .._text import named, printable
from ..abc import Network
from ._contexts import TlsContexts
from ._options import TlsOptions

# What a peer is given to take the alert that says why its handshake failed.
ALERT_TIMEOUT = 1.0

# What a close_notify may take. Only a peer that reads nothing lets it take any time, and would not read it either.
GOODBYE_TIMEOUT = 0.1


# What OpenSSL computes for a word of a handshake, at most; a thousand that come together would hold up everybody's
# streams for a second. They have an account of their own, a small one: those who flood with them, which costs them
# nothing, must not keep the reads of others waiting, and each pass that they make longer is one that others wait for.
SECONDS_A_WORD = 1e-3
SECONDS_A_PASS = 4e-3

handshakes = PerRun("ingress TLS handshakes", lambda: HeavyWork(SECONDS_A_PASS)).get

# What is taken from the connection at once, unless more is wanted, and how many records of it are read at once: each
# alone would take a pass of the event loop, which a peer can make as many of as it has sent bytes.
_READ_SIZE = 64 * 1024
_MOST_RECORDS = 64

# What the first record of a handshake begins with; OpenSSL refuses anything else without a computation.
_HANDSHAKE_RECORD = b"\x16"


class _PacedStream(trio.abc.Stream):
    """A connection in its handshake: what it receives waits for its turn before OpenSSL gets it.

    Who speaks no TLS needs none, and who has left behind its first word gets no answer: of four thousand a second that
    did so, two hundred were worked off.
    """

    def __init__(self, transport: trio.abc.Stream) -> None:
        self._transport = transport
        self._has_begun = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._transport.receive_some(max_bytes)
        has_begun, self._has_begun = self._has_begun, True
        if not has_begun and data[:1] != _HANDSHAKE_RECORD:
            return data
        if not has_begun:
            self._check_presence()  # those who have left do not stand in line
        await handshakes().spend(SECONDS_A_WORD)
        if not has_begun:
            self._check_presence()
        return data

    def _check_presence(self) -> None:
        if getattr(self._transport, "has_peer_left", False):
            raise trio.BrokenResourceError("the peer has left in the handshake")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._transport.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._transport.aclose()


class TlsStream(trio.abc.Stream):
    """TLS over a connection; one task may send and one receive at a time.

    A stream that ends without the peer's close_notify was cut, by whomever: reading raises BrokenResourceError instead
    of telling an end.
    """

    closes_promptly = True
    """See :func:`ingress._network.close_now`: closing says goodbye, and takes :data:`GOODBYE_TIMEOUT` at most."""

    def __init__(
        self,
        transport: trio.abc.Stream,
        context: ssl.SSLContext,
        options: TlsOptions,
        *,
        server_hostname: str | None = None,
    ) -> None:
        """
        Args:
            server_hostname: whom the peer must prove to be, where we are the client; None makes us the server.
        """
        self.transport = transport
        self._options = options
        self._context = context
        self._server_hostname = server_hostname
        self._tls: Any = None
        """Made for the handshake: of those that flood most have left before."""
        self._is_ready = self._is_closing = False
        self._broken_by: ssl.SSLError | None = None
        """What reading on behind good records has found, for who reads next."""
        self._sending = 0

    @property
    def cannot_shake_hands(self) -> bool:
        """True where the peer has left before its handshake: there is nobody to answer."""
        return not self._is_ready and getattr(self.transport, "has_peer_left", False)

    async def do_handshake(self) -> None:
        """Shake hands, which reading and sending do too where it was not done before.

        Raises:
            BrokenResourceError: it failed, took too long, or the peer's certificate bears no allowed name; the text
                says which.
        """
        if self._is_ready:
            await trio.lowlevel.checkpoint()
            return
        is_server = self._server_hostname is None
        if self._tls is None:
            self._tls = trio.SSLStream(
                _PacedStream(self.transport) if is_server else self.transport,
                self._context,
                server_hostname=self._server_hostname,
                server_side=is_server,
                https_compatible=False,
            )
        timeout = self._options.handshake_timeout
        with trio.move_on_after(timeout):
            try:
                await self._tls.do_handshake()
                self._tls.transport_stream = self.transport
            except trio.BrokenResourceError as exc:
                if isinstance(exc.__cause__, ssl.SSLError):
                    await self._send_alert()
                raise trio.BrokenResourceError(f"TLS handshake failed: {reason_of(exc)}") from exc
            self._check_name()
            self._is_ready = True
            return
        raise trio.BrokenResourceError(f"TLS handshake took more than {timeout:g} s")

    async def _send_alert(self) -> None:
        """Tell the peer why: OpenSSL has the alert ready, and trio does not send it.

        Reading on for a while lets it arrive before the reset that unread bytes would cause.
        """
        alert = self._tls._outgoing.read() if hasattr(self._tls, "_outgoing") else b""
        if not alert:
            return
        with trio.move_on_after(ALERT_TIMEOUT), contextlib.suppress(trio.BrokenResourceError):
            await self.transport.send_all(alert)
            if isinstance(self.transport, trio.abc.HalfCloseableStream):
                await self.transport.send_eof()
            while await self.transport.receive_some():
                pass

    def _check_name(self) -> None:
        if not (self._server_hostname is None and self._options.allowed_names):
            return
        names = names_of(self._tls.getpeercert() or {})
        if not {name.lower() for name in names} & {name.lower() for name in self._options.allowed_names}:
            shown = printable(", ".join(map(named, names)) or "nobody", 300)
            raise trio.BrokenResourceError(f"TLS handshake failed: no allowed name in the certificate of {shown}")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_ready:
            await self.do_handshake()
        self._sending += 1
        try:
            await self._tls.send_all(data)
        finally:
            self._sending -= 1

    async def wait_send_all_might_not_block(self) -> None:
        if not self._is_ready:
            await self.do_handshake()
        await self._tls.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._is_ready:
            await self.do_handshake()
        if self._broken_by is not None:
            broken = trio.BrokenResourceError()
            broken.__cause__ = self._broken_by
            raise trio.BrokenResourceError(reason_of(broken)) from self._broken_by
        self._tls._estimated_receive_size = max(max_bytes or 0, _READ_SIZE)  # else as much as it took first
        try:
            data = await self._tls.receive_some(max_bytes)
        except trio.BrokenResourceError as exc:
            raise trio.BrokenResourceError(reason_of(exc)) from exc
        return b"".join([data, *self._records_at_hand((max_bytes or _READ_SIZE) - len(data))]) if data else b""

    def _records_at_hand(self, most: int) -> Iterator[bytes]:
        """Read more records, as far as they have come; trio's own reading has one in each pass of the event loop."""
        tls: Any = getattr(self._tls, "_ssl_object", None)
        for _ in range(_MOST_RECORDS if tls is not None else 0):
            try:
                data = tls.read(most) if most > 0 else b""
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):  # the goodbye is read again
                return
            except ssl.SSLError as exc:
                self._broken_by = exc
                return
            if not data:
                return
            most -= len(data)
            yield data

    async def aclose(self) -> None:
        """Say goodbye and close; without the goodbye where the peer takes nothing. Who comes second does not wait."""
        if self._is_closing:
            await trio.lowlevel.checkpoint()
            return
        self._is_closing = True
        if not self._is_ready or self._sending:  # half a record is out: nothing can follow it
            await trio.aclose_forcefully(self.transport)
            return
        with trio.move_on_after(GOODBYE_TIMEOUT), contextlib.suppress(trio.ClosedResourceError):
            await self._tls.aclose()


def names_of(certificate: Mapping[str, Any]) -> list[str]:
    """Return whom a certificate names, as the ssl module reads it.

    A URI that has no scheme is nobody: it could be taken for a host's name, which it does not prove.
    """
    named = certificate.get("subjectAltName", ())
    return [value for kind, value in named if kind in ("DNS", "IP Address") or (kind == "URI" and "://" in value)]


class TlsListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts connections that have yet to shake hands: accepting waits for no peer."""

    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream], contexts: TlsContexts) -> None:
        self.listener = listener
        self._contexts = contexts

    async def accept(self) -> TlsStream:
        return self._wrap(await self.listener.accept())

    def accept_nowait(self) -> TlsStream | None:
        """Return a connection that is there already, None where none is or the network below cannot tell."""
        accept_nowait: Callable[[], trio.abc.Stream | None] | None = getattr(self.listener, "accept_nowait", None)
        transport = None if accept_nowait is None else accept_nowait()
        return None if transport is None else self._wrap(transport)

    def _wrap(self, transport: trio.abc.Stream) -> TlsStream:
        return TlsStream(transport, self._contexts.server(), self._contexts.options)

    async def aclose(self) -> None:
        await self.listener.aclose()


class TlsNetwork:
    """Speaks TLS over another network; see :class:`ingress.abc.Network`."""

    def __init__(self, network: Network, contexts: TlsContexts) -> None:
        self.contexts = contexts
        self._network = network

    async def open_listener(self, host: str, port: int) -> TlsListener:
        return TlsListener(await self._network.open_listener(host, port), self.contexts)

    async def connect(self, host: str, port: int) -> TlsStream:
        """Connect and shake hands; the caller bounds the wait.

        Raises:
            OSError: unreachable, or the handshake failed.
        """
        transport = await self._network.connect(host, port)
        options = self.contexts.options
        stream = TlsStream(transport, self.contexts.client(), options, server_hostname=options.server_name or host)
        try:
            await stream.do_handshake()
        except BaseException as exc:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            if isinstance(exc, trio.BrokenResourceError):
                raise ConnectionError(str(exc)) from exc
            raise
        return stream

    def local_address(self, listener: trio.abc.Listener[trio.abc.Stream]) -> tuple[str, int]:
        if not isinstance(listener, TlsListener):
            raise TypeError(f"expected a listener of this network, got {type(listener).__name__}")
        return self._network.local_address(listener.listener)

    def peer_host(self, stream: trio.abc.Stream) -> str | None:
        return self._network.peer_host(stream.transport) if isinstance(stream, TlsStream) else None


# What OpenSSL calls the usual mistakes, in words of the trade.
_REASONS = {
    "HTTP_REQUEST": "the peer speaks HTTP",
    "NO_SHARED_CIPHER": "no cipher in common",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
    "RECORD_LAYER_FAILURE": "the peer does not speak TLS",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a certificate",
    "UNEXPECTED_EOF_WHILE_READING": "cut without a goodbye",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS",
}


def reason_of(exc: trio.BrokenResourceError) -> str:
    """Say why a TLS stream broke."""
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {printable(cause.verify_message)}"
    if isinstance(cause, ssl.SSLError):
        reason = cause.reason or "no more is known"
        if isinstance(cause, ssl.SSLEOFError):
            reason = "UNEXPECTED_EOF_WHILE_READING"
        return _REASONS.get(reason, reason.lower().replace("_", " "))
    return str(exc) or "reset by the peer"
