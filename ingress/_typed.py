"""Typed requests: an attrs class made of what a body was decoded to, by cattrs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from ._heavy_work import LARGE_BODY
from .bodies import work_in_turn
from .errors import InvalidArgument
from .wire.codec import converter

T = TypeVar("T")

# So many values are made at once, 1 to 2 µs each; from the second number on beside the event loop.
FEW_VALUES, MANY_VALUES = 256, 4096

# To say where something is wrong everything has to be looked at, and what is wrong kept, 13 µs each: of a million texts
# where numbers should be, in 3 MB, that took 13 s and 1.7 GB.
MOST_VALUES_TO_EXPLAIN = 1024

# What a value counts in turns as bytes of a body, which are some 0.1 µs each at the worst.
_SIZE_OF_A_VALUE = 20


class Typed(Generic[T]):
    """Makes requests of one class.

    Args:
        wanted: the attrs class.
    """

    def __init__(self, wanted: type[T]) -> None:
        self._wanted = wanted
        self._structure = converter(is_brief=True).get_structure_hook(wanted)

    def structure(self, request: Any) -> T:
        """Make one; takes as long as the request is large.

        Raises:
            InvalidArgument: it is not of that type; the text names the fields, unless the request is large.
        """
        try:
            made: T = self._structure(request, self._wanted)
            return made
        except Exception as exc:
            raise self._explain(request, exc) from exc

    def _explain(self, request: Any, failure: Exception) -> InvalidArgument:
        # A class that checks itself speaks in the project's own words.
        brief = (
            str(failure)
            if isinstance(failure, InvalidArgument)
            else f"request is no {self._wanted.__name__}: {failure}"
        )
        if count_values(request, MOST_VALUES_TO_EXPLAIN) >= MOST_VALUES_TO_EXPLAIN:
            return InvalidArgument(brief)
        from cattrs import transform_error

        try:
            converter().structure(request, self._wanted)
        except Exception as exc:
            if isinstance(exc, BaseExceptionGroup) and (own := exc.subgroup(InvalidArgument)) is not None:
                return InvalidArgument("; ".join(map(str, _leaves(own))))
            # Its lines read "invalid value for type, expected int @ request.messages[0].role".
            complaints = transform_error(exc, path="request")
            return InvalidArgument("; ".join(complaints[:5]) or brief)
        return InvalidArgument(brief)


def is_small(request: Any) -> bool:
    """Tell whether a request is made at once, whatever is in it."""
    return count_values(request, FEW_VALUES) < FEW_VALUES


async def make_in_turn(make: Callable[[], T], request: Any) -> T:
    """Make something of a request that is not small: in its turn, and of a large one in a thread.

    Raises what making it raises.
    """
    count = count_values(request, MANY_VALUES)
    size = count * _SIZE_OF_A_VALUE if count < MANY_VALUES else LARGE_BODY + 1
    return await work_in_turn(make, size, is_of_engine=True)


def count_values(request: Any, most: int) -> int:
    """Count the values of what a body was decoded to, as far as so many."""
    left, count = [request], 0
    while left:
        value = left.pop()
        count += 1
        kind = type(value)
        if kind is not dict and kind is not list and kind is not tuple:
            continue
        if count + len(left) + len(value) >= most:
            return most
        left += value.values() if kind is dict else value
    return count


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
