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


class RequestLog:
    """Logs the requests of one endpoint."""

    def __init__(self, endpoint: object) -> None:
        self._endpoint = str(endpoint)

    def received(self, request_id: str, size: int, codec: str, trace_id: str | None = None) -> None:
        """Log the first of the two lines of a request."""
        if not _logger.isEnabledFor(logging.INFO):
            return
        if (writer := _only_writer()) is None:
            fields = {"request_id": request_id, "endpoint": self._endpoint, "bytes": size, "codec": codec}
            log_fields(_logger, logging.INFO, "request received", **fields)
            return
        trace = "" if trace_id is None else f" trace_id={trace_id}"
        text = f"request received request_id={shown(request_id)} endpoint={self._endpoint} bytes={size} codec={codec}"
        writer.write_line(plain_line("INFO", _NAME, writer.mark + text + trace))

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
        because: dict[str, object] = {} if status in ("completed", "cancelled") else {"reason": reason}
        cancelled_by: dict[str, object] = {"cancelled_by": reason} if status == "cancelled" else {}
        milliseconds = round(seconds * 1000, 3)
        if (writer := _only_writer()) is None:
            fields: dict[str, object] = {"request_id": request_id, "endpoint": self._endpoint, "status": status}
            fields |= {**because, "chunks": chunks, "bytes": size, "ms": milliseconds, **cancelled_by}
            log_fields(_logger, logging.INFO, "request completed", **fields)
            return
        ending = f"status={status}" if not because else f"status={status} reason={reason}"
        text = (
            f"request completed request_id={shown(request_id)} endpoint={self._endpoint} {ending}"
            f" chunks={chunks} bytes={size} ms={milliseconds}"
        )
        if cancelled_by:
            text += f" cancelled_by={reason}"
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
