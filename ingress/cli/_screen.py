"""What the screens share: consoles that know when to be plain, the start-up card, and commands worth copying."""

from __future__ import annotations

import io
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .._version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from .._log_writer import LineWriter

Row = Sequence[tuple[str, str]]
"""One or two cells of a card: label and value."""

# Two cells side by side in 80 columns.
_LABEL, _VALUE = 11, 31


def make_console(stream: IO[str], color: str = "auto") -> Console:
    """Return a console for the stream: colour on terminals only, unless told otherwise.

    In ``auto`` rich follows NO_COLOR and TERM=dumb.
    """
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process here, in the middle of whatever it is doing

    return PipedConsole(
        file=stream,
        force_terminal=True if color == "always" else None,
        color_system=None if color == "never" else "auto",
        # Rich obeys NO_COLOR even where colour was asked for; a flag beats the environment.
        no_color=False if color == "always" else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_queued(console: Console, writer: LineWriter, show: Callable[[Console], None]) -> None:
    """Let ``show`` write to the console without ever waiting for it: what it writes goes in line with the log lines.

    Args:
        writer: writes to the stream of the console.
    """
    stream = console.file
    console.file = sheet = _Sheet(stream)
    try:
        show(console)
    finally:
        console.file = stream
    encoding = console.encoding
    writer.write_line(sheet.getvalue().encode(encoding, "replace").decode(encoding), end="")


class _Sheet(io.StringIO):
    """Stands in for a stream while a console writes. Rich's own capture writes an empty text, which can fail too."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()


def print_card(console: Console, rows: Sequence[Row]) -> None:
    """Write the start-up card: who we are, then the rows."""
    import trio
    from rich.text import Text

    python = platform.python_version()
    console.print(
        Text.assemble(
            ("ingress", "bold cyan"), f" {__version__}", (f" · trio {trio.__version__} · python {python}", "dim")
        ),
        soft_wrap=True,
    )
    console.print()
    for row in rows:
        console.print(_row_text(row), soft_wrap=True)
    console.print()


def _row_text(row: Row) -> object:
    from rich.text import Text

    text = Text("  ")
    for position, (label, value) in enumerate(row):
        if position:
            # A value that is too long for its cell takes the line, and the next cell the following one.
            is_long = len(row[position - 1][1]) >= _VALUE
            text.append("\n  " if is_long else " " * (_VALUE - len(row[position - 1][1])))
        text.append(label.ljust(_LABEL if not position or len(row[0][1]) >= _VALUE else 10), "dim")
        text.append(value)
    return text


def short_path(path: Path) -> str:
    """Return the path for eyes: the home directory as ``~``."""
    home = _home()
    return (
        f"~/{path.relative_to(home)}" if home is not None and path.is_relative_to(home) and path != home else str(path)
    )


def shell_path(path: Path) -> str:
    """Return the path for a shell: short where that needs no quotes."""
    short = short_path(path)
    if short.startswith("~/") and shlex.quote(short[2:]) == short[2:]:
        return short
    return shlex.quote(str(path))


def _home() -> Path | None:
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home != Path(home.anchor) else None


def program_name() -> str:
    """Return how this command was called, so that what we suggest can be typed."""
    import shutil

    called = Path(sys.argv[0] if sys.argv else "")
    found = shutil.which("ingress")
    if called.name == "ingress" and (found is None or not Path(found).samefile(called)):
        return _typed(called)
    if called.name == "__main__.py" and found is None:
        return f"{_typed(Path(sys.executable))} -m ingress"
    return "ingress"


def _typed(path: Path) -> str:
    here, path = Path.cwd(), path.absolute()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def call_command(endpoint: str, asking: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Return the parts of a command that calls the endpoint: what to ask, and the flags it needs."""
    return [f"{program_name()} call {endpoint} {shlex.join(asking)}", *flags]


def command_lines(console: Console, parts: Sequence[str], indent: str = "  ") -> str:
    """Join the parts in one line, or, on a terminal that is too narrow, in two that can still be copied as one."""
    line = indent + " ".join(parts)
    if console.is_terminal and len(line) > console.width and len(parts) > 1:
        return indent + f" \\\n{indent}  ".join(parts)
    return line


class WrappingWriter:
    """Writes words as they come and breaks the line before one that would not fit."""

    def __init__(self, console: Console, margin: int) -> None:
        self._file = console.file
        self._width = min(console.width, 80) - margin
        self._margin = margin
        self._column = 0

    def write(self, text: str) -> None:
        """Write one chunk: a word, or a few."""
        for word in text.split():
            if not self._column:
                before, self._column = " " * self._margin, self._margin
            elif self._column + 1 + len(word) > self._width:
                before, self._column = "\n" + " " * self._margin, self._margin
            else:
                before, self._column = " ", self._column + 1
            self._file.write(before + word)
            self._column += len(word)
        self._file.flush()

    def finish(self) -> None:
        self._file.write("\n\n")
        self._file.flush()
