"""Log lines on stderr: text for people, JSON for collectors, filtered as ``DYN_LOG`` says.

Text::

    2026-11-23T16:11:27.302319Z  INFO ingress.worker: message

The variables are Dynamo's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO

from .._text import printable
from ._errors import usage

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

# One line of a log is not the place for more; tracebacks come after it.
MAX_LINE = 1024

_LEVEL_NAMES = {TRACE: "TRACE", logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}
_LEVEL_COLORS = {"TRACE": "2", "DEBUG": "34", "INFO": "32", "WARN": "33", "ERROR": "31"}


def parse_filters(text: str) -> tuple[int | None, dict[str, int]]:
    """Read ``info,ingress.wire=trace``: the general level, if one is named, and those of single modules.

    Raises:
        ValueError: a level is unknown.
    """
    general: int | None = None
    modules: dict[str, int] = {}
    for directive in filter(None, (part.strip() for part in text.split(","))):
        module, equals, level = directive.rpartition("=")
        if level.lower() not in LEVELS:
            raise ValueError(f"{level!r} is no level; known: {', '.join(LEVELS)}")
        if equals:
            modules[module.replace("::", ".")] = LEVELS[level.lower()]
        else:
            general = LEVELS[level.lower()]
    return general, modules


def set_up_logging(
    environ: Mapping[str, str], stream: IO[str], *, verbosity: int = 0, level: int = logging.INFO, color: str = "auto"
) -> None:
    """Send log records to ``stream``.

    Args:
        verbosity: -1 errors only, 1 our debug lines, 2 our trace lines; beats ``DYN_LOG``.
        level: where neither says anything.

    Raises:
        CommandError: ``DYN_LOG`` cannot be read.
    """
    try:
        general, modules = parse_filters(environ.get("DYN_LOG", ""))
    except ValueError as exc:
        raise usage(
            f"DYN_LOG={environ['DYN_LOG']} cannot be used", str(exc), "DYN_LOG=info,ingress.wire=trace"
        ) from exc
    if verbosity < 0:
        general, modules = logging.ERROR, {}
    elif verbosity > 0:
        modules["ingress"] = logging.DEBUG if verbosity == 1 else TRACE
    logging.addLevelName(TRACE, "TRACE")
    handler = logging.StreamHandler(stream)
    is_colored = color == "always" or (color == "auto" and _is_colorful(environ, stream))
    handler.setFormatter(JsonFormatter() if wants_json(environ) else TextFormatter(is_colored=is_colored))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if general is None else general)
    for module, module_level in modules.items():
        logging.getLogger(module).setLevel(module_level)


def wants_json(environ: Mapping[str, str]) -> bool:
    return environ.get("DYN_LOGGING_JSONL", "").lower() in ("1", "true", "yes", "on")


def _is_colorful(environ: Mapping[str, str], stream: IO[str]) -> bool:
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _level_of(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno, record.levelname)


class TextFormatter(logging.Formatter):
    """One line a record; what peers sent cannot break it."""

    def __init__(self, *, is_colored: bool = False) -> None:
        super().__init__()
        self._is_colored = is_colored

    def format(self, record: logging.LogRecord) -> str:
        level = _level_of(record)
        padded = f"{level:>5}"
        if self._is_colored:
            padded = f"\x1b[{_LEVEL_COLORS.get(level, '0')}m{padded}\x1b[0m"
        line = f"{_time_of(record)} {padded} {record.name}: {printable(record.getMessage(), MAX_LINE)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, pure ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time_of(record),
            "level": _level_of(record),
            "target": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)
