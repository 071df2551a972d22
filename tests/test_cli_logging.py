"""Log lines: filters as in ``DYN_LOG``, one line a record, text or JSON."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ingress._logging import TRACE, parse_filters
from ingress.cli._errors import CommandError
from ingress.cli._logging import set_up_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    names = ["ingress", "ingress.wire", "ingress.test"]
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)


def lines(environ: dict[str, str], **options: Any) -> list[str]:
    stream = io.StringIO()
    set_up_logging(environ, stream, **options)
    log = logging.getLogger("ingress.test")
    log.log(TRACE, "at trace")
    log.debug("at debug")
    log.info("at info")
    log.error("at error")
    return stream.getvalue().splitlines()


def messages(environ: dict[str, str], **options: Any) -> list[str]:
    return [line.rpartition(": at ")[2] for line in lines(environ, **options)]


def test_filters_name_a_general_level_and_modules() -> None:
    assert parse_filters("info, ingress.wire=trace,a::b=WARN") == (
        logging.INFO,
        {"ingress.wire": TRACE, "a.b": logging.WARNING},
    )
    assert parse_filters("") == (None, {})


def test_an_unknown_level_is_a_usage_error() -> None:
    with pytest.raises(CommandError, match="DYN_LOG=ingress=loud") as caught:
        set_up_logging({"DYN_LOG": "ingress=loud"}, io.StringIO())
    assert caught.value.exit_code == 2


def test_levels_come_from_the_flags_then_the_variable_then_the_default() -> None:
    assert messages({}) == ["info", "error"]
    assert messages({}, level=logging.WARNING) == ["error"]
    assert messages({"DYN_LOG": "debug"}) == ["debug", "info", "error"]
    assert messages({"DYN_LOG": "debug"}, verbosity=-1) == ["error"]
    assert messages({}, verbosity=2) == ["trace", "debug", "info", "error"]


def test_a_module_can_be_told_more_than_the_rest() -> None:
    assert messages({"DYN_LOG": "error,ingress.test=debug"}) == ["debug", "info", "error"]


def test_text_lines_have_time_padded_level_and_target() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  INFO ingress\.test: at info", lines({})[0])


def test_what_a_peer_sent_cannot_break_the_line() -> None:
    stream = io.StringIO()
    set_up_logging({}, stream)
    logging.getLogger("ingress.test").info("id %s", "a\n2026 ERROR forged\x1b[31m")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_json_lines_are_ascii_objects() -> None:
    (line, _) = lines({"DYN_LOGGING_JSONL": "true"})
    record = json.loads(line)
    assert (record["level"], record["target"], record["message"]) == ("INFO", "ingress.test", "at info")
    assert line.isascii()


def test_tracebacks_follow_their_line() -> None:
    stream = io.StringIO()
    set_up_logging({}, stream)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("ingress.test").exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("ERROR ingress.test: it failed")
    assert rest[-1] == "    ValueError: boom"
