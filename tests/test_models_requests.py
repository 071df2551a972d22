"""The typed requests of models: what is read, and which words the end user gets for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from ingress.errors import InvalidArgument
from ingress.models import ChatRequest, CompletionRequest
from ingress.models.requests import read_text_request, read_tokens_request

HELLO = [{"role": "user", "content": "hello there"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HELLO, **fields}


def test_chat_and_completions_are_told_apart_by_their_fields() -> None:
    assert isinstance(read_text_request(chat()), ChatRequest)
    assert isinstance(read_text_request({"model": "m", "prompt": "x"}), CompletionRequest)


def test_the_text_of_a_prompt_is_that_of_its_messages_and_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}, image]}]
    request = read_text_request(chat(messages=[*messages, {"role": "assistant", "tool_calls": [{"id": "1"}]}]))
    assert request.prompt_text == "a\nb\n"


def test_unknown_fields_are_no_error_and_integers_are_numbers() -> None:
    request = read_text_request(chat(temperature=1, top_p=0.5, logit_bias={"1": 2}, stop=["a"], stream_options={}))
    assert (request.temperature, request.top_p, request.stop) == (1.0, 0.5, ["a"])


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, None), ({"max_tokens": 3}, 3), ({"max_tokens": 3, "max_completion_tokens": 5}, 5)],
)
def test_the_newer_name_of_the_limit_wins(fields: dict[str, int], limit: int | None) -> None:
    assert read_text_request(chat(**fields)).limit == limit


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, True),
        ({"stream": False}, True),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": False}}, True),
    ],
)
def test_usage_is_wanted_in_whole_answers_and_on_request(fields: dict[str, Any], wanted: bool) -> None:
    assert read_text_request(chat(**fields)).wants_usage is wanted


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (None, "expected an object with messages or a prompt"),
        ([], "expected an object with messages or a prompt"),
        ({"model": "m"}, "expected an object with messages or a prompt"),
        (chat(messages="hello"), r"expected str @ request.messages\[0\].role"),
        (chat(messages=[{"content": "x"}]), r"required field missing @ request.messages\[0\].role"),
        (chat(messages=[{"role": "user", "content": 5}]), r"@ request.messages\[0\].content"),
        (chat(max_tokens="5"), r"expected int \| None @ request.max_tokens"),
        (chat(max_tokens=5.5), r"expected int \| None @ request.max_tokens"),
        (chat(stream="false"), r"expected bool \| None @ request.stream"),
        (chat(temperature=2.5), "temperature must be between 0 and 2, got 2.5"),
        (chat(max_completion_tokens=-1), "max_completion_tokens must be at least 0, got -1"),
        (chat(n=0, top_p=7), "n must be at least 1, got 0|top_p must be between 0 and 1"),
        ({"model": "m", "prompt": None}, "prompt must be text"),
        ({"model": "m", "prompt": []}, "prompt must be text"),
        ({"model": "m", "prompt": ["a", 1]}, "prompt must be text"),
        ({"model": "m", "prompt": 5}, "prompt must be text"),
    ],
)
def test_what_is_wrong_is_told_in_words_for_the_end_user(request_: Any, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        read_text_request(request_)


@pytest.mark.parametrize(
    ("prompt", "count", "text"),
    [
        ("a", 1, "a"),
        (["a"], 1, "a"),
        (["a", "b"], 2, "a\nb"),
        ([1, 2, 3], 1, ""),
        ([[1, 2], [3]], 2, ""),
    ],
)
def test_a_prompt_is_text_or_tokens_one_or_several(prompt: Any, count: int, text: str) -> None:
    request = read_text_request({"model": "m", "prompt": prompt})
    assert isinstance(request, CompletionRequest)
    assert (request.prompt_count, request.prompt_text) == (count, text)


def test_a_request_recorded_behind_the_frontend_is_read() -> None:
    """Vector frontend-tokens: unset options come as null, temperatures as 32-bit floats."""
    request = read_tokens_request(
        {
            "model": "tokens",
            "token_ids": [84, 82, 68],
            "stop_conditions": {
                "max_tokens": None,
                "stop": None,
                "stop_token_ids": None,
                "stop_token_ids_visible": None,
                "stop_token_ids_hidden": [256],
                "min_tokens": None,
                "ignore_eos": None,
                "max_thinking_tokens": None,
            },
            "sampling_options": {"n": None, "temperature": 0.30000001192092896, "guided_decoding": None},
            "output_options": {"logprobs": None},
            "eos_token_ids": [256],
            "mdc_sum": "3e0f",
            "annotations": [],
            "routing": {},
            "router_config_override": None,
        }
    )
    assert request.token_ids == [84, 82, 68]
    assert request.stop_conditions.stop_token_ids_hidden == [256]
    assert request.sampling_options.temperature == 0.30000001192092896


@pytest.mark.parametrize("request_", [None, 5, [], {}, {"token_ids": "abc"}, {"token_ids": [1.5]}])
def test_a_request_without_token_ids_is_refused(request_: Any) -> None:
    with pytest.raises(InvalidArgument):
        read_tokens_request(request_)
