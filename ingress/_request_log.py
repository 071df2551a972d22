"""The two lines of every request: that it came, and how it ended.

They are what a worker logs most, so they take the short way where nobody can tell: a line of plain text goes straight
to the writer when that is the only handler there is. It costs a third of the way through :mod:`logging`.
"""

from __future__ import annotations

import logging

from ._log_writer import LineWriter
from ._logging import log_fields, plain_line, shown

_NAME = "ingress.request"
_logger = logging.getLogger(_NAME)
_PATH = (_logger, logging.getLogger("ingress"))  # whose handlers see its records, besides the root's


class _Line:
    """One kind of line: what it says, and the names of its fields in their order."""

    def __init__(self, message: str, *names: str) -> None:
        self.message = message
        self.names = ("request_id", "endpoint", *names)
        self.text = " ".join([message, *(f"{name}=%s" for name in self.names)])


_RECEIVED = _Line("request received", "bytes", "codec")
_COMPLETED = _Line("request completed", "status", "chunks", "bytes", "ms")
_CANCELLED = _Line("request completed", "status", "chunks", "bytes", "ms", "cancelled_by")
_FAILED = _Line("request completed", "status", "reason", "chunks", "bytes", "ms")


class RequestLog:
    """Logs the requests of one endpoint."""

    def __init__(self, endpoint: object) -> None:
        self._endpoint = str(endpoint)

    def received(self, request_id: str, size: int, codec: str, trace_id: str | None = None) -> None:
        """Log the first of the two lines of a request."""
        if _logger.isEnabledFor(logging.INFO):
            self._write(_RECEIVED, request_id, (size, codec), trace_id)

    def completed(
        self,
        request_id: str,
        *,
        status: str,
        reason: str,
        chunks: int,
        size: int,
        seconds: float,
        trace_id: str | None = None,
    ) -> None:
        """Log the second: how it ended, also when its caller cancelled it, which is no error.

        Args:
            status: an outcome of :data:`ingress.metrics.OUTCOMES`, and ``reason`` one of its reasons.
        """
        if not _logger.isEnabledFor(logging.INFO):
            return
        milliseconds = round(seconds * 1000, 3)
        if status == "completed":
            self._write(_COMPLETED, request_id, (status, chunks, size, milliseconds), trace_id)
        elif status == "cancelled":
            self._write(_CANCELLED, request_id, (status, chunks, size, milliseconds, reason), trace_id)
        else:
            self._write(_FAILED, request_id, (status, reason, chunks, size, milliseconds), trace_id)

    def _write(self, line: _Line, request_id: str, values: tuple[object, ...], trace_id: str | None) -> None:
        """Write one line; the values are numbers and fixed words, which need no escaping."""
        if (writer := _only_writer()) is None:
            fields = dict(zip(line.names, (request_id, self._endpoint, *values), strict=True))
            log_fields(_logger, logging.INFO, line.message, **fields)
            return
        text = line.text % (shown(request_id), self._endpoint, *values)
        if trace_id is not None:
            text += f" trace_id={trace_id}"
        writer.write_line(plain_line("INFO", _NAME, writer.mark + text))


def _only_writer() -> LineWriter | None:
    """Return the writer, where the lines reach nothing else and are plain text on it."""
    if len(logging.root.handlers) != 1 or _logger.filters:
        return None
    for logger in _PATH:
        if logger.handlers or not logger.propagate:
            return None
    writer = logging.root.handlers[0]
    return writer if type(writer) is LineWriter and writer.is_plain else None
