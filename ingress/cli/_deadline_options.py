"""The options of ``ingress serve`` about how long peers are waited for; a wait on a peer always has an end."""

from __future__ import annotations

from typing import Annotated, Any

from attrs import asdict, frozen
from cyclopts import Group, Parameter

from .._stream_limits import (
    DEFAULT_CLOSE_WAIT,
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_FRAME_TIMEOUT,
    DEFAULT_HANDSHAKE_TIMEOUT,
    DEFAULT_WRITE_STALL_TIMEOUT,
)
from ..abc import DEFAULT_ACK_WRITE_TIMEOUT
from ._worker_flags import check_deadline

DEADLINES = Group("Deadlines", sort_key=3)


def _seconds(name: str, text: str) -> Parameter:
    return Parameter(env_var=f"INGRESS_{name}", group=DEADLINES, validator=check_deadline, help=text)


@Parameter(name="*")
@frozen
class DeadlineOptions:
    """How long peers are waited for; the fields are named as those of :class:`ingress.WorkerOptions`."""

    frame_timeout: Annotated[
        float,
        _seconds("FRAME_TIMEOUT", "Seconds from a request's first byte to its last, and one more for each 64 KiB."),
    ] = DEFAULT_FRAME_TIMEOUT
    idle_timeout: Annotated[
        float | None, _seconds("IDLE_TIMEOUT", "Seconds a connection may rest between requests; unlimited if not set.")
    ] = None
    ack_write_timeout: Annotated[
        float, _seconds("ACK_WRITE_TIMEOUT", "Seconds for a caller to take the acks of its requests.")
    ] = DEFAULT_ACK_WRITE_TIMEOUT
    connect_timeout: Annotated[
        float, _seconds("CONNECT_TIMEOUT", "Seconds to dial a caller back, its TLS handshake included.")
    ] = DEFAULT_CONNECT_TIMEOUT
    handshake_timeout: Annotated[
        float, _seconds("HANDSHAKE_TIMEOUT", "Seconds for a caller to take the handshake of a request stream.")
    ] = DEFAULT_HANDSHAKE_TIMEOUT
    write_stall_timeout: Annotated[
        float, _seconds("WRITE_STALL_TIMEOUT", "Seconds in which a caller must take a byte of its answer.")
    ] = DEFAULT_WRITE_STALL_TIMEOUT
    close_wait: Annotated[
        float, _seconds("CLOSE_WAIT", "Seconds for a caller to close first, after its whole answer.")
    ] = DEFAULT_CLOSE_WAIT

    def keywords(self) -> dict[str, Any]:
        """Return the fields of :class:`ingress.WorkerOptions`."""
        return asdict(self)


DEFAULT_DEADLINES = DeadlineOptions()
