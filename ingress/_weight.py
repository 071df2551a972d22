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

# A body that takes more than this part of the worst is dense, and counts as the worst: honest ones take less, texts a
# sixtieth of it, most lists of tokens a tenth.
_DENSE = 4

# What is counted without a look at the single values; what is looked into; and all that is known by its size.
_NUMBERS, _OF_NUMBER = frozenset({int, float, bool, type(None)}), 36
_CONTAINERS = frozenset({dict, list, tuple})
_PLAIN = _NUMBERS | _CONTAINERS | {str, bytes}

# So many values are looked at in one step.
_VALUES_A_STEP = 4096
SECONDS_A_STEP = 5e-4


def worst_weight(size: int) -> int:
    """Return the bytes of memory that a body of so many bytes takes at most."""
    return min(_OF_BYTE * size, _OF_LARGE_BYTE * size + _OF_MOST_VALUES)


def weigh_in_steps(value: Any, size: int) -> Iterator[int]:
    """Yield the bytes of memory that a decoded body of ``size`` bytes takes, as far as is known; the last is the whole.

    One that is evidently dense counts the worst that it can be, without a look at the rest; and one that holds anything
    but texts, bytes, numbers, lists and dicts, which may refer to whatever they like.
    """
    weight, worst = 0, worst_weight(size)
    values: Iterable[Any] = (value,)
    while True:
        containers = []
        values = iter(values)
        while some := list(islice(values, _VALUES_A_STEP)):
            kinds = set(map(type, some))
            if kinds <= _NUMBERS:  # the tokens of a prompt, and two thirds faster
                weight += _OF_NUMBER * len(some)
            elif kinds <= _PLAIN:
                weight += sum(map(getsizeof, some))
            if not kinds <= _PLAIN or weight * _DENSE > worst:
                yield worst
                return
            if not kinds.isdisjoint(_CONTAINERS):
                containers += [each for each in some if each and type(each) in _CONTAINERS]
            if len(some) == _VALUES_A_STEP:
                yield weight
        if not containers:
            yield max(weight, size)
            return
        values = chain.from_iterable(map(_values_of, containers))


def weigh(value: Any, size: int) -> int:
    """Return the last of :func:`weigh_in_steps`, at once."""
    weight = 0
    for step in weigh_in_steps(value, size):
        weight = step
    return weight


def _values_of(container: Any) -> Iterable[Any]:
    return chain(container, container.values()) if type(container) is dict else container
