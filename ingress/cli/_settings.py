"""``ingress settings``: what a worker would be started with, and where each value comes from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from attrs import frozen
from cyclopts import ArgumentCollection, Parameter

from .._text import printable
from ._app import make_app
from ._doctor_variables import OF_LOGGING, OF_SECURITY
from ._env_file import taken_from_file
from ._errors import EXIT_CLEAN
from ._ls import print_table
from ._options import AsJson
from ._payloads import print_document
from ._screen import make_console
from ._tls_options import TOKEN_KEYS_VARIABLE

SCHEMA = "ingress.settings/1"

# Shown as a star: that there is one is all that anybody needs to know.
SECRETS = frozenset({TOKEN_KEYS_VARIABLE})

_HEADINGS = ("setting", "value", "origin")
_MAX_VALUE = 60


@frozen
class Setting:
    """One setting of a worker."""

    name: str
    """Its flag; its variable where it has no flag."""

    variables: tuple[str, ...]
    """The variables it is read from; the first that is set wins."""

    value: Any
    origin: str
    """``flag``, ``environment``, ``env file`` or ``default``."""

    source: str = ""
    """The flag or the variable that gave the value."""

    path: str = ""
    """The file that a variable came from."""

    @property
    def shown_origin(self) -> str:
        match self.origin:
            case "environment":
                return self.source
            case "env file":
                return f"{self.source} in {self.path}"
            case origin:
                return origin


def settings(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)], as_json: AsJson = False) -> int:
    """Show what a worker would be started with, and where each value comes from.

    Starts nothing. A flag wins over its variable, the variable over a line of the env file, that over the default.

    Parameters
    ----------
    arguments
        The options of `ingress serve`, as they would be given to it.
    """
    found = read_settings(arguments, os.environ)
    if as_json:
        print_document(as_document(found))
        return EXIT_CLEAN
    rows = [(each.name, printable(_shown(each.value), _MAX_VALUE), printable(each.shown_origin)) for each in found]
    color = next(each.value for each in found if each.name == "--color")
    print_table(make_console(sys.stdout, color), _HEADINGS, rows)
    return EXIT_CLEAN


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> list[Setting]:
    """Parse a command line of ``ingress serve`` and return every setting, in the order of its help.

    Raises:
        CycloptsError: a flag or a variable cannot be used.
    """
    parsed: list[ArgumentCollection] = []
    app = make_app()
    app.config = (*app.config, lambda _app, _verbs, collection: parsed.append(collection))
    app.parse_args(["serve", *arguments], exit_on_error=False, print_error=False)
    files = taken_from_file()
    found = []
    for argument in parsed[0]:
        if not (argument.show and argument.names[0].startswith("-")):
            continue
        name, variables = argument.names[-1], tuple(argument.parameter.env_var or ())
        if not argument.tokens:
            found.append(Setting(name, variables, argument.field_info.default, "default"))
            continue
        token = argument.tokens[0]
        source = token.keyword or name
        if token.source == "env":
            found.append(_of_variable(name, variables, argument.value, source, files))
        else:
            found.append(Setting(name, variables, argument.value, "flag", source))
    for name in (*OF_SECURITY, *OF_LOGGING):
        if name in environ:
            found.append(_of_variable(name, (name,), "*" if name in SECRETS else environ[name], name, files))
        else:
            found.append(Setting(name, (name,), None, "default"))
    return found


def _of_variable(name: str, variables: tuple[str, ...], value: Any, source: str, files: Mapping[str, str]) -> Setting:
    if source in files:
        return Setting(name, variables, value, "env file", source, files[source])
    return Setting(name, variables, value, "environment", source)


def as_document(found: Sequence[Setting]) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    shown = [
        {
            "name": each.name,
            "value": _plain(each.value),
            "origin": each.origin,
            "source": each.source or None,
            "path": each.path or None,
            "variables": each.variables,
        }
        for each in found
    ]
    return {"schema": SCHEMA, "settings": shown}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return " ".join(map(str, value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)
