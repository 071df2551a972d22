"""Options that several verbs share, each with its environment twin: flag, then variable, then default."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
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
    from .._plugins import GroupName
    from ..abc import Discovery

OUTPUT = Group("Output", sort_key=20)
DISCOVERY = Group("Discovery", sort_key=10)

DEFAULT_NAMESPACE = "demo"
DEFAULT_BACKEND = "file"

Namespace = Annotated[
    str, Parameter(env_var="DYN_NAMESPACE", help="Completes an endpoint that names less than three parts.")
]
AsJson = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, group=OUTPUT, help="JSON with a versioned schema.")
]


def named_in(group: GroupName) -> Callable[[object, str], None]:
    """Make a validator that takes the names of the installed plug-ins of a group."""

    def check(kind: object, value: str) -> None:
        from .._plugins import installed

        known = sorted({point.name for point in installed(group)})
        if value not in known:
            raise ValueError(f"expected one of {', '.join(known)}")

    return check


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

    def set_up_logging(self, level: int = logging.WARNING, *, process: int | None = None) -> LineWriter:
        """Log to stderr, at ``level`` where neither the flags nor ``DYN_LOG`` say anything."""
        verbosity = -1 if self.quiet else self.verbose
        return set_up_logging(
            os.environ, sys.stderr, verbosity=verbosity, level=level, color=self.color, process=process
        )


@Parameter(name="*")
@frozen
class DiscoveryOptions:
    """Where workers are announced and found."""

    discovery: Annotated[
        str,
        Parameter(
            env_var="DYN_DISCOVERY_BACKEND",
            group=DISCOVERY,
            validator=named_in("discovery"),
            help="file: a directory; mem: this process only; or another that is installed.",
        ),
    ] = DEFAULT_BACKEND
    file_kv: Annotated[
        Path | None,
        Parameter(
            env_var="DYN_FILE_KV", group=DISCOVERY, help="Directory of file discovery.  [default: one in the temp dir]"
        ),
    ] = None

    @property
    def environ(self) -> dict[str, str]:
        """What the plug-in is made from: the environment, and the flags under the names of their variables."""
        return {**os.environ, **({} if self.file_kv is None else {"DYN_FILE_KV": str(self.file_kv.absolute())})}

    @property
    def flags_to_repeat(self) -> list[str]:
        """The flags that another terminal would have to be told."""
        from ..discovery import default_directory
        from ._screen import shell_path

        if self.discovery != DEFAULT_BACKEND:
            return [f"--discovery {shlex.quote(self.discovery)}"]
        if self.file_kv is None or self.file_kv.absolute() == default_directory({}):
            return []
        return [f"--file-kv {shell_path(self.file_kv.absolute())}"]

    def open(self) -> Discovery:
        """Load the plug-in of that name and let it make the discovery.

        Raises:
            StartupError: the plug-in cannot be used, or lacks something, as it says.
        """
        from .._plugins import load_discovery

        return load_discovery(self.discovery, self.environ)

    def open_shared(self) -> Discovery:
        """Return a discovery that other processes share.

        Raises:
            CommandError: it would find nothing but this process.
            StartupError: as :meth:`open`.
        """
        opened = self.open()
        if not opened.is_shared:
            raise usage(
                f"{self.discovery} discovery cannot find other processes",
                "its records live inside the worker that announces them",
                "--discovery file, with the --file-kv of the worker",
            )
        return opened

    def describe(self, opened: Discovery) -> str:
        """Return the name and the place, for eyes."""
        from ._screen import short_path

        place = short_path(Path(opened.location)) if opened.location.startswith("/") else opened.location
        return f"{self.discovery} {place or ('' if opened.is_shared else '(this process only)')}".rstrip()


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
