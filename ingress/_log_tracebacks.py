"""A traceback as lines of a log: which are code's, and which an exception's text.

The text of an exception may be a caller's, and have any number of lines, that look like anything. So it has a limit of
its own, past which the frames are not pushed out, and all of its lines but the first are marked.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable

from ._text import safe_str

_FIRST_TEXT_LINES, _LAST_TEXT_LINES = 6, 3

# Groups of exceptions that share members are trees of any size.
_MOST_EXCEPTIONS = 100

# Of a longer name of a file its end is kept.
_MAX_NAME = 120

_MARK = "| "

Cut = Callable[[str, int], str]
"""Returns as much of a text's beginning as takes so many bytes."""


def format_traceback(failure: BaseException, cut: Cut, size: int, other_size: int) -> tuple[list[str], list[str]]:
    """Return the lines of a traceback, and those of its exception's text, which come after them.

    Args:
        cut: as the log writes them.
        size: how many bytes there may be of the text, and of its notes.
        other_size: the same for each of the exceptions that it comes from or is a group of.
    """
    if _has_too_many(failure):
        frames = "".join(traceback.format_tb(failure.__traceback__)).split("\n")[:-1]
        return frames, [f"{type(failure).__name__}: a group of more than {_MOST_EXCEPTIONS} exceptions"]
    whole = traceback.TracebackException.from_exception(failure)
    waiting = [whole]
    while waiting:
        each = waiting.pop()
        _tame_names(each, cut)
        if isinstance(each.__notes__, list):
            notes = "\n".join(map(safe_str, each.__notes__))
            each.__notes__ = [_MARK + line for line in _shortened(notes, cut, size if each is whole else other_size)]
        waiting += [*(each.exceptions or ()), *filter(None, (each.__cause__, each.__context__))]
    text, chunks = list(whole.format_exception_only()), list(whole.format())
    if chunks[-len(text) :] == text:  # not so of a group, whose members come last
        del chunks[-len(text) :]
    return _lines_of(chunks, cut, other_size), _lines_of(text, cut, size)


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


def _lines_of(chunks: Iterable[str], cut: Cut, size: int) -> list[str]:
    lines = list[str]()
    for chunk in chunks:
        indent = chunk[: len(chunk) - len(chunk.lstrip(" |"))]
        if chunk.startswith((f"{indent}\n", f'{indent}File "')):  # which has lines of its own
            lines += chunk.removesuffix("\n").split("\n")
            continue
        first, *more = _shortened(chunk.removesuffix("\n"), cut, size)
        lines += [first, *(f"{indent}{_MARK}{line.removeprefix(indent)}" for line in more)]
    return lines


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
