"""Plug-ins by entry point: shapes, engines, discoveries, planes; loaded by name, when asked for.

One that is broken, or whose name several distributions claim, is an error for whoever asks for it by name, and for
nobody else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .abc import IngressDispatch
from .errors import PluginError

logger = logging.getLogger("ingress.plugins")

GroupName = Literal["shapes", "engines", "discovery", "planes"]
GROUPS: tuple[GroupName, ...] = ("shapes", "engines", "discovery", "planes")


def installed(group: GroupName) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name and distribution; loads nothing."""
    found = entry_points(group=f"ingress.{group}")
    return sorted(found, key=lambda point: (point.name, distribution_of(point)))


def distribution_of(point: EntryPoint) -> str:
    """``name version`` of the distribution that declares the entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown distribution"


def claims(group: GroupName, name: str) -> list[EntryPoint]:
    """Return the entry points of that name: none, one, or one for each distribution that claims it."""
    points = [point for point in installed(group) if point.name == name]
    # The same distribution may be found twice: in a checkout and in site-packages.
    return list({(distribution_of(point), point.value): point for point in points}.values())


def load(group: GroupName, name: str) -> Any:
    """Load one plug-in.

    Raises:
        PluginError: unknown, claimed by several distributions, or broken.
    """
    points = claims(group, name)
    if not points:
        known = ", ".join(sorted({point.name for point in installed(group)})) or "none"
        raise PluginError(f"no plug-in named {name!r} in ingress.{group}; installed: {known}")
    if len(points) > 1:
        claimed_by = " and ".join(f"{distribution_of(point)} ({point.value})" for point in points)
        raise PluginError(f"plug-in {name!r} in ingress.{group} is claimed by {claimed_by}; uninstall one")
    return load_point(points[0])


def load_point(point: EntryPoint) -> Any:
    """Load an entry point.

    Raises:
        PluginError: it cannot be imported; the text names its distribution.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as exc:
        raise PluginError(
            f"plug-in {point.name!r} of {distribution_of(point)} ({point.value}) does not load: "
            f"{type(exc).__name__}: {exc}"
        ) from exc


def load_shape(name: str) -> IngressDispatch[Any]:
    """Load one shape and return an instance.

    Raises:
        PluginError: unknown, claimed by several distributions, broken, or no shape.
    """
    shape = load("shapes", name)
    if not (isinstance(shape, type) and issubclass(shape, IngressDispatch)):
        raise PluginError(f"plug-in {name!r} in ingress.shapes is no IngressDispatch class: {shape!r}")
    try:
        return shape()
    except Exception as exc:  # abstract, or in want of arguments
        raise PluginError(f"plug-in {name!r} in ingress.shapes cannot be made: {type(exc).__name__}: {exc}") from exc


def load_shapes() -> Iterator[IngressDispatch[Any]]:
    """Yield an instance of every installed shape that loads, in the order of their names.

    One that does not is logged and left out: another distribution's trouble must not keep a worker from starting.

    Raises:
        PluginError: none is left.
    """
    names = dict.fromkeys(point.name for point in installed("shapes"))
    failures = []
    for name in names:
        try:
            yield load_shape(name)
        except PluginError as exc:
            logger.error("left out: %s", exc)
            failures.append(str(exc))
    if len(failures) == len(names):
        raise PluginError("; ".join(failures) or "no shape is installed in ingress.shapes; is ingress-dispatch itself?")
