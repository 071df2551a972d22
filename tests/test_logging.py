"""Log lines: what is filtered, how they look, that nothing a peer sends breaks one, and that writing never waits."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from ingress._log_writer import QUEUE_LINES, LineWriter
from ingress._logging import (
    MAX_LINE,
    TRACE,
    JsonFormatter,
    TextFormatter,
    log_fields,
    parse_filters,
    request_scope,
    set_up_logging,
)

TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (TRACE|DEBUG| INFO| WARN|ERROR) ([\w.]+): (.*)")
PATIENCE = 20.0
HOSTILE = 'a\n2026 ERROR forged: x\r\x1b[31m\x00\x85\u2028\u202e\ud800\x7f"}' + "é" * 200_000

log = logging.getLogger("ingress.test")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    names = ["ingress", "ingress.wire", "ingress.test"]
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    yield
    for handler in root.handlers:
        if isinstance(handler, LineWriter):
            handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)


def set_up(environ: dict[str, str] | None = None, **options: Any) -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(environ or {}, stream, **options)
    return stream


def said(environ: dict[str, str] | None = None, **options: Any) -> list[str]:
    written = set_up(environ, **options)
    log.log(TRACE, "at trace")
    log.debug("at debug")
    log.info("at info")
    log.warning("at warn")
    log.error("at error")
    return [line.rpartition(": at ")[2] for line in written.getvalue().splitlines()]


# -- filters ---------------------------------------------------------------------------------------------------------


def test_filters_name_a_general_level_and_modules() -> None:
    assert parse_filters("info, ingress.wire=trace,a::b=WARN,, debug ") == (
        logging.DEBUG,
        {"ingress.wire": TRACE, "a.b": logging.WARNING},
    )
    assert parse_filters("") == (None, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("loud", "'loud' is no level; known: trace, debug, info, warn, warning, error, off"),
        ("ingress=loud", "'loud' is no level"),
        ("=info", "'' is no module; expected MODULE=LEVEL"),
        ("in gress=info", "'in gress' is no module"),
        ("ingress.wire", "'ingress.wire' is no level"),
        ("a\x1b[31m", "'a\\x1b[31m' is no level"),
    ],
)
def test_a_filter_that_cannot_be_read_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_filters(text)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("", ["info", "warn", "error"]),
        ("trace", ["trace", "debug", "info", "warn", "error"]),
        ("error,ingress.test=debug", ["debug", "info", "warn", "error"]),
        ("info,ingress.test=error", ["error"]),
        ("ingress.test=off", []),
        ("debug,ingress.wire=error", ["debug", "info", "warn", "error"]),
    ],
)
def test_dyn_log_filters_by_module(filters: str, expected: list[str]) -> None:
    assert said({"DYN_LOG": filters}) == expected


# -- text ------------------------------------------------------------------------------------------------------------


def text(record: logging.LogRecord, **options: Any) -> str:
    return TextFormatter(**options).format(record)


def record_of(message: object, *arguments: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord("ingress.test", level, __file__, 1, message, arguments, None)
    vars(record).update(extra)
    return record


def test_a_text_line_has_utc_microseconds_a_padded_level_a_target_and_fields() -> None:
    record = record_of(
        "hello %s", "you", fields={"chunks": 3, "name": "two words", "odd": 'a"b', "none": None, "empty": ""}
    )
    record.created = 1795450287.302319
    assert text(record) == (
        "2026-11-23T16:11:27.302319Z  INFO ingress.test: hello you "
        'chunks=3 name="two words" odd="a\\"b" none=None empty=""'
    )


@pytest.mark.parametrize("value", ["x\u3000status=completed", "x\u00a0y", 'x\\" y="'])
def test_o01_a_value_that_might_end_in_its_middle_is_quoted(value: str) -> None:
    _, _, shown = text(record_of("m", fields={"name": value})).partition("name=")
    assert json.loads(shown) == value


@pytest.mark.parametrize(
    ("level", "shown"),
    [(TRACE, "TRACE"), (10, "DEBUG"), (20, " INFO"), (30, " WARN"), (40, "ERROR"), (50, "ERROR")],
)
def test_levels_are_padded_to_five(level: int, shown: str) -> None:
    assert f"Z {shown} ingress.test: m" in text(record_of("m", level=level))


@pytest.mark.parametrize("name", ["A\n2026-11-30T12:00:00Z ERROR engine: forged", "\x1b[31m", "F" * 3000])
def test_o01_a_level_that_has_an_odd_name_forges_nothing(name: str) -> None:
    record = logging.LogRecord("engine", 33, __file__, 1, "m", None, None)
    record.levelname = name
    line = TextFormatter().format(record)
    assert line.isprintable() and line.endswith(" engine: m") and len(line) < 120


def test_colour_is_for_terminals_that_want_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for environ, stream, color, is_colored in (
        ({}, Terminal(), "auto", True),
        ({}, io.StringIO(), "auto", False),
        ({}, io.StringIO(), "always", True),
        ({}, Terminal(), "never", False),
        ({"NO_COLOR": "1"}, Terminal(), "auto", False),
        ({"TERM": "dumb"}, Terminal(), "auto", False),
        ({"DYN_SDK_DISABLE_ANSI_LOGGING": "1"}, Terminal(), "auto", False),
    ):
        set_up_logging(environ, stream, color=color)
        log.info("m")
        assert ("\x1b[32mINFO\x1b[0m" in stream.getvalue()) is is_colored, (environ, color)


def test_local_time_carries_its_offset() -> None:
    assert re.match(r".{26}[+-]\d\d:\d\d  INFO|.{26}Z  INFO", text(record_of("m"), is_local_time=True))


def test_o01_a_traceback_is_indented_so_that_an_exceptions_text_cannot_forge_a_line() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = record_of("failed", exc_info=sys.exc_info())
    first, *rest = text(record).split("\n")
    assert TEXT_LINE.fullmatch(first)
    assert rest and all(line.startswith("    ") for line in rest)
    assert all(len(line.encode()) <= MAX_LINE for line in rest)
    assert "\x1b" not in "".join(rest)
    fields = json.loads(JsonFormatter().format(record))
    assert fields["message"] == "failed"
    assert "é" in fields["exception"]


# -- JSON ------------------------------------------------------------------------------------------------------------


def test_a_json_line_has_time_level_target_message_the_requests_ids_and_fields() -> None:
    trace, span = "ab" * 16, "cd" * 8
    with request_scope("r-1", trace, span):
        record = record_of(
            "hello %s", "you", level=logging.WARNING, fields={"chunks": 3, "ms": 1.5, "who": b"x", "message": 0}
        )
        fields = json.loads(JsonFormatter().format(record))
    assert list(fields) == [
        "time",
        "level",
        "target",
        "message",
        "request_id",
        "trace_id",
        "span_id",
        "chunks",
        "ms",
        "who",
    ]
    assert (fields["level"], fields["message"], fields["request_id"]) == ("WARN", "hello you", "r-1")
    assert (fields["trace_id"], fields["span_id"]) == (trace, span)
    assert (fields["chunks"], fields["ms"], fields["who"]) == (3, 1.5, "b'x'")


def test_a_text_line_names_the_trace_where_there_is_one() -> None:
    with request_scope("r", "ab" * 16, "cd" * 8):
        assert text(record_of("m", fields={"a": 1})).endswith(f": m a=1 trace_id={'ab' * 16}")
    with request_scope("r"):
        assert text(record_of("m")).endswith(": m")
        assert "trace_id" not in json.loads(JsonFormatter().format(record_of("m")))


async def test_ids_follow_the_requests_task_into_its_threads_and_stay_out_of_others() -> None:
    formatter = JsonFormatter()
    seen: dict[str, Any] = {}

    def note(who: str) -> None:
        seen[who] = json.loads(formatter.format(record_of("m"))).get("request_id")

    async def request(name: str) -> None:
        with request_scope(name):
            await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(note, f"thread of {name}")
            note(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, "a")
        nursery.start_soon(request, "b")
        note("outside")
    assert seen == {"outside": None, "a": "a", "b": "b", "thread of a": "a", "thread of b": "b"}


def test_numbers_that_json_does_not_have_are_texts() -> None:
    fields = json.loads(
        JsonFormatter().format(record_of("m", fields={"a": float("nan"), "b": float("inf"), "c": 10**400}))
    )
    assert (fields["a"], fields["b"]) == ("nan", "inf")
    assert fields["c"].startswith("1000")


# -- both, whatever comes (O01) --------------------------------------------------------------------------------------


@given(message=st.text(max_size=3000), value=st.text(max_size=3000), name=st.text(max_size=300))
@example(HOSTILE, HOSTILE, HOSTILE)
@example("\U0001f600" * 3000, "\x00" * 3000, "")
def test_o01_no_text_breaks_a_line_or_makes_it_longer_than_a_kibibyte(message: str, value: str, name: str) -> None:
    record = record_of("%s", message, fields={"value": value, "n": 1})
    record.name = name
    with request_scope(value):
        as_text, as_json = text(record), JsonFormatter().format(record)
    for line in (as_text, as_json):
        assert len(line.encode()) <= MAX_LINE
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", line)
    assert as_json.isascii()
    fields = json.loads(as_json)
    assert fields["n"] == 1
    fields["message"].encode()  # no lone surrogates, which many parsers refuse


def test_o01_a_long_id_leaves_both_ends_of_its_line() -> None:
    """Of 256 emoji, twelve bytes each as JSON writes them, nothing had been left of the line but the id."""
    name = "\U0001f600" * 256
    with request_scope(name):
        line = JsonFormatter().format(record_of(f"request {name} of a.b.c failed: KeyError: 'model'"))
    message = json.loads(line)["message"]
    assert message.startswith("request \U0001f600") and message.endswith("KeyError: 'model'")


def test_an_object_with_very_many_fields_still_fits() -> None:
    line = JsonFormatter().format(record_of("m" * 500, fields={f"field_{number}": number for number in range(500)}))
    assert len(line) <= MAX_LINE
    assert json.loads(line)["level"] == "INFO"


def test_a_record_that_cannot_be_formatted_costs_only_itself() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    written = set_up()
    log.info("%d chunks", "many")
    log.info("%s", Broken())
    log.info("fine")
    first, second, third = written.getvalue().splitlines()
    assert "cannot be shown" in first and "cannot be shown" in second
    assert third.endswith("fine")


def test_fields_of_a_level_that_is_off_cost_nothing() -> None:
    class Never:
        def __str__(self) -> str:
            pytest.fail("was asked for its text")

    set_up({"DYN_LOG": "info"})
    log_fields(log, logging.DEBUG, "m", value=Never())


# -- writing (R08) ---------------------------------------------------------------------------------------------------


def pipe(*, is_blocking: bool = True) -> tuple[int, IO[str]]:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, is_blocking)
    return read_end, os.fdopen(write_end, "w")


def read_all(descriptor: int) -> list[str]:
    with os.fdopen(descriptor) as stream:
        return stream.read().splitlines()


def test_lines_arrive_in_order_by_a_thread_and_flush_waits_for_them() -> None:
    read_end, stream = pipe()
    writer = set_up_logging({}, stream)
    for number in range(500):
        log.info("line %d", number)
    writer.flush()
    writer.close()
    stream.close()
    arrived = read_all(read_end)
    assert [int(line.rpartition(" ")[2]) for line in arrived] == list(range(500))
    assert writer.dropped == 0


def test_a_text_for_people_stands_among_the_lines_as_it_is() -> None:
    read_end, stream = pipe()
    writer = set_up_logging({}, stream)
    log.info("before")
    writer.write_line("a card\n\n\x1b[1mof lines\x1b[0m\rno end", end="")
    log.info("after")
    writer.close()
    stream.close()
    with os.fdopen(read_end, "rb") as arrived:
        written = arrived.read()
    assert re.fullmatch(
        rb"\S+  INFO \S+ before\na card\n\n\x1b\[1mof lines\x1b\[0m\rno end\S+  INFO \S+ after\n", written
    )


def test_lines_of_one_of_several_processes_bear_its_number() -> None:
    written = set_up(process=3)
    log.info("served")
    (line,) = written.getvalue().splitlines()
    assert TEXT_LINE.fullmatch(line) is not None
    assert line.endswith(" ingress.test: process=3 served")
    written = set_up({"DYN_LOGGING_JSONL": "true"}, process=3)
    log.info("served")
    assert json.loads(written.getvalue())["process"] == 3


def test_lines_of_several_processes_do_not_get_into_each_other() -> None:
    """A pipe takes up to 4 KiB as one piece; what is longer may be cut where it is full."""
    read_end, stream = pipe()
    writers = [LineWriter(stream, is_shared=True) for _ in range(4)]
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.extend(read_all(read_end)))
    reader.start()
    for number in range(500):
        for position, writer in enumerate(writers):
            writer.emit(logging.makeLogRecord({"msg": f"{position} {number} {'x' * 900}"}))
            writer.flush() if number % 100 == 0 else None
    for writer in writers:
        writer.flush(PATIENCE)
        writer.close()
    stream.close()
    reader.join(PATIENCE)
    assert len(received) == 2000
    assert all(re.fullmatch(r"[0-3] \d+ x{900}", line) for line in received)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_r08_a_reader_that_takes_nothing_never_delays_and_what_is_lost_is_counted(is_blocking: bool) -> None:
    read_end, stream = pipe(is_blocking=is_blocking)
    writer = set_up_logging({}, stream)
    longest = 0.0
    for _ in range(5000):
        before = time.perf_counter()
        log.info("x" * 900)
        longest = max(longest, time.perf_counter() - before)
    assert writer.dropped >= 5000 - QUEUE_LINES - 400
    assert longest < 0.5
    arrived: list[str] = []
    reading = threading.Thread(target=lambda: arrived.extend(read_all(read_end)))
    reading.start()
    writer.flush(20)
    log.info("the last")
    writer.flush(20)
    writer.close()
    stream.close()
    reading.join()
    notes = [line for line in arrived if "dropped" in line]
    assert len(arrived) - len(notes) == 5000 - writer.dropped + 1
    assert sum(int(re.findall(r"(\d+) log lines were dropped", line)[0]) for line in notes) == writer.dropped
    assert arrived[-1].endswith("the last")


def test_r08_a_blocked_reader_does_not_hold_up_the_end() -> None:
    read_end, stream = pipe()
    writer = LineWriter(stream)
    writer.setFormatter(TextFormatter())
    for _ in range(200):
        writer.handle(record_of("x" * 900))
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 5
    os.close(read_end)  # the write fails, and the thread ends
    for thread in threading.enumerate():
        if thread.name == "ingress log writer":
            thread.join(5)
            assert not thread.is_alive()
    stream.close()


def test_r08_a_closed_or_broken_or_full_stream_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    read_end, broken = pipe()
    os.close(read_end)
    _, closed = pipe()
    streams: list[IO[str] | None] = [None, broken, closed]
    if Path("/dev/full").exists():
        streams.append(Path("/dev/full").open("w"))  # noqa: SIM115 - closed below
    for stream in streams:
        writer = set_up_logging({}, stream)
        if stream is closed:
            log.info("taken")
            writer.flush()
            closed.close()
        for _ in range(10):
            log.info("lost")
        writer.flush()
        assert writer.dropped == 10, stream
        writer.close()
        if stream is not None:
            stream.close()


def test_lines_come_again_when_the_stream_does(tmp_path: Path) -> None:
    class Flaky(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Flaky()
    writer = set_up_logging({}, stream)
    log.info("lost")
    stream.is_full = False
    log.info("kept")
    assert writer.dropped == 1
    assert stream.getvalue().endswith("kept\n")


def test_r08_lines_wait_while_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    read_end, stream = pipe()
    writer = set_up_logging({}, stream)
    with monkeypatch.context() as system:
        system.setattr(threading.Thread, "start", fail)
        log.info("first")
        writer.flush()
    log.info("second")
    writer.close()
    stream.close()
    assert [line.rpartition(" ")[2] for line in read_all(read_end)] == ["first", "second"]
    assert writer.dropped == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_r10_a_forked_child_logs_its_own_lines_and_none_of_its_parents() -> None:
    read_end, stream = pipe()
    writer = set_up_logging({}, stream)
    log.info("before")
    writer.flush()
    child = os.fork()
    if child == 0:
        log.info("from the child")
        writer.flush(10)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    log.info("from the parent")
    writer.close()
    stream.close()
    assert status == 0
    arrived = [line.rpartition(": ")[2] for line in read_all(read_end)]
    assert arrived == ["before", "from the child", "from the parent"]


def test_setting_up_again_ends_the_writer_before() -> None:
    read_end, stream = pipe()
    first = set_up_logging({}, stream)
    log.info("one")
    set_up_logging({}, io.StringIO())
    log.info("two")
    stream.close()
    (only,) = read_all(read_end)
    assert only.endswith("one")
    assert first.dropped == 0
