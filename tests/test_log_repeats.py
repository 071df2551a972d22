"""Libraries that repeat themselves are shown once, and counted."""

from __future__ import annotations

import io
import logging
import threading

from ingress._log_repeats import RepeatFilter


class Kept(logging.StreamHandler[io.StringIO]):
    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if "more in" in record.getMessage():
            self.told.set()

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def say(handler: Kept, name: str, level: int, message: str, *arguments: object) -> None:
    handler.handle(logging.LogRecord(name, level, __file__, 1, message, arguments, None))


def test_one_line_of_a_kind_is_shown_and_the_rest_are_counted_when_the_time_is_over() -> None:
    handler = Kept()
    handler.addFilter(RepeatFilter(handler, ["library"], window=0.5))
    for number in range(5):
        say(handler, "library.part", logging.WARNING, "no answer, attempt %d", number)
    say(handler, "library.part", logging.ERROR, "given up")
    assert handler.told.wait(20)
    assert handler.lines == [
        "no answer, attempt 0",
        "given up",
        "4 more in 0.5 s: no answer, attempt %d",
    ]


def test_other_loggers_and_quiet_lines_are_let_through() -> None:
    handler = Kept()
    handler.addFilter(RepeatFilter(handler, ["library"]))
    for _ in range(2):
        say(handler, "library", logging.INFO, "news")
        say(handler, "librarys", logging.ERROR, "another name")
        say(handler, "ingress.worker", logging.ERROR, "ours")
    assert len(handler.lines) == 6


def test_kinds_without_end_take_no_room_without_end() -> None:
    handler = Kept()
    repeats = RepeatFilter(handler, ["library"])
    handler.addFilter(repeats)
    for number in range(1000):
        say(handler, "library", logging.WARNING, f"kind {number}")
    assert len(handler.lines) == 1000
    assert threading.active_count() < 60
