"""Captured bytes explained field by field: pure, bytes in, frames out.

Tried in this order: request frames, acks, two-part frames; a discovery record where the bytes are one JSON object. What
is cut off or broken is explained as far as it goes, and the rest named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from attrs import evolve, field, frozen

from ..errors import IngressError
from ..wire.request_frame import MAX_ACK_LENGTH, MAX_PATH_LENGTH
from ..wire.two_part import DEFAULT_MAX_MESSAGE_SIZE, PREFIX, checksum_of
from ._explain_messages import Meaning, flatten, json_object, meaning_of, record_meaning

Form = Literal["request", "ack", "two-part", "record"]
FORMS: tuple[Form, ...] = get_args(Form)


@frozen
class Field:
    """One field as it lies in the bytes."""

    offset: int
    name: str
    raw: bytes = field(repr=False)
    value: Any
    details: dict[str, Any] = field(factory=dict)
    """What the value says, by dotted name."""


@frozen
class Frame:
    """One frame, whole or as far as the bytes go."""

    form: Form
    what: str
    offset: int
    fields: tuple[Field, ...]
    problem: str | None = None

    @property
    def size(self) -> int:
        return sum(len(each.raw) for each in self.fields)


@frozen
class Explanation:
    """Everything that was found in one input."""

    form: Form | None
    size: int
    frames: tuple[Frame, ...]
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.problem is None and all(frame.problem is None for frame in self.frames)


def explain(data: bytes, form: Form | None = None) -> Explanation:
    """Explain bytes, as the named form or as the first that fits."""
    if form is not None:
        return _explain_as(data, form)
    if data[:1] == b"{":
        return _explain_as(data, "record")
    for candidate in ("request", "ack", "two-part"):
        explanation = _explain_as(data, candidate)
        if explanation.frames and _fits(explanation):
            return explanation
    if 2 <= len(data) < PREFIX.size and not any(data[:4]):
        return _explain_as(data, "two-part")  # what there is of a prefix whose first length is a sane one
    reason = "no bytes" if not data else "neither request frames nor acks nor two-part frames begin like this"
    return Explanation(None, len(data), (), reason)


def _fits(explanation: Explanation) -> bool:
    """Tell whether the first frame is what it was taken for; ``what`` is empty where it cannot be."""
    if explanation.form == "ack":  # four bytes are too little to go by: every one of them has to make sense
        return all(frame.what for frame in explanation.frames) and explanation.problem is None
    return bool(explanation.frames[0].what)


def _explain_as(data: bytes, form: Form) -> Explanation:
    reader = _Reader(data)
    frames: list[Frame] = []
    problem = None
    while reader.offset < len(data):
        start = reader.offset
        reader.begin_frame()
        try:
            what = _PARSERS[form](reader)
            frames.append(Frame(form, what, start, tuple(reader.fields), reader.problem))
        except _Cut as cut:
            frames.append(Frame(form, cut.what, start, tuple(reader.fields), str(cut)))
            break
        except _Implausible as exc:
            if frames:
                problem = f"{len(data) - start} bytes from offset {start} on are no {form} frame: {exc}"
            else:
                frames.append(Frame(form, "", start, tuple(reader.fields), str(exc)))
            break
    return Explanation(form, len(data), tuple(frames), problem)


class _Cut(Exception):
    """The bytes end inside a field."""

    def __init__(self, text: str, what: str) -> None:
        super().__init__(text)
        self.what = f"{what}, cut off" if what else ""


class _Implausible(Exception):
    """These bytes are something else."""


class _Reader:
    """A place in the bytes, and the fields read so far."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0
        self.fields: list[Field] = []
        self.problem: str | None = None
        self.what = ""
        """What the frame is as far as that is known, for one that is cut."""
        self.frame_end = 0
        """Where the frame ends, once its lengths have told."""

    def begin_frame(self) -> None:
        self.fields, self.problem, self.what, self.frame_end = [], None, "", 0

    def number(self, size: int, name: str) -> int:
        raw = self._take(size, name)
        value = int.from_bytes(raw)
        self.fields.append(Field(self.offset - size, name, raw, value))
        return value

    def part(self, size: int, name: str, read: Callable[[bytes], tuple[Any, dict[str, Any]]]) -> Any:
        if not size:
            return None
        raw = self._take(size, name)
        value, details = read(raw)
        self.fields.append(Field(self.offset - size, name, raw, value, details))
        return value

    def _take(self, size: int, name: str) -> bytes:
        raw = self.data[self.offset : self.offset + size]
        if len(raw) < size:
            if raw:
                self.fields.append(Field(self.offset, name, raw, "cut off"))
            here = f"{len(raw)} of them" if raw else "none of them"
            text = f"{name} at offset {self.offset} needs {size} bytes, {here} here: {size - len(raw)} are missing"
            if self.frame_end > self.offset + size:
                text += f", and {self.frame_end - self.offset - size} after them"
            raise _Cut(text, self.what)
        self.offset += size
        return raw


def _request_frame(reader: _Reader) -> str:
    path_length = reader.number(2, "path_length")
    if not 1 <= path_length <= MAX_PATH_LENGTH:
        raise _Implausible(f"a path of {path_length} bytes")
    seen = reader.data[reader.offset : reader.offset + path_length]
    if not seen.isascii() or not seen.decode().isprintable():
        raise _Implausible("the path is no text")
    reader.what = "request"
    reader.part(path_length, "path", lambda raw: (raw.decode(), {}))
    headers_length = reader.number(2, "headers_length")
    reader.part(headers_length, "headers", _headers)
    payload_length = reader.number(4, "payload_length")
    end = reader.frame_end = reader.offset + payload_length
    if payload_length < PREFIX.size:
        reader.part(payload_length, "payload", lambda raw: (f"{len(raw)} bytes, too few for a two-part frame", {}))
        return "request"
    return _two_part(reader, end)


def _headers(raw: bytes) -> tuple[Any, dict[str, Any]]:
    headers = json_object(raw)
    return ("no JSON object; ignored by workers", {}) if headers is None else ("JSON", flatten(headers))


def _two_part_frame(reader: _Reader) -> str:
    return _two_part(reader, None)


def _two_part(reader: _Reader, end: int | None) -> str:
    """Read prefix, header and body; with ``end`` they have to fit a payload that ends there."""
    header_length = reader.number(8, "header_length")
    body_length = reader.number(8, "body_length")
    checksum_at = len(reader.fields)
    checksum = reader.number(8, "checksum")
    if not checksum:
        reader.fields[-1] = evolve(reader.fields[-1], value="0 (none written)")
    announced = reader.offset + header_length + body_length
    reader.frame_end = announced if end is None else end
    if end is not None and announced != end:
        complaint = (
            f"the lengths announce {header_length} + {body_length} bytes, the payload holds {end - reader.offset}"
        )
        if announced > end:
            reader.problem = complaint
            reader.part(end - reader.offset, "payload", lambda raw: ("not as announced", {}))
            return "payload with lying lengths"
    if header_length + body_length > DEFAULT_MAX_MESSAGE_SIZE:
        raise _Implausible(f"lengths of {header_length} and {body_length} bytes")
    header = reader.data[reader.offset : reader.offset + header_length]
    if header and header[:1] not in b'{"[':
        raise _Implausible("the header is no JSON")
    reader.what = "header-only" if not body_length else "data-only" if not header_length else "header-and-data"
    body = reader.data[reader.offset + header_length : announced]
    meaning = meaning_of(header, body) if len(header) + len(body) == header_length + body_length else Meaning("cut off")
    reader.part(header_length, "header", lambda raw: (meaning.header_is, meaning.header))
    reader.part(body_length, "body", lambda raw: (meaning.body_is, meaning.body))
    if checksum:
        reader.fields[checksum_at] = evolve(reader.fields[checksum_at], value=_verdict(checksum, header, body))
    reader.problem = meaning.problem
    if end is not None and announced < end:
        reader.part(end - announced, "trailing", lambda raw: ("ignored by workers", {}))
    return meaning.what


def _verdict(checksum: int, header: bytes, body: bytes) -> str:
    try:
        is_right = checksum == checksum_of(header, body)
    except ModuleNotFoundError:
        return f"{checksum:#018x} (not verified: xxhash is not installed)"
    verdict = "xxh3-64, right" if is_right else "not the xxh3-64 of header and body; workers do not mind"
    return f"{checksum:#018x} ({verdict})"


def _ack(reader: _Reader) -> str:
    length = reader.number(4, "text_length")
    if length > MAX_ACK_LENGTH:
        raise _Implausible(f"an ack of {length} bytes")
    if not length:
        return "accepted"
    seen = reader.data[reader.offset : reader.offset + length]
    text = seen.decode(errors="replace")
    if not text or not text.isprintable() or "\ufffd" in text[:-3]:
        raise _Implausible("the text is no text")
    reader.what = "ack"
    reader.part(length, "text", lambda raw: (text, {}))
    return "refused" if text.startswith("Server ") else "text, which released callers take for success"


def _record(reader: _Reader) -> str:
    try:
        details = record_meaning(reader.data)
    except IngressError as exc:
        reader.problem = str(exc)
        details = {}
    reader.part(len(reader.data), "record", lambda raw: ("JSON", details))
    return "discovery record"


_PARSERS: dict[Form, Callable[[_Reader], str]] = {
    "request": _request_frame,
    "ack": _ack,
    "two-part": _two_part_frame,
    "record": _record,
}
