"""``ingress plugins``: list what is installed to be found by name."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import EntryPoint
from typing import Annotated, Any

from attrs import frozen
from cyclopts import Parameter

from .._plugins import GROUPS, distribution_of, installed, load_point
from ..errors import PluginError
from ._errors import EXIT_CLEAN, EXIT_FAILED
from ._ls import print_table
from ._options import DEFAULT_OUTPUT, AsJson, OutputOptions
from ._payloads import print_document

SCHEMA = "ingress.plugins/1"

_HEADINGS = ("group", "name", "target", "from")


@frozen
class Found:
    """One entry point, and what is wrong with it."""

    group: str
    point: EntryPoint
    problem: str | None

    @property
    def cells(self) -> tuple[str, ...]:
        return self.group, self.point.name, self.point.value, distribution_of(self.point)


def plugins(
    *,
    check: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """List the shapes, engines and discoveries that are installed.

    Ends with 1 where a name is claimed twice or, with --check, does not load.

    Parameters
    ----------
    check
        Import each of them; without this nothing of them runs.
    """
    found = find_plugins(check=check)
    if as_json:
        document = {"schema": SCHEMA, "plugins": [_as_json(each) for each in found]}
        print_document(document)
    else:
        print_table(output.stdout(), _HEADINGS, [each.cells for each in found])
    broken = [each for each in found if each.problem is not None]
    for each in broken:
        output.stderr().print(f"{each.group} {each.point.name}: {each.problem}", style="yellow", soft_wrap=True)
    return EXIT_FAILED if broken else EXIT_CLEAN


def find_plugins(*, check: bool = False) -> list[Found]:
    """Return every entry point of every group, in the order of groups and names."""
    found = []
    for group in GROUPS:
        points = installed(group)
        claims = Counter(name for name, _ in {(point.name, point.value) for point in points})
        found += [Found(group, point, _problem(point, claims[point.name], check)) for point in points]
    return found


def _problem(point: EntryPoint, claims: int, check: bool) -> str | None:
    if claims > 1:
        return "this name is claimed twice, and cannot be used until one is uninstalled"
    if check:
        try:
            load_point(point)
        except PluginError as exc:
            return str(exc)
    return None


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "group": f"ingress.{found.group}",
        "name": found.point.name,
        "target": found.point.value,
        "distribution": distribution_of(found.point),
        "problem": found.problem,
    }
