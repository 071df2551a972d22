"""One target a decoder: takes any bytes, and fails where the decoder does what it must not.

What a decoder may do is return messages or raise an IngressError. What it returns must not depend on where the bytes
were cut, must encode back to the same, and must keep within its limits.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

from attrs import field, frozen

from ingress.errors import DeserializationError, IngressError
from ingress.wire.addresses import parse_address
from ingress.wire.codec import MAX_BODY_DEPTH, MAX_BODY_NODES, PayloadCodec, codec_named
from ingress.wire.messages import CallHomeHandshake, ConnectionInfo, Prologue, RequestControlMessage
from ingress.wire.records import InstanceRecord
from ingress.wire.request_frame import AckDecoder, RequestFrameDecoder, encode_request_frame
from ingress.wire.response import ControlWordReader, ResponseReceiver
from ingress.wire.two_part import TwoPartDecoder, decode_two_part, encode_two_part
from tests import captures
from tests.fuzz.connection import attack_connection, connection_seeds
from tests.fuzz.guards import attack_json_guard, attack_msgpack_guard

# Small, so that the fuzzer reaches it with the bytes it has.
LIMIT = 64 * 1024


@frozen
class Target:
    """A decoder under attack."""

    name: str
    attack: Callable[[bytes], object]
    """Returns something that tells kinds of input apart, or raises an IngressError; anything else is a finding."""

    seeds: Callable[[], Sequence[bytes]] = field(repr=False)
    """Recorded bytes of the kind that the decoder takes."""


# -- framing ---------------------------------------------------------------------------------------------------------


def attack_stream(make_decoder: Callable[[], Any], data: bytes, *, fails_for_good: bool = True) -> object:
    """Feed a decoder the bytes at once, in two parts, and one by one: it must say the same.

    Args:
        fails_for_good: whether it promises to raise the same again after an error.
    """
    cut = data[0] % (len(data) + 1) if data else 0
    whole, *others = [
        _fed(make_decoder(), parts, fails_for_good)
        for parts in ([data], [data[:cut], data[cut:]], [data[at : at + 1] for at in range(min(len(data), 300))])
    ]
    assert others[0] == whole, f"cut at {cut}: {others[0]!r:.300} instead of {whole!r:.300}"
    if len(data) <= 300:
        assert others[1] == whole, f"byte by byte: {others[1]!r:.300} instead of {whole!r:.300}"
    return [type(each).__name__ for each in whole]


def _fed(decoder: Any, parts: Sequence[bytes], fails_for_good: bool) -> list[Any]:
    """Everything a decoder says, and in the end the text of what it raises."""
    said: list[Any] = []
    try:
        for part in parts:
            decoder.receive_data(part)
            said.extend(decoder)
    except IngressError as exc:
        said.append(f"{type(exc).__name__}: {exc}")
        if not fails_for_good:
            return said
        decoder.receive_data(b"more")
        try:
            assert not list(decoder), "it goes on after an error"
        except IngressError as again:
            assert type(again) is type(exc), f"raised {exc!r} and then {again!r}"
    return said


def attack_request_frame(data: bytes) -> object:
    said = attack_stream(lambda: RequestFrameDecoder(max_frame_size=LIMIT), data)
    decoder = RequestFrameDecoder(max_frame_size=LIMIT)
    decoder.receive_data(data)
    for frame in decoder:
        headers = frame.headers
        assert all(isinstance(part, str) for pair in headers.items() for part in pair)
        again = RequestFrameDecoder()
        again.receive_data(encode_request_frame(frame.path, headers, frame.payload))
        (back,) = again
        assert (back.path, back.headers, back.payload) == (frame.path, headers, frame.payload)
    return said


def attack_two_part(data: bytes) -> object:
    said = attack_stream(lambda: TwoPartDecoder(max_message_size=LIMIT), data)
    message = decode_two_part(data)
    back = decode_two_part(encode_two_part(message.header, message.body))
    assert back == message and data[24:].startswith(message.header + message.body)
    return said, message.kind


# A response stream and control words are framed, and keep a state between frames.


def attack_response(data: bytes) -> object:
    codec = codec_named("msgpack" if data[:1] == b"\1" else "json")
    return attack_stream(lambda: ResponseReceiver(codec, max_message_size=LIMIT), data, fails_for_good=False)


def attack_control_words(data: bytes) -> object:
    return attack_stream(ControlWordReader, data, fails_for_good=False)


def attack_ack(data: bytes) -> object:
    return attack_stream(AckDecoder, data)


# -- messages --------------------------------------------------------------------------------------------------------


def attack_control_message(data: bytes) -> object:
    control = RequestControlMessage.decode(data)
    assert RequestControlMessage.decode(control.encode()) == control
    info = ConnectionInfo.from_address(control.connection_info)
    address = parse_address(info.address)
    assert 1 <= address.port <= 65535 and address.host == str(address.ip)
    return control.request_type, info.stream_type, address.ip.version


def attack_address(data: bytes) -> object:
    address = parse_address(data.decode(errors="replace"))
    brackets = "[{}]:{}" if address.ip.version == 6 else "{}:{}"
    assert parse_address(brackets.format(address.host, address.port)) == address
    return address.ip.version


def attack_handshake(data: bytes) -> object:
    handshake = CallHomeHandshake.decode(data)
    assert CallHomeHandshake.decode(handshake.encode()) == handshake
    return handshake.stream_type


def attack_prologue(data: bytes) -> object:
    prologue = Prologue.decode(data)
    assert Prologue.decode(prologue.encode()).error == prologue.error
    return prologue.error is None, prologue.typed_error is None


def attack_record(data: bytes) -> object:
    record = InstanceRecord.decode(data)
    again = InstanceRecord.decode(record.encode(), file_name=record.file_name)
    assert again == record
    return sorted(record.transport)


def attack_named_record(data: bytes) -> object:
    """A file's name and its content, with a NUL between them, which no name has."""
    raw_name, _, content = data.partition(b"\0")
    name = raw_name.decode(errors="surrogateescape")
    record = InstanceRecord.decode(content, file_name=name)
    assert unquote(name) == record.key
    assert re.fullmatch(r"[A-Za-z0-9%._-]{1,255}", record.file_name), record.file_name
    assert record.file_name not in (".", "..") and unquote(record.file_name) == record.key
    return len(record.transport)


# -- bodies ----------------------------------------------------------------------------------------------------------


def attack_body(codec: PayloadCodec, data: bytes) -> object:
    """What passes the guards keeps within the limits, and comes back as it was."""
    with contextlib.suppress(DeserializationError):
        codec.decode_item(data)
    value = codec.decode(data)
    depth, nodes = _measure(value)
    assert depth <= MAX_BODY_DEPTH, f"{depth} levels"
    assert nodes <= 2 * MAX_BODY_NODES, f"{nodes} values"
    with contextlib.suppress(ValueError):  # JSON of 200 digits can be read, and by no peer be written
        assert codec.decode(codec.encode(value)) == value
    return type(value).__name__, depth


def _measure(value: Any) -> tuple[int, int]:
    """Levels of containers, and values in all, without recursion."""
    deepest = nodes = 0
    pending = [(value, 1)]
    while pending:
        each, level = pending.pop()
        nodes += 1
        if isinstance(each, dict):
            pending += [(child, level + 1) for pair in each.items() for child in pair]
        elif isinstance(each, (list, tuple)):
            pending += [(child, level + 1) for child in each]
        else:
            continue
        deepest = max(deepest, level)
    return deepest, nodes


# -- seeds -----------------------------------------------------------------------------------------------------------


def _recorded(*prefixes: str) -> list[bytes]:
    return [captures.load(name).data for prefix in prefixes for name in captures.names(prefix)]


def _payloads() -> list[bytes]:
    decoder = RequestFrameDecoder()
    for data in _recorded("request-", "bidi-request-1", "req-ok"):
        decoder.receive_data(data)
    return [frame.payload for frame in decoder]


def _headers(*prefixes: str) -> list[bytes]:
    return [message.header for message in _messages(*prefixes) if message.header]


def _bodies(codec: str) -> list[bytes]:
    names: tuple[str, ...]
    if codec == "json":
        names = ("response-ok", "response-types", "response-exc-")
        own = [b"[" * 129 + b"]" * 129, b'{"a":[1,2.5,null,true,"\\u20ac"]}', b'"\\ud800"']
    else:
        names = ("response-msgpack-",)
        own = [b"\x91" * 129 + b"\xc0", b"\x82\xa1a\xcb" + bytes(8) + b"\xa1b\xc4\x01x", b"\xd6\xff\0\0\0\0"]
    return [*own, *(message.body for message in _messages(*names) if message.body)]


def _messages(*prefixes: str) -> list[Any]:
    messages = []
    for data in _recorded(*prefixes):
        decoder = TwoPartDecoder()
        decoder.receive_data(data)
        try:
            messages += list(decoder)
        except IngressError:
            continue  # some were recorded for being broken
    return messages


def _control_messages() -> list[bytes]:
    return [decode_two_part(payload).header for payload in _payloads()]


def _addresses() -> list[bytes]:
    infos = [
        ConnectionInfo.from_address(RequestControlMessage.decode(raw).connection_info) for raw in _control_messages()
    ]
    return [b"127.0.0.1:4000", b"[::1]:1", b"fe80::1:65535", *(info.address.encode() for info in infos)]


def _named_records() -> list[bytes]:
    raws = _recorded("discovery-record")
    return [InstanceRecord.decode(raw).file_name.encode() + b"\0" + raw for raw in raws] + [b"../x\0" + raws[0]]


TARGETS = (
    Target("request-frame", attack_request_frame, lambda: _recorded("request-", "req-")),
    Target("two-part", attack_two_part, lambda: [*_payloads(), *_recorded("response-")]),
    Target("response", attack_response, lambda: _recorded("response-")),
    Target("control-words", attack_control_words, lambda: _recorded("client-control-")),
    Target("ack", attack_ack, lambda: _recorded("ack-")),
    Target("control-message", attack_control_message, _control_messages),
    Target("address", attack_address, _addresses),
    Target("handshake", attack_handshake, lambda: _headers("response-ok")),
    Target("prologue", attack_prologue, lambda: _headers("response-ok", "response-error-prologue")),
    Target("json-body", lambda data: attack_body(codec_named("json"), data), lambda: _bodies("json")),
    Target("msgpack-body", lambda data: attack_body(codec_named("msgpack"), data), lambda: _bodies("msgpack")),
    Target("json-guard", attack_json_guard, lambda: _bodies("json")),
    Target("msgpack-guard", attack_msgpack_guard, lambda: _bodies("msgpack")),
    Target("record", attack_record, lambda: _recorded("discovery-record")),
    Target("named-record", attack_named_record, _named_records),
    Target("connection", attack_connection, connection_seeds),
)
