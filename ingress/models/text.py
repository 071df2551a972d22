"""Text in, text out: what an engine yields becomes the OpenAI chunks that the frontend passes on.

Source: docs/engines.md "What the engine yields"; the answers recorded behind the 1.6.1 frontend.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import frozen

from ..errors import GenerateError, InvalidArgument
from ..wire.messages import Annotated, ErrorEvent
from .requests import ChatRequest, CompletionRequest

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "error"]


@frozen
class Finish:
    """Yielded last by an engine of strings or token ids that knows how its answer ended, and what it counted."""

    reason: FinishReason | None = None
    """None: ``length`` where as many tokens came as the request allows, else ``stop``."""

    prompt_tokens: int | None = None
    """None: the words of the prompt. Where the frontend tokenizes it counts by itself."""

    completion_tokens: int | None = None
    """None: a token for each chunk with text in it."""


class TextAnswer:
    """The chunks of one answer, made one by one; used by the request's own task."""

    def __init__(self, request: ChatRequest | CompletionRequest, request_id: str, *, default_model: str = "") -> None:
        self._request = request
        self._is_chat = isinstance(request, ChatRequest)
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion.chunk" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": request.model or default_model,
        }
        self._finish = Finish()
        self._tokens = 0
        self._is_begun = False
        self._is_finished = False
        self._has_usage = False

    def chunk(self, yielded: Any) -> Any:
        """Return what goes home for one thing the engine yielded, or None for nothing.

        Raises:
            GenerateError: it is nothing that a text model may yield.
            InvalidArgument: the client wants several answers of an engine that yields one.
        """
        if isinstance(yielded, str):
            return self._text(yielded)
        if isinstance(yielded, Mapping):
            if isinstance(yielded.get("choices"), list):
                return self._openai_chunk(yielded)
            if isinstance(text := yielded.get("text"), str):
                return self._text(text)
        if isinstance(yielded, Finish):
            self._finish = yielded
            return None
        if isinstance(yielded, (Annotated, ErrorEvent)):
            return yielded
        described = f"an object with {', '.join(map(str, yielded))}" if isinstance(yielded, Mapping) else repr(yielded)
        raise GenerateError(
            f"engine yielded {described:.200}; a text model yields strings, OpenAI chunks or Finish "
            "(token ids need a card with model files)"
        )

    def ending(self) -> Iterator[dict[str, Any]]:
        """Say what the engine left unsaid: why the answer ended, and the usage where the client wants it."""
        usage = None if self._has_usage or not self._request.wants_usage else self._usage()
        if not self._is_finished:
            last = self._made("", self._reason())
            # A whole answer has the usage of its last chunk; a stream has it in a chunk without choices.
            if usage is not None and not self._request.stream:
                last["usage"], usage = usage, None
            yield last
        if usage is not None:
            yield {**self._head, "choices": [], "usage": usage}

    def _text(self, text: str) -> dict[str, Any]:
        if not self._is_begun and max(self._request.n or 1, self._request.prompt_count) > 1:
            raise InvalidArgument("this model gives one answer to one prompt: n must be 1, and prompt one text")
        self._tokens += bool(text)
        return self._made(text, None)

    def _made(self, text: str, reason: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if self._is_chat:
            begun = {} if self._is_begun else {"role": "assistant"}
            choice["delta"] = {**begun, "content": text} if text or begun else {}
            choice["finish_reason"] = reason
        else:
            choice |= {"text": text, "finish_reason": reason, "logprobs": None}
        self._is_begun = True
        return {**self._head, "choices": [choice]}

    def _openai_chunk(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in what is missing, and make a chat chunk of a completion's or the other way round."""
        choices = []
        for choice in chunk["choices"]:
            if not isinstance(choice, Mapping):
                raise GenerateError(f"engine yielded a chunk whose choices are no objects: {choice!r:.200}")
            choices.append(self._choice(choice))
        self._is_begun = True
        self._has_usage = self._has_usage or chunk.get("usage") is not None
        # The kind must be the request's: the frontend answers 500 to a chat chunk in a completion.
        return {**self._head, **chunk, "object": self._head["object"], "choices": choices}

    def _choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        delta = choice.get("delta", choice.get("message"))
        delta = delta if isinstance(delta, Mapping) else {}
        text = choice.get("text", delta.get("content"))
        rest = {name: value for name, value in choice.items() if name not in ("delta", "message", "text")}
        rest.setdefault("index", 0)
        rest.setdefault("finish_reason", None)
        self._is_finished = self._is_finished or rest["finish_reason"] is not None
        self._tokens += bool(text)
        if self._is_chat:
            if "text" in choice:
                delta = {**({} if self._is_begun else {"role": "assistant"}), "content": text, **delta}
            return {**rest, "delta": dict(delta)}
        return {"logprobs": None, **rest, "text": text or ""}

    def _reason(self) -> str:
        limit = self._request.limit
        return self._finish.reason or ("length" if limit is not None and self._completion_tokens() >= limit else "stop")

    def _completion_tokens(self) -> int:
        return self._tokens if self._finish.completion_tokens is None else self._finish.completion_tokens

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._finish.prompt_tokens, self._completion_tokens()
        if prompt is None:
            prompt = len(self._request.prompt_text.split())
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
