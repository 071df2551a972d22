"""Typed requests: an attrs class made of what a body was decoded to, by cattrs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from ._chunk_size import estimate_size
from .errors import InvalidArgument
from .wire.codec import converter

T = TypeVar("T")

# To say where something is wrong everything has to be looked at, and what is wrong kept: of a million texts where
# numbers should be, in 3 MB, that took 13 s and 1.7 GB.
MOST_TO_EXPLAIN = 16 * 1024


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
        if estimate_size(request) > MOST_TO_EXPLAIN:
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


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
