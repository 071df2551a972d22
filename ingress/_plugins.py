"""Plug-ins by entry point: shapes, engines, adapters, discoveries, planes; loaded by name, when asked for.

One that is broken, or whose name several distributions claim, is an error for whoever asks for it by name, and for
nobody else.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Literal, TypeVar

from ._failures import text_of
from ._signals import is_ctrl_c
from ._text import printable
from .abc import Discovery, IngressDispatch, PlaneOptions, RequestPlane
from .errors import PluginError, StartupError

logger = logging.getLogger("ingress.plugins")

GroupName = Literal["shapes", "engines", "adapters", "discovery", "planes"]
MadeT = TypeVar("MadeT")

GROUPS: tuple[GroupName, ...] = ("shapes", "engines", "adapters", "discovery", "planes")


def installed(group: GroupName) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name and distribution; loads nothing."""
    try:
        found = list(entry_points(group=f"ingress.{group}"))
    except Exception:  # one distribution's unreadable list hides everybody's
        found = [point for point in _legible() if point.group == f"ingress.{group}"]
    return sorted(found, key=lambda point: (point.name, distribution_of(point)))


def _legible() -> Iterator[EntryPoint]:
    """Every entry point of the distributions whose lists can be read; the others are logged, once each."""
    seen: set[str] = set()
    for dist in distributions():
        try:
            name = re.sub(r"[-_.]+", "-", dist.name).lower()
            if name not in seen:  # the first on the path is the one that is imported
                yield from dist.entry_points
            seen.add(name)
        except Exception as exc:
            place = str(getattr(dist, "_path", "a distribution"))
            if place not in _told:
                _told.add(place)
                logger.error("left out: the entry points of %s cannot be read: %s: %s", place, type(exc).__name__, exc)


_told: set[str] = set()


def distribution_of(point: EntryPoint) -> str:
    """``name version`` of the distribution that declares the entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown distribution"


def duplicate_complaint(group: GroupName, name: str) -> str | None:
    """Say who else claims the name, or None where one distribution does."""
    points = claims(group, name)
    if len(points) < 2:
        return None
    claimed_by = " and ".join(f"{distribution_of(point)} ({point.value})" for point in points)
    return f"plug-in {name!r} in ingress.{group} is claimed by {claimed_by}; uninstall one"


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
        known = ", ".join(sorted({point.name for point in installed(group)}))
        known = known or "none, so ingress-dispatch itself has to be installed anew"
        raise PluginError(f"no plug-in named {name!r} in ingress.{group}; installed: {known}")
    if (complaint := duplicate_complaint(group, name)) is not None:
        raise PluginError(complaint)
    return load_point(points[0])


def load_point(point: EntryPoint) -> Any:
    """Load an entry point.

    Raises:
        PluginError: it cannot be imported; the text names its distribution.
    """
    try:
        return point.load()
    except BaseException as exc:  # a module may call sys.exit, too
        if is_ctrl_c(exc):
            raise
        raise PluginError(
            f"plug-in {point.name!r} of {distribution_of(point)} ({point.value}) does not load: "
            f"{type(exc).__name__}: {printable(text_of(exc))}"
        ) from exc


# -- shapes ----------------------------------------------------------------------------------------------------------


def load_shape(name: str) -> IngressDispatch[Any]:
    """Load one shape and return an instance.

    Raises:
        PluginError: unknown, claimed by several distributions, broken, or no shape.
    """
    return make_shape(load("shapes", name), _label("shapes", name))


def make_shape(shape: Any, label: str) -> IngressDispatch[Any]:
    """Return an instance of what an entry point in ``ingress.shapes`` names.

    Raises:
        PluginError: it is no shape, or cannot be made.
    """
    if not (isinstance(shape, type) and issubclass(shape, IngressDispatch)):
        raise PluginError(f"{label} is no IngressDispatch class: {shape!r}")
    try:
        return shape()
    except Exception as exc:  # abstract, or in want of arguments
        raise PluginError(f"{label} cannot be made: {type(exc).__name__}: {exc}") from exc


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


# -- discovery and planes --------------------------------------------------------------------------------------------


def load_discovery(name: str, environ: Mapping[str, str] = os.environ) -> Discovery:
    """Make the discovery of that name; see :data:`ingress.abc.DiscoveryFactory`.

    Raises:
        PluginError: unknown, claimed by several distributions, broken, or no discovery.
        StartupError: the environment lacks something, as the plug-in says.
    """
    return _made("discovery", name, environ, Discovery)  # type: ignore[type-abstract]  # only to look at


def load_plane(name: str, options: PlaneOptions) -> RequestPlane:
    """Make the request plane of that name; see :data:`ingress.abc.PlaneFactory`.

    Raises:
        PluginError: unknown, claimed by several distributions, broken, or no request plane.
        StartupError: the options do not do, as the plug-in says.
    """
    return _made("planes", name, options, RequestPlane)  # type: ignore[type-abstract]  # only to look at


def _made(group: GroupName, name: str, given: object, kind: type[MadeT]) -> MadeT:
    factory, label = load(group, name), _label(group, name)
    try:
        made = factory(given)
    except StartupError:
        raise
    except Exception as exc:
        raise PluginError(f"{label} cannot be made: {type(exc).__name__}: {exc}") from exc
    if not isinstance(made, kind):
        raise PluginError(f"{label} makes no {kind.__name__}: {made!r}")
    return made


def _label(group: GroupName, name: str) -> str:
    distribution = distribution_of(claims(group, name)[0])
    return f"plug-in {name!r} of {distribution} in ingress.{group}"
