"""The command ``ingress``: :func:`main` is its entry point.

Kept light on purpose: ``ingress --version`` imports nothing but this file, and each verb imports what it alone needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

# Flags that mean the same for every verb, and may therefore stand in front of it.
_EARLY_FLAGS = frozenset({"-v", "-vv", "--verbose", "-q", "--quiet"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0 clean · 1 run-time failure · 2 usage · 3 start-up failure · 4 drained with requests cancelled · 130/143 forced.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"] and sys.stdout is not None:
        from .._version import __version__

        with suppress(OSError):  # told below, as for every verb
            print(f"ingress {__version__}", flush=True)
            return 0
    from ._start import end_soon, signals_from_the_start, take_closed_streams, take_standard_descriptors

    take_standard_descriptors()
    _forget_empty_variables()
    arguments = _verb_first(arguments)
    is_service, is_process = arguments[:1] == ["serve"], argv is None
    if not is_service:
        take_closed_streams()
    with signals_from_the_start(to_the_end=is_process) if is_service else nullcontext():
        from ._app import run_command_line

        exit_code = run_command_line(arguments)
    if is_service and is_process:
        end_soon(exit_code)
    return exit_code


def _forget_empty_variables() -> None:
    """Treat an empty ``DYN_…`` or ``INGRESS_…`` variable as absent, which is what manifests mean by one."""
    for name in [name for name, value in os.environ.items() if not value and name.startswith(("DYN_", "INGRESS_"))]:
        del os.environ[name]


def _verb_first(arguments: list[str]) -> list[str]:
    """Move flags in front of the verb behind it: ``ingress -v serve x`` is ``ingress serve -v x``."""
    early: list[str] = []
    rest = list(arguments)
    while rest:
        if rest[0] in _EARLY_FLAGS or rest[0].startswith("--color="):
            early.append(rest.pop(0))
        elif rest[0] == "--color" and len(rest) > 1:
            early += [rest.pop(0), rest.pop(0)]
        else:
            break
    return [*rest[:1], *early, *rest[1:]]
