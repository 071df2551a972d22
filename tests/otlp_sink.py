"""A small OTLP collector: takes spans over HTTP as protobuf, decodes them, and shows them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import define, field
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PATIENCE = 20.0


@define
class Received:
    """One span as it arrived."""

    span: Span
    resource: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        return values_of(self.span.attributes)

    @property
    def is_error(self) -> bool:
        return bool(self.span.status.code == Status.STATUS_CODE_ERROR)

    @property
    def events(self) -> dict[str, float]:
        """Names and seconds since the span began."""
        return {event.name: (event.time_unix_nano - self.span.start_time_unix_nano) / 1e9 for event in self.span.events}


def values_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@define
class Sink:
    """What has arrived; read from any thread."""

    url: str = ""
    paths: list[str] = field(factory=list)
    spans: list[Received] = field(factory=list)
    arrived: threading.Condition = field(factory=threading.Condition)

    def wait(self, count: int) -> list[Received]:
        """Wait for so many spans."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans) >= count, PATIENCE), self.spans
            return list(self.spans)

    def take(self, path: str, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.arrived:
            self.paths.append(path)
            for resource_spans in request.resource_spans:
                resource = values_of(resource_spans.resource.attributes)
                for scope_spans in resource_spans.scope_spans:
                    self.spans += [Received(span, resource) for span in scope_spans.spans]
            self.arrived.notify_all()


@contextmanager
def open_sink() -> Iterator[Sink]:
    """Collect while inside."""
    sink = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            sink.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sink.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
