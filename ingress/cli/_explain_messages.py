"""What the two parts of a frame say: control message, handshake, prologue, item, control word; pure.

A frame does not name its own kind: the conversation does. Here a frame is all there is, so the kind is told from the
keys, which no two kinds share.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import field, frozen

from ..errors import DeserializationError, IngressError
from ..wire.codec import codec_named
from ..wire.messages import CallHomeHandshake, ControlWord, Prologue, RequestControlMessage
from ..wire.records import InstanceRecord

_WORDS = {
    ControlWord.STOP: "stop: end the answer soon",
    ControlWord.KILL: "kill: nobody listens any more",
    ControlWord.SENTINEL: "sentinel: the stream is over",
}


@frozen
class Meaning:
    """What a frame is, and what its parts say."""

    what: str
    header_is: str = ""
    header: dict[str, Any] = field(factory=dict)
    body_is: str = ""
    body: dict[str, Any] = field(factory=dict)
    problem: str | None = None


def meaning_of(header: bytes, body: bytes) -> Meaning:
    """Tell what a frame of these two parts is. Raises nothing."""
    if not header:
        return _body_alone(body)
    if (word := ControlWord.decode(header)) is not None:
        return Meaning(word.value, _WORDS[word])
    wire = json_object(header)
    if wire is None:
        known = ", ".join(word.value for word in ControlWord)
        return Meaning("header", "no JSON object", problem=f"the header is neither a JSON object nor one of {known}")
    if "connection_info" in wire:
        return _request(header, wire, body)
    said = flatten(wire)
    if "subject" in wire:
        return Meaning("handshake", "call-home handshake", said, problem=_complaint(CallHomeHandshake.decode, header))
    if "error" in wire or not wire:
        is_refusal = wire.get("error") is not None
        what = "prologue: the engine refused" if is_refusal else "prologue: the engine took the request"
        return Meaning("prologue", what, said, problem=_complaint(Prologue.decode, header))
    return Meaning("header", "JSON", said)


def record_meaning(data: bytes) -> dict[str, Any]:
    """Return what a discovery record says.

    Raises:
        DeserializationError: it is none.
    """
    record = InstanceRecord.decode(data)
    return {"key": record.key, **flatten(json_object(data) or {})}


def _request(header: bytes, wire: dict[str, Any], body: bytes) -> Meaning:
    kind = "bidirectional request" if "request_stream_connection_info" in wire else "unary request"
    # An absent codec means JSON: callers up to 1.2.1 had no other.
    codec = wire.get("payload_codec", "json")
    value, problem = _decode_body(body, codec) if body else (None, None)
    return Meaning(
        kind,
        "control message",
        flatten(wire),
        f"request as {codec}" if body else "",
        {"request": value} if body and problem is None else {},
        _complaint(RequestControlMessage.decode, header) or problem,
    )


def _body_alone(body: bytes) -> Meaning:
    if not body:
        return Meaning("empty")
    # What is JSON is no msgpack map: the one begins with 0x7b, the other with 0x80 or above.
    for codec in ("json", "msgpack"):
        value, problem = _decode_body(body, codec)
        if problem is None:
            break
    else:
        return Meaning("data", body_is="neither JSON nor msgpack", problem="the body is neither JSON nor msgpack")
    if not isinstance(value, dict) or "complete_final" not in value:
        return Meaning("item of a request stream", body_is=f"bare {codec}", body={"value": value})
    said = flatten({**_envelope(value), "complete_final": value["complete_final"]})
    complaint = _complaint(codec_named(codec).decode_item, body)
    if value["complete_final"] is True and value.get("data") is None:
        return Meaning("final", body_is=f"the answer is whole, as {codec}", body=said, problem=complaint)
    is_error = said.get("event") == "error" or any(name.partition(".")[0] == "error" for name in said)
    return Meaning("error event" if is_error else "item", body_is=f"item as {codec}", body=said, problem=complaint)


def _envelope(item: dict[Any, Any]) -> dict[str, Any]:
    envelope = item.get("data")
    if not isinstance(envelope, dict):
        return {} if envelope is None else {"envelope": envelope}
    return {str(key): _Leaf(value) if key == "data" else value for key, value in envelope.items()}


@frozen
class _Leaf:
    """A value that belongs to the user: shown as it is, not taken apart."""

    value: Any


def flatten(wire: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested objects as one level of dotted names; the JSON inside ``info`` strings is unfolded, too."""
    flat: dict[str, Any] = {}
    for key, value in wire.items():
        name = f"{prefix}{key}"
        inner = json_object(value.encode(errors="replace")) if key == "info" and isinstance(value, str) else value
        if isinstance(value, _Leaf):
            flat[name] = value.value
        elif isinstance(inner, dict) and inner:
            flat.update(flatten(inner, f"{prefix if key == 'info' else name + '.'}"))
        else:
            flat[name] = value
    return flat


def _decode_body(body: bytes, codec: object) -> tuple[Any, str | None]:
    try:
        return codec_named(str(codec)).decode(body), None
    except DeserializationError as exc:
        return None, str(exc)
    except IngressError as exc:
        return None, str(exc)


def json_object(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object in the bytes, or None where they are something else."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _complaint(decode: Any, raw: bytes) -> str | None:
    try:
        decode(raw)
    except IngressError as exc:
        return str(exc)
    return None
