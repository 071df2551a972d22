"""Log lines: text for people, JSON for collectors, filtered as ``DYN_LOG`` says, written without ever waiting.

Text, and the same line with ``DYN_LOGGING_JSONL=true``::

    2026-11-23T16:11:27.302319Z  INFO ingress.request: request completed status=completed chunks=3
    {"time":"2026-11-23T16:11:27.302319Z","level":"INFO","target":"ingress.request","message":"request completed",…}

A line is at most 1 KiB and holds no raw control character; whatever a peer sent stands escaped on it. The variables
are Dynamo's.
"""

from __future__ import annotations

import contextvars
import functools
import json
import logging
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any

from ._json_lines import TRACEBACK, fitted
from ._log_repeats import RepeatFilter
from ._log_tracebacks import json_traceback, text_traceback
from ._log_writer import LineWriter
from ._text import named, printable

TRACE = 5
_OFF = logging.CRITICAL + 10

LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": _OFF,
}

MAX_LINE = 1024

# They repeat themselves for as long as what they talk to is away.
_REPETITIVE_LIBRARIES = ("opentelemetry", "urllib3")

_MAX_LEVEL = 20
_LEVEL_NAMES = {TRACE: "TRACE", logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}
_LEVEL_COLORS = {"TRACE": "2", "DEBUG": "34", "INFO": "32", "WARN": "33", "ERROR": "31"}

# What stands on a line as it is.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+-]{1,100}").fullmatch

_MODULE = re.compile(r"[\w.:-]+", re.ASCII)


# -- which lines -----------------------------------------------------------------------------------------------------


def parse_filters(text: str) -> tuple[int | None, dict[str, int]]:
    """Read ``info,ingress.wire=trace``: the general level, if one is named, and those of single modules.

    Raises:
        ValueError: a level or a module is unknown; the text says which and what was expected.
    """
    general: int | None = None
    modules: dict[str, int] = {}
    for directive in filter(None, (part.strip() for part in text.split(","))):
        module, equals, level = (part.strip() for part in directive.rpartition("="))
        if level.lower() not in LEVELS:
            raise ValueError(f"'{printable(level, 40)}' is no level; known: {', '.join(LEVELS)}")
        if equals and not _MODULE.fullmatch(module):
            raise ValueError(f"'{printable(module, 40)}' is no module; expected MODULE=LEVEL, as in ingress.wire=trace")
        if equals:
            modules[module.replace("::", ".")] = LEVELS[level.lower()]
        else:
            general = LEVELS[level.lower()]
    return general, modules


def is_true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on")


def is_false(value: str) -> bool:
    """Tell whether a variable says no, as one does that is empty; what is neither true nor false is a mistake."""
    return value.strip().lower() in ("", "0", "false", "no", "off")


def set_up_logging(
    environ: Mapping[str, str],
    stream: IO[str] | None,
    *,
    level: int = logging.INFO,
    filters: tuple[int | None, Mapping[str, int]] | None = None,
    color: str = "auto",
    process: int | None = None,
) -> LineWriter:
    """Send every record to ``stream``, in place of whatever handlers the root logger had.

    Args:
        level: where ``DYN_LOG`` names no general one.
        filters: what :func:`parse_filters` returned, where ``DYN_LOG`` is not to be read as it is.
        color: ``auto``, ``always`` or ``never``.
        process: stands as ``process`` on every line, where several processes write to one stream.

    Raises:
        ValueError: ``DYN_LOG`` cannot be read.
    """
    general, modules = parse_filters(environ.get("DYN_LOG", "")) if filters is None else filters
    logging.addLevelName(TRACE, "TRACE")
    writer = LineWriter(stream, is_shared=process is not None)
    writer.addFilter(RepeatFilter(writer, _REPETITIVE_LIBRARIES))
    if is_true(environ.get("DYN_LOGGING_JSONL", "")):
        writer.setFormatter(JsonFormatter(process=process))
    else:
        is_colored = color == "always" or (color == "auto" and _is_colorful(environ, stream))
        is_local = is_true(environ.get("DYN_LOG_USE_LOCAL_TZ", ""))
        writer.setFormatter(TextFormatter(is_colored=is_colored, is_local_time=is_local, process=process))
        if not (is_colored or is_local):
            writer.mark_plain()
        writer.mark = _mark(process)
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, LineWriter):
            handler.close()
    root.handlers[:] = [writer]
    root.setLevel(level if general is None else general)
    for module, module_level in modules.items():
        logging.getLogger(module).setLevel(module_level)
    return writer


def _mark(process: int | None) -> str:
    return "" if process is None else f"process={process} "


def _is_colorful(environ: Mapping[str, str], stream: IO[str] | None) -> bool:
    if environ.get("NO_COLOR") or is_true(environ.get("DYN_SDK_DISABLE_ANSI_LOGGING", "")):
        return False
    return stream is not None and stream.isatty() and environ.get("TERM") != "dumb"


# -- who asked -------------------------------------------------------------------------------------------------------

# The request's id, and those of its trace and span where it belongs to one.
_request_ids: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("ingress request", default=())
_ID_NAMES = ("request_id", "trace_id", "span_id")


class request_scope:  # noqa: N801 - used as a function is; a generator's context manager costs three times as much
    """Let every line that is logged inside, also from the engine and its threads, carry the ids of the request.

    As JSON all of them, as text the trace, where there is one. For one ``with`` statement.
    """

    __slots__ = ("_ids", "_token")

    def __init__(self, request_id: str, trace_id: str | None = None, span_id: str | None = None) -> None:
        self._ids: tuple[str, ...] = (request_id,)
        if trace_id is not None and span_id is not None:
            self._ids = (request_id, trace_id, span_id)

    def __enter__(self) -> None:
        self._token = _request_ids.set(self._ids)

    def __exit__(self, *exc_info: object) -> None:
        _request_ids.reset(self._token)


def request_id_in(context: contextvars.Context) -> str | None:
    """Return the id of the request that a task with this context works for, None for no request's."""
    ids = context.get(_request_ids)
    return ids[0] if ids else None


def log_fields(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log a fixed message with fields: ``message key=value`` as text, keys of the object as JSON."""
    if logger.isEnabledFor(level):
        logger.handle(_FieldsRecord(logger.name, level, message, fields))


# What a record says of its making, which nothing of ours shows: found out anew for each line, it cost half of it.
_MAKING = vars(logging.LogRecord("", logging.INFO, __file__, 0, "", None, None))


class _FieldsRecord(logging.LogRecord):
    """A record with fields, made without a look at the stack, the process, the thread and the task."""

    def __init__(self, name: str, level: int, message: str, fields: Mapping[str, object]) -> None:
        now = time.time()
        self.__dict__ = {
            **_MAKING,
            "name": name,
            "msg": message,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "created": now,
            "msecs": now % 1 * 1000,
            "fields": fields,
        }


# -- how they look ---------------------------------------------------------------------------------------------------


class TextFormatter(logging.Formatter):
    """One line a record, and indented lines for its traceback: what peers sent cannot begin a line."""

    def __init__(self, *, is_colored: bool = False, is_local_time: bool = False, process: int | None = None) -> None:
        super().__init__()
        self._is_colored = is_colored
        self._is_local_time = is_local_time
        self._process = _mark(process)

    def format(self, record: logging.LogRecord) -> str:
        level = _level_of(record)
        head = (
            f"{_time_of(record.created, is_local=self._is_local_time)} {_source_of(level, record.name)}{self._process}"
        )
        ids = _request_ids.get()
        values = _fields_of(record)
        if len(ids) > 1:
            values = {**values, "trace_id": ids[1]}
        fields = " ".join([f"{key}={shown(value)}" for key, value in values.items()])
        message = printable(record.getMessage(), max(64, MAX_LINE - len(head) - len(fields) - 32))
        line = _clipped(head + (f"{message} {fields}" if fields else message))
        if self._is_colored:
            line = line.replace(f" {level} ", f" \x1b[{_LEVEL_COLORS.get(level, '0')}m{level}\x1b[0m ", 1)
        traceback = text_traceback(record.exc_info[1]) if record.exc_info and record.exc_info[1] is not None else []
        return "\n".join([line, *(_clipped(f"    {printable(each, MAX_LINE)}") for each in traceback)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line, pure ASCII."""

    def __init__(self, *, process: int | None = None) -> None:
        super().__init__()
        self._process: Mapping[str, int] = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time_of(record.created),
            "level": _level_of(record),
            **self._process,
            "target": record.name,
            "message": record.getMessage(),
            **dict(zip(_ID_NAMES, _request_ids.get(), strict=False)),
        }
        for key, value in _fields_of(record).items():
            is_plain = isinstance(value, int | float | None) and abs(value or 0) < 1e15
            fields.setdefault(key, value if is_plain else str(value))
        if record.exc_info and record.exc_info[1] is not None:
            room = MAX_LINE - len(json.dumps(fields))
            fields[TRACEBACK], fields["exception"] = map("\n".join, json_traceback(record.exc_info[1], room))
        return fitted(fields, MAX_LINE)


def plain_line(level: str, name: str, text: str) -> str:
    """Return a text line of now, as :class:`TextFormatter` writes it; the text may hold nothing unescaped."""
    return _clipped(f"{_time_of(time.time())} {_source_of(level, name)}{text}")


def _time_of(created: float, *, is_local: bool = False) -> str:
    second = int(created)
    micros = min(round((created - second) * 1e6), 999_999)
    before, after = _second_of(second, is_local)
    return f"{before}.{micros:06d}{after}"


@functools.lru_cache(maxsize=4)
def _second_of(second: int, is_local: bool) -> tuple[str, str]:
    """Return what stands before and after the fraction of a second: a busy worker writes many lines in one."""
    moment = datetime.fromtimestamp(second, UTC)
    if not is_local:
        return moment.isoformat().removesuffix("+00:00"), "Z"
    text = moment.astimezone().isoformat()
    return (text[:19], text[19:] if text[19:] != "+00:00" else "Z")


@functools.lru_cache(maxsize=256)
def _source_of(level: str, name: str) -> str:
    return f"{level:>5} {printable(name, 100)}: "


def _level_of(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno) or named(record.levelname, _MAX_LEVEL)


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def shown(value: object) -> str:
    """Return a field's value as it stands on a text line."""
    if type(value) is int or type(value) is float:
        return str(value)
    text = str(value)
    return text if _PLAIN(text) else named(text)


def _clipped(line: str) -> str:
    if line.isascii() and len(line) < MAX_LINE:
        return line
    raw = line.encode(errors="backslashreplace")
    return line if len(raw) < MAX_LINE else raw[: MAX_LINE - 4].decode(errors="ignore") + "…"
