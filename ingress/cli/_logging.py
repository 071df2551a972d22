"""Logging as the command's flags and ``DYN_LOG`` ask for it; see :mod:`ingress._logging`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import IO

from .._log_writer import LineWriter
from .._logging import TRACE, is_false, is_true, parse_filters
from .._logging import set_up_logging as set_up
from ._errors import usage

_SWITCHES = ("DYN_LOGGING_JSONL", "DYN_LOG_USE_LOCAL_TZ", "DYN_SDK_DISABLE_ANSI_LOGGING")


def set_up_logging(
    environ: Mapping[str, str],
    stream: IO[str] | None,
    *,
    verbosity: int = 0,
    level: int = logging.INFO,
    color: str = "auto",
    process: int | None = None,
) -> LineWriter:
    """Send log records to ``stream``.

    Args:
        verbosity: -1 errors only, 1 our debug lines, 2 our trace lines; beats ``DYN_LOG``.
        level: where neither says anything.
        process: stands on every line.

    Raises:
        CommandError: ``DYN_LOG``, or a switch, cannot be read.
    """
    for name in _SWITCHES:
        if not (is_true(environ.get(name, "")) or is_false(environ.get(name, ""))):
            raise usage(f"{name}={environ[name]} cannot be used", "expected true or false", f"{name}=true, or unset it")
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
    return set_up(environ, stream, level=level, filters=(general, modules), color=color, process=process)


def wants_json(environ: Mapping[str, str]) -> bool:
    return is_true(environ.get("DYN_LOGGING_JSONL", ""))
