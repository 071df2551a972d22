"""The real OpenAI frontend in front of our worker: what is answered when all goes well, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress
from ingress.models import ChatRequest, Finish, ModelCard, TokensRequest

from ..tiny_model import CONTEXT_LENGTH, EOS, write_tiny_model
from .frontend import PATIENCE, Frontend, ask, behind, text_of

pytestmark = pytest.mark.interop

HELLO = [{"role": "user", "content": "say hi é"}]


class Remembering:
    """An engine of a few strings that keeps what it was asked."""

    def __init__(self, *answer: Any) -> None:
        self.answer = answer or ("Hi", " there", ", é")
        self.requests: list[Any] = []

    async def __call__(self, request: Any, context: ingress.Context) -> AsyncIterator[Any]:
        self.requests.append(request)
        for chunk in self.answer:
            await trio.sleep(0)
            yield chunk


# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_strings_are_a_chat_answer_whole_and_streamed(frontend: Frontend, model_name: str, codec: str) -> None:
    engine = Remembering()
    async with behind(frontend, model_name, engine, codec=codec) as client:
        outcome, (model,) = await ask(client, "models.retrieve", model=model_name)
        assert (outcome["event"], model["id"], model["object"]) == ("end", model_name, "model")

        outcome, (whole,) = await ask(client, "chat.completions.create", model=model_name, messages=HELLO)
        assert outcome["event"] == "end"
        (choice,) = whole["choices"]
        assert choice["message"]["content"] == "Hi there, é"
        assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
        assert (whole["object"], whole["model"]) == ("chat.completion", model_name)
        assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}

        outcome, chunks = await ask(
            client, "chat.completions.create", model=model_name, messages=HELLO, stream=True, max_tokens=3
        )
        assert outcome["event"] == "end"
        assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:3]] == ["Hi", " there", ", é"]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert not any(chunk.get("usage") for chunk in chunks)
    assert engine.requests == [
        {"messages": HELLO, "model": model_name},
        {"messages": HELLO, "model": model_name, "max_tokens": 3, "stream": True},
    ]


async def test_a_stream_has_its_usage_where_the_client_asks_for_it(frontend: Frontend, model_name: str) -> None:
    engine = Remembering("a", "b", Finish("length", prompt_tokens=70, completion_tokens=20))
    async with behind(frontend, model_name, engine) as client:
        outcome, chunks = await ask(
            client,
            "chat.completions.create",
            model=model_name,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
    assert outcome["event"] == "end"
    assert text_of(chunks) == "ab"
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 70, "completion_tokens": 20, "total_tokens": 90}


async def test_completions_come_from_the_same_engine(frontend: Frontend, model_name: str) -> None:
    engine = Remembering()
    async with behind(frontend, model_name, engine) as client:
        outcome, (whole,) = await ask(client, "completions.create", model=model_name, prompt="say hi", max_tokens=8)
        assert outcome["event"] == "end"
        assert (whole["object"], whole["choices"][0]["text"]) == ("text_completion", "Hi there, é")
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        outcome, chunks = await ask(client, "completions.create", model=model_name, prompt="say hi", stream=True)
        assert outcome["event"] == "end"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hi there, é"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert engine.requests == [
        {"model": model_name, "prompt": "say hi", "max_tokens": 8},
        {"model": model_name, "prompt": "say hi", "stream": True},
    ]


async def test_openai_chunks_pass_and_fit_both_kinds_of_request(frontend: Frontend, model_name: str) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    engine = Remembering(
        {"id": "own-id", "choices": [{"delta": {"role": "assistant", "content": "from "}}]},
        {"id": "own-id", "choices": [{"delta": {"content": "upstream"}, "finish_reason": "length"}], "usage": usage},
    )
    async with behind(frontend, model_name, engine) as client:
        outcome, (chat,) = await ask(client, "chat.completions.create", model=model_name, messages=HELLO)
        assert outcome["event"] == "end"
        assert (chat["id"], chat["usage"]) == ("own-id", usage)
        assert chat["choices"][0]["message"]["content"] == "from upstream"
        assert chat["choices"][0]["finish_reason"] == "length"
        outcome, (completion,) = await ask(client, "completions.create", model=model_name, prompt="x")
        assert outcome["event"] == "end"
        assert completion["choices"][0]["text"] == "from upstream"
        assert completion["choices"][0]["finish_reason"] == "length"


async def test_curl_lists_models_and_streams(frontend: Frontend, model_name: str) -> None:
    engine = Remembering()
    async with behind(frontend, model_name, engine, card=ModelCard(model_name, context_length=1234)):
        listed = await frontend.curl("/v1/models")
        assert listed.status == 200
        (model,) = [model for model in listed.json["data"] if model["id"] == model_name]
        assert model["context_window"] == 1234
        answer = await frontend.curl(
            "/v1/chat/completions", {"model": model_name, "messages": HELLO, "stream": True, "temperature": 0.5}
        )
        assert answer.status == 200
        *chunks, done = answer.events
        assert done == "[DONE]"
        assert text_of(chunks) == "Hi there, é"
        health = await frontend.curl("/health")
        assert health.status == 200
        assert f"dyn://{model_name}.backend.generate" in health.json["endpoints"]
    assert engine.requests == [{"messages": HELLO, "model": model_name, "stream": True, "temperature": 0.5}]


async def test_the_example_is_a_model(frontend: Frontend) -> None:
    example = Path(__file__).resolve().parents[2] / "docs" / "examples" / "09_behind_the_frontend.py"
    environment = {**os.environ, "DYN_FILE_KV": str(frontend.file_kv), "PYTHONDONTWRITEBYTECODE": "1"}
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            [sys.executable, str(example)], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            await frontend.wait_listed("backwards")
            body = {"model": "backwards", "messages": [{"role": "user", "content": "one two three"}]}
            answer = await frontend.curl("/v1/chat/completions", body)
            assert answer.status == 200
            assert answer.json["choices"][0]["message"]["content"] == "three two one "
            body["messages"] = [{"role": "user", "content": " "}]
            answer = await frontend.curl("/v1/chat/completions", body)
            assert (answer.status, answer.json["message"]) == (400, "there is nothing to turn around")
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_token_ids_go_in_and_come_out_where_the_card_names_a_tokenizer(
    frontend: Frontend, model_name: str, tmp_path: Path
) -> None:
    requests: list[TokensRequest] = []

    async def generate(request: TokensRequest) -> AsyncIterator[Any]:
        requests.append(request)
        first, *rest = request.token_ids
        yield first
        yield rest[:4]
        yield {"token_ids": rest[4:]}

    card = ModelCard.from_directory(model_name, write_tiny_model(tmp_path / "tiny"), context_length=CONTEXT_LENGTH)
    async with behind(frontend, model_name, generate, card=card) as client:
        prompt = "user: say hi é\nassistant:"
        count = len(prompt.encode())
        outcome, (chat,) = await ask(client, "chat.completions.create", model=model_name, messages=HELLO)
        assert outcome["event"] == "end", outcome
        assert chat["choices"][0]["message"]["content"] == prompt
        assert chat["choices"][0]["finish_reason"] == "stop"
        assert chat["usage"]["prompt_tokens"] == chat["usage"]["completion_tokens"] == count
        outcome, chunks = await ask(
            client,
            "completions.create",
            model=model_name,
            prompt="hello",
            stream=True,
            max_tokens=5,
            temperature=0.25,
            stream_options={"include_usage": True},
        )
        assert outcome["event"] == "end", outcome
        assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "hello"
        assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c.get("finish_reason")] == [
            "length"
        ]
        assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert requests[0].token_ids == list(prompt.encode())
    assert requests[0].stop_conditions.stop_token_ids_hidden == requests[0].eos_token_ids == [EOS]
    assert requests[1].token_ids == list(b"hello")
    assert requests[1].stop_conditions.max_tokens == 5
    assert requests[1].sampling_options.temperature == 0.25


# -- refused ---------------------------------------------------------------------------------------------------------


async def test_an_invalid_request_is_answered_with_400(frontend: Frontend, model_name: str) -> None:
    asked: list[ChatRequest] = []

    async def generate(request: ChatRequest) -> AsyncIterator[str]:
        asked.append(request)
        if request.seed == 13:
            raise ingress.InvalidArgument("no luck with this seed")
        yield "x"

    async with behind(frontend, model_name, generate) as client:
        # Refused by the engine, in words for the end user, and by the adapter.
        for arguments, text in (({"seed": 13}, "no luck with this seed"), ({"n": 2}, "n must be 1")):
            outcome, items = await ask(client, "chat.completions.create", model=model_name, messages=HELLO, **arguments)
            assert (outcome["event"], outcome["status"], items) == ("error", 400, []), outcome
            assert outcome["type"] == "BadRequestError"
            assert text in outcome["body"]["message"]
        # A stream has its status before the engine is asked: the error is an event in it.
        answer = await frontend.curl(
            "/v1/chat/completions", {"model": model_name, "messages": HELLO, "stream": True, "seed": 13}
        )
        assert answer.status == 200
        assert answer.events[0]["error"]["code"] == 400
        assert "no luck with this seed" in answer.events[0]["error"]["message"]
        # Refused by the frontend: the engine does not see it.
        seen = len(asked)
        answer = await frontend.curl("/v1/chat/completions", {"model": model_name, "messages": []})
        assert (answer.status, len(asked)) == (400, seen)
        # The worker is as good as before.
        outcome, _ = await ask(client, "chat.completions.create", model=model_name, messages=HELLO)
        assert outcome["event"] == "end"


async def test_a_model_that_nobody_serves_is_not_found(frontend: Frontend, model_name: str) -> None:
    with trio.fail_after(PATIENCE):
        answer = await frontend.curl("/v1/chat/completions", {"model": model_name, "messages": HELLO})
    assert answer.status == 404
