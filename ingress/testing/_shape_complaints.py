"""What a shape makes of bytes that may be no payload, asked step by step as the handler asks."""

from __future__ import annotations

from typing import Any

from .._dial_guard import DialGuard
from .._dial_policy import DialPolicy
from .._failures import describe_failure
from ..abc import IngressDispatch, ParsedRequest
from ..errors import IngressError
from ..wire.messages import RequestControlMessage
from ._dialer import MemoryDialer
from ._memory import MEMORY_HOST
from ._outcome import show
from ._run import within


async def complaint_about(
    shape: IngressDispatch[Any], data: bytes, timeout: float, *, may_be_request: bool = True
) -> str | None:
    """Say what is wrong with the shape's reaction to bytes that may be a payload, or None."""
    complaint, control = complaint_before_the_ack(shape, data)
    if complaint is not None or control is None:
        return complaint
    try:
        with within(timeout, "parse_and_build_request to return", f"nothing, for {show(data, 400)}"):
            parsed: object = await shape.parse_and_build_request(data, control, MemoryDialer())
    except IngressError:
        return None
    except Exception as exc:
        return f"parse_and_build_request raised {describe_failure(exc)}"
    if not isinstance(parsed, ParsedRequest):
        return f"parse_and_build_request returned {show(parsed)}"
    return None if may_be_request else f"the request {show(parsed.request)}"


def complaint_before_the_ack(
    shape: IngressDispatch[Any], data: bytes
) -> tuple[str | None, RequestControlMessage | None]:
    """Say what is wrong with the steps before the ack, or return the control message where all of them pass."""
    step = "accepts"
    try:
        answer: object = shape.accepts(data)
        if not isinstance(answer, bool):
            return f"accepts returned {show(answer)}", None
        if not answer:
            return None, None
        step = "read_control"
        control: object = shape.read_control(data)
        if not isinstance(control, RequestControlMessage):
            return f"read_control returned {show(control)}", None
        step = "request_streams"
        streams = shape.request_streams(control)
    except Exception as exc:
        is_refusal = isinstance(exc, IngressError) and step != "accepts"
        return (None if is_refusal else f"{step} raised {describe_failure(exc)}"), None
    try:  # as the handler does; what it refuses never reaches the shape again
        guard = DialGuard(DialPolicy("any"), ())
        guard.check(MEMORY_HOST, control.id, control.connection_info, "response")
        for stream in streams:
            guard.check(MEMORY_HOST, control.id, stream, "request")
    except IngressError:
        return None, None
    return None, control
