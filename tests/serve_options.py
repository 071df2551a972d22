"""The options of ``ingress serve`` as the command itself knows them, for documents and manifests to be held against."""

from __future__ import annotations

import inspect

from attrs import frozen
from docstring_parser import parse

from ingress.cli._app import make_app
from ingress.cli._serve import serve

# Secrets have no flag, and a dangerous switch needs more than a variable.
SECURITY_VARIABLES = ("DYN_TCP_TLS_INSECURE", "INGRESS_TOKEN_KEYS")

# Read by the logging of every verb, and no flag's twin.
LOGGING_VARIABLES = ("DYN_LOG", "DYN_LOGGING_JSONL", "DYN_LOG_USE_LOCAL_TZ", "DYN_SDK_DISABLE_ANSI_LOGGING")

# Told by the parent of several processes to each of them.
PROCESS_VARIABLES = ("INGRESS_PROCESS",)


@frozen
class Option:
    """One flag."""

    group: str
    flags: tuple[str, ...]
    variables: tuple[str, ...]
    default: object
    help: str


def serve_options() -> list[Option]:
    """Return every flag of ``ingress serve``, in the order of its help."""
    documented = {found.arg_name: found.description or "" for found in parse(inspect.getdoc(serve) or "").params}
    arguments = make_app()["serve"].assemble_argument_collection()
    return [
        Option(
            (argument.parameter.group or ("Parameters",))[0].name,  # type: ignore[index]  # groups by now
            tuple(argument.names),
            tuple(argument.parameter.env_var or ()),
            argument.field_info.default,
            argument.parameter.help or documented[argument.field_info.name],
        )
        for argument in arguments
        if argument.show and argument.names[0].startswith("-")
    ]


def known_variables() -> set[str]:
    """Return the environment variables that ``ingress serve`` reads."""
    return {name for option in serve_options() for name in option.variables} | {
        *LOGGING_VARIABLES,
        *SECURITY_VARIABLES,
    }
