"""Engines behind a model card: what a caller gets for what they yield, over a network in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import ingress
from ingress.errors import StartupError
from ingress.models import ChatRequest, Finish, ModelCard
from ingress.testing import MemoryNetwork

from .tiny_model import write_tiny_model

ENDPOINT = "demo.backend.generate"
HELLO = [{"role": "user", "content": "hello you there"}]
CHAT = {"model": "m", "messages": HELLO}
COMPLETION = {"model": "m", "prompt": "hello you there"}


@asynccontextmanager
async def behind(engine: Any, card: Any = "m", **options: Any) -> AsyncIterator[ingress.Client]:
    network, discovery = MemoryNetwork(), ingress.MemoryDiscovery()
    async with (
        ingress.serving(
            engine, endpoint=ENDPOINT, network=network, discovery=discovery, model=card, linger=0, **options
        ),
        ingress.open_client(network=network, discovery=discovery) as client,
    ):
        yield client


async def answers(request: Any, *yielded: Any, card: Any = "m") -> list[Any]:
    """What a caller gets of an engine that yields this."""

    async def generate(_request: Any) -> AsyncIterator[Any]:
        for chunk in yielded:
            await trio.lowlevel.checkpoint()
            yield chunk

    async with behind(generate, card) as client, client.stream(ENDPOINT, request) as responses:
        return [item async for item in responses]


def deltas(chunks: list[Any]) -> list[Any]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


@pytest.fixture
def token_card(tmp_path: Path) -> ModelCard:
    return ModelCard.from_directory("m", write_tiny_model(tmp_path / "tiny"))


# -- text ------------------------------------------------------------------------------------------------------------


async def test_strings_become_chat_chunks_of_one_answer() -> None:
    chunks = await answers(CHAT, "Hi", " you")
    assert deltas(chunks) == [{"role": "assistant", "content": "Hi"}, {"content": " you"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    (head,) = {(c["id"], c["object"], c["created"], c["model"]) for c in chunks}
    assert head[0].startswith("chatcmpl-")
    assert (head[1], head[3]) == ("chat.completion.chunk", "m")
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def test_strings_become_completion_chunks_where_there_is_a_prompt() -> None:
    chunks = await answers(COMPLETION, "Hi", {"text": " you", "index": 1})
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}]
        for text, reason in (("Hi", None), (" you", None), ("", "stop"))
    ]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[0]["id"].startswith("cmpl-")
    assert chunks[-1]["usage"]["completion_tokens"] == 2


async def test_an_answer_without_a_word_is_an_answer() -> None:
    (chunk,) = await answers(CHAT)
    assert chunk["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]
    assert chunk["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(("limit", "reason"), [(1, "length"), (2, "length"), (3, "stop")])
async def test_an_answer_that_fills_its_limit_ended_for_its_length(limit: int, reason: str) -> None:
    chunks = await answers({**CHAT, "max_tokens": limit}, "a", "b")
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


async def test_a_stream_has_its_usage_apart_and_only_where_it_was_asked_for() -> None:
    stream = {**CHAT, "stream": True}
    assert not any("usage" in chunk for chunk in await answers(stream, "a"))
    *chunks, last = await answers({**stream, "stream_options": {"include_usage": True}}, "a")
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


async def test_an_engine_may_say_how_it_ended_and_what_it_counted() -> None:
    chunks = await answers(CHAT, "a", Finish("content_filter", prompt_tokens=7, completion_tokens=9))
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert chunks[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}


async def test_openai_chunks_keep_what_they_say_and_get_what_they_lack() -> None:
    tool = {"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c"}]}, "finish_reason": "tool_calls"}
    first = {"id": "own", "model": "other", "choices": [{"delta": {"role": "assistant", "content": "a"}}], "x": 1}
    chunks = await answers(CHAT, first, {"choices": [tool]})
    assert len(chunks) == 3
    assert chunks[0] == {
        "id": "own",
        "object": "chat.completion.chunk",
        "created": chunks[0]["created"],
        "model": "other",
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None},
        ],
        "x": 1,
    }
    assert chunks[1]["choices"] == [tool]
    assert chunks[2]["choices"] == []
    assert chunks[2]["usage"]["completion_tokens"] == 1


async def test_an_engine_that_counts_itself_is_not_corrected() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    done = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    chunks = await answers(CHAT, done, {"choices": [], "usage": usage})
    assert [chunk.get("usage") for chunk in chunks] == [None, usage]


async def test_chunks_of_the_other_kind_are_made_to_fit() -> None:
    """The frontend answers 500 to a chat chunk in a completion."""
    (chunk,) = (await answers({**COMPLETION, "stream": True}, {"choices": [{"delta": {"content": "a"}}]}))[:1]
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [{"logprobs": None, "index": 0, "finish_reason": None, "text": "a"}]
    texts = [{"object": "text_completion", "choices": [{"index": 0, "text": text}]} for text in "ab"]
    chunks = await answers({**CHAT, "stream": True}, *texts)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert deltas(chunks) == [{"role": "assistant", "content": "a"}, {"content": "b"}, {}]


@pytest.mark.parametrize("yielded", [5, [1, 2], None, {"token_ids": [1]}, {"choices": [5]}])
async def test_what_no_text_model_yields_is_an_error_that_says_what_one_does(yielded: Any) -> None:
    with pytest.raises(ingress.RemoteError) as caught:
        await answers(CHAT, yielded)
    assert "engine yielded" in str(caught.value)


@pytest.mark.parametrize("request_", [{**CHAT, "n": 2}, {**COMPLETION, "prompt": ["a", "b"]}])
async def test_an_engine_of_strings_gives_one_answer(request_: Any) -> None:
    with pytest.raises(ingress.RemoteError, match="one answer to one prompt") as caught:
        await answers(request_, "a")
    assert caught.value.kind == "InvalidArgument"


async def test_an_invalid_request_never_reaches_the_engine() -> None:
    asked = []

    async def generate(request: ChatRequest) -> AsyncIterator[str]:
        asked.append(request)
        yield "x"

    async with behind(generate) as client:
        with pytest.raises(ingress.RemoteError, match="expected int") as caught:
            async with client.stream(ENDPOINT, {**CHAT, "max_tokens": "5"}) as responses:
                [item async for item in responses]
        assert caught.value.kind == "InvalidArgument"
        assert asked == []
        async with client.stream(ENDPOINT, CHAT) as responses:
            assert len([item async for item in responses]) == 2
    assert asked[0].messages[0].text == "hello you there"


async def test_a_caller_that_leaves_cancels_the_engine_behind_the_adapter() -> None:
    ended = trio.Event()

    async def generate(_request: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "more "
                await trio.sleep(0)
        finally:
            ended.set()

    async with behind(generate) as client:
        async with client.stream(ENDPOINT, CHAT) as responses:
            assert (await anext(responses))["choices"][0]["delta"]["content"] == "more "
        with trio.fail_after(5):
            await ended.wait()


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_token_ids_come_one_by_one_in_lists_and_in_objects(token_card: ModelCard) -> None:
    own = {"token_ids": [4], "finish_reason": "length"}
    assert await answers({"token_ids": [9]}, 1, [2, 3], (5,), card=token_card) == [
        {"token_ids": [1]},
        {"token_ids": [2, 3]},
        {"token_ids": [5]},
        {"token_ids": [], "finish_reason": "stop"},
    ]
    assert await answers({"token_ids": [9]}, own, card=token_card) == [own]


@pytest.mark.parametrize(("limit", "reason"), [(2, "length"), (3, "stop"), (None, "stop")])
async def test_tokens_that_fill_the_limit_ended_for_their_length(
    token_card: ModelCard, limit: int | None, reason: str
) -> None:
    request = {"token_ids": [9], "stop_conditions": {"max_tokens": limit}}
    assert (await answers(request, 1, 2, card=token_card))[-1] == {"token_ids": [], "finish_reason": reason}


@pytest.mark.parametrize("yielded", ["text", True, [1, "a"], {"text": "a"}])
async def test_what_no_model_of_tokens_yields_is_an_error(token_card: ModelCard, yielded: Any) -> None:
    with pytest.raises(ingress.RemoteError, match="yields token ids"):
        await answers({"token_ids": [9]}, yielded, card=token_card)


# -- workers ---------------------------------------------------------------------------------------------------------


async def test_other_kinds_of_model_get_what_the_engine_yields() -> None:
    embedding = {"object": "list", "data": []}
    assert await answers({"input": "x"}, embedding, card=ModelCard("m", types="Embedding")) == [embedding]


async def test_the_card_is_announced_with_the_instance_and_withdrawn_with_it() -> None:
    async def generate(request: Any) -> AsyncIterator[str]:
        yield "x"

    @ingress.bidirectional
    async def converse(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    discovery = ingress.MemoryDiscovery()
    engines = {"demo.a.generate": generate, "demo.b.generate": converse, "demo.c.generate": generate}
    models = {"demo.a.generate": "text", "dyn://demo.b.generate": ModelCard("live")}
    async with ingress.serving(engines, network=MemoryNetwork(), discovery=discovery, model=models, linger=0) as worker:
        assert [(r.key, r.card["display_name"], r.card["model_type"]) for r in discovery.models] == [
            (f"demo/a/generate/{worker.instance_id:x}", "text", "Chat | Completions"),
            (f"demo/b/generate/{worker.instance_id:x}", "live", "Realtime"),
        ]
    assert discovery.models == []


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"demo.other.generate": "m"}, "model for demo.other.generate, which is not served here"),
        ({"nonsense": "m"}, "must be namespace.component.endpoint"),
        (5, "model must be a name or an ingress.models.ModelCard, got int"),
        (ModelCard("m", types="Realtime"), "Realtime needs a bidirectional engine"),
    ],
)
async def test_a_model_that_cannot_be_served_is_refused_at_the_start(model: Any, complaint: str) -> None:
    async def generate(request: Any) -> AsyncIterator[str]:
        yield "x"

    with pytest.raises(StartupError, match=complaint):
        ingress.make_worker(generate, endpoint=ENDPOINT, discovery=ingress.MemoryDiscovery(), model=model)


async def test_one_card_for_several_endpoints_is_refused() -> None:
    async def generate(request: Any) -> AsyncIterator[str]:
        yield "x"

    engines = {"demo.a.generate": generate, "demo.b.generate": generate}
    with pytest.raises(StartupError, match="one model and 2 endpoints"):
        ingress.make_worker(engines, discovery=ingress.MemoryDiscovery(), model="m")
