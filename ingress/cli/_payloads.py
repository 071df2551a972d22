"""What goes into a call and what comes out: requests from the command line, items to standard output."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from ..wire.request_frame import DEFAULT_MAX_FRAME_SIZE
from ._errors import usage

# JSON with spaces may be several times as long as the frame that it becomes; a device would never end.
MAX_REQUEST = 4 * DEFAULT_MAX_FRAME_SIZE

# -- reading ----------------------------------------------------------------------------------------------------------


def read_request(data: str, option: str = "-d", *, most: int = MAX_REQUEST) -> Any:
    """Read the request: JSON, ``@FILE``, ``-``.

    Args:
        most: bytes that a file may have.

    Raises:
        CommandError: no such file, one that is too large, or no JSON.
    """
    source = option
    if data.startswith("@") or data == "-":
        is_stdin = data in ("-", "@-")
        source = "standard input" if is_stdin else data[1:]
        try:
            raw = read_file(None if is_stdin else source, most)
        except OSError as exc:
            raise usage(
                f"{source} cannot be read",
                exc.strerror or str(exc),
                f"{option} @FILE, or {option} - for standard input",
            ) from exc
    else:
        raw = data.encode(errors="replace")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        hint = (
            f"""{option} '"{data}"' for plain text"""
            if source == option and data.isalnum()
            else option + """ '{"prompt":"hello"}'"""
        )
        raise usage(f"{source} is not JSON", str(exc), hint) from exc


def read_file(path: str | None, most: int) -> bytes:
    """Read a file, or standard input for None, of at most so many bytes; raises OSError."""
    if path is None and sys.stdin is None:  # `<&-`
        raise OSError(errno.EBADF, "it is closed")
    with contextlib.nullcontext(sys.stdin.buffer) if path is None else Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20} MiB")
    return content


def read_instance_id(text: str) -> int:
    """Read the hex digits of an instance id.

    Raises:
        CommandError: they are none.
    """
    try:
        return int(text, 16)
    except ValueError as exc:
        raise usage(f"--direct {text} cannot be used", "expected the hex digits of an instance", "ingress ls") from exc


# -- writing ----------------------------------------------------------------------------------------------------------


def text_of(item: Any) -> str:
    """Return what an item says: its ``text``, else its ``data``, else itself as JSON."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        for key in ("text", "data"):
            if isinstance(item.get(key), str):
                return str(item[key])
    return json_line(item).decode()


def json_line(item: Any) -> bytes:
    """Return the item as one line of JSON that shows as one; what only msgpack can hold becomes text."""
    return _json_escaped(msgspec.json.encode(item, enc_hook=str)) + b"\n"


# What terminals obey and readers of lines may take for an end, as far as it is no text: C0 but for tab and line feed,
# DEL, C1, the separators of Unicode, and what turns the direction of writing. A joiner inside an emoji is text.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _json_escaped(document: bytes) -> bytes:
    """Escape what JSON leaves as it is; outside of strings there is none of it."""
    if document.isascii() and b"\x7f" not in document:
        return document
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", document.decode()).encode()


def text_for(item: Any, *, is_terminal: bool) -> bytes:
    """Return what an item says; a terminal is shown what it would obey, and everything else gets it as it is."""
    text = text_of(item)
    if is_terminal:
        text = _COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return text.encode(errors="replace")


def write(raw: bytes) -> None:
    """Write to standard output at once: whoever reads it may be waiting."""
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def print_document(document: Any) -> None:
    """Write a whole JSON document to standard output, for people and programs alike."""
    write(_json_escaped(msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2)) + b"\n")
