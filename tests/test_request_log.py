"""The two lines of a request, by the short way and by the long one."""

import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress._logging import set_up_logging
from ingress._request_log import RequestLog
from ingress.metrics import OUTCOMES


@pytest.fixture(autouse=True, scope="module")
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(
    request_id: str,
    status: str,
    reason: str,
    trace_id: str | None,
    *others: logging.Handler,
    process: int | None = None,
) -> list[str]:
    written = StringIO()
    set_up_logging({}, written, process=process)
    logging.getLogger().handlers.extend(others)
    log = RequestLog("a.b.c")
    log.received(request_id, 12, "json", trace_id)
    log.completed(request_id, status=status, reason=reason, chunks=3, size=99, seconds=0.0123456, trace_id=trace_id)
    return [line.partition("Z ")[2] for line in written.getvalue().splitlines()]


def test_a_request_has_two_lines_and_its_id_is_a_field() -> None:
    received, completed = lines_of("r\n1", "cancelled", "stop", None)
    assert received == r' INFO ingress.request: request received request_id="r\n1" endpoint=a.b.c bytes=12 codec=json'
    assert completed == (
        r' INFO ingress.request: request completed request_id="r\n1" endpoint=a.b.c status=cancelled '
        "chunks=3 bytes=99 ms=12.346 cancelled_by=stop"
    )


def test_as_json_the_lines_are_objects() -> None:
    written = StringIO()
    set_up_logging({"DYN_LOGGING_JSONL": "true"}, written)
    log = RequestLog("a.b.c")
    log.received("r\n1", 12, "json")
    log.completed("r\n1", status="failed", reason="generate", chunks=3, size=99, seconds=0.0123456)
    received, completed = map(json.loads, written.getvalue().splitlines())
    assert {"message": "request received", "request_id": "r\n1", "bytes": 12}.items() <= received.items()
    expected = {"message": "request completed", "status": "failed", "reason": "generate", "ms": 12.346}
    assert expected.items() <= completed.items()


@given(
    st.text(max_size=1100),
    st.sampled_from([(outcome, reason) for outcome, reasons in OUTCOMES.items() for reason in reasons]),
)
def test_the_short_way_writes_what_the_long_one_does(request_id: str, ending: tuple[str, str]) -> None:
    by_the_long_way = lines_of(request_id, *ending, None, logging.NullHandler())
    assert lines_of(request_id, *ending, None) == by_the_long_way
    assert len(by_the_long_way) == 2


def test_one_of_several_processes_bears_its_number_by_both_ways() -> None:
    by_the_long_way = lines_of("r", "completed", "ok", None, logging.NullHandler(), process=2)
    assert lines_of("r", "completed", "ok", None, process=2) == by_the_long_way
    assert all(" ingress.request: process=2 request " in line for line in by_the_long_way)


def test_a_trace_stands_at_the_end_of_both_lines() -> None:
    assert all(line.endswith(f" trace_id={'ab' * 16}") for line in lines_of("r", "completed", "ok", "ab" * 16))


def test_lines_that_are_filtered_are_not_written() -> None:
    written = StringIO()
    set_up_logging({"DYN_LOG": "info,ingress.request=warn"}, written)
    try:
        RequestLog("a.b.c").received("r", 12, "json")
        assert not written.getvalue()
    finally:
        logging.getLogger("ingress.request").setLevel(logging.NOTSET)


def test_a_handler_of_somebody_else_gets_the_lines_too() -> None:
    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    kept: list[str] = []
    lines_of("r", "completed", "ok", None, Keeping())
    assert kept == ["request received", "request completed"]


def lines_after(change: Callable[[logging.Handler], object]) -> str:
    written = StringIO()
    change(set_up_logging({}, written))
    RequestLog("a.b.c").received("r", 12, "json")
    return written.getvalue()


def test_a_filter_level_or_form_that_is_set_later_holds_for_the_lines_too() -> None:
    assert lines_after(lambda writer: writer.addFilter(lambda record: False)) == ""
    assert lines_after(lambda writer: writer.setLevel(logging.ERROR)) == ""
    assert lines_after(lambda writer: writer.setFormatter(logging.Formatter("%(message)s"))) == "request received\n"
