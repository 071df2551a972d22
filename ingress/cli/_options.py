"""Options that several verbs share, each with its environment twin: flag, then variable, then default."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from attrs import frozen
from cyclopts import Group, Parameter

from ._errors import usage
from ._logging import set_up_logging
from ._screen import make_console

if TYPE_CHECKING:
    from rich.console import Console

    from .._log_writer import LineWriter
    from ..abc import Discovery

OUTPUT = Group("Output", sort_key=20)
DISCOVERY = Group("Discovery", sort_key=10)

DEFAULT_NAMESPACE = "demo"

Namespace = Annotated[
    str, Parameter(env_var="DYN_NAMESPACE", help="Completes an endpoint that names less than three parts.")
]
AsJson = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, group=OUTPUT, help="JSON with a versioned schema.")
]


@Parameter(name="*")
@frozen
class OutputOptions:
    """How much is said, and in which colours."""

    color: Annotated[Literal["auto", "always", "never"], Parameter(group=OUTPUT, help="Colour the screens.")] = "auto"
    verbose: Annotated[
        int,
        Parameter(
            name=["-v", "--verbose"],
            count=True,
            negative=(),
            show_default=False,
            group=OUTPUT,
            help="Say more; -vv even more.",
        ),
    ] = 0
    quiet: Annotated[
        bool,
        Parameter(
            name=["-q", "--quiet"], negative=(), show_default=False, group=OUTPUT, help="Say nothing but errors."
        ),
    ] = False
    # Read before the command line is, for it fills in for variables; here it stands to be known and explained.
    env_file: Annotated[
        Path | None,
        Parameter(group=OUTPUT, show_default=False, help="File of variables; what is set already wins."),
    ] = None

    def stdout(self) -> Console:
        return make_console(sys.stdout, self.color)

    def stderr(self) -> Console:
        return make_console(sys.stderr, self.color)

    def set_up_logging(self, level: int = logging.WARNING) -> LineWriter:
        """Log to stderr, at ``level`` where neither the flags nor ``DYN_LOG`` say anything."""
        return set_up_logging(
            os.environ, sys.stderr, verbosity=-1 if self.quiet else self.verbose, level=level, color=self.color
        )


@Parameter(name="*")
@frozen
class DiscoveryOptions:
    """Where workers are announced and found."""

    discovery: Annotated[
        Literal["file", "mem"],
        Parameter(env_var="DYN_DISCOVERY_BACKEND", group=DISCOVERY, help="file: a directory; mem: this process only."),
    ] = "file"
    file_kv: Annotated[
        Path | None,
        Parameter(
            env_var="DYN_FILE_KV", group=DISCOVERY, help="Directory of file discovery.  [default: one in the temp dir]"
        ),
    ] = None

    @property
    def directory(self) -> Path:
        from ..discovery import default_directory

        return default_directory({}) if self.file_kv is None else self.file_kv.absolute()

    @property
    def file_kv_to_name(self) -> Path | None:
        """The directory, where another terminal would have to be told of it."""
        from ..discovery import default_directory

        return None if self.directory == default_directory({}) else self.directory

    def open(self) -> Discovery:
        """Return the discovery."""
        from ..discovery import FileDiscovery, MemoryDiscovery

        return MemoryDiscovery() if self.discovery == "mem" else FileDiscovery(self.directory)

    def open_shared(self) -> Discovery:
        """Return a discovery that other processes share.

        Raises:
            CommandError: it would find nothing but this process.
        """
        if self.discovery == "mem":
            raise usage(
                "mem discovery cannot find other processes",
                "its records live inside the worker that announces them",
                "--discovery file, with the --file-kv of the worker",
            )
        return self.open()


DEFAULT_OUTPUT = OutputOptions()
DEFAULT_DISCOVERY = DiscoveryOptions()


def parse_pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """Read repeated ``KEY=VALUE``.

    Raises:
        CommandError: one has no ``=``, or no key.
    """
    pairs = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise usage(f"{option} {text} cannot be used", "expected KEY=VALUE", f"{option} team=search")
        pairs[key] = value
    return pairs


def check_endpoint(text: str, namespace: str) -> str:
    """Return the full name of an endpoint.

    Raises:
        CommandError: the text is none.
    """
    from ..wire.records import EndpointId

    try:
        return str(EndpointId.parse(text, namespace=namespace))
    except ValueError as exc:
        raise usage(f"{text!r} is no endpoint", str(exc), "demo.backend.generate") from exc
