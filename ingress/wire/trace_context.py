"""Which trace a request belongs to: the headers ``traceparent`` and ``tracestate``.

    00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
    |  |                                |                flags: u8, bit 0 is "sampled"
    |  trace-id: 16 bytes, not all 0    parent-id: 8 bytes, not all 0
    version: u8, ff is none

All lower-case hexadecimal. What breaks the rules is taken as absent and is never an error. Source: W3C Trace Context
§3.2 and §3.3; where callers put them: docs/wire.md §1.1.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from attrs import frozen

# The length that everybody has to pass on (W3C §3.3.1.5), and the one from which entries are the first to go.
MAX_TRACESTATE = 512
LONG_ENTRY = 128
MAX_TRACESTATE_ENTRIES = 32

# What is looked at before it is cut: header maps are bounded by their u16 length, this bounds the work on one value.
_MAX_RAW_TRACESTATE = 4 * MAX_TRACESTATE

# Names may be written in any case (W3C §3.2.1); callers with more headers than this write them in lower case.
_MAX_NAMES = 32

_SAMPLED = 0x01
_VERSION_00_SIZE = 55

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_ENTRY = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)


@frozen
class TraceContext:
    """A place in a trace: the span that what is done next belongs under."""

    trace_id: str
    """32 lower-case hexadecimal digits."""

    span_id: str
    """16 lower-case hexadecimal digits."""

    flags: int = _SAMPLED
    tracestate: str = ""
    """What the tracing systems on the way have added, cleaned and at most 512 characters."""

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        # Version 00 whatever came, as its flags are the only ones we know (W3C §4.3).
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & _SAMPLED:02x}"

    def headers(self) -> dict[str, str]:
        """Return the headers for a call that belongs to the same trace."""
        headers = {"traceparent": self.traceparent}
        if self.tracestate:
            headers["tracestate"] = self.tracestate
        return headers


def read_trace_context(headers: Mapping[str, str]) -> TraceContext | None:
    """Return the trace that the headers name, None where they name none or name it wrongly."""
    traceparent = _value(headers, "traceparent")
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None:
        return None
    version, trace_id, span_id, flags, _ = found.groups()
    is_longer = len(traceparent) > _VERSION_00_SIZE
    if version == "ff" or (version == "00" and is_longer) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16), clean_tracestate(_value(headers, "tracestate")))


def clean_tracestate(text: str) -> str:
    """Return the list without blanks between its entries and cut to size; empty where it breaks the rules.

    Entries longer than 128 characters go first, then those at the end, always whole (W3C §3.3.1.5).
    """
    if not text or len(text) > _MAX_RAW_TRACESTATE:
        return ""
    entries = [entry for entry in (part.strip(" \t") for part in text.split(",")) if entry]
    if len(entries) > MAX_TRACESTATE_ENTRIES or not all(map(_ENTRY.fullmatch, entries)):
        return ""
    if len({entry.partition("=")[0] for entry in entries}) < len(entries):
        return ""
    if _joined_size(entries) > MAX_TRACESTATE:
        entries = [entry for entry in entries if len(entry) <= LONG_ENTRY]
    while _joined_size(entries) > MAX_TRACESTATE:
        entries.pop()
    return ",".join(entries)


def _joined_size(entries: list[str]) -> int:
    return sum(map(len, entries)) + max(0, len(entries) - 1)


def _value(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if value is None:
        value = next((headers[key] for key in itertools.islice(headers, _MAX_NAMES) if key.lower() == name), "")
    return value
