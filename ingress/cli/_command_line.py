"""The command line that is being run, for the verb that has to run it again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_arguments: ContextVar[tuple[str, ...] | None] = ContextVar("ingress command line", default=None)


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[None]:
    """Let these be the arguments while inside; the program's own need not be ours where it calls ``main``."""
    token = _arguments.set(tuple(arguments))
    try:
        yield
    finally:
        _arguments.reset(token)


def command_line() -> Sequence[str]:
    """Return the verb and what follows it."""
    arguments = _arguments.get()
    return sys.argv[1:] if arguments is None else arguments
