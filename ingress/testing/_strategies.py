"""Hypothesis strategies for everything that crosses the wire, small ones first.

For tests of shapes, codecs and peers; import it only where hypothesis is installed. Every strategy makes valid values
unless its name says otherwise, and what it makes survives encoding and decoding unchanged.
"""

from __future__ import annotations

import struct
from typing import Any

from attrs import frozen
from hypothesis import strategies as st
from msgspec import UNSET

from ..wire.codec import codec_named
from ..wire.messages import (
    Annotated,
    CallHomeHandshake,
    CodecName,
    ConnectionInfo,
    ErrorEvent,
    Prologue,
    RequestControlMessage,
    StreamAddress,
    StreamType,
)
from ..wire.records import EndpointId, InstanceRecord
from ..wire.request_frame import RequestFrame
from ..wire.response import ResponseSender
from ..wire.two_part import TwoPartMessage

BACKEND_KINDS = (
    "InvalidArgument",
    "ConnectionTimeout",
    "CannotConnect",
    "Disconnected",
    "Cancelled",
    "EngineShutdown",
    "Unknown",
)
"""The kinds of failure that a released worker reports."""

# -- text, names, numbers --------------------------------------------------------------------------------------------

_NAME_START = "ABCxyz019_-"


def texts(max_size: int = 20) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold: no lone surrogates."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


def names(*, dots: bool = True) -> st.SearchStrategy[str]:
    """Names of namespaces, components and endpoints; without dots they also survive ``a.b.c`` notation."""
    rest = st.text(_NAME_START + ("." if dots else ""), max_size=127)
    return st.builds(str.__add__, st.sampled_from(_NAME_START), rest)


def endpoint_ids(*, dots: bool = True) -> st.SearchStrategy[EndpointId]:
    """Endpoints, ``namespace.component.endpoint``."""
    part = names(dots=dots)
    return st.builds(EndpointId, part, part, part)


def instance_ids() -> st.SearchStrategy[int]:
    """Random u64, also above 2^63."""
    return st.integers(0, 2**64 - 1)


def request_ids() -> st.SearchStrategy[str]:
    """Request ids: UUIDs as released callers make them, and any other text up to the limit."""
    return st.uuids().map(str) | texts(40) | st.just("i" * 1024)


def addresses() -> st.SearchStrategy[str]:
    """Dial-back addresses in each of the three spellings released callers use."""
    hosts = (
        st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
    )
    return st.builds(lambda host, port: f"{host}:{port}", hosts, st.integers(1, 65535))


# -- values ----------------------------------------------------------------------------------------------------------


def scalars() -> st.SearchStrategy[Any]:
    """What both codecs carry and no container: 64-bit integers, finite floats, text, booleans, None."""
    return (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts()
    )


def codec_values(max_leaves: int = 15) -> st.SearchStrategy[Any]:
    """Values that both codecs carry and give back as they were; keys are text."""
    return st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts(10), inner, max_size=5),
        max_leaves=max_leaves,
    )


def json_values(max_leaves: int = 15) -> st.SearchStrategy[Any]:
    """Values that JSON carries and gives back: as :func:`codec_values`, and integers of up to 128 bits."""
    return st.recursive(
        scalars() | st.integers(-(2**127), 2**128 - 1),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts(10), inner, max_size=5),
        max_leaves=max_leaves,
    )


def codec_names() -> st.SearchStrategy[CodecName]:
    """``json`` or ``msgpack``."""
    return st.sampled_from(("json", "msgpack"))


# -- frames ----------------------------------------------------------------------------------------------------------


def two_part_messages(max_size: int = 200) -> st.SearchStrategy[TwoPartMessage]:
    """Frames of all four kinds."""
    return st.builds(TwoPartMessage, st.binary(max_size=max_size), st.binary(max_size=max_size))


def request_headers() -> st.SearchStrategy[dict[str, str]]:
    """Headers of a request frame: those released callers send, and others."""
    known = st.fixed_dictionaries(
        {},
        optional={
            "x-endpoint-path": texts(),
            "request-id": request_ids(),
            "x-frontend-send-ts-ns": st.integers(0, 2**64 - 1).map(str),
            "traceparent": st.just("00-960d354c0e5b0f62c7bed3946b527864-7ffb9b2f8728ec06-01"),
        },
    )
    return st.builds(lambda a, b: a | b, known, st.dictionaries(texts(10), texts(10), max_size=2))


def request_frames() -> st.SearchStrategy[RequestFrame]:
    """Frames of a request connection; path and headers as bytes, the headers not always JSON."""
    paths = st.builds(lambda iid, ep: f"{iid:x}/{ep.namespace}/{ep.endpoint}".encode(), instance_ids(), endpoint_ids())
    return st.builds(
        RequestFrame,
        paths | st.binary(max_size=40),
        st.binary(max_size=60) | st.just(b"") | st.just(b"{}"),
        st.binary(max_size=200),
    )


def splits(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Any cutting of ``data`` into segments, in order; single bytes, empty ones and the whole among them."""
    cuts = st.lists(st.integers(0, len(data)), max_size=12).map(sorted)
    segments = cuts.map(lambda at: [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)])
    return segments | st.just([bytes([byte]) for byte in data])


def hostile_bytes() -> st.SearchStrategy[bytes]:
    """Garbage, and length fields that lie."""
    lengths = st.sampled_from((0, 1, 24, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
    prefixes = st.builds(lambda *fields: struct.pack(">QQQ", *fields), lengths, lengths, lengths)
    return st.builds(bytes.__add__, st.just(b"") | prefixes, st.binary(max_size=200))


# -- messages --------------------------------------------------------------------------------------------------------


def connection_infos(stream_type: StreamType | None = None) -> st.SearchStrategy[ConnectionInfo]:
    """What a caller says about one stream it wants opened."""
    types = st.sampled_from(("response", "request")) if stream_type is None else st.just(stream_type)
    return st.builds(ConnectionInfo, addresses(), st.uuids().map(str) | texts(), request_ids(), types)


def stream_addresses(stream_type: StreamType | None = None) -> st.SearchStrategy[StreamAddress]:
    """The same, as it stands in a control message."""
    return connection_infos(stream_type).map(ConnectionInfo.to_address)


def control_messages() -> st.SearchStrategy[RequestControlMessage]:
    """Control messages of every release, from the five fields of 1.0.2 to all of 1.6.1."""
    return st.builds(
        RequestControlMessage,
        id=request_ids(),
        request_type=st.sampled_from(("single_in", "many_in")),
        response_type=st.sampled_from(("single_out", "many_out")),
        connection_info=stream_addresses("response"),
        payload_codec=st.just(UNSET) | codec_names(),
        request_stream_connection_info=st.just(UNSET) | stream_addresses("request"),
        metadata=st.just(UNSET) | st.dictionaries(texts(10), texts(), min_size=1, max_size=4),
        frontend_send_ts_ns=st.just(UNSET) | st.integers(0, 2**64 - 1),
    )


def handshakes() -> st.SearchStrategy[CallHomeHandshake]:
    """The first frame on a dialled stream."""
    return st.builds(CallHomeHandshake, texts(40), st.sampled_from(("response", "request")))


def error_events() -> st.SearchStrategy[ErrorEvent]:
    """Failures in the form of every release: with and without class, reason, diagnostic and public text."""
    plain = st.builds(
        ErrorEvent,
        texts(),
        st.sampled_from(BACKEND_KINDS) | texts(10),
        is_backend=st.booleans(),
        error_class=st.none() | texts(10),
        reason=st.none() | texts(10),
        diagnostic=st.none() | texts(),
        public_message=st.none() | texts(),
    )
    return plain | st.builds(ErrorEvent.of_kind, st.sampled_from(BACKEND_KINDS), texts(), is_public=st.booleans())


def prologues() -> st.SearchStrategy[Prologue]:
    """Success, and failure with and without its typed form."""
    return st.just(Prologue()) | st.builds(Prologue, texts(), st.none() | error_events())


def annotated(values: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Annotated]:
    """Envelopes with any subset of their fields; an ``error`` field always comes with it as event.

    Args:
        values: what may stand under ``data``; :func:`codec_values` where it is None.
    """
    plain = st.builds(
        Annotated,
        data=st.just(UNSET) | (codec_values() if values is None else values),
        id=st.none() | texts(),
        event=st.none() | texts(10).filter(lambda event: event != "error"),
        comment=st.none() | st.lists(texts(), max_size=3),
    )
    return plain | error_events().map(Annotated.from_error)


def instance_records() -> st.SearchStrategy[InstanceRecord]:
    """Discovery records of every release."""
    return st.builds(
        lambda endpoint_id, instance_id, address, codec, device: InstanceRecord(
            endpoint_id,
            instance_id,
            {"tcp": f"{address}/{instance_id:x}/{endpoint_id.endpoint}"},
            codec,
            device,
        ),
        endpoint_ids(),
        instance_ids(),
        addresses(),
        st.none() | codec_names(),
        st.none() | st.just("cuda"),
    )


# -- conversations ---------------------------------------------------------------------------------------------------


@frozen
class ResponseConversation:
    """Everything a worker sends on one response stream."""

    handshake: CallHomeHandshake
    codec_name: CodecName
    items: tuple[Annotated, ...] = ()
    refusal: Prologue | None = None
    """An error prologue; there are no items then."""

    def encode(self) -> bytes:
        """Return the bytes of the whole stream."""
        sender = ResponseSender(codec_named(self.codec_name))
        parts = [sender.handshake(self.handshake.subject, self.handshake.stream_type)]
        if self.refusal is not None and self.refusal.error is not None:
            return b"".join([*parts, sender.error_prologue(self.refusal.error, self.refusal.typed_error)])
        parts.append(sender.prologue())
        parts.extend(map(sender.item, self.items))
        return b"".join([*parts, sender.final()])


def response_conversations() -> st.SearchStrategy[ResponseConversation]:
    """Whole response streams in both codecs, refused ones among them."""
    handshake = st.builds(CallHomeHandshake, texts(), st.just("response"))
    answered = st.builds(ResponseConversation, handshake, codec_names(), st.lists(annotated(), max_size=4).map(tuple))
    refusals = st.builds(Prologue, texts(), st.none() | error_events())
    return answered | st.builds(ResponseConversation, handshake, codec_names(), refusal=refusals)
