"""Tracebacks on log lines, whose exceptions' texts are a caller's."""

from __future__ import annotations

import json
import logging
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ingress._log_tracebacks import MAX_TRACEBACK_LINES, without_source
from ingress._logging import MAX_LINE, JsonFormatter, TextFormatter, request_scope
from ingress.errors import RequestMemoryExhausted

FORGED = (
    'x\n\nTraceback (most recent call last):\n  File "/opt/core.py", line 7, in run\nMemoryError: GPU 3 out of memory'
)


def record_of(fail: Callable[[], Any]) -> logging.LogRecord:
    try:
        fail()
    except Exception:
        return logging.LogRecord("engine", logging.ERROR, __file__, 1, "failed for %s", ("m",), sys.exc_info())
    raise AssertionError


def text_lines(fail: Callable[[], Any]) -> list[str]:
    return [line.removeprefix("    ") for line in TextFormatter().format(record_of(fail)).split("\n")[1:]]


def json_fields(fail: Callable[[], Any]) -> Any:
    line = JsonFormatter().format(record_of(fail))
    assert len(line) < MAX_LINE
    return json.loads(line)


def fail_with(text: str) -> None:
    raise ValueError(text)


def fail_as_syntax(*arguments: object) -> None:
    raise SyntaxError(*arguments)


def fail_with_note(text: str) -> None:
    failure = ValueError("noted")
    failure.add_note(text)
    raise failure


def fail_with_notes_of_another_kind(text: str) -> None:
    failure: Any = ValueError("noted")
    failure.__notes__ = (text,)
    raise failure


def fail_after(text: str) -> None:
    try:
        raise OSError(text)
    except OSError as exc:
        raise ValueError("after") from exc


def fail_together(text: str) -> None:
    raise ExceptionGroup(text, [ValueError(text), ExceptionGroup("inner", [ValueError(text)])])


@pytest.mark.parametrize(
    "fail", [fail_with, fail_with_note, fail_with_notes_of_another_kind, fail_after, fail_together]
)
def test_o01_the_lines_of_a_text_are_told_from_those_of_a_traceback(fail: Callable[[str], None]) -> None:
    """It had looked like the traceback of another exception."""
    lines = text_lines(lambda: fail(FORGED))
    fields = json_fields(lambda: fail(FORGED))
    for line in [*lines, *fields["traceback"].split("\n"), *fields["exception"].split("\n")[1:]]:
        if "MemoryError" in line or "core.py" in line:
            assert "| " in line[: line.index("MemoryError" if "MemoryError" in line else "File")]
    assert any("MemoryError" in line for line in lines)


@pytest.mark.parametrize("before", ["", "\n", "  ", "  | \n", 'File "/opt/core.py", line 7, in run\n', '  File "x"\n'])
@pytest.mark.parametrize("is_module", [False, True])
def test_o01_the_lines_of_a_name_that_comes_from_elsewhere_are_told_from_a_tracebacks(
    before: str, is_module: bool
) -> None:
    """Errors of remote procedures are raised as classes whose names came over the wire."""
    name = f"{before}{FORGED}"
    remote: type[Exception] = type(
        "Remote" if is_module else name, (Exception,), {"__module__": name if is_module else "builtins"}
    )

    def fail() -> None:
        raise remote("m")

    def fail_after_it() -> None:
        try:
            fail()
        except remote as exc:
            raise ValueError("after") from exc

    def fail_with_it() -> None:
        raise ExceptionGroup("all", [remote("m")])

    for each in (fail, fail_after_it, fail_with_it):
        fields = json_fields(each)
        for line in [*text_lines(each), *fields["traceback"].split("\n"), *fields["exception"].split("\n")[1:]]:
            if "MemoryError" in line:
                assert "| " in line[: line.index("MemoryError")]
            assert not line.lstrip(" |").startswith('File "/opt/core.py"') or "| " in line[: line.index("File")]


def test_o01_as_json_filler_in_a_group_leaves_where_its_members_were_raised() -> None:
    """An id of 1,024 characters and a text of 100 had left the frame of the group alone."""

    def check(text: str) -> None:
        raise ValueError(text)

    def collect() -> None:
        failures = []
        for _ in range(2):
            try:
                check("x" * 3000)
            except ValueError as exc:
                failures.append(exc)
        raise ExceptionGroup("invalid", failures)

    record = record_of(collect)
    record.args = ("m" * 3000,)
    with request_scope("i" * 1024):
        fields = json.loads(JsonFormatter().format(record))
    assert ", in collect" in fields["traceback"] and ", in check" in fields["traceback"]


@pytest.mark.parametrize(("depth", "is_whole"), [(1, True), (10, False)])
def test_o01_as_json_a_group_loses_no_frame_for_which_there_is_room_and_says_how_many_it_lost(
    depth: int, is_whole: bool
) -> None:
    """Of each of its exceptions all frames but the last had been left out, without a word."""

    def fail() -> None:
        raise ValueError("x" * 20)

    def collect(work: Callable[[], None]) -> None:
        try:
            work()
        except ValueError as exc:
            raise ExceptionGroup("g", [exc]) from None

    def wrapped(work: Callable[[], None], name: str) -> Callable[[], None]:
        engine: dict[str, Any] = {"work": work}
        exec(compile(f"def {name}(): work()", "e.py", "exec"), engine)  # noqa: S102 - so that names are short
        made: Callable[[], None] = engine[name]
        return made

    inner = fail
    for at in range(depth):
        inner = wrapped(inner, f"in{at}")
    outer = partial(collect, inner)
    for at in range(depth):
        outer = wrapped(outer, f"out{at}")  # type: ignore[assignment]
    shown = json_fields(outer)["traceback"]
    assert ", in collect" in shown and ", in fail" in shown
    left_out = int(shown.partition("…(")[2].partition(" frames)")[0] or 0)
    assert shown.count("File ") + left_out == 2 * depth + 4
    assert (left_out == 0) is is_whole


def test_a_long_traceback_gives_up_its_source_before_its_frames() -> None:
    def fail(depth: int) -> None:
        try:
            raise KeyError(depth)
        except KeyError as exc:
            if depth:
                raise ValueError(depth) from exc
            raise

    def chain(depth: int) -> None:
        try:
            if depth:
                chain(depth - 1)
        finally:
            fail(depth)

    lines = text_lines(lambda: chain(2))
    assert not any(line.startswith("…") for line in lines)
    assert sum('File "' in line for line in lines) > 10


def test_what_stands_at_a_place_is_left_out_however_many_lines_it_has() -> None:
    """From Python 3.13 on a traceback shows all lines of a call."""
    lines = [
        "  + Exception Group Traceback (most recent call last):",
        '  |   File "a.py", line 1, in f',
        "  |     check(",
        "  |       1,",
        "  |     )",
        '  |   File "b.py", line 2, in g',
        '  |   File "c.py", line 3, in h',
        "  |     raise",
        "  | ValueError: x",
    ]
    assert without_source(lines) == [lines[at] for at in (0, 1, 5, 6, 8)]


def test_the_class_of_a_cause_stays_whole_beside_a_long_text() -> None:
    def fail() -> None:
        try:
            raise RequestMemoryExhausted("x" * 200)
        except RequestMemoryExhausted as exc:
            raise ValueError("after") from exc

    assert "\ningress.errors.RequestMemoryExhausted: xxx" in json_fields(fail)["traceback"]


def test_a_short_traceback_shows_its_source_as_json_too() -> None:
    assert "raise ValueError(text)" in json_fields(lambda: fail_with("x"))["traceback"]


def test_o01_only_the_lines_of_a_text_are_marked() -> None:
    lines = text_lines(lambda: fail_after(FORGED))
    marked = [line for line in lines if line.startswith("|")]
    assert len(marked) == len(FORGED.split("\n")) - 1
    assert lines[0] == lines[lines.index("The above exception was the direct cause of the following exception:") + 2]
    assert lines[-1] == "ValueError: after"


@pytest.mark.parametrize("fail", [fail_with, fail_with_note, fail_after, fail_together])
@pytest.mark.parametrize("text", ["\n".join(f"line {n}" for n in range(60)), "é" * 9000, "\U0001f600\n" * 3000])
def test_o01_no_text_pushes_out_what_was_raised_and_where(fail: Callable[[str], None], text: str) -> None:
    lines = text_lines(lambda: fail(text))
    assert len(lines) <= MAX_TRACEBACK_LINES
    assert any("ValueError" in line for line in lines)
    assert any("test_log_tracebacks.py" in line and fail.__name__ in line for line in lines)
    assert any("…" in line for line in lines)
    fields = json_fields(lambda: fail(text))
    assert "Error: " in fields["exception"] or "ExceptionGroup: " in fields["exception"]
    if fail is not fail_together:  # whose members come last
        assert fail.__name__ in fields["traceback"]


@pytest.mark.parametrize("text", ["a" * 2000, "é" * 500, "\U0001f600" * 100])
@pytest.mark.parametrize("fail", [fail_with, fail_after])
def test_o01_as_json_neither_ids_nor_messages_nor_texts_leave_nothing_of_the_frames(
    fail: Callable[[str], None], text: str
) -> None:
    """All four a caller's, and nothing was left of the traceback but the mark of the cut."""
    record = record_of(lambda: fail(text))
    record.args = (text,)
    with request_scope(text):
        fields = json.loads(JsonFormatter().format(record))
    assert f", in {fail.__name__}" in fields["traceback"]
    assert fields["exception"].startswith("ValueError: ")
    assert fields["message"].startswith("failed for ")
    assert fields["request_id"].startswith(text[0])


@pytest.mark.parametrize("text", ["a" * 200, "\U0001f600" * 200])
def test_o01_a_group_of_what_was_never_raised_keeps_where_it_was(text: str) -> None:
    """Eight texts of 40 characters had left no frame on a JSON line."""

    def collect() -> None:
        raise ExceptionGroup("invalid", [ValueError(text) for _ in range(8)])

    record = record_of(collect)
    record.args = (text * 10,)
    with request_scope(text):
        fields = json.loads(JsonFormatter().format(record))
    assert "test_log_tracebacks.py" in fields["traceback"]
    assert any(", in collect" in line for line in text_lines(collect))


@pytest.mark.parametrize("name", ["n" * 900, "\U0001f600" * 900])
def test_o01_a_long_name_of_a_file_leaves_line_and_function(name: str) -> None:
    def fail() -> None:
        types.FunctionType((lambda: 1 / 0).__code__.replace(co_filename=name, co_name="render"), {})()

    assert ", in render" in json_fields(fail)["traceback"]
    assert any(line.endswith(", in render") for line in text_lines(fail))


@pytest.mark.parametrize(
    "fail",
    [
        lambda: compile("a b", FORGED, "exec"),
        lambda: types.FunctionType((lambda: 1 / 0).__code__.replace(co_filename=FORGED), {})(),
        lambda: fail_as_syntax("no Python", (FORGED, 1, 1, FORGED)),
        lambda: types.FunctionType((lambda: 1 / 0).__code__.replace(co_name=FORGED, co_qualname=FORGED), {})(),
    ],
)
def test_o01_names_of_files_and_functions_stay_on_their_lines(fail: Callable[[], object]) -> None:
    fields = json_fields(fail)
    for line in [*text_lines(fail), *fields["traceback"].split("\n"), *fields["exception"].split("\n")]:
        assert not line.lstrip().startswith(("MemoryError", 'File "/opt'))


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (SyntaxError("bad"), "SyntaxError: bad"),
        (SyntaxError("bad", ("f.py", 3, 1, None)), '  File "f.py", line 3\nSyntaxError: bad'),
        (SyntaxError("bad", (None, None, None, None)), "SyntaxError: bad"),
        (
            SyntaxError("bad", ("f.py", 3, 2, "abc", 3, -1)),
            '  File "f.py", line 3\n    | abc\n       ^\nSyntaxError: bad',
        ),
        (ValueError("abc\ud800"), "ValueError: abc\\ud800"),
        (ValueError("é" * 49 + "\ud800"), "ValueError: " + "é" * 49 + "\\ud800"),
    ],
)
def test_what_is_short_is_shown_as_python_shows_it(failure: Exception, text: str) -> None:
    def fail() -> None:
        raise failure

    assert "\n".join(text_lines(fail)).endswith("\n" + text)


def test_o01_source_that_is_no_python_is_marked_and_its_place_shown() -> None:
    lines = text_lines(lambda: compile('File "/opt/core.py", line 7, in run', "<given>", "exec"))
    at = lines.index('    | File "/opt/core.py", line 7, in run')
    assert lines[at + 1].index("^") == lines[at].index('"')


@pytest.mark.parametrize("notes", [42, [3, "x"], ["y", b""], "text"])
def test_odd_notes_cost_no_line(notes: object) -> None:
    failure = ValueError("noted")
    failure.__notes__ = notes  # type: ignore[assignment]

    def fail() -> None:
        raise failure

    assert "ValueError: noted" in text_lines(fail)


def test_a_note_that_cannot_be_shown_is_told_as_that() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    failure = ValueError("noted")
    failure.__notes__ = [Odd(), "next"]  # type: ignore[list-item]

    def fail() -> None:
        raise failure

    assert text_lines(fail)[-3:] == ["ValueError: noted", "| (its text cannot be shown)", "| next"]


def test_exceptions_that_come_from_each_other_are_no_group() -> None:
    def fail() -> None:
        first, second = ValueError("first"), KeyError("second")
        first.__context__, second.__cause__ = second, first
        raise second

    assert text_lines(fail)[-1] == "KeyError: 'second'"


def test_o01_on_a_json_line_the_text_of_a_cause_takes_a_fifth_of_its_exceptions() -> None:
    fields = json_fields(lambda: fail_after("x" * 250))
    assert "x" * 30 in fields["traceback"] and "x" * 61 not in fields["traceback"]
    assert "x" * 250 in json_fields(lambda: fail_with("x" * 250))["exception"]
    assert "x" * 301 not in json_fields(lambda: fail_with("x" * 400))["exception"]


def test_o01_on_a_json_line_a_traceback_has_two_shares_and_what_others_leave() -> None:
    def fail(depth: int) -> None:
        if depth:
            return fail(depth - 1) if depth % 2 else fail_differently(depth)
        raise ValueError("x" * 100)

    def fail_differently(depth: int) -> None:
        fail(depth - 1)

    record = record_of(lambda: fail(20))
    record.args = ("m" * 3000,)
    crowded = json.loads(JsonFormatter().format(record))
    record.args = ("m",)
    alone = json.loads(JsonFormatter().format(record))
    assert crowded["exception"].endswith("x" * 100)
    assert len(crowded["traceback"]) == pytest.approx(2 * len(crowded["message"]), abs=20)
    assert len(alone["traceback"]) == pytest.approx(len(crowded["traceback"]) + len(crowded["message"]), abs=40)
    assert "^" not in alone["traceback"]


def test_a_long_traceback_keeps_both_ends_and_says_that_it_was_cut() -> None:
    def fail(depth: int) -> None:
        if depth:
            return fail_differently(depth)
        raise ValueError("deep")

    def fail_differently(depth: int) -> None:
        fail(depth - 1)

    lines = text_lines(lambda: fail(40))
    assert len(lines) == MAX_TRACEBACK_LINES
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[8].startswith("…(") and lines[8].endswith(" lines)")
    assert lines[-1] == "ValueError: deep"


def test_o01_a_group_whose_members_are_shared_is_named_and_costs_nothing() -> None:
    """Of 18 levels its lines took 6 s, on the event loop."""

    def fail() -> None:
        failure: Exception = ValueError("v")
        for _ in range(60):
            failure = ExceptionGroup("g", [failure, failure])
        raise failure

    lines = text_lines(fail)
    assert "in fail" in lines[-2 if lines[-2].startswith("  File") else -3]
    assert lines[-1] == "ExceptionGroup: a group of more than 100 exceptions"
    assert json_fields(fail)["exception"] == lines[-1]
