"""``ingress decode``: explain captured bytes, field by field."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from attrs import frozen
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from .._text import printable
from ._errors import EXIT_CLEAN, EXIT_FAILED, usage
from ._explain import Explanation, Field, Form, Frame, explain
from ._options import DEFAULT_OUTPUT, AsJson, OutputOptions
from ._payloads import print_document, read_file

SCHEMA = "ingress.decode/1"

# Enough of a value to know it by; -v shows all of it.
MAX_SHOWN = 400

# Of captures; a device would never end.
MAX_INPUT = 256 * 1024 * 1024
_SHOWN_IN_FULL = 32 * 1024 * 1024

_HEX_TEXT = re.compile(rb"(?:0x)?[0-9a-fA-F\s:]+")
_HEX_BYTES = 8


@frozen
class Capture:
    """One stretch of bytes, and what is known of where it came from."""

    data: bytes
    name: str = ""
    note: str = ""


def decode(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],  # so that - is one
    /,
    *,
    form: Annotated[Form | None, Parameter(name="--as")] = None,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Explain captured bytes: request frames, acks, the frames of a stream, discovery records.

    Ends with 1 where the bytes are cut off or broken, after explaining what is there.

    Parameters
    ----------
    file
        Raw bytes, hex text, or a capture in JSON (with "bytes_hex"); - reads standard input.
    form
        What the bytes are, where they could be several things.
    """
    explained = [(capture, explain(capture.data, form)) for capture in read_captures(read_input(file))]
    if as_json:
        document = {"schema": SCHEMA, "captures": [_as_json(capture, found) for capture, found in explained]}
        # Bytes that are no text have come through replaced; what msgpack holds as bytes becomes base64.
        print_document(document)
    else:
        console = output.stdout()
        for capture, found in explained:
            print_explanation(console, capture, found, _SHOWN_IN_FULL if output.verbose else MAX_SHOWN)
    return EXIT_CLEAN if all(found.is_whole for _, found in explained) else EXIT_FAILED


# -- reading ----------------------------------------------------------------------------------------------------------


def read_input(file: str) -> bytes:
    """Read the file, or standard input for ``-``.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        return read_file(None if file == "-" else file, MAX_INPUT)
    except OSError as exc:
        raise usage(f"{file} cannot be read", exc.strerror or str(exc), "a file, or - for standard input") from exc


def read_captures(content: bytes) -> list[Capture]:
    """Take the content for what it is: captures in JSON, hex text, or the bytes themselves.

    Raises:
        CommandError: hex text with an odd number of digits.
    """
    stripped = content.strip()
    if stripped[:1] in (b"{", b"["):
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            found = list(_captures_in(msgspec.json.decode(stripped)))
            return found or [Capture(stripped)]
    if stripped and _HEX_TEXT.fullmatch(stripped):
        digits = re.sub(rb"[\s:]", b"", stripped.removeprefix(b"0x"))
        if len(digits) % 2:
            raise usage(
                f"{len(digits)} hex digits make no whole number of bytes",
                "two digits are one byte",
                "the same text with its last digit added or taken away",
            )
        return [Capture(bytes.fromhex(digits.decode()))]
    return [Capture(content)]


def _captures_in(document: Any) -> Iterator[Capture]:
    for entry in document if isinstance(document, list) else [document]:
        if isinstance(entry, dict) and isinstance(entry.get("bytes_hex"), str):
            known = [str(entry[key]) for key in ("direction", "description") if entry.get(key)]
            yield Capture(bytes.fromhex(entry["bytes_hex"]), str(entry.get("name", "")), " · ".join(known))


# -- showing ----------------------------------------------------------------------------------------------------------


def print_explanation(console: Console, capture: Capture, explanation: Explanation, limit: int = MAX_SHOWN) -> None:
    """Write a heading, then every frame with its fields."""

    def line(*pieces: str | tuple[str, str]) -> None:
        console.print(Text.assemble(*pieces), soft_wrap=True)

    if capture.name:
        line((printable(capture.name), "bold"), (f"  {printable(capture.note, limit)}" if capture.note else "", "dim"))
    for number, frame in enumerate(explanation.frames, 1):
        title = f"{_FORM_NAMES[frame.form]} {number}"
        where = f"{frame.size} bytes at offset {frame.offset}"
        line((title, "bold cyan"), "  ", (frame.what or "?", "bold"), (f"  {where}", "dim"))
        for each in frame.fields:
            _print_field(line, each, limit)
        if frame.problem:
            line(("      !  ", "bold yellow"), printable(frame.problem, limit))
        line("")
    if explanation.problem:
        line(("      !  ", "bold yellow"), printable(explanation.problem, limit))
        line("")


_FORM_NAMES: dict[Form, str] = {
    "request": "request frame",
    "ack": "ack",
    "two-part": "frame",
    "record": "record",
}


def _print_field(line: Any, each: Field, limit: int) -> None:
    shown = (
        each.raw[:_HEX_BYTES].hex(" ") if len(each.raw) <= _HEX_BYTES else each.raw[: _HEX_BYTES - 1].hex(" ") + " …"
    )
    size = f" ({len(each.raw)} bytes)" if len(each.raw) > _HEX_BYTES else ""
    value = _text(each.value, limit)
    line((f"{each.offset:>7}  ", "dim"), (f"{shown:<24} ", "blue"), (f"{each.name:<15}", "green"), value, (size, "dim"))
    width = max((len(name) for name in each.details), default=0)
    for name, detail in each.details.items():
        line(" " * 9, (f"{printable(name):<{width}}", "green"), "  ", _text(detail, limit))


def _text(value: Any, limit: int) -> str:
    if isinstance(value, str):
        return printable(value, limit)
    return printable(msgspec.json.encode(value, enc_hook=str).decode(), limit)


def _as_json(capture: Capture, explanation: Explanation) -> dict[str, Any]:
    return {
        "name": capture.name,
        "form": explanation.form,
        "size": explanation.size,
        "frames": [_frame_as_json(frame) for frame in explanation.frames],
        "problem": explanation.problem,
    }


def _frame_as_json(frame: Frame) -> dict[str, Any]:
    return {
        "what": frame.what,
        "offset": frame.offset,
        "size": frame.size,
        "fields": [
            {"offset": each.offset, "size": len(each.raw), "name": each.name, "value": each.value, **_details(each)}
            for each in frame.fields
        ],
        "problem": frame.problem,
    }


def _details(each: Field) -> dict[str, Any]:
    return {"says": each.details} if each.details else {}
