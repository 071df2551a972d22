"""Spans as a collector gets them: names, parents, attributes, ends; and that no collector ever delays a request."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from trio.testing import wait_all_tasks_blocked

from ingress import Context
from ingress._logging import JsonFormatter
from ingress._tracing import RequestEnd, RequestStart
from ingress.errors import StartupError
from ingress.otel import OtelTracer
from ingress.wire.messages import ControlWord
from ingress.wire.records import EndpointId
from ingress.wire.trace_context import read_trace_context

from .otlp_sink import Received, Sink, open_sink
from .raw_caller import Stage, Transcript, open_stage

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
START = RequestStart("r-1", "json", 3, None, None)


@pytest.fixture(autouse=True)
def no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    with open_sink() as opened:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", opened.url)
        yield opened


@pytest.fixture
def dead_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield


async def call(stage: Stage, body: object = None, *, request_id: str = "r-1", **headers: str) -> Transcript:
    """Call with headers; underscores stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    payload = stage.caller.payload(body, stage.caller.control(request_id=request_id))
    assert await stage.ask(payload, headers=named) == ""
    response = await stage.caller.accept()
    said = await response.read_to_sentinel()
    await response.aclose()
    await wait_all_tasks_blocked()
    return said


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request
    yield request


async def test_a_request_is_one_server_span_under_its_callers(sink: Sink) -> None:
    with OtelTracer() as tracer:
        async with open_stage(echo, tracer=tracer, instance_id=0xABC) as stage:
            await call(stage, "hi", traceparent=PARENT, tracestate="a=1,b=2", x_request_id="of the frontend\x1b")
    (received,) = sink.wait(1)
    span = received.span
    assert (span.name, span.kind) == ("handle_payload", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, SPAN, "a=1,b=2")
    assert span.span_id.hex() not in (SPAN, "0" * 16)
    assert received.attributes | {"ingress.request_bytes": 0} == {
        "namespace": "demo",
        "component": "backend",
        "endpoint": "generate",
        "instance_id": "abc",
        "request_id": "r-1",
        "x_request_id": r"of the frontend\x1b",
        "ingress.codec": "json",
        "ingress.request_bytes": 0,
        "ingress.outcome": "completed",
        "ingress.reason": "ok",
        "ingress.chunks": 2,
        "ingress.response_bytes": received.attributes["ingress.response_bytes"],
    }
    assert received.attributes["ingress.request_bytes"] > 24
    assert received.attributes["ingress.response_bytes"] > 24
    assert not received.is_error
    assert 0 <= received.events["first chunk"] <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert (sink.paths, received.resource["service.name"]) == (["/v1/traces"], "dynamo")


async def test_a_request_without_a_trace_begins_one(sink: Sink) -> None:
    with OtelTracer() as tracer:
        async with open_stage(echo, tracer=tracer) as stage:
            await call(stage, traceparent="00-bad")
            await call(stage)
    first, second = (received.span for received in sink.wait(2))
    assert first.parent_span_id == second.parent_span_id == b""
    assert len({first.trace_id, second.trace_id}) == 2


async def test_how_a_request_ended_is_on_its_span(sink: Sink) -> None:
    async def engine(request: Any) -> AsyncIterator[Any]:
        if request == "raise at once":
            raise ValueError
        yield 1
        if request == "raise later":
            raise ValueError
        await trio.sleep_forever()

    with OtelTracer() as tracer:
        async with open_stage(engine, tracer=tracer) as stage:
            await call(stage, "raise at once", request_id="raise-at-once")
            await call(stage, "raise later", request_id="raise-later")
            await call(stage, b"no json", request_id="no-json")
            for word in (ControlWord.STOP, ControlWord.KILL):
                response = await stage.call(None, request_id=word.name)
                await response.read_items(1)
                await response.send_word(word)
                await response.read_to_end()
                await response.aclose()
            response = await stage.call(None, request_id="left")
            await response.read_items(1)
            stage.worker.drain()
            await response.read_to_end()
    ends = {
        received.attributes["request_id"]: (
            received.attributes["ingress.outcome"],
            received.attributes["ingress.reason"],
            received.is_error,
            "first chunk" in received.events,
        )
        for received in sink.wait(6)
    }
    assert ends == {
        "raise-at-once": ("failed", "generate", True, False),
        "raise-later": ("failed", "generate", True, True),
        "no-json": ("failed", "deserialization", True, False),
        "STOP": ("cancelled", "stop", False, True),
        "KILL": ("cancelled", "kill", False, True),
        "left": ("cancelled", "shutdown", True, True),
    }


async def test_log_lines_onward_calls_and_the_engines_own_spans_belong_under_the_span(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    log = logging.getLogger("ingress.request")
    handler = Keep()
    log.addHandler(handler)
    caplog.set_level(logging.INFO, log.name)
    provider_of_the_engine: list[Any] = []

    async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
        with provider_of_the_engine[0].start_as_current_span("prefill"):
            pass
        yield context.trace_headers()

    try:
        with OtelTracer() as tracer:
            provider_of_the_engine.append(tracer._tracer)
            async with open_stage(engine, tracer=tracer) as stage:
                said = await call(stage, traceparent=PARENT, tracestate="a=1")
                assert not trace.get_current_span().get_span_context().is_valid, "nothing stays behind"
    finally:
        log.removeHandler(handler)
    by_name: dict[str, Received] = {received.span.name: received for received in sink.wait(2)}
    own = by_name["handle_payload"].span
    assert by_name["prefill"].span.parent_span_id == own.span_id
    assert said.items == [{"traceparent": f"00-{TRACE}-{own.span_id.hex()}-01", "tracestate": "a=1"}]
    assert [line["message"] for line in lines] == ["request received", "request completed"]
    assert {(line["trace_id"], line["span_id"]) for line in lines} == {(TRACE, own.span_id.hex())}


async def test_a_caller_that_does_not_sample_gets_no_span_and_keeps_its_trace(sink: Sink) -> None:
    async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
        yield context.trace_headers()

    with OtelTracer() as tracer:
        async with open_stage(engine, tracer=tracer) as stage:
            said = await call(stage, traceparent=f"00-{TRACE}-{SPAN}-00")
            await call(stage, request_id="sampled")
    onward = read_trace_context(said.items[0])
    assert onward is not None
    assert (onward.trace_id, onward.is_sampled) == (TRACE, False)
    assert [received.attributes["request_id"] for received in sink.wait(1)] == ["sampled"]


async def test_canaries_and_refusals_have_no_spans(sink: Sink) -> None:
    with OtelTracer() as tracer:
        async with open_stage(echo, tracer=tracer) as stage:
            assert await stage.ask(b"junk") != ""
            await call(stage, request_id="asked")
    assert [received.attributes["request_id"] for received in sink.wait(1)] == ["asked"]


async def test_the_standard_variables_are_obeyed(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pod-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=search")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{sink.url}/elsewhere")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with OtelTracer() as tracer:
        async with open_stage(echo, tracer=tracer) as stage:
            await call(stage)
    (received,) = sink.wait(1)
    assert (received.resource["service.name"], received.resource["team"]) == ("pod-7", "search")
    assert sink.paths == ["/elsewhere"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "asks for grpc, and only http/protobuf is spoken here"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "asks for http/json"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size"),
    ],
)
def test_variables_that_cannot_be_obeyed_are_startup_errors(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=message):
        OtelTracer()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartupError, match=r"pip install 'ingress-dispatch\[otel\]'"):
        OtelTracer()


async def test_r08_a_collector_that_never_answers_delays_nothing_and_its_queue_is_bounded(
    dead_collector: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    tracer = OtelTracer()
    async with open_stage(echo, tracer=tracer) as stage:
        for number in range(40):
            assert (await call(stage, number)).is_whole
    assert "Queue full" in caplog.text
    # The thread that exports waits for the collector, up to ten seconds; we do not.
    assert not tracer.close(0.05)
    assert "the last spans were not exported within 0.05 s" in caplog.text


async def test_a_tracer_that_fails_costs_its_span_and_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        trace = read_trace_context({"traceparent": PARENT})

        def endpoint(self, endpoint_id: EndpointId, instance_id: int) -> Broken:
            return self

        def start_request(self, start: RequestStart) -> Broken:
            if start.size % 2:
                raise RuntimeError("at the beginning")
            return self

        def end(self, how: RequestEnd) -> None:
            raise RuntimeError("at the end")

    async with open_stage(echo, tracer=Broken()) as stage:
        assert (await call(stage, "x")).is_whole
        assert (await call(stage, "xx")).is_whole
        stage.assert_nothing_left()
    assert "tracer failed at the beginning" in caplog.text
    assert "tracer failed at the end" in caplog.text


def test_a_provider_of_the_programs_own_is_used_and_left_open() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with OtelTracer(provider) as tracer:
        span = tracer.endpoint(EndpointId("a", "b", "c"), 1).start_request(START)
    span.end(RequestEnd("completed", "ok"))
    span.end(RequestEnd("failed", "internal"))
    (exported,) = exporter.get_finished_spans()
    assert exported.attributes is not None
    assert exported.attributes["ingress.outcome"] == "completed", "a second end changes nothing"


def test_closing_ends_the_threads(sink: Sink) -> None:
    before = set(threading.enumerate())
    tracer = OtelTracer()
    tracer.endpoint(EndpointId("a", "b", "c"), 1).start_request(START).end(RequestEnd("completed", "ok"))
    assert tracer.close(20)
    assert len(sink.wait(1)) == 1
    assert {thread.name for thread in set(threading.enumerate()) - before if "Otel" in thread.name} == set()
