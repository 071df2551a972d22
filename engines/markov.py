"""A text engine of pure Python: an order-2 word chain, for demonstrations that say something readable.

It has read one page, the text below, and nothing else. Each next word is one that followed the last two somewhere on
that page.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import trio
from attrs import frozen

from ingress import Context, InvalidArgument

DEFAULT_MAX_WORDS = 60
MAX_WORDS = 100_000
MAX_DELAY = 60.0

# After this share of the words asked for, the next full stop ends the answer: half a sentence reads like a failure.
_ENOUGH = 0.6

_TEXT = """
The sky is blue because the light that reaches us has been scattered, and a stream is clear because the bytes that
reach us have been framed. The sky is wide because nobody put a limit on it, and a worker is calm because somebody did.
The sky is full of light, and the light is full of small pieces that arrive one after the other.

A frame is a small promise: first it says how long it is, then it keeps its word. A frame is read twice, once for its
length and once for its meaning. A frame is never late because it never waits for the next one. A frame that lies about
its length is turned away before a single byte of it is kept.

A stream is a row of frames that leave when they are ready. A stream is finished when the last frame says so, and not
when the line goes quiet. A stream is a river with numbered drops. The stream is open as long as somebody reads it, and
when nobody reads it any more the worker puts down its pen.

A worker is a function with good manners: it takes a request, it calls home, and it answers in small pieces. A worker is
found in the directory where it wrote its name. A worker is free to be slow, but it is never allowed to be silent. The
worker calls home because the caller gave it an address, and it checks the address before it dials. The worker is told
to stop, finishes its sentence, and takes its name off the door.

The caller is patient because it knows that an answer is on its way. The caller is free to leave in the middle of a
word, and the engine is told at once. The caller is the one who listens, and the worker is the one who dials.

An engine is a function that yields one word after the other. An engine is asked, it thinks, and it yields the first
word as soon as it has one. An engine is stopped where it waits, and the light in its room goes out.

The first word is the one that everybody waits for, so it never waits for the second. The first frame says which stream
this is, the second frame says that the worker is willing, and the last frame says that nothing is missing. The last
word is followed by a full stop, because a full stop is how a reader knows that the answer is whole.

Light is fast because it never asks for directions. Words are fast when they are sent together, and patient when the
reader is slow. Bytes are cheap, but the silence between them is what the caller remembers. When two words are ready at
the same time they leave together, because one long walk is better than two short ones. When the reader is slow the
worker is slow with it, and nobody else has to wait. When the worker goes away it says goodbye, and the words that were
promised are still delivered.
"""

_WORD = re.compile(r"[^\W_]+", re.UNICODE)

Pair = tuple[str, str]


@frozen
class _Request:
    prompt: str
    max_words: int
    seed: int | str | None
    delay: float


async def markov(request: Any, context: Context) -> AsyncIterator[dict[str, Any]]:
    """Answer a prompt word by word: ``{"text": "sky ", "index": 1}``.

    The answer begins with a piece of the prompt where the page has one. A request is the prompt itself or
    ``{"prompt": …, "max_words": 60, "seed": …, "delay": 0}``, where ``delay`` is the seconds between two words. The
    same seed and prompt give the same answer. Behind a model card it answers the last message of a chat, and counts
    ``max_tokens`` in words.

    Raises:
        InvalidArgument: the request is neither, or a field has a wrong type or size.
    """
    wanted = _read(request)
    for index, word in enumerate(_words(wanted)):
        if wanted.delay and index:
            await trio.sleep(wanted.delay)
        yield {"text": f"{word} ", "index": index}


def _read(request: Any) -> _Request:
    fields = {"prompt": request} if isinstance(request, str) else request
    if not isinstance(fields, dict):
        raise InvalidArgument(f"expected a prompt or an object with a prompt, got {type(request).__name__}")
    prompt = fields.get("prompt", _last_message(fields.get("messages")))
    if not isinstance(prompt, str):
        raise InvalidArgument(f"prompt: expected text, got {type(prompt).__name__}")
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens") or DEFAULT_MAX_WORDS
    max_words = fields.get("max_words", limit)
    if type(max_words) is not int or not 1 <= max_words <= MAX_WORDS:
        raise InvalidArgument(f"max_words: expected a whole number from 1 to {MAX_WORDS}, got {max_words!r:.80}")
    seed = fields.get("seed")
    if seed is not None and type(seed) not in (int, str):
        raise InvalidArgument(f"seed: expected a whole number or text, got {type(seed).__name__}")
    delay = fields.get("delay", 0)
    if type(delay) not in (int, float) or not math.isfinite(delay) or not 0 <= delay <= MAX_DELAY:
        raise InvalidArgument(f"delay: expected seconds from 0 to {MAX_DELAY:g}, got {delay!r:.80}")
    return _Request(prompt, max_words, seed, float(delay))


def _last_message(messages: Any) -> Any:
    """The text of the last turn of a conversation; parts that are no text are left out."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return None
    content = messages[-1].get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content


def _words(wanted: _Request) -> Iterator[str]:
    """Walk the chain word by word, so that the first word does not wait for the last."""
    chance = random.Random(None if wanted.seed is None else f"{wanted.seed}/{wanted.prompt}")  # noqa: S311 - prose
    pair = _beginning(wanted.prompt, chance)
    pending = list(pair)
    for count in range(wanted.max_words):
        if not pending:
            if _ends_sentence(pair[1]) and count >= wanted.max_words * _ENOUGH:
                return
            following = _CHAIN.get(pair)
            if following is None:  # the last words of the page
                pair = chance.choice(_BEGINNINGS)
                pending += pair
            else:
                pair = (pair[1], chance.choice(following))
                pending.append(pair[1])
        yield pending.pop(0)


def _beginning(prompt: str, chance: random.Random) -> Pair:
    """Return two words to begin with: from the end of the prompt where the page knows them, else a sentence's first."""
    asked = [word.lower() for word in _WORD.findall(prompt)]
    for pair in reversed(list(pairwise(asked))):
        if pair in _BY_PLAIN_WORDS:
            return _BY_PLAIN_WORDS[pair]
    about = [pair for pair in _BEGINNINGS if any(_plain(word) in asked for word in pair if len(word) > 3)]
    return chance.choice(about or _BEGINNINGS)


def _plain(word: str) -> str:
    return word.strip(".,:;").lower()


def _ends_sentence(word: str) -> bool:
    return word.endswith(".")


def _read_page(text: str) -> tuple[dict[Pair, list[str]], list[Pair], dict[Pair, Pair]]:
    """Return what may follow each two words, the sentences' beginnings, and both words of each as they are typed."""
    words = text.split()
    chain: defaultdict[Pair, list[str]] = defaultdict(list)
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        chain[first, second].append(third)
    pairs = list(pairwise(words))
    beginnings = [pairs[0], *(pair for before, pair in zip(words, pairs[1:], strict=False) if _ends_sentence(before))]
    plain = {(_plain(first), _plain(second)): (first, second) for first, second in pairs if not _ends_sentence(first)}
    plain.update({(_plain(first), _plain(second)): (first, second) for first, second in beginnings})
    return dict(chain), beginnings, plain


_CHAIN, _BEGINNINGS, _BY_PLAIN_WORDS = _read_page(_TEXT)
