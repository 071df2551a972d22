"""The drawings and the table of values in docs/wire.md are what they say they are."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import decimal
import enum
import math
import re
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest

from ingress.errors import GenerateError
from ingress.wire.codec import PayloadCodec, codec_named
from ingress.wire.two_part import TwoPartDecoder, encode_two_part

from . import captures

PAGE = (Path(__file__).parent.parent / "docs" / "wire.md").read_text(encoding="utf-8")

DRAWINGS = re.findall(r"^```frame (\S+)(?: \[(\d+)\])?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINE = re.compile(r" *(\d+)  ((?:[0-9a-f]{2}(?![0-9a-f])|‹[^›]*›|\{\d+\}| (?! ))+)")
PART = re.compile(r"([0-9a-f]{2}(?![0-9a-f]))|‹([^›]*)›|\{(\d+)\}")

NAMES = {
    module.__name__: module for module in (attrs, dataclasses, datetime, decimal, enum, math, uuid)
}  # what the expressions of the table may use
VALUES = re.findall(r"^\| `([^`]+)` \| (?:`([^`]+)`|error) \| (?:`([0-9a-f]+)`|error) \|", PAGE, re.MULTILINE)


def captured(name: str, index: str) -> bytes:
    data = captures.load(name).data
    if not index:
        return data
    decoder = TwoPartDecoder()
    decoder.receive_data(data)
    message = list(decoder)[int(index)]
    return encode_two_part(message.header, message.body)


@pytest.mark.parametrize(("name", "index", "drawing"), DRAWINGS, ids=[name + index for name, index, _ in DRAWINGS])
def test_a_drawing_shows_every_byte_of_its_capture_at_its_offset(name: str, index: str, drawing: str) -> None:
    data = captured(name, index)
    position = 0
    for line in drawing.splitlines():
        match = LINE.match(line)
        assert match, f"no offset and bytes in {line!r}"
        assert int(match[1]) == position, line
        for pair, text, skipped in PART.findall(match[2]):
            expected = bytes.fromhex(pair) or text.encode()
            shown = data[position : position + (int(skipped) if skipped else len(expected))]
            assert skipped or shown == expected, line
            position += len(shown)
    assert position == len(data)


def test_every_kind_of_frame_is_drawn() -> None:
    assert {name.removesuffix("-1.6.1") for name, _, _ in DRAWINGS} == {
        "request-unary",
        "ack-ok",
        "ack-overload",
        "client-control-stop",
        "client-control-kill-on-drop",
        "response-ok",
        "response-msgpack-ok",
        "response-raise-mid",
        "response-error-prologue",
        "bidi-request",
        "bidi-request-stream-worker-bytes",
        "bidi-response",
        "bidi-request-stream-client-bytes",
        "discovery-record",
    }


@pytest.mark.parametrize(("expression", "in_json", "in_msgpack"), VALUES, ids=[value for value, _, _ in VALUES])
def test_a_value_of_the_table_is_written_as_it_says(expression: str, in_json: str, in_msgpack: str) -> None:
    value = eval(expression, dict(NAMES))  # noqa: S307 - our own page
    # The table shows DEL, which JSON leaves as it is, as Python would.
    check(codec_named("json"), value, in_json.replace("\\x7f", "\x7f").encode())
    check(codec_named("msgpack"), value, bytes.fromhex(in_msgpack))


def check(codec: PayloadCodec, value: Any, expected: bytes) -> None:
    if expected:
        assert codec.encode(value) == expected
    else:
        with pytest.raises(GenerateError):
            codec.encode_item(value)


def test_the_table_of_values_has_a_row_for_every_rule() -> None:
    assert len(VALUES) >= 40
    for expression, _, _ in VALUES:
        ast.parse(expression, mode="eval")
    rows = re.search(r"^\| yielded .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert rows
    assert rows[0].count("\n| `") == len(VALUES), "a row of the table is not read"
