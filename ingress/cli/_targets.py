"""What to serve: ``module:attr``, ``file.py:attr``, or the name of an installed engine."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import field, frozen

from .._engine import make_engine
from .._failures import text_of
from .._plugins import distribution_of, installed, load
from .._signals import is_ctrl_c
from .._text import printable
from ..abc import Engine
from ..errors import PluginError, StartupError
from ._errors import EXIT_STARTUP, CommandError, nearest, startup_error

# What `ingress serve hello.py` means; it is also what the examples call their function.
DEFAULT_ATTRIBUTE = "generate"

OWN_DISTRIBUTION = "ingress-dispatch"


@frozen
class Target:
    """One thing to serve."""

    engine: Any = field(repr=False)
    """A function or an Engine object, checked to be one."""

    label: str
    """What the start-up card calls it."""


def resolve_target(text: str) -> Target:
    """Find, import and check one target.

    Raises:
        CommandError: with exit code 3 and the next thing to type.
    """
    return checked(*_find(text))


def resolve_asyncio_targets(texts: Sequence[str]) -> list[Target]:
    """Find and import handlers written for asyncio, and make engines of them that share one loop.

    Raises:
        CommandError: with exit code 3 and the next thing to type.
    """
    found = [_find(text) for text in texts]
    try:
        engines = load("adapters", "asyncio")([handler for handler, _ in found])
    except PluginError as exc:
        raise _failure("--asyncio cannot be used", str(exc), "ingress plugins") from exc
    except StartupError as exc:
        raise startup_error(exc) from exc
    return [checked(engine, f"{label} (asyncio)") for engine, (_, label) in zip(engines, found, strict=True)]


def _find(text: str) -> tuple[Any, str]:
    """Return what the text names, and how the start-up card shall call it."""
    place, colon, attribute = text.rpartition(":")
    if not colon:
        place, attribute = text, DEFAULT_ATTRIBUTE
    if place.endswith(".py"):
        return attribute_of(module_in_file(Path(place)), attribute, place), f"{Path(place).name}:{attribute}"
    if colon:
        return attribute_of(module_named(place), attribute, place), text
    return _plug_in(text)


def _plug_in(name: str) -> tuple[Any, str]:
    points = [point for point in installed("engines") if point.name == name]
    if not points:
        known = sorted({point.name for point in installed("engines")})
        guess = nearest(name, known)
        raise _failure(
            f"no engine is named {name!r}",
            f"installed are {', '.join(known) or 'none'}",
            f"ingress serve {guess}" if guess else f"module:attr or file.py:attr, e.g. {name}.py:{DEFAULT_ATTRIBUTE}",
        )
    try:
        engine = load("engines", name)
    except PluginError as exc:
        raise _failure(f"engine {name!r} cannot be used", str(exc), "ingress plugins") from exc
    distribution = distribution_of(points[0])
    origin = "built in" if distribution.split(" ")[0] == OWN_DISTRIBUTION else distribution
    return engine, f"{name} ({origin})"


def module_named(name: str) -> ModuleType:
    # As `python -m` does: what stands in the current directory can be imported.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise _failure(
                f"there is no module {name!r}",
                f"neither installed nor in {Path.cwd()}",
                f"file.py:attr where it is a file: {name.replace('.', '/')}.py:{DEFAULT_ATTRIBUTE}",
            ) from exc
        raise _import_failure(name, exc) from exc
    except BaseException as exc:  # of sys.exit, and whatever else a module may raise
        if is_ctrl_c(exc):
            raise
        raise _import_failure(name, exc) from exc


def module_in_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise _failure(f"there is no file {path}", f"looked in {Path.cwd()}", "the path of a Python file, then :attr")
    # As `python file.py` does: its neighbours can be imported.
    directory = str(path.absolute().parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    name = path.stem if path.stem not in sys.modules else f"_ingress_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None and spec.loader is not None  # noqa: S101 - so for every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are looked up there
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:  # of sys.exit, and whatever else a module may raise
        del sys.modules[name]
        if is_ctrl_c(exc):
            raise
        raise _import_failure(str(path), exc) from exc
    return module


def _import_failure(place: str, exc: BaseException) -> CommandError:
    """Name the line that failed: of the user's own code, not of the import machinery."""
    if isinstance(exc, SyntaxError) and exc.filename:
        where = f" at {Path(exc.filename).name}:{exc.lineno}"
    else:
        frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if not _is_machinery(frame.filename)]
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = printable(exc.msg if isinstance(exc, SyntaxError) else text_of(exc))
    return _failure(f"{place} cannot be imported", f"{type(exc).__name__}{where}: {text}", f"python {place}")


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen") or filename in (__file__, importlib.__file__)


def attribute_of(module: ModuleType, attribute: str, place: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
            own = [known for known in public if getattr(vars(module)[known], "__module__", None) == module.__name__]
            guess = nearest(name, own) or next(iter(own), None)
            raise _failure(
                f"{place} has no {attribute!r}",
                f"it defines {', '.join(own) or 'nothing that can be called'}",
                f"ingress serve {place}:{guess}" if guess else f"define {attribute}(request, context) there",
            )
        found = getattr(found, name)
    return found


def checked(engine: Any, label: str) -> Target:
    try:
        if isinstance(engine, type) and issubclass(engine, Engine):
            engine = engine()
        make_engine(engine)
    except StartupError as exc:
        error = startup_error(exc)
        if not error.what.endswith("is no engine"):
            error.what += " cannot be an engine"
        error.remedy = error.remedy or f"async def {DEFAULT_ATTRIBUTE}(request, context), with a yield in it"
        raise error from exc
    except BaseException as exc:
        if is_ctrl_c(exc):
            raise
        why = f"{type(exc).__name__}: {printable(text_of(exc))}"
        raise _failure(f"{label} cannot be an engine", why, "ingress plugins") from exc
    return Target(engine, label)


def _failure(what: str, why: str, remedy: str) -> CommandError:
    return CommandError(what, why, remedy, exit_code=EXIT_STARTUP)
