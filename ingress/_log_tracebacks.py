"""A traceback as lines of a log: which are code's, and which an exception's text.

The text of an exception may be a caller's, and have any number of lines, that look like anything. So it has a limit of
its own, past which the frames are not pushed out, and all of its lines but the first are marked.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Container, Iterable

from ._json_lines import is_group, json_beginning
from ._text import beginning, safe_str

# Of a traceback its first lines, and many more of its last, where the failure is.
MAX_TRACEBACK_LINES = 40
_FIRST_LINES = 8
_MAX_JSON_WIDTH = 200

# Bytes of an exception's text, and of each one's that it comes from: beside it there is room for where it was raised.
_MAX_TEXT = 2000
_MAX_JSON_TEXT, _MAX_OTHER_JSON_TEXT = 300, 60

# Of each exception of a group that has not enough room with all of them.
_FEWER_FRAMES = (4, 3, 2, 1)

_FIRST_TEXT_LINES, _LAST_TEXT_LINES = 6, 3

# Groups of exceptions that share members are trees of any size.
_MOST_EXCEPTIONS = 100

# Of a longer name of a file its end is kept.
_MAX_NAME = 120

_MARK = "| "

# The line that says where a frame is, also in a group.
_PLACE = re.compile(r'([ |]*)File "')

# How an exception's text begins: with its class. The name of one that was made of something else may be anything.
_CLASS = re.compile(r"[ |+-]*[\w.<>]{1,200}(:|$)")

Cut = Callable[[str, int], str]
"""Returns as much of a text's beginning as takes so many bytes."""


def text_traceback(failure: BaseException) -> list[str]:
    """Return the lines of a traceback and of its exception's text; of many the first and more of the last.

    Their source is left out where without it there is room for all.
    """
    frames, text = format_traceback(failure, beginning, _MAX_TEXT, _MAX_TEXT)
    lines = frames + text
    if len(lines) > MAX_TRACEBACK_LINES >= len(places := without_source(frames)) + len(text):
        lines = places + text
    if (left_out := len(lines) - MAX_TRACEBACK_LINES + 1) > 1:
        lines[_FIRST_LINES : _FIRST_LINES + left_out] = [f"…({left_out} lines)"]
    return lines


def json_traceback(failure: BaseException, room: int) -> tuple[list[str], list[str]]:
    """Return the lines of a traceback, and those of its exception's text.

    Where they are longer than ``room``, what matters least is left out: what stands at each place in the source, and of
    a group and of each of its members the first places.
    """
    frames, text = format_traceback(failure, json_beginning, _MAX_JSON_TEXT, _MAX_OTHER_JSON_TEXT)
    lines = [line[:_MAX_JSON_WIDTH] for line in frames if not _is_underline(line)]
    # Of what is no group the end is what matters, and is kept.
    for most in (None, *(_FEWER_FRAMES if any(map(is_group, frames)) else ())):
        if len(json.dumps(["\n".join(lines), "\n".join(text)])) <= room:
            break
        fewer, _ = format_traceback(failure, json_beginning, _MAX_JSON_TEXT, _MAX_OTHER_JSON_TEXT, most)
        lines = without_source(fewer)
        if left_out := _count_places(frames) - _count_places(lines):
            lines.insert(0, f"…({left_out} frames)")
    return lines[-MAX_TRACEBACK_LINES:], text


def format_traceback(
    failure: BaseException, cut: Cut, size: int, other_size: int, frames: int | None = None
) -> tuple[list[str], list[str]]:
    """Return the lines of a traceback, and those of its exception's text, which come after them.

    Args:
        cut: as the log writes them.
        size: how many bytes there may be of the text, and of its notes.
        other_size: the same for each of the exceptions that it comes from or is a group of.
        frames: how many of the last ones of each exception there may be; None for all.
    """
    if _has_too_many(failure):
        lines = "".join(traceback.format_tb(failure.__traceback__)).split("\n")[:-1]
        return lines, [f"{type(failure).__name__}: a group of more than {_MOST_EXCEPTIONS} exceptions"]
    whole = traceback.TracebackException.from_exception(failure, limit=None if frames is None else -frames)
    texts, waiting = set[str](), [whole]
    while waiting:
        each = waiting.pop()
        _tame_names(each, cut)
        notes, each.__notes__ = each.__notes__, None
        *_, text_of_each = each.format_exception_only()
        texts.add(text_of_each)
        if notes is not None:
            joined = "\n".join(map(safe_str, notes if isinstance(notes, list | tuple) else [notes]))
            each.__notes__ = [_MARK + line for line in _shortened(joined, cut, size if each is whole else other_size)]
        waiting += [*(each.exceptions or ()), *filter(None, (each.__cause__, each.__context__))]
    text, chunks = list(whole.format_exception_only()), list(whole.format())
    if chunks[-len(text) :] == text:  # not so of a group, whose members come last
        del chunks[-len(text) :]
    return _lines_of(chunks, texts, cut, other_size), _lines_of(text, texts, cut, size)


def without_source(lines: Iterable[str]) -> list[str]:
    """Return the lines of a traceback that say where frames are, and not what stands there."""
    kept, source_indent = list[str](), None
    for line in lines:
        if (place := _PLACE.match(line)) is not None:
            source_indent = f"{place[1]}  "
        elif source_indent is not None and line.startswith(source_indent):
            continue
        else:
            source_indent = None
        kept.append(line)
    return kept


def _count_places(lines: Iterable[str]) -> int:
    """Return how many frames a traceback shows."""
    return sum(_PLACE.match(line) is not None for line in lines)


def _is_underline(line: str) -> bool:
    """Whether it only shows which part of the line before is meant."""
    marks = line.strip(" |")
    return bool(marks) and not marks.strip("^~")


def _tame_names(exception: traceback.TracebackException, cut: Cut) -> None:
    """Keep names of files and functions on their lines, and leave room beside them: they may be a caller's, too."""
    for frame in exception.stack:
        frame.filename, frame.name = _tame(frame.filename, cut), _tame(frame.name, cut)
    if getattr(exception, "filename", None):  # of what is no Python
        exception.filename = _tame(str(exception.filename), cut)
    if getattr(exception, "text", None):
        exception.text = _MARK + _on_one_line(str(exception.text))
        for name in ("offset", "end_offset"):
            if (getattr(exception, name) or 0) > 0:  # -1 is unknown
                setattr(exception, name, getattr(exception, name) + len(_MARK))


def _has_too_many(failure: BaseException) -> bool:
    seen, waiting, count = set[int](), [failure], 0
    while waiting and count <= _MOST_EXCEPTIONS:
        each = waiting.pop()
        count += 1
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        if id(each) not in seen:
            seen.add(id(each))
            waiting += filter(None, (each.__cause__, each.__context__))
    return count > _MOST_EXCEPTIONS


def _lines_of(chunks: Iterable[str], texts: Container[str], cut: Cut, size: int) -> list[str]:
    lines = list[str]()
    for chunk in chunks:
        indent = _indent_of(chunk, texts)
        if indent is None:  # frames, and what stands between two exceptions
            lines += chunk.removesuffix("\n").split("\n")
            continue
        begins = _CLASS.match(chunk)
        named = "" if begins is None else begins[0]
        first, *more = _shortened(chunk.removesuffix("\n").removeprefix(named), cut, size)
        if begins is None:
            more.insert(0, first)
        else:
            lines.append(f"{named}{first}")
        lines += [f"{indent}{_MARK}{line.removeprefix(indent)}" for line in more]
    return lines


def _indent_of(chunk: str, texts: Container[str]) -> str | None:
    """Return by how much an exception's text is indented in a group; None of what is none."""
    blank = len(chunk) - len(chunk.lstrip(" |"))
    lines = chunk.splitlines(keepends=True)
    for size in range(blank + 1):
        indent = chunk[:size]
        if "".join([line.removeprefix(indent) for line in lines]) in texts:
            return indent
    return None


def _shortened(text: str, cut: Cut, size: int) -> list[str]:
    """Return the lines of a text, of a long one its first and last."""
    if len(cut(text, size)) < len(text):
        text = f"{cut(text, size // 2)}…({len(text)} characters)…{cut(text[::-1], size // 2)[::-1]}"
    lines = text.split("\n")
    left_out = len(lines) - _FIRST_TEXT_LINES - _LAST_TEXT_LINES
    if left_out > 1:
        lines[_FIRST_TEXT_LINES:-_LAST_TEXT_LINES] = [f"…({left_out} lines)"]
    return lines


def _tame(name: str, cut: Cut) -> str:
    end = cut(name[::-1], _MAX_NAME)[::-1]
    return _on_one_line(end if len(end) == len(name) else f"…{end}")


def _on_one_line(text: str) -> str:
    return text.rstrip("\n").replace("\n", "\\n")
