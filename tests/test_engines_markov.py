"""The built-in engines: echo counts exactly, markov is readable, repeatable and strict about its requests."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from engines.echo import echo
from engines.markov import DEFAULT_MAX_WORDS, MAX_WORDS, markov
from ingress import InvalidArgument
from ingress.testing import memory_worker

CONTEXT: Any = None  # markov looks at its request alone


async def answer(request: Any) -> str:
    return "".join([chunk["text"] async for chunk in markov(request, CONTEXT)])


async def test_the_answer_begins_with_the_end_of_the_prompt() -> None:
    assert (await answer("why is the sky")).startswith("The sky is ")


async def test_a_chat_is_answered_by_its_last_message() -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "user", "content": "why is the sky"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "why is the sky"}, {"type": "image_url"}]}]
    for messages in (turns, parts):
        text = await answer({"messages": messages, "max_tokens": 9, "seed": 1})
        assert text.startswith("The sky is ")
        assert len(text.split()) <= 9


@pytest.mark.parametrize("messages", [None, [], "hello", ["hello"], [{"role": "user", "content": 5}]])
async def test_a_chat_without_text_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidArgument, match="prompt: expected text"):
        await answer({"messages": messages})


async def test_a_prompt_the_page_knows_nothing_of_is_answered_all_the_same() -> None:
    for prompt in ("", "xyzzy", "日本"):
        assert len((await answer(prompt)).split()) > 10


async def test_the_same_seed_and_prompt_give_the_same_answer() -> None:
    request = {"prompt": "what is a frame", "seed": 7}
    assert await answer(request) == await answer(request)
    assert len({await answer({**request, "seed": seed}) for seed in range(8)}) > 4


async def test_chunks_are_words_with_a_running_index() -> None:
    chunks = [chunk async for chunk in markov({"prompt": "light", "max_words": 9, "seed": 1}, CONTEXT)]
    assert [chunk["index"] for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk["text"] == chunk["text"].strip() + " " for chunk in chunks)


@pytest.mark.parametrize("max_words", [1, 2, 3, 60, 500])
async def test_there_are_never_more_words_than_asked_for(max_words: int) -> None:
    for seed in range(20):
        words = (await answer({"prompt": "a worker", "max_words": max_words, "seed": seed})).split()
        assert max_words * 0.6 <= len(words) <= max_words


async def test_an_answer_that_is_not_cut_ends_with_a_full_stop() -> None:
    for seed in range(20):
        text = await answer({"prompt": "the caller", "seed": seed})
        assert len(text.split()) == DEFAULT_MAX_WORDS or text.rstrip().endswith(".")


async def test_the_delay_is_waited_between_words_and_not_before_the_first(autojump_clock: Any) -> None:
    began = trio.current_time()
    times = [trio.current_time() - began async for _ in markov({"prompt": "x", "max_words": 3, "delay": 2}, CONTEXT)]
    assert times == pytest.approx([0, 2, 4])


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (None, "expected a prompt"),
        ([], "expected a prompt"),
        ({}, "prompt: expected text"),
        ({"prompt": 3}, "prompt: expected text"),
        ({"prompt": "x", "max_words": 0}, "max_words: expected"),
        ({"prompt": "x", "max_words": MAX_WORDS + 1}, "max_words: expected"),
        ({"prompt": "x", "max_words": True}, "max_words: expected"),
        ({"prompt": "x", "max_words": 1.5}, "max_words: expected"),
        ({"prompt": "x", "seed": 1.5}, "seed: expected"),
        ({"prompt": "x", "delay": -1}, "delay: expected"),
        ({"prompt": "x", "delay": float("nan")}, "delay: expected"),
        ({"prompt": "x", "delay": "1"}, "delay: expected"),
    ],
)
async def test_a_request_it_cannot_read_is_the_callers_mistake(request_: Any, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        await answer(request_)


async def test_it_answers_over_the_wire() -> None:
    async with (
        memory_worker(markov) as client,
        client.stream("demo.backend.generate", {"prompt": "the sky", "seed": 2}) as responses,
    ):
        text = "".join([item["text"] async for item in responses])
    assert text == await answer({"prompt": "the sky", "seed": 2})


async def test_echo_gives_back_what_it_got(autojump_clock: Any) -> None:
    assert [chunk async for chunk in echo("x")] == ["x"]
    request = {"n": 2, "delay": 5}
    began = trio.current_time()
    assert [chunk async for chunk in echo(request)] == [{"i": i, "echo": request} for i in range(2)]
    assert trio.current_time() - began == pytest.approx(10)
