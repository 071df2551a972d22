"""``ingress plugins``: list what is installed to be found by name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Annotated, Any

from attrs import frozen
from cyclopts import Parameter

from .._engine import make_engine
from .._plugins import GROUPS, GroupName, distribution_of, duplicate_complaint, installed, load_point, make_shape
from ..abc import Engine
from ..errors import PluginError
from ._errors import EXIT_CLEAN, EXIT_FAILED
from ._ls import print_table
from ._options import DEFAULT_OUTPUT, AsJson, OutputOptions
from ._payloads import print_document

SCHEMA = "ingress.plugins/1"

_HEADINGS = ("group", "name", "target", "distribution", "version", "loads")


@frozen
class Found:
    """One entry point, and what is wrong with it."""

    group: str
    point: EntryPoint
    loads: bool | None
    """None where it was not tried."""

    problem: str | None

    @property
    def distribution(self) -> tuple[str, str]:
        """Name and version."""
        dist = self.point.dist
        return ("?", "?") if dist is None else (dist.name, dist.version)

    @property
    def cells(self) -> tuple[str, ...]:
        loads = "?" if self.loads is None else "yes" if self.loads else "no"
        return self.group, self.point.name, self.point.value, *self.distribution, loads


def plugins(
    *,
    check: Annotated[bool, Parameter(negative="--no-check", show_default=False)] = True,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """List the shapes, engines, discoveries and request planes that are installed, and whether they load.

    Ends with 1 where one does not load, or two distributions claim one name.

    Parameters
    ----------
    check
        Import each of them; with --no-check nothing of them runs.
    """
    output.set_up_logging()
    found = find_plugins(check=check)
    if as_json:
        document = {"schema": SCHEMA, "plugins": [_as_json(each) for each in found]}
        print_document(document)
    else:
        print_table(output.stdout(), _HEADINGS, [each.cells for each in found])
    problems = dict.fromkeys(each.problem for each in found if each.problem is not None)
    for problem in problems:
        output.stderr().print(problem, style="yellow", soft_wrap=True, markup=False, highlight=False)
    return EXIT_FAILED if problems else EXIT_CLEAN


def find_plugins(*, check: bool = True) -> list[Found]:
    """Return every entry point of every group, in the order of groups and names."""
    found = []
    for group in GROUPS:
        for point in _once_each(installed(group)):
            failure = _failure(group, point) if check else None
            problem = duplicate_complaint(group, point.name) or failure
            found.append(Found(group, point, failure is None if check else None, problem))
    return found


def _once_each(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    # The same distribution may be found twice: in a checkout and in site-packages.
    return list({(point.name, point.value, distribution_of(point)): point for point in points}.values())


def _failure(group: GroupName, point: EntryPoint) -> str | None:
    """Load one as its user would, as far as that goes without opening anything; return what goes wrong."""
    label = f"plug-in {point.name!r} of {distribution_of(point)} in ingress.{group}"
    try:
        target = load_point(point)
        if group == "shapes":
            make_shape(target, label)
        elif group == "engines":
            make_engine(target() if isinstance(target, type) and issubclass(target, Engine) else target)
        elif not callable(target):
            return f"{label} is no factory: {target!r}"
    except PluginError as exc:
        return str(exc)
    except Exception as exc:
        return f"{label} cannot be made: {type(exc).__name__}: {exc}"
    return None


def _as_json(found: Found) -> dict[str, Any]:
    name, version = found.distribution
    return {
        "group": f"ingress.{found.group}",
        "name": found.point.name,
        "target": found.point.value,
        "distribution": name,
        "version": version,
        "loads": found.loads,
        "problem": found.problem,
    }
