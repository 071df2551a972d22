"""Putting a client together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .._hosts import join_host_port, routable_host
from .._network import TcpNetwork
from .._plugins import load_discovery
from .._token import TokenKeys
from ..abc import Discovery, Network
from ..tls import TlsContexts, TlsNetwork, TlsOptions
from ..wire.messages import CodecName
from ..wire.request_frame import DEFAULT_MAX_FRAME_SIZE
from ._call_home import DEFAULT_HANDSHAKE_TIMEOUT, CallHome
from ._client import DEFAULT_DIAL_BACK_TIMEOUT, Client
from ._nurseries import open_service_nursery
from ._request_connection import DEFAULT_ACK_TIMEOUT, DEFAULT_CONNECT_TIMEOUT
from ._request_connections import RequestConnections
from ._routing import DEFAULT_SET_ASIDE, Router


@asynccontextmanager
async def open_client(
    *,
    discovery: Discovery | str,
    network: Network | None = None,
    tls: TlsOptions | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    advertise_host: str | None = None,
    codec: CodecName | None = None,
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
    ack_timeout: float = DEFAULT_ACK_TIMEOUT,
    dial_back_timeout: float = DEFAULT_DIAL_BACK_TIMEOUT,
    handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
    max_message_size: int = DEFAULT_MAX_FRAME_SIZE,
    set_aside: float = DEFAULT_SET_ASIDE,
    seed: int | None = None,
    token_keys: TokenKeys | None = None,
) -> AsyncIterator[Client]:
    """Open a client that calls workers while inside.

    Leaving the block ends every stream that is still open, as leaving the stream's own block would.

    Args:
        discovery: where workers are found, or the name of a plug-in that makes it from the environment.
        network: how to connect and listen; TCP when not given.
        tls: speak TLS to workers and have them speak it to us; see ``docs/security.md``.
        host, port: where workers call home; port 0 picks one.
        advertise_host: the address workers are told to dial, where it differs from ``host``. When ``host`` is a
            wildcard and this is not given, the machine's first routable address.
        codec: overrides the codec that each record names.
        connect_timeout: seconds for a connection to a worker.
        ack_timeout: seconds from sending a request to its ack; DYN_TCP_REQUEST_TIMEOUT.
        dial_back_timeout: seconds from sending a request to the prologue of its answer.
        handshake_timeout: seconds a connection to the call-home listener has to say which stream it is.
        max_message_size: bytes of the largest request frame sent and the largest response frame taken.
        set_aside: seconds for which an instance that failed gets no requests; 0 turns it off.
        seed: makes random routing repeatable.
        token_keys: sign each request, for workers that take no others.

    Raises:
        StartupError: the address is taken or not ours, the plug-in or a TLS file cannot be used.
    """
    network = TcpNetwork() if network is None else network
    if tls is not None:
        network = TlsNetwork(network, TlsContexts(tls))
    if isinstance(discovery, str):
        discovery = load_discovery(discovery)
    async with (
        discovery.open_view() as view,
        await network.open_listener(host, port) as listener,
        open_service_nursery() as nursery,
    ):
        call_home = CallHome(
            _advertised(advertise_host, *network.local_address(listener)), handshake_timeout=handshake_timeout
        )
        nursery.start_soon(call_home.serve, listener)
        client = Client(
            view=view,
            call_home=call_home,
            connections=RequestConnections(nursery, network, connect_timeout=connect_timeout, ack_timeout=ack_timeout),
            router=Router(set_aside=set_aside, seed=seed),
            codec=codec,
            dial_back_timeout=dial_back_timeout,
            max_message_size=max_message_size,
            token_keys=token_keys,
        )
        try:
            yield client
        finally:
            await client.aclose()


def _advertised(advertise_host: str | None, host: str, port: int) -> str:
    # Workers refuse to dial a wildcard, and rightly so.
    own = routable_host() if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    return join_host_port(advertise_host or own, port)
