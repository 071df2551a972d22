"""How much memory a decoded body takes, which its bytes do not tell: one of msgpack can become a hundred."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from sys import getsizeof
from typing import Any

# What a byte becomes at the worst: a map in a map has two bytes, and takes 232 (measured: 105 for a byte).
_OF_BYTE = 128

# And at the worst of a large body: four bytes, where one letter of a text needs so many, and as many values as there
# may be (measured: a million short texts, 88 bytes each; 250,000 maps, 232 each).
_OF_LARGE_BYTE, _OF_MOST_VALUES = 4, 96 * 1024 * 1024

# Of that the bodies of honest callers take less: texts a sixtieth, tokens a tenth.
_DENSE = 4

# So many values are looked at in one step, which takes half a millisecond.
_VALUES_A_STEP = 4096


def worst_weight(size: int) -> int:
    """Return the bytes of memory that a body of so many bytes takes at most."""
    return min(_OF_BYTE * size, _OF_LARGE_BYTE * size + _OF_MOST_VALUES)


def weigh_in_steps(value: Any, size: int) -> Iterator[int]:
    """Yield the bytes of memory that a decoded body of ``size`` bytes takes, as far as is known; the last is the whole.

    Texts, numbers, lists and dicts are counted, however they are nested; what objects of other types refer to is not
    looked into. One that is evidently dense counts the worst that it can be, without a look at the rest.
    """
    weight, containers = getsizeof(value), [value]
    worst = worst_weight(size)
    while containers:
        items = chain.from_iterable(map(_items_of, containers))
        containers = []
        while some := list(islice(items, _VALUES_A_STEP)):
            kinds = set(map(type, some))
            if kinds <= _NUMBERS:  # the tokens of a prompt, and two thirds faster
                weight += _OF_NUMBER * len(some)
            else:
                weight += sum(map(getsizeof, some))
            if not kinds.isdisjoint(_CONTAINERS):
                containers += [each for each in some if each and type(each) in _CONTAINERS]
            if weight * _DENSE > worst:
                yield worst
                return
            if len(some) == _VALUES_A_STEP:
                yield weight
    yield max(weight, size)


_CONTAINERS = frozenset({dict, list, tuple})
_NUMBERS, _OF_NUMBER = frozenset({int, float, bool, type(None)}), 36


def _items_of(container: Any) -> Iterable[Any]:
    kind = type(container)
    if kind is dict:
        return chain(container, container.values())
    return container if kind in _CONTAINERS else ()
