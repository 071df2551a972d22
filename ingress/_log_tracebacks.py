"""A traceback as lines of a log: which are code's, and which an exception's text.

The text of an exception may be a caller's, and have any number of lines, that look like anything. So it has a limit of
its own, past which the frames are not pushed out, and all of its lines but the first are marked.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable

_FIRST_TEXT_LINES, _LAST_TEXT_LINES = 6, 3

# Groups of exceptions that share members are trees of any size.
_MOST_EXCEPTIONS = 100

_MARK = "| "


def format_traceback(failure: BaseException, text_size: int) -> tuple[list[str], list[str]]:
    """Return the lines of a traceback, and those of its exception's text: of the former the last, but of a group.

    Args:
        text_size: how many characters there may be of an exception's text, and of its notes.
    """
    if _has_too_many(failure):
        name = f"{type(failure).__name__}: a group of more than {_MOST_EXCEPTIONS} exceptions"
        frames = [line for frame in traceback.format_tb(failure.__traceback__) for line in frame.rstrip().split("\n")]
        return [*frames, name], [name]
    whole = traceback.TracebackException.from_exception(failure)
    waiting = [whole]
    while waiting:
        each = waiting.pop()
        if each.__notes__:
            lines = _shortened("\n".join(map(str, each.__notes__)), text_size)
            each.__notes__ = [f"{_MARK}{line}" for line in lines]
        waiting += [*(each.exceptions or ()), *filter(None, (each.__cause__, each.__context__))]
    return _lines_of(whole.format(), text_size), _lines_of(whole.format_exception_only(), text_size)


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


def _lines_of(chunks: Iterable[str], text_size: int) -> list[str]:
    lines = list[str]()
    for chunk in chunks:
        indent = chunk[: len(chunk) - len(chunk.lstrip(" |"))]
        if chunk.startswith((f"{indent}\n", f'{indent}File "')):  # which has lines of its own
            lines += chunk.removesuffix("\n").split("\n")
            continue
        first, *more = _shortened(chunk.removesuffix("\n"), text_size)
        lines += [first, *(f"{indent}{_MARK}{line.removeprefix(indent)}" for line in more)]
    return lines


def _shortened(text: str, size: int) -> list[str]:
    """Return the lines of a text, of a long one its first and last."""
    if len(text) > size:
        text = f"{text[: size // 2]}…({len(text)} characters)…{text[-(size // 2) :]}"
    lines = text.split("\n")
    left_out = len(lines) - _FIRST_TEXT_LINES - _LAST_TEXT_LINES
    if left_out > 1:
        lines[_FIRST_TEXT_LINES:-_LAST_TEXT_LINES] = [f"…({left_out} lines)"]
    return lines
