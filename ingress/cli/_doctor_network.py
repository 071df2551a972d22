"""The check-up of the network: whether callers get here where they are told, and whether the ports are free."""

from __future__ import annotations

import ipaddress
import secrets

import trio

from .._hosts import join_host_port
from .._network import TcpNetwork
from ..abc import PlaneOptions, Push
from ..errors import StartupError
from ..planes.tcp import TcpRequestPlane
from ..wire.request_frame import encode_request_frame
from ._findings import Finding, fail, ok
from ._scrape import reason_of

# To this machine, or through whatever stands between it and its advertised address.
DIAL_TIMEOUT = 3.0


async def check_request_address(host: str, port: int, advertise: str | None) -> list[Finding]:
    """Listen as a worker would, dial what callers would be told, and see whether it is us who answers."""
    topic = "address"
    arrived = trio.Event()
    path = f"doctor/{secrets.token_hex(16)}"

    def receive(push: Push) -> str:
        if push.path == path:
            arrived.set()
        return "Server unavailable: a check-up"

    plane = TcpRequestPlane(PlaneOptions(network=TcpNetwork(), host=host, port=port, advertise=advertise))
    told, problem, refusal = "", None, None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(plane.serve, receive)
            told = plane.address
            problem = await _dial(told, path, arrived)
            nursery.cancel_scope.cancel()
    except* StartupError as group:  # nothing may be returned from here
        refusal = str(group.exceptions[0])
    if refusal is not None:
        remedy = "another --port, or --host with an address of this host; is a worker running already?"
        return [fail(topic, refusal, remedy)]
    if problem is not None:
        remedy = "--advertise HOST:PORT as callers reach it; behind NAT a host may not reach its own"
        return [fail(topic, f"callers are told {told}, where {problem}", remedy)]
    reach = "callers of this host only" if _is_loopback(told) else "callers are told so"
    return [ok(topic, f"{told} leads here ({reach})")]


async def _dial(address: str, path: str, arrived: trio.Event) -> str | None:
    """Return what is wrong, None where the frame arrived."""
    host, _, port = address.rpartition(":")
    try:
        with trio.fail_after(DIAL_TIMEOUT):
            async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as stream:
                await stream.send_all(encode_request_frame(path, {}, b""))
                await arrived.wait()
    except trio.TooSlowError:
        return f"nothing of ours answered within {DIAL_TIMEOUT:g} s"
    except trio.BrokenResourceError:
        return "something else answers"
    except (OSError, ValueError) as exc:
        return f"nobody answers: {reason_of(exc)}" if isinstance(exc, OSError) else f"there can be none: {exc}"
    return None


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def check_status_port(host: str, port: int) -> list[Finding]:
    """Bind the status server's address for a moment."""
    topic = "status"
    if port < 0:
        return [ok(topic, "no status server; --status-port or DYN_SYSTEM_PORT starts one")]
    try:
        listener = await TcpNetwork().open_listener(host, port)
    except StartupError as exc:
        remedy = f"another --status-port; `ingress top {port}` shows whether a worker has it"
        return [fail(topic, str(exc), remedy)]
    await listener.aclose()
    return [ok(topic, f"{join_host_port(host, port)} is free" if port else f"any port of {host}")]
