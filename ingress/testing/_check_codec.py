"""``check_codec``: does a payload codec give back what it was given, and take nothing for something else?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from attrs import field, frozen

from .._failures import describe_failure
from ..errors import DeserializationError, GenerateError
from ..wire.codec import PayloadCodec
from ..wire.messages import Annotated, ErrorEvent
from ._outcome import Checker, OnOutcome, fail, show
from ._payloads import garbage
from ._run import run_check

DEFAULT_EXAMPLES = 500

MAX_DEPTH = 5


def check_codec(
    codec: PayloadCodec,
    values: Sequence[Any] = (),
    *,
    seed: int = 0,
    examples: int = DEFAULT_EXAMPLES,
    on_outcome: OnOutcome | None = None,
) -> None:
    """Check that a codec carries values and response items unchanged, and raises what it should and nothing else.

    Args:
        codec: the codec.
        values: values of your own it has to carry, beside random ones of text, numbers, lists and maps.
        seed: where the random numbers begin.
        examples: how many random values, and how much garbage.
        on_outcome: is told of each property, and failures are not raised.

    Raises:
        PropertyFailed: a property does not hold.
    """
    checker = Checker(type(codec).__name__, seed, on_outcome)
    run_check(partial(_check_all, checker, _CodecProperties(codec, values, examples)), seed)


async def _check_all(checker: Checker, properties: _CodecProperties) -> None:
    for name, property_ in properties.all().items():
        await checker.check(name, property_)


@frozen
class _CodecProperties:
    codec: PayloadCodec
    values: Sequence[Any] = field(repr=False)
    examples: int

    def all(self) -> dict[str, Callable[[random.Random], Any]]:
        return {
            "gives back every value": self.gives_back_values,
            "gives back every item with its envelope": self.gives_back_items,
            "its final frame ends an answer": self.final_ends,
            "refuses what it cannot hold": self.refuses_values,
            "garbage gives a DeserializationError and nothing else": self.refuses_garbage,
        }

    async def gives_back_values(self, rng: random.Random) -> None:
        for value in self._values(rng):
            body = self.codec.encode(value)
            if not isinstance(body, bytes):
                fail("encode to return bytes", show(body))
            if not _same(back := self.codec.decode(body), value):
                fail(f"{show(value)} back", f"{show(back)}, by way of {show(body)}")

    async def gives_back_items(self, rng: random.Random) -> None:
        for value in self._values(rng):
            for chunk in (value, Annotated(value, id="1", event="e", comment=["c"]), Annotated(value)):
                item = self.codec.decode_item(self.codec.encode_item(chunk))
                wanted = chunk if isinstance(chunk, Annotated) else Annotated(chunk)
                if item.complete_final or item.annotated is None:
                    fail(f"an item that is not the last, from {show(chunk)}", show(item))
                if not _same(item.annotated.data, wanted.data) or item.annotated.event != wanted.event:
                    fail(f"{show(wanted)} back", show(item.annotated))
        error = ErrorEvent.of_kind("InvalidArgument", "no", is_public=True)
        item = self.codec.decode_item(self.codec.encode_item(error))
        if item.annotated is None or item.annotated.error != error:
            fail(f"the error event {error} back", show(item.annotated))

    async def final_ends(self, rng: random.Random) -> None:
        item = self.codec.decode_item(self.codec.final)
        if item.annotated is not None or not item.complete_final:
            fail("complete_final and no data", show(item))

    async def refuses_values(self, rng: random.Random) -> None:
        endless: list[Any] = []
        endless.append(endless)
        attempts = ((self.codec.encode, ValueError), (self.codec.encode_item, GenerateError))
        for value in (object(), [object()], {"a": {1, object()}}, lambda: None, endless):
            for encode, expected in attempts:
                try:
                    body = encode(value)
                except expected:
                    continue
                except Exception as exc:
                    fail(f"{encode.__name__} to raise {expected.__name__} for {show(value)}", describe_failure(exc))
                fail(f"{encode.__name__} to raise {expected.__name__} for {show(value)}", show(body))

    async def refuses_garbage(self, rng: random.Random) -> None:
        values = list(self._values(rng))[:20]
        bodies = [*map(self.codec.encode, values), *map(self.codec.encode_item, values), self.codec.final]
        cut = [body[:at] for body in bodies for at in range(min(len(body), 40))]
        for data in [*cut, *garbage(rng, bodies, self.examples)]:
            for decode in (self.codec.decode, self.codec.decode_item):
                try:
                    decode(data)
                except DeserializationError:
                    pass
                except Exception as exc:
                    fail(
                        f"{decode.__name__} to return a value or raise DeserializationError",
                        f"{describe_failure(exc)}, from {show(data)}",
                    )

    def _values(self, rng: random.Random) -> Iterator[Any]:
        yield from self.values
        yield from (None, True, False, 0, -1, 2**63 - 1, -(2**63), 1.5, "", "€\U0001f600\0", [], {}, [None], {"": ""})
        for _ in range(self.examples):
            yield random_value(rng)


def random_value(rng: random.Random, depth: int = MAX_DEPTH) -> Any:
    """Make a value that every codec carries: text, 64-bit integers, finite floats, booleans, null, lists, maps."""
    if depth and rng.random() < 0.4:
        children = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        return children if rng.random() < 0.5 else {_text(rng): child for child in children}
    return rng.choice(
        (
            None,
            rng.random() < 0.5,
            rng.randrange(-(2**63), 2**63) >> rng.randrange(64),
            rng.gauss(0, 10.0 ** rng.randrange(-20, 20)),
            _text(rng),
        )
    )


def _text(rng: random.Random) -> str:
    return "".join(rng.choices('ab "\\/\0\n\x7fäß€한\U0001f600', k=rng.randrange(8)))


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are not the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)
