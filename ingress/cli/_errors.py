"""Errors as a user of the command sees them: one line *what*, one line *why*, one line *try*; and the exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

from ..errors import StartupError

if TYPE_CHECKING:
    from cyclopts import CycloptsError
    from rich.console import Console

EXIT_CLEAN = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STARTUP = 3


class CommandError(Exception):
    """Ends the command with a message and an exit code."""

    def __init__(self, what: str, why: str = "", remedy: str = "", *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy
        self.exit_code = exit_code


def usage(what: str, why: str = "", remedy: str = "") -> CommandError:
    """Return the error for a command line that cannot be what was meant."""
    return CommandError(what, why, remedy, exit_code=EXIT_USAGE)


def print_error(error: CommandError, console: Console) -> None:
    """Write the lines; a line that has nothing to say is left out."""
    from rich.text import Text

    console.print(Text.assemble(("error: ", "bold red"), _one_line(error.what)), soft_wrap=True)
    for label, text in (("why", error.why), ("try", error.remedy)):
        if text:
            console.print(Text.assemble((f"  {label}: ", "dim"), _one_line(text)), soft_wrap=True)


def _one_line(text: str) -> str:
    from .._text import escaped

    # Nearly everything here may quote what somebody else wrote: an address of a record, an answer, a file.
    return escaped(" ".join(text.split()))


def nearest(word: str, known: Sequence[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known word that was probably meant, as long as they are as alike as ``cutoff`` says, of 0 to 1."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), None)


# -- start-up ---------------------------------------------------------------------------------------------------------

_REMEDIES = (
    (
        "cannot listen on",
        "another --port, or --port 0 to have a free one picked; --host must be an address of this host",
    ),
    ("cannot announce this worker", "a directory that you may write, with --file-kv"),
    ("endpoint", "--endpoint namespace.component.endpoint, e.g. demo.backend.generate"),
)


def startup_error(exc: StartupError) -> CommandError:
    """Split the sentence of a start-up failure into its lines.

    Those sentences read ``what: why`` and, where the remedy is known, ``what: why → remedy``.
    """
    sentence, _, remedy = str(exc).partition(" → ")
    what, colon, why = sentence.partition(": ")
    if not remedy:
        remedy = next((text for beginning, text in _REMEDIES if sentence.startswith(beginning)), "")
    return CommandError(what, why if colon else "", remedy, exit_code=EXIT_STARTUP)


# -- usage ------------------------------------------------------------------------------------------------------------


def usage_error(exc: CycloptsError, verbs: Sequence[str]) -> CommandError:
    """Put what the parser found wrong in our words."""
    from cyclopts import (
        CoercionError,
        MissingArgumentError,
        UnknownCommandError,
        UnknownOptionError,
        UnusedCliTokensError,
        ValidationError,
    )

    command = " ".join(["ingress", *(name for name in exc.command_chain or () if name != "ingress")])
    helpful = f"{command} --help"
    match exc:
        case UnknownCommandError():
            word = (exc.unused_tokens or ["?"])[0]
            guess = nearest(word, verbs)
            return usage(
                f"unknown verb {word!r}",
                f"the verbs are {', '.join(verbs)}",
                f"ingress {guess}" if guess else "ingress --help",
            )
        case UnknownOptionError():
            word = exc.token.keyword or exc.token.value
            names = [name for argument in exc.argument_collection for name in argument.names if argument.parse]
            guess = nearest(word, names)
            return usage(f"unknown option {word}", f"{command} has none of that name", guess or helpful)
        case CoercionError() | ValidationError():
            token = getattr(exc, "token", None) or next(iter(exc.argument.tokens if exc.argument else ()), None)
            if token is None:
                return usage(str(exc), remedy=helpful)
            name = token.keyword or (exc.argument.name if exc.argument else "")
            joint = "=" if token.source == "env" else " "
            return usage(f"{name}{joint}{token.value} cannot be used", _reason(exc), _way_out(token, helpful))
        case MissingArgumentError():
            name = exc.keyword or (exc.argument.name if exc.argument else "an argument")
            return usage(f"{name} is missing its value", f"{command} needs it", helpful)
        case UnusedCliTokensError():
            return usage(f"{' '.join(exc.unused_tokens or [])} is too much", f"{command} takes no more", helpful)
        case _:
            return usage(str(exc).rstrip("."), remedy=helpful)


def _way_out(token: Any, helpful: str) -> str:
    return f"unset {token.keyword}, or see {helpful}" if token.source == "env" else helpful


def _reason(exc: Any) -> str:
    from cyclopts import ValidationError

    if isinstance(exc, ValidationError):
        text = exc.exception_message.rstrip(".")
        return text[:1].lower() + text[1:]
    wanted = exc.target_type
    if get_origin(wanted) is not None and (choices := [str(choice) for choice in get_args(wanted)]):
        return f"expected one of {', '.join(choices)}"
    return f"expected {_KINDS.get(wanted, getattr(wanted, '__name__', wanted))}"


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
