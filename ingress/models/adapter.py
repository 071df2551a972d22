"""An engine behind a model card: requests are checked, answers completed; a few strings are an OpenAI answer."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from .._engine import CheckedEngine, as_async_generator
from .._typed import is_small, make_in_turn
from ..abc import Context
from .card import TEXT_TYPES, ModelCard
from .requests import read_text_request, read_tokens_request
from .text import TextAnswer
from .tokens import TokensAnswer


def adapted(engine: CheckedEngine, card: ModelCard, types: Sequence[str]) -> CheckedEngine:
    """Return the engine as the frontend expects it behind this card.

    Chat and completions are checked and completed. All other kinds, and bidirectional requests, pass as they are.
    """
    if not engine.is_unary or not set(types) <= set(TEXT_TYPES):
        return engine
    return engine.answering_with(_adapter(engine, _begin_tokens if card.takes_tokens else partial(_begin_text, card)))


def _begin_text(card: ModelCard, request: Any, context: Context) -> TextAnswer:
    return TextAnswer(read_text_request(request), context.id, default_model=card.name)


def _begin_tokens(request: Any, _context: Context) -> TokensAnswer:
    return TokensAnswer(read_tokens_request(request))


def _adapter(
    engine: CheckedEngine, begin: Callable[[Any, Context], TextAnswer | TokensAnswer]
) -> Callable[[Any, Context], AsyncIterable[Any]]:
    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        make = partial(begin, request, context)
        answer = make() if is_small(request) else await make_in_turn(make, request)
        async with aclosing(as_async_generator(engine.generate(request, context))) as chunks:
            async for yielded in chunks:
                chunk = answer.chunk(yielded)
                if chunk is not None:
                    yield chunk
        for chunk in answer.ending():
            yield chunk

    return generate
