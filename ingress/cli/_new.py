"""``ingress new``: write a small project that works as it is, to be changed from there."""

from __future__ import annotations

import keyword
import re
import shlex
import string
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

from attrs import frozen
from cyclopts import Parameter

from ._errors import EXIT_CLEAN, EXIT_FAILED, CommandError, usage
from ._options import DEFAULT_OUTPUT, OutputOptions

Kind = Literal["engine", "shape"]

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")

# A module of the same name would hide them from the project's own tests.
_TAKEN = frozenset({"attrs", "engines", "ingress", "msgspec", "pytest", "shapes", "test", "tests", "trio"})

SUFFIX = ".tmpl"


@frozen
class Project:
    """A name, and what becomes of it."""

    name: str

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def class_name(self) -> str:
        return "".join(part.capitalize() for part in self.module.split("_"))

    @property
    def placeholders(self) -> dict[str, str]:
        # Eight bytes, so that the drawing of the layout holds.
        tag = self.module.encode()[:8].ljust(8, b".").decode()
        return {"name": self.name, "module": self.module, "class_name": self.class_name, "tag": tag}


def new(
    kind: Kind,
    name: str,
    /,
    *,
    directory: Annotated[Path | None, Parameter(name=["--directory", "-C"])] = None,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Write a small project that works as it is: the class, its tests, its entry point.

    Parameters
    ----------
    kind
        engine: answers requests. shape: turns payloads into requests.
    name
        Names the project, its module and its entry point: lower case, with - or _ between words.
    directory
        Where the project's own directory is put.  [default: here]
    """
    project = check_name(name)
    parent = Path() if directory is None else directory
    root = parent / name
    written = write_project(kind, project, root)
    if not output.quiet:
        console = output.stdout()
        for path in written:
            console.print(path.as_posix(), soft_wrap=True)
        check_target = f"{project.module}:{project.class_name}"
        console.print(f"\nTry next:\n  cd {shlex.quote(str(root))}\n  ingress check {check_target}", soft_wrap=True)
        console.print("  pip install -e '.[dev]' && pytest", soft_wrap=True)
    return EXIT_CLEAN


def check_name(name: str) -> Project:
    """Return the project of that name.

    Raises:
        CommandError: it cannot be the name of a project and a module.
    """
    project = Project(name)
    if not _NAME.fullmatch(name):
        guess = "_".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789_") or "my_engine"
        raise usage(f"{name!r} cannot be the name of a project", "lower case letters, digits, - and _", guess)
    module = project.module
    if keyword.iskeyword(module) or module in _TAKEN or module in sys.stdlib_module_names:
        raise usage(f"{name!r} cannot be the name of a project", "Python has a module or word like it", f"my_{module}")
    return project


def write_project(kind: Kind, project: Project, root: Path) -> list[Path]:
    """Write the files of a project into a directory of its own, and return their paths.

    Raises:
        CommandError: the directory exists, or cannot be written.
    """
    try:
        root.mkdir(parents=True)
    except FileExistsError as exc:
        raise CommandError(
            f"{root} exists", "a project is written into a directory of its own", "another name"
        ) from exc
    except OSError as exc:
        raise _unwritable(root, exc) from exc
    written = []
    for template in templates(kind):
        path = root / template.name.removesuffix(SUFFIX).replace("MODULE", project.module)
        text = string.Template(template.read_text(encoding="utf-8")).substitute(project.placeholders)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        written.append(path)
    return written


def templates(kind: Kind) -> list[Traversable]:
    """Return the files a project is made from."""
    folder = files("ingress") / "_templates" / kind
    return sorted((file for file in folder.iterdir() if file.name.endswith(SUFFIX)), key=lambda file: file.name)


def _unwritable(path: Path, exc: OSError) -> CommandError:
    return CommandError(f"{path} cannot be written", exc.strerror or str(exc), "-C DIRECTORY", exit_code=EXIT_FAILED)
