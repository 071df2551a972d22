"""Token ids in, token ids out: what an engine yields becomes what the frontend detokenizes.

Source: docs/engines.md "What the engine yields"; the answers recorded behind the 1.6.1 frontend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import GenerateError
from ..wire.messages import Annotated, ErrorEvent
from .requests import TokensRequest
from .text import Finish


class TokensAnswer:
    """The chunks of one answer, made one by one; used by the request's own task."""

    def __init__(self, request: TokensRequest) -> None:
        self._limit = request.stop_conditions.max_tokens
        self._finish = Finish()
        self._tokens = 0
        self._is_finished = False

    def chunk(self, yielded: Any) -> Any:
        """Return what goes home for one thing the engine yielded, or None for nothing.

        Raises:
            GenerateError: it is nothing that a model of token ids may yield.
        """
        if type(yielded) is int:
            self._tokens += 1
            return {"token_ids": [yielded]}
        if isinstance(yielded, (list, tuple)) and all(type(token) is int for token in yielded):
            self._tokens += len(yielded)
            return {"token_ids": list(yielded)}
        if isinstance(yielded, Mapping) and isinstance(tokens := yielded.get("token_ids"), (list, tuple)):
            self._tokens += len(tokens)
            self._is_finished = self._is_finished or yielded.get("finish_reason") is not None
            return yielded
        if isinstance(yielded, Finish):
            self._finish = yielded
            return None
        if isinstance(yielded, (Annotated, ErrorEvent)):
            return yielded
        raise GenerateError(
            f"engine yielded {yielded!r:.200}; a model with model files yields token ids, objects with token_ids or "
            "Finish (text needs a card without model files)"
        )

    def ending(self) -> Iterator[dict[str, Any]]:
        """Say why the answer ended where the engine did not."""
        if not self._is_finished:
            is_full = self._limit is not None and self._tokens >= self._limit
            yield {"token_ids": [], "finish_reason": self._finish.reason or ("length" if is_full else "stop")}
