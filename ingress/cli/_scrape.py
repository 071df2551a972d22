"""Reads the pages of a status server, as a guest that is polite and trusts nothing: bounded in time and in bytes."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import h11
import trio
from attrs import frozen

from .._hosts import join_host_port
from .._version import __version__
from ._errors import usage

DEFAULT_STATUS_HOST = "127.0.0.1"

# A status server answers within milliseconds; one that takes longer is as good as gone.
FETCH_TIMEOUT = 3.0

# A page of 256 endpoints is 1.5 MB.
MAX_PAGE = 4 * 1024 * 1024

_MAX_HEAD = 16 * 1024


class ScrapeError(Exception):
    """A page could not be had; the text says why."""


@frozen
class StatusAddress:
    """Where a status server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def parse_address(text: str) -> StatusAddress:
    """Read ``9090``, ``:9090``, ``host:9090``, ``[::1]:9090`` or ``http://host:9090``.

    Raises:
        CommandError: it is none of them.
    """
    example = "9090, host:9090, or http://host:9090"
    if text.isascii() and text.isdigit():
        text = f":{text}"
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        port = parts.port
    except ValueError as exc:
        raise usage(f"{text!r} is no address of a status server", str(exc), example) from exc
    if parts.scheme not in ("", "http"):
        raise usage(f"{text!r} cannot be read", "status servers speak plain HTTP", example)
    if not port or parts.username is not None or parts.path not in ("", "/", "/metrics") or parts.query:
        why = "expected a host and a port, the port from 1 to 65535, and nothing else"
        raise usage(f"{text!r} is no address of a status server", why, example)
    return StatusAddress(parts.hostname or DEFAULT_STATUS_HOST, port)


async def fetch(address: StatusAddress, path: str, *, timeout: float = FETCH_TIMEOUT) -> tuple[int, bytes]:
    """Return status code and body.

    Raises:
        ScrapeError: no connection, no HTTP, too slow (all of it within ``timeout`` seconds), or over ``MAX_PAGE``.
    """
    try:
        with trio.fail_after(timeout):
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                return await _exchange(stream, address, path)
    except trio.TooSlowError as exc:
        raise ScrapeError(f"no answer within {timeout:g} s") from exc
    except trio.BrokenResourceError as exc:
        raise ScrapeError("the connection was reset") from exc
    except OSError as exc:
        raise ScrapeError(reason_of(exc)) from exc
    except UnicodeError as exc:
        raise ScrapeError("no host has such a name") from exc
    except h11.RemoteProtocolError as exc:
        raise ScrapeError(f"what answers is no status server: {exc}") from exc


async def _exchange(stream: trio.SocketStream, address: StatusAddress, path: str) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    headers = [
        ("Host", str(address)),
        ("User-Agent", f"ingress/{__version__}"),
        ("Accept", "text/plain"),
        ("Connection", "close"),
    ]
    head = connection.send(h11.Request(method="GET", target=path, headers=headers))
    await stream.send_all((head or b"") + (connection.send(h11.EndOfMessage()) or b""))
    code, body = 0, bytearray()
    while True:
        match connection.next_event():
            case h11.Response() as response:
                code = response.status_code
            case h11.Data() as data:
                body += data.data
                if len(body) > MAX_PAGE:
                    raise ScrapeError(f"its page exceeds {MAX_PAGE} bytes")
            case h11.EndOfMessage():
                return code, bytes(body)
            case h11.NEED_DATA:
                received = await stream.receive_some(64 * 1024)
                if not received and not connection.trailing_data[0] and not code:
                    raise ScrapeError("the connection was closed without an answer")
                connection.receive_data(received)
            case other:
                raise ScrapeError(f"expected an answer, got {type(other).__name__}")


def reason_of(exc: OSError) -> str:
    """Return the system's word for it; trio's own texts name the address once more."""
    cause: BaseException | None = exc if exc.errno is not None else exc.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, socket.gaierror):
        return str(cause.strerror)
    number = getattr(cause, "errno", None)
    return os.strerror(number) if number else str(exc)
