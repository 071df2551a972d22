"""The codecs of request bodies and response items: JSON and msgpack.

What an engine yields is written byte for byte as a released 1.6.1 worker writes it (docs/wire.md §4.4). Where that
worker falls silent, fails or would write what no caller can read back, :class:`~ingress.errors.GenerateError` is
raised, which goes home as an error event.

The one cattrs converter for records, configuration and user-typed requests lives here too. It stays off the per-chunk
path: measured at ten times the cost of msgspec (docs/design.md).
"""

from __future__ import annotations

import functools
import gc
import marshal  # noqa: TID251 - writes only, and what it has written is thrown away
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

import msgspec
from attrs import frozen

from ..errors import DeserializationError, GenerateError, PluginError
from .guards import MAX_BODY_DEPTH as MAX_BODY_DEPTH
from .guards import MAX_BODY_NODES as MAX_BODY_NODES
from .guards import check_json_body, check_msgpack_keys, check_msgpack_value, end_step
from .guards import check_msgpack_size as check_msgpack_size
from .messages import Annotated, ErrorEvent
from .plain import to_json_plain, to_msgpack_plain

if TYPE_CHECKING:
    import cattrs

# One item may be as large as the largest request.
DEFAULT_MAX_RESPONSE_CHUNK = 32 * 1024 * 1024


@frozen
class ResponseItem:
    """One data-only frame of a response stream, decoded."""

    annotated: Annotated | None
    """The envelope, or None where the frame carries no data."""

    complete_final: bool
    """True on the last frame."""


class PayloadCodec(Protocol):
    """How bodies and items are written; one object per codec, shared by all tasks."""

    name: ClassVar[str]
    final: ClassVar[bytes]
    """The body of the final frame."""

    def encode(self, value: object) -> bytes:
        """Encode a bare value: a request body or a frame of a request stream; raises ValueError."""

    def decode(self, body: bytes) -> Any:
        """Decode a bare value; raises DeserializationError."""

    def encode_item(self, value: object) -> bytes:
        """Encode what an engine yielded as the body of an item frame; raises GenerateError."""

    def decode_item(self, body: bytes) -> ResponseItem:
        """Decode the body of an item frame; raises DeserializationError."""


def codec_named(name: str) -> PayloadCodec:
    """Return the codec.

    Raises:
        PluginError: there is none of that name.
    """
    try:
        return _CODECS[name]
    except KeyError:
        raise PluginError(f"no payload codec named {name!r}; known: {', '.join(_CODECS)}") from None


# -- encoding what engines yield -------------------------------------------------------------------------------------

# Two encoders see each value only to find out whether a third may have it, at 0.3 and 0.1 µs for a chunk of one token;
# looking at it in Python costs twice as much (best of 40 runs with timeit, 2026-11-23, CPython 3.11, shared 2-core VM).
#
# marshal takes exact built-in types and buffers alone. What it refuses, msgspec would partly write in its own way:
# dates and UUIDs as text, the fields of attrs classes in another order.
_refuse_inexact = marshal.dumps
_MARSHAL_VERSION = 2  # the newest without a table of references, which costs half as much again

# msgpack refuses integers beyond 64 bits, and marks bytes with one of three bytes where msgspec's JSON has base64.
_encode_msgpack = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode

_ENCODING_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class JsonCodec:
    """Compact JSON, UTF-8, keys in the order of the engine."""

    name: ClassVar[str] = "json"
    final: ClassVar[bytes] = b'{"complete_final":true}'

    def encode(self, value: object) -> bytes:
        try:
            return self._encode(value)
        except Exception as exc:
            raise ValueError(f"value cannot be written as JSON: {exc}") from exc

    def decode(self, body: bytes) -> Any:
        return self._decode(body, check_json_body(body))

    def encode_item(self, value: object) -> bytes:
        try:
            _refuse_inexact(value, _MARSHAL_VERSION)  # type: ignore[arg-type]  # that it may refuse is the point
            probe = _encode_msgpack(value)
            # An int in bytes is found seven times faster than a byte string.
            if (0xC4 in probe or 0xC5 in probe or 0xC6 in probe) and _may_hold_bytes(value):
                value = to_json_plain(value)
            return b'{"data":{"data":' + _encode_json(value) + b'},"complete_final":false}'
        except _ENCODING_ERRORS:
            pass  # the careful way finds that nothing is wrong after all, or says what is
        try:
            return b'{"data":' + self._encode(_envelope(value)) + b',"complete_final":false}'
        except Exception as exc:
            _raise_unserializable(exc)

    def decode_item(self, body: bytes) -> ResponseItem:
        # Workers do nest deeply; the decoder's own guard ends that at about 1,000 levels.
        return _item_from_wire(self._decode(body, check_json_body(body, max_depth=None)))

    def _decode(self, body: bytes, may_have_exponents: bool) -> Any:
        decode = _decode_json_exponents if may_have_exponents else _decode_json
        try:
            return decode(body) if len(body) <= _LARGE else _uncollected(decode, body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise DeserializationError(f"body is not JSON: {exc}") from exc

    def _encode(self, value: object) -> bytes:
        try:
            _refuse_inexact(value, _MARSHAL_VERSION)  # type: ignore[arg-type]  # as above
            probe = _encode_msgpack(value)
            if (0xC4 in probe or 0xC5 in probe or 0xC6 in probe) and _may_hold_bytes(value):
                value = to_json_plain(value)
            return _encode_json(value)
        except _ENCODING_ERRORS:
            return _encode_json(to_json_plain(value))


class MsgpackCodec:
    """msgpack: integers minimal, floats always 64 bits, keys as the engine has them."""

    name: ClassVar[str] = "msgpack"
    final: ClassVar[bytes] = b"\x81\xaecomplete_final\xc3"

    def encode(self, value: object) -> bytes:
        try:
            return self._encode(value)
        except Exception as exc:
            raise ValueError(f"value cannot be written as msgpack: {exc}") from exc

    def decode(self, body: bytes) -> Any:
        value = self._decode(body)
        check_msgpack_value(value)
        return value

    def encode_item(self, value: object) -> bytes:
        try:
            _refuse_inexact(value, _MARSHAL_VERSION)  # type: ignore[arg-type]  # as above
            return b"\x82\xa4data\x81\xa4data" + _encode_msgpack(value) + b"\xaecomplete_final\xc2"
        except _ENCODING_ERRORS:
            pass
        try:
            return b"\x82\xa4data" + self._encode(_envelope(value)) + b"\xaecomplete_final\xc2"
        except Exception as exc:
            _raise_unserializable(exc)

    def decode_item(self, body: bytes) -> ResponseItem:
        # Workers do send NaN and nest deeply; the decoder's own guard ends that at about 1,000 levels.
        return _item_from_wire(self._decode(body))

    def _encode(self, value: object) -> bytes:
        try:
            _refuse_inexact(value, _MARSHAL_VERSION)  # type: ignore[arg-type]  # as above
            return _encode_msgpack(value)
        except _ENCODING_ERRORS:
            return _encode_msgpack(to_msgpack_plain(value))

    def _decode(self, body: bytes) -> Any:
        check_msgpack_size(body)
        check_msgpack_keys(body)
        try:
            return _decode_msgpack(body) if len(body) <= _LARGE else _uncollected(_decode_msgpack, body)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as exc:
            raise DeserializationError(f"body is not msgpack: {exc}") from exc


_CODECS: Mapping[str, PayloadCodec] = {"json": JsonCodec(), "msgpack": MsgpackCodec()}


def _may_hold_bytes(value: Any) -> bool:
    """Tell bytes from the accented letters and large numbers that the probe shows with the same bytes."""
    kind = type(value)
    if kind is dict:
        if not _SCALARS.issuperset(map(type, value)):
            return True
        value = value.values()
    elif kind not in _COLLECTIONS:
        return kind not in _SCALARS
    return not _SCALARS.issuperset(map(type, value)) and any(map(_may_hold_bytes, value))


_COLLECTIONS = frozenset({list, tuple, set, frozenset})
_SCALARS = frozenset({str, int, float, bool, type(None)})


def _envelope(value: object) -> dict[str, Any]:
    if isinstance(value, ErrorEvent):
        value = Annotated.from_error(value)
    return value.to_wire() if isinstance(value, Annotated) else {"data": value}


def _raise_unserializable(exc: Exception) -> NoReturn:
    raise GenerateError(f"engine yielded a value that cannot be serialized: {exc}") from exc


# -- decoding what peers send ----------------------------------------------------------------------------------------


def _refuse_extension(code: int, _data: memoryview) -> NoReturn:
    raise ValueError(f"extension type {code}")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number out of range: {text[:40]}")
    return value


_decode_json = msgspec.json.Decoder().decode
_decode_json_exponents = msgspec.json.Decoder(float_hook=_finite_float).decode
_decode_msgpack = msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode


def _item_from_wire(wire: object) -> ResponseItem:
    if not isinstance(wire, dict) or not isinstance(wire.get("complete_final"), bool):
        raise DeserializationError("response item: expected an object with a boolean complete_final")
    data = wire.get("data")
    return ResponseItem(None if data is None else Annotated.from_wire(data), wire["complete_final"])


# The collector looks at new containers again and again while a decoder makes them, which took 80 % of the time of a
# million. It is off for the whole process, for as long as one call keeps everything else waiting anyway.
_LARGE = 64 * 1024


def _uncollected(decode: Callable[[bytes], Any], body: bytes) -> Any:
    """Decode while nothing is collected; by any thread.

    Of threads that overlap the first to come switches the collector on again, which costs the others time and no more.
    """
    end_step()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return decode(body)
    finally:
        if was_enabled:
            gc.enable()


# -- cattrs ----------------------------------------------------------------------------------------------------------


@functools.cache
def converter(*, is_brief: bool = False) -> cattrs.Converter:
    """Return the project's one cattrs converter: strict about types it is told, silent about fields it is not.

    Args:
        is_brief: one that stops at the first thing that is wrong, and does not say where it stands.
    """
    from cattrs.preconf.msgspec import make_converter  # 60 ms of imports that a plain worker does not need

    made = make_converter(detailed_validation=not is_brief)
    for kind in (bool, int, float, str):
        made.register_structure_hook(kind, _exactly)
    return made


def _exactly(value: Any, kind: Callable[[Any], Any]) -> Any:
    """Let a JSON value be what it is: cattrs by itself makes 5 of ``"5"`` and of ``5.5``, and True of ``"false"``."""
    if type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    raise TypeError(f"expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
