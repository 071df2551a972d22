"""What peers send, made fit for logs."""

from __future__ import annotations

import json
import logging

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from ingress._logging import JsonFormatter, request_scope
from ingress._text import RateLimitedLogger, named, printable, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ('say "no"', 'say "no"'),
        ("a status=completed", '"a status=completed"'),
        ('x" status=ok "', '"x\\" status=ok \\""'),
        ("a\nb=c", '"a\\\\nb=c"'),
        ('x=\\" status=ok', '"x=\\\\\\" status=ok"'),
    ],
)
def test_o01_what_might_be_taken_for_a_field_is_quoted(text: str, shown: str) -> None:
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0b6e5d7a-1f8c-4c55", "0b6e5d7a-1f8c-4c55"),
        ("7f3a/demo/backend/generate", "7f3a/demo/backend/generate"),
        ("", '""'),
        ("v1 of a.b.c failed: MemoryError", '"v1 of a.b.c failed: MemoryError"'),
        ('say "no"', '"say \\"no\\""'),
        ("a\nb", '"a\\nb"'),
        ("a\\nb", '"a\\\\nb"'),
        ("a\u202eb", '"a\\u202eb"'),
        ("\u3164", '"\\u3164"'),
        ("job7\ufe0f", '"job7\\ufe0f"'),
        ("job7\U000e0101\u180b", '"job7\\U000e0101\\u180b"'),
        ("x" * 201, '"' + "x" * 200 + '…"(201 characters)'),
        ("é" * 101, '"' + "é" * 100 + '…"(101 characters)'),
        ("\x1b" * 100, '"' + "\\u001b" * 33 + '\\u…"(100 characters)'),
    ],
)
def test_o01_what_a_caller_calls_something_shows_where_it_ends(text: str, shown: str) -> None:
    assert named(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("prix: 5 €, 漢字, ü", "prix: 5 €, 漢字, ü"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31m\0\x7f\x85", "\\x1b[31m\\x00\\x7f\\x85"),
        ("\u2028\u202e\u2066\ud800", "\\u2028\\u202e\\u2066\\ud800"),
        ("\u115f\u3164\u2800", "\\u115f\\u3164\\u2800"),
        (ValueError("x\ny"), "x\\ny"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "…(201 characters)"),
        ("\0" * 100, ("\\x00" * 50) + "…(100 characters)"),
        ("é" * 101, "é" * 100 + "…(101 characters)"),
    ],
)
def test_o01_control_bidi_and_separator_characters_are_escaped_and_long_texts_clipped(text: object, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(alphabet=st.characters()), st.integers(0, 300))
def test_o01_no_text_gives_a_control_character_or_a_long_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown.encode()) <= limit + 30
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


async def test_a_reason_is_logged_ten_times_a_second_and_then_counted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log = RateLimitedLogger(logging.getLogger("test"))
    for i in range(100):
        log.log(logging.WARNING, "flood", "flood %d", i)
    log.log(logging.WARNING, "other", "other")
    assert [record.getMessage() for record in caplog.records] == [f"flood {i}" for i in range(10)] + ["other"]
    caplog.clear()
    await trio.sleep(1.1)
    assert [record.getMessage() for record in caplog.records] == ["flood: 90 more"], "also when no line follows"
    log.log(logging.WARNING, "flood", "again")
    assert caplog.records[-1].getMessage() == "again"
    await trio.sleep(2)
    assert len(caplog.records) == 2


async def test_what_was_left_out_is_told_as_no_requests_whichever_comes_next(autojump_clock: MockClock) -> None:
    """The count had borne the id of a caller that had nothing to do with it."""
    log = RateLimitedLogger(logging.getLogger("test"), per_second=1)
    told, formatter = list[dict[str, str]](), JsonFormatter()
    handler = logging.Handler()
    handler.emit = lambda record: told.append(json.loads(formatter.format(record)))  # type: ignore[method-assign]
    logging.getLogger("test").addHandler(handler)
    try:
        for _ in range(2):
            log.log(logging.WARNING, "flood", "line")
        autojump_clock.jump(1)
        with request_scope("r-1"):
            log.log(logging.WARNING, "flood", "line")
    finally:
        logging.getLogger("test").removeHandler(handler)
    assert [(each["message"], each.get("request_id")) for each in told] == [
        ("line", None),
        ("flood: 1 more", None),
        ("line", "r-1"),
    ]


async def test_reasons_without_end_take_no_room_without_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log = RateLimitedLogger(logging.getLogger("test"))
    for i in range(1000):
        log.log(logging.WARNING, f"Error{i}", "Error%d", i)
    assert len(caplog.records) == 266
    await trio.sleep(1.1)
    assert caplog.records[-1].getMessage() == "others: 734 more"


def test_what_was_left_out_is_told_when_the_loop_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        log = RateLimitedLogger(logging.getLogger("test"), per_second=1)
        for _ in range(4):
            log.log(logging.WARNING, "flood", "line")

    trio.run(run)
    assert [record.getMessage() for record in caplog.records] == ["line", "flood: 3 more"]


async def test_a_busy_logger_tells_each_second_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log = RateLimitedLogger(logging.getLogger("test"), per_second=1)
    for _ in range(30):
        log.log(logging.WARNING, "flood", "line")
        await trio.sleep(0.1)
    await trio.sleep(2)
    told = [record.getMessage() for record in caplog.records]
    lines = told.count("line")
    more = [int(text.split()[1]) for text in told if text.startswith("flood: ")]
    assert lines + sum(more) == 30
    assert lines == len(more) <= 4


def test_a_logger_that_outlives_an_event_loop_is_not_silenced_by_its_clock(caplog: pytest.LogCaptureFixture) -> None:
    log = RateLimitedLogger(logging.getLogger("test"), per_second=1)

    async def run() -> None:
        for _ in range(3):
            log.log(logging.WARNING, "flood", "line")

    later = MockClock()
    later.jump(1e9)
    trio.run(run, clock=later)
    trio.run(run, clock=MockClock())
    assert [record.getMessage() for record in caplog.records] == ["line", "flood: 2 more"] * 2
