"""``check_codec``: the built-in codecs pass it, and codecs that are broken in one way fail it and are told how."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from ingress.errors import DeserializationError
from ingress.testing import PropertyFailed, check_codec
from ingress.wire.codec import JsonCodec, MsgpackCodec, PayloadCodec, ResponseItem


@pytest.mark.parametrize("codec", [JsonCodec(), MsgpackCodec()], ids=lambda codec: codec.name)
def test_the_built_in_codecs_pass(codec: PayloadCodec) -> None:
    check_codec(codec, [{"token_ids": [1, 2, 3]}])


class Spaced(JsonCodec):
    """JSON with spaces: another codec, and a correct one."""

    def encode(self, value: object) -> bytes:
        return json.dumps(super().decode(super().encode(value)), ensure_ascii=False).encode()


def test_another_codec_passes() -> None:
    check_codec(Spaced())


class Rounding(JsonCodec):
    def decode(self, body: bytes) -> Any:
        value = super().decode(body)
        return int(value) if isinstance(value, float) else value


class Text(JsonCodec):
    def encode(self, value: object) -> Any:
        return super().encode(value).decode()


class Bare(JsonCodec):
    def encode_item(self, value: object) -> bytes:
        return b'{"data":{"data":' + self.encode(value) + b'},"complete_final":false}'


class Endless(JsonCodec):
    final: ClassVar[bytes] = b'{"complete_final":false}'


class Lenient(JsonCodec):
    def encode(self, value: object) -> bytes:
        return json.dumps(value, default=str, ensure_ascii=False).encode()


class Rude(JsonCodec):
    def decode(self, body: bytes) -> Any:
        return json.loads(body)


class RudeAboutItems(MsgpackCodec):
    def decode_item(self, body: bytes) -> ResponseItem:
        if not body:
            raise DeserializationError("nothing")
        return super().decode_item(body) if body[0] == 0x82 else [][0]


BROKEN: dict[Callable[[], PayloadCodec], tuple[str, str]] = {
    Rounding: ("gives back every value", "1, by way of b'1.5'"),
    Text: ("gives back every value", "'null'"),
    Bare: ("gives back every item with its envelope", "data={'data': None"),
    Endless: ("its final frame ends an answer", "complete_final=False"),
    Lenient: ("refuses what it cannot hold", "<object object at"),
    Rude: ("garbage gives a DeserializationError and nothing else", "JSONDecodeError"),
    RudeAboutItems: ("its final frame ends an answer", "IndexError"),
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_a_broken_codec_is_told_what_is_wrong(make: Callable[[], PayloadCodec]) -> None:
    name, got = BROKEN[make]
    with pytest.raises(PropertyFailed) as caught:
        check_codec(make())
    assert (caught.value.subject, caught.value.property) == (make.__name__, name), str(caught.value)
    assert got in caught.value.got, str(caught.value)
