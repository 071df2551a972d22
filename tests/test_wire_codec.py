"""What engines yield, byte for byte; what peers send, as far as it may come."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import types
import uuid
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.errors import DeserializationError, GenerateError, PluginError
from ingress.testing import _strategies as wire
from ingress.wire.codec import PayloadCodec, ResponseItem, codec_named, converter
from ingress.wire.messages import Annotated, ErrorEvent

JSON = codec_named("json")
MSGPACK = codec_named("msgpack")
CODECS = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 3


class Word(str, enum.Enum):  # noqa: UP042 - the older spelling, whose str() is not its value
    A = "a"


class Text(str):
    """A subclass of str."""


class Number(int):
    """A subclass of int."""


class Fraction(float):
    """A subclass of float, as numpy.float64 is."""


@attrs.define
class Point:
    y: int
    x: Any
    _hidden: int = 3


@attrs.define
class Point3D(Point):
    b: int = 4
    a: int = 5


@dataclasses.dataclass(slots=True)
class Pair:
    second: int
    first: Any


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


# -- what engines yield ----------------------------------------------------------------------------------------------

# value, JSON, msgpack (hex); measured on a real 1.6.1 worker, except for the last block.
ENCODINGS: list[tuple[Any, str, str]] = [
    (None, "null", "c0"),
    (True, "true", "c3"),
    (False, "false", "c2"),
    (0, "0", "00"),
    (127, "127", "7f"),
    (128, "128", "cc80"),
    (-1, "-1", "ff"),
    (-33, "-33", "d0df"),
    (65536, "65536", "ce00010000"),
    (2**53 + 1, "9007199254740993", "cf0020000000000001"),
    (2**63 - 1, "9223372036854775807", "cf7fffffffffffffff"),
    (2**63, "9223372036854775808", "cf8000000000000000"),
    (2**64 - 1, "18446744073709551615", "cfffffffffffffffff"),
    (-(2**63), "-9223372036854775808", "d38000000000000000"),
    (1.0, "1.0", "cb3ff0000000000000"),
    (-0.0, "-0.0", "cb8000000000000000"),
    (0.1, "0.1", "cb3fb999999999999a"),
    (5e-324, "5e-324", "cb0000000000000001"),
    (1e15, "1000000000000000.0", "cb430c6bf526340000"),
    (1e-5, "0.00001", "cb3ee4f8b588e368f1"),
    (1e-7, "1e-7", "cb3e7ad7f29abcaf48"),
    (123456789.125, "123456789.125", "cb419d6f3454800000"),
    (math.nan, "null", "cb7ff8000000000000"),
    (math.inf, "null", "cb7ff0000000000000"),
    (-math.inf, "null", "cbfff0000000000000"),
    ([math.nan, math.inf], "[null,null]", "92cb7ff8000000000000cb7ff0000000000000"),
    ("", '""', "a0"),
    ("tök🙂", '"tök🙂"', "a874c3b66bf09f9982"),
    ("\u2028", '"\u2028"', "a3e280a8"),
    ("\x00\x1f\x7f", '"\\u0000\\u001f\x7f"', "a3001f7f"),
    ("\b\t\n\f\r", '"\\b\\t\\n\\f\\r"', "a508090a0c0d"),
    ('"\\/<>&', '"\\"\\\\/<>&"', "a6225c2f3c3e26"),
    ([], "[]", "90"),
    ({}, "{}", "80"),
    ({"b": 1, "a": 2}, '{"b":1,"a":2}', "82a16201a16102"),
    ([1, None, 2.5], "[1,null,2.5]", "9301c0cb4004000000000000"),
    ((1, 2), "[1,2]", "920102"),
    ((), "[]", "90"),
    ({1, 2}, "[1,2]", "920102"),
    (frozenset({1, 2}), "[1,2]", "920102"),
    (range(3), "[0,1,2]", "93000102"),
    (b"\x00\xff", "[0,255]", "c40200ff"),
    (b"", "[]", "c400"),
    ({"k": b"\x01"}, '{"k":[1]}', "81a16bc40101"),
    ([b"\x01", b"\xff"], "[[1],[255]]", "92c40101c401ff"),
    ({1: "a"}, '{"1":"a"}', "8101a161"),
    ({-1: "a"}, '{"-1":"a"}', "81ffa161"),
    ({1.5: 1}, '{"1.5":1}', "81cb3ff800000000000001"),
    ({1.0: 1}, '{"1.0":1}', "81cb3ff000000000000001"),
    ({True: 1}, '{"true":1}', "81c301"),
    ({False: 1}, '{"false":1}', "81c201"),
    ({Level.LOW: 1}, '{"3":1}', "810301"),
    ({Word.A: 1}, '{"a":1}', "81a16101"),
    ({Text("k"): 1}, '{"k":1}', "81a16b01"),
    ({1: "a", "1": "b"}, '{"1":"a","1":"b"}', "8201a161a131a162"),
    (Level.LOW, "3", "03"),
    (Word.A, '"a"', "a161"),
    (Text("s"), '"s"', "a173"),
    (Number(7), "7", "07"),
    (Fraction(1.5), "1.5", "cb3ff8000000000000"),
    (Fraction(math.nan), "null", "cb7ff8000000000000"),
    (collections.OrderedDict(b=1, a=2), '{"b":1,"a":2}', "82a16201a16102"),
    (types.MappingProxyType({"a": 1}), '{"a":1}', "81a16101"),
    (collections.deque([1, 2]), "[1,2]", "920102"),
    ([{1}, frozenset({2}), Number(3)], "[[1],[2],3]", "939101910203"),
    (nested(100), "[" * 100 + "]" * 100, "91" * 99 + "90"),
    # Ours alone: a real worker refuses the first and all attrs classes and dataclasses, and writes the second in
    # msgpack as an array of integers.
    (bytearray(b"\x00\xff"), "[0,255]", "c40200ff"),
    (memoryview(b"\x00\xff"), "[0,255]", "c40200ff"),
    (Point(1, 2), '{"y":1,"x":2,"_hidden":3}', "83a17901a17802a75f68696464656e03"),
    (Point3D(1, 2), '{"y":1,"x":2,"_hidden":3,"b":4,"a":5}', "85a17901a17802a75f68696464656e03a16204a16105"),
    (Pair(1, [b"\x01"]), '{"second":1,"first":[[1]]}', "82a67365636f6e6401a5666972737491c40101"),
    ([Pair(1, Point(2, None))], '[{"second":1,"first":{"y":2,"x":null,"_hidden":3}}]', ""),
]


@pytest.mark.parametrize(
    ("value", "in_json", "in_msgpack"), ENCODINGS, ids=lambda value: repr(value).partition(" at 0x")[0][:30]
)
def test_a_yielded_value_is_written_as_a_real_1_6_1_worker_writes_it(value: Any, in_json: str, in_msgpack: str) -> None:
    assert JSON.encode(value).decode() == in_json
    assert JSON.encode_item(value).decode() == f'{{"data":{{"data":{in_json}}},"complete_final":false}}'
    if in_msgpack:
        body = bytes.fromhex(in_msgpack)
        assert MSGPACK.encode(value) == body
        assert MSGPACK.encode_item(value) == b"\x82\xa4data\x81\xa4data" + body + b"\xaecomplete_final\xc2"


@pytest.mark.parametrize("value", [1e16, 1e100, -1e300, 1.7976931348623157e308])
def test_only_the_spelling_of_an_exponent_differs_from_a_real_worker(value: float) -> None:
    ours = JSON.encode(value)
    assert float(ours) == value
    assert ours.replace(b"e", b"e+") == repr(value).encode()


@pytest.mark.parametrize("value", [2**64, 2**70, 2**127, 2**128 - 1, -(2**63) - 1, -(2**127)])
def test_an_integer_of_up_to_128_bits_is_written_as_json_digits_and_not_as_msgpack(value: int) -> None:
    for wrapped in (value, [value], {"k": value}, {value: 1}):
        assert str(value).encode() in JSON.encode_item(wrapped)
        with pytest.raises(GenerateError, match="bits exceeds 64 bits"):
            MSGPACK.encode_item(wrapped)


UNSERIALIZABLE: list[tuple[Callable[[], Any], str]] = [
    (object, "unsupported type object"),
    (lambda: {"k": object()}, "unsupported type object"),
    (lambda: [1, {"k": (object(),)}], "unsupported type object"),
    (lambda: (i for i in range(3)), "unsupported type generator"),
    (lambda: {1: 2}.keys(), "unsupported type dict_keys"),
    (lambda: nested, "unsupported type function"),
    (lambda: Point, "unsupported type type"),
    (lambda: Pair, "unsupported type type"),
    (lambda: ..., "unsupported type ellipsis"),
    (lambda: 1j, "unsupported type complex"),
    (lambda: ValueError("x"), "unsupported type ValueError"),
    (lambda: Colour.RED, "unsupported type Colour"),
    (lambda: datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC), "unsupported type datetime"),
    (lambda: {"at": datetime.datetime(2026, 11, 23)}, "unsupported type datetime"),
    (lambda: datetime.date(2026, 11, 23), "unsupported type date"),
    (lambda: datetime.timedelta(1), "unsupported type timedelta"),
    (lambda: uuid.UUID(int=1), "unsupported type UUID"),
    (lambda: decimal.Decimal("1.5"), "unsupported type Decimal"),
    (lambda: 2**128, "integer of 129 bits exceeds"),
    (lambda: -(2**127) - 1, "integer of 128 bits exceeds"),
    (lambda: "\ud800", "surrogates not allowed"),
    (lambda: {"\ud800": 1}, "surrogates not allowed"),
    (lambda: Point(1, "\ud800"), "surrogates not allowed"),
    (lambda: {datetime.date(2026, 1, 1): 1}, "date"),
    (cyclic, "recursion"),
    (lambda: nested(100_000), "recursion"),
    (lambda: nested(1_500), "recursion"),
]


@CODECS
@pytest.mark.parametrize(("make", "text"), UNSERIALIZABLE, ids=[text for _, text in UNSERIALIZABLE])
def test_e04_what_a_codec_cannot_hold_is_an_error_of_the_engine(
    codec: PayloadCodec, make: Callable[[], Any], text: str
) -> None:
    value = make()
    with pytest.raises(GenerateError, match=f"engine yielded a value that cannot be serialized: .*{text}") as caught:
        codec.encode_item(value)
    assert (caught.value.error_type, caught.value.backend_kind) == ("generate", "Unknown")
    with pytest.raises(ValueError, match=text):
        codec.encode(value)
    # The failure itself goes home, whatever its text.
    codec.encode_item(Annotated.from_error(ErrorEvent.of_kind("Unknown", str(caught.value))))


@pytest.mark.parametrize("key", [None, b"k", (1, 2), datetime.date(2026, 1, 1)])
def test_e04_a_json_key_must_be_text_or_a_number(key: Any) -> None:
    with pytest.raises(GenerateError, match="a key must be text or a number"):
        JSON.encode_item({key: 1})


@pytest.mark.parametrize(
    ("key", "encoded"), [(None, "c0"), (b"k", "c4016b"), ((1, 2), "920102"), (math.nan, "cb7ff8000000000000")]
)
def test_msgpack_writes_every_key_a_real_worker_writes(key: Any, encoded: str) -> None:
    assert MSGPACK.encode({key: 1}).hex() == f"81{encoded}01"
    # The same beside a value that takes the careful way.
    assert MSGPACK.encode({key: Level.LOW}).hex() == f"81{encoded}03"


def test_a_key_that_is_not_finite_is_refused_on_the_careful_way() -> None:
    with pytest.raises(GenerateError, match="a key must be finite"):
        JSON.encode_item({math.inf: Level.LOW})


def test_e04_a_value_whose_own_code_fails_is_an_error_of_the_engine() -> None:
    class Broken(collections.UserDict[str, int]):
        def items(self) -> Any:
            raise KeyError("broken")

    for codec in (JSON, MSGPACK):
        with pytest.raises(GenerateError, match="broken"):
            codec.encode_item(Broken(a=1))


@pytest.mark.parametrize("text", ["zażółć gęślą jaźń", "ąćęłńóśźż" * 20, "Ğğİı", "Āāē", "ňř"])
def test_accented_letters_are_not_taken_for_bytes(text: str) -> None:
    for value in (text, {text: [text]}, [{"a": (text, {1: text})}]):
        assert JSON.decode(JSON.encode(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize("size", [0, 1, 127, 196, 255, 256, 50_000, 65_536])
def test_bytes_of_any_length_and_anywhere_become_arrays_in_json(size: int) -> None:
    counting = bytes(index % 256 for index in range(size))
    # Zeros too: then nothing but the marker of the length tells of them.
    for data in (counting, bytes(size)):
        check_bytes_in_json(data)


def check_bytes_in_json(data: bytes) -> None:
    for value in (data, [data], (data,), {"k": data}, {"ł": [{"k": (1, data)}]}):
        found = JSON.decode(JSON.encode(value))
        while not (isinstance(found, list) and found == list(data)):
            found = found[-1] if isinstance(found, list) else next(iter(found.values()))


# -- envelopes -------------------------------------------------------------------------------------------------------


@CODECS
@given(item=wire.annotated())
def test_an_engine_may_yield_an_envelope(codec: PayloadCodec, item: Annotated) -> None:
    assert codec.decode_item(codec.encode_item(item)) == ResponseItem(item, complete_final=False)


@CODECS
@given(error=wire.error_events())
def test_an_engine_may_yield_an_error_event(codec: PayloadCodec, error: ErrorEvent) -> None:
    assert codec.encode_item(error) == codec.encode_item(Annotated.from_error(error))


@CODECS
@pytest.mark.parametrize("value", [{"data": 1}, {"event": "error", "error": {"message": "m"}}, {"data": {"data": 1}}])
def test_a_plain_dict_is_never_unpacked_as_an_envelope(codec: PayloadCodec, value: dict[str, Any]) -> None:
    assert codec.decode_item(codec.encode_item(value)) == ResponseItem(Annotated(data=value), complete_final=False)


def test_the_data_of_an_envelope_follows_the_rules_of_values() -> None:
    item = Annotated(data=Point(1, b"\xff"), event="e", comment=["c"])
    assert JSON.encode_item(item) == (
        b'{"data":{"data":{"y":1,"x":[255],"_hidden":3},"event":"e","comment":["c"]},"complete_final":false}'
    )
    with pytest.raises(GenerateError, match="unsupported type object"):
        JSON.encode_item(Annotated(data=object()))


@CODECS
def test_the_final_frame_has_no_data_key(codec: PayloadCodec) -> None:
    assert codec.decode(codec.final) == {"complete_final": True}
    assert codec.decode_item(codec.final) == ResponseItem(None, complete_final=True)


@CODECS
def test_a_final_frame_may_carry_null_or_data(codec: PayloadCodec) -> None:
    null = codec.encode({"data": None, "complete_final": True})
    full = codec.encode({"data": {"data": 1}, "complete_final": True})
    assert codec.decode_item(null) == ResponseItem(None, complete_final=True)
    assert codec.decode_item(full) == ResponseItem(Annotated(data=1), complete_final=True)


@CODECS
@pytest.mark.parametrize("wire_form", [None, [], 7, {}, {"data": {}}, {"complete_final": 1}, {"complete_final": None}])
def test_an_item_without_a_boolean_complete_final_is_refused(codec: PayloadCodec, wire_form: Any) -> None:
    with pytest.raises(DeserializationError, match="expected an object with a boolean complete_final"):
        codec.decode_item(codec.encode(wire_form))


def test_a_msgpack_item_may_hold_nan_and_keys_that_are_no_text() -> None:
    item = MSGPACK.decode_item(MSGPACK.encode_item({1: math.inf, None: [math.nan]}))
    assert item.annotated is not None
    assert item.annotated.data[1] == math.inf
    assert math.isnan(item.annotated.data[None][0])


# -- round trips and garbage -----------------------------------------------------------------------------------------


def is_same(a: Any, b: Any) -> bool:
    """Tell 1 from 1.0 and True, and 0.0 from -0.0, which ``==`` does not."""
    return repr(a) == repr(b)


@CODECS
@given(value=wire.codec_values())
def test_what_both_codecs_carry_comes_back_as_it_was(codec: PayloadCodec, value: Any) -> None:
    assert is_same(codec.decode(codec.encode(value)), value)
    item = codec.decode_item(codec.encode_item(value))
    # An envelope keeps null as data; only a missing envelope is no data.
    assert item.annotated is not None
    assert is_same(item.annotated.data, value)


@given(wire.json_values())
def test_what_json_carries_comes_back_as_it_was(value: Any) -> None:
    assert is_same(JSON.decode(JSON.encode(value)), value)


@given(wire.codec_values())
def test_the_careful_way_writes_the_same_bytes_as_the_fast_one(value: Any) -> None:
    for codec in (JSON, MSGPACK):
        # The subclass of int at the end makes the whole value take the careful way.
        assert codec.encode([value, Number(1)]) == codec.encode([value, 1])


@CODECS
def test_c13_what_a_worker_answers_has_no_more_values_than_what_it_is_asked(codec: PayloadCodec) -> None:
    """Ten million empty lists, in 30 MB, took a caller 840 MB."""
    item = codec.encode_item([])
    dense = item.replace(codec.encode([]), codec.encode([[]] * 400_000), 1)
    with pytest.raises(DeserializationError, match="more than 1000000 values"):
        codec.decode_item(dense)
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    found = codec.decode_item(item.replace(codec.encode([]), codec.encode(deep), 1)).annotated
    assert found is not None
    assert found.data == deep


@CODECS
@given(garbage=st.binary(max_size=200) | wire.hostile_bytes())
def test_garbage_gives_a_value_or_a_deserialization_error(codec: PayloadCodec, garbage: bytes) -> None:
    for decode in (codec.decode, codec.decode_item):
        try:
            decode(garbage)
        except DeserializationError as exc:
            assert exc.error_type == "deserialization"


@CODECS
@given(value=wire.codec_values(), data=st.data())
def test_a_cut_body_gives_a_value_or_a_deserialization_error(
    codec: PayloadCodec, value: Any, data: st.DataObject
) -> None:
    body = codec.encode(value)
    cut = data.draw(st.integers(0, len(body)))
    try:
        codec.decode(body[:cut])
    except DeserializationError:
        pass
    else:
        assert cut, "an empty body is no value"


# -- names and the converter -----------------------------------------------------------------------------------------


def test_an_unknown_codec_is_named_with_those_that_exist() -> None:
    with pytest.raises(PluginError, match="no payload codec named 'cbor'; known: json, msgpack"):
        codec_named("cbor")


def test_there_is_one_converter_and_it_ignores_fields_it_is_not_told_of() -> None:
    @attrs.frozen
    class Prompt:
        text: str
        limit: int = 10

    assert converter() is converter()
    assert converter().structure({"text": "t", "later": 1}, Prompt) == Prompt("t")
