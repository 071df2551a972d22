"""The verbs, and the one place where whatever goes wrong becomes a message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cyclopts import App, ArgumentCollection, CoercionError, CycloptsError

from .._version import __version__
from ..errors import StartupError
from ._command_line import running
from ._env_file import read_env_file
from ._errors import EXIT_CLEAN, EXIT_FAILED, CommandError, print_error, startup_error, usage_error
from ._screen import make_console, print_queued

if TYPE_CHECKING:
    from rich.console import Console

    from .._log_writer import LineWriter

EXIT_INTERRUPTED = 130

# For what engines have printed, at the end of a service.
_LAST_OUTPUT_TIME = 1.0

# What writing to an open descriptor fails with: a full disk, a quota, a terminal that is gone, one opened for reading.
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})

VERBS = {
    "demo": "Watch a worker and a caller at work, in one process.",
    "serve": "Run engines as a worker until told to stop.",
    "call": "Send one request to a live worker and stream the answer.",
    "ls": "List the workers that discovery knows.",
    "plugins": "List the shapes, engines, discoveries and planes that are installed.",
    "top": "Watch what workers do, live.",
    "bench": "Put a live worker under load and tell what callers would see.",
    "settings": "Show what a worker would be started with, and where each value comes from.",
    "doctor": "Check what a worker needs of its surroundings.",
    "decode": "Explain captured bytes, field by field.",
    "check": "Put an engine or a shape through what a cluster may do to it.",
    "new": "Write a small project: an engine or a shape, with its tests.",
}


def make_app() -> App:
    """Build the command; a verb's module is imported when the verb is used."""
    app = App(
        name="ingress",
        help="The worker side of a distributed-inference cluster. New here? Start with `ingress demo`.",
        version=f"ingress {__version__}",
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        config=_refuse_readings,
    )
    for verb, summary in VERBS.items():
        app.command(f"ingress.cli._{verb}:{verb}", name=verb, help=summary)
    return app


def _refuse_readings(app: App, verbs: Sequence[str], arguments: ArgumentCollection) -> None:
    """Refuse 1.5 where a whole number is meant, which the parser would round, and "" for the current directory."""
    for argument in arguments:
        for token in argument.tokens:
            if argument.hint in (int, int | None) and "." in token.value:
                raise CoercionError(argument=argument, token=token, target_type=int)
            if argument.hint in (Path, Path | None) and not token.value:
                raise CoercionError(argument=argument, token=token, target_type=Path)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run the verb and return the exit code; nothing but a bug gets out as an exception."""
    color = _value_of("--color", arguments) or "auto"
    is_service = arguments[:1] == ["serve"]
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # our screens use a few characters that an ASCII terminal lacks
        if (env_file := _value_of("--env-file", arguments)) is not None:
            read_env_file(env_file)
        with running(arguments):
            result = make_app()(
                arguments,
                console=make_console(sys.stdout, color),
                exit_on_error=False,
                print_error=False,
            )
        if sys.stdout is not None and is_service:
            _flush_engines(result)
        elif sys.stdout is not None:
            sys.stdout.flush()
    except CycloptsError as exc:
        error = usage_error(exc, list(VERBS))
    except CommandError as exc:
        error = exc
    except StartupError as exc:
        error = startup_error(exc)
    except BrokenPipeError:
        # Whoever read our output wants no more of it: `ingress call … | head`. Nobody is left to be told.
        _discard(sys.stdout)
        return EXIT_CLEAN
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (OSError, BaseExceptionGroup) as exc:
        if (lost := _lost_output(exc)) is None:
            raise
        _discard(sys.stdout)
        why = lost.strerror or str(lost)
        error = CommandError("the output cannot be written", why, "standard output to a place that takes it")
    else:
        return result if isinstance(result, int) else EXIT_CLEAN
    _tell(error, make_console(sys.stderr, color), is_service=is_service)
    return error.exit_code or EXIT_FAILED


def _tell(error: CommandError, console: Console, *, is_service: bool) -> None:
    """Write the error; a service does not wait for long for somebody to read it."""
    if not is_service:
        try:
            print_error(error, console)
        except OSError:  # the exit code has to do
            _discard(sys.stderr)
        return
    writer = _log_writer()
    print_queued(console, writer, lambda console: print_error(error, console))
    writer.flush()


def _log_writer() -> LineWriter:
    """Return the one that writes the log, so that its lines come first, or another, where nothing is logged yet."""
    import logging

    from .._log_writer import LineWriter

    used = (handler for handler in logging.getLogger().handlers if isinstance(handler, LineWriter))
    return next(used, None) or LineWriter(sys.stderr)


def _flush_engines(exit_code: int) -> None:
    """Write what engines have printed: it is no result, and holds up the end for a moment only."""
    import threading

    from .._signals import leave_now

    def flush() -> None:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _discard(sys.stdout)

    flusher = threading.Thread(target=flush, name="ingress last output", daemon=True)
    flusher.start()
    flusher.join(_LAST_OUTPUT_TIME)
    if flusher.is_alive():  # the interpreter would wait for what this thread holds
        leave_now(exit_code)


def _lost_output(exc: BaseException) -> OSError | None:
    """Return why nothing can be written, where that and nothing else is what was raised."""
    if isinstance(exc, BaseExceptionGroup):
        found = [_lost_output(each) for each in exc.exceptions]
        return None if None in found else found[0]
    return exc if isinstance(exc, OSError) and exc.errno in _UNWRITABLE else None


def _discard(stream: TextIO) -> None:
    """Drop what is still to be written: the interpreter tries once more on its way out, and would complain."""
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Find an option that is needed before the command line is parsed."""
    for flag, following in pairwise([*arguments, ""]):
        if flag == "--":
            break
        if flag == option:
            return following
        if flag.startswith(f"{option}="):
            return flag.removeprefix(f"{option}=")
    return None
