"""The lock files of CI against pyproject.toml: they cover what it asks for, hold hashes, and nothing of a machine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / ".ci").glob("*.lock"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NAME = PYPROJECT["project"]["name"]

ENTRY = re.compile(
    r"(?P<name>[a-z0-9.-]+)==(?P<version>[\w.]+)(?: ; (?P<marker>[^\\]+?))?(?: --hash=sha256:[0-9a-f]{64})+"
)


@frozen
class Locked:
    """One release of a lock file."""

    version: Version
    marker: Marker | None

    @property
    def is_for_here(self) -> bool:
        return self.marker is None or self.marker.evaluate()


def entries_of(path: Path) -> list[str]:
    """Return the entries, each as one line."""
    return path.read_text(encoding="utf-8").replace("\\\n", "").splitlines()


def read_lock(name: str) -> dict[str, Locked]:
    found = {}
    for entry in entries_of(ROOT / ".ci" / name):
        match = ENTRY.fullmatch(re.sub(r"\s+", " ", entry))
        assert match is not None, f"{name}: {entry[:80]}"
        marker = None if match["marker"] is None else Marker(match["marker"])
        found[match["name"]] = Locked(Version(match["version"]), marker)
    return found


def wanted(*extras: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for, its own extras resolved."""
    optional = PYPROJECT["project"]["optional-dependencies"]
    for text in [*PYPROJECT["project"]["dependencies"], *(text for extra in extras for text in optional[extra])]:
        requirement = Requirement(text)
        if requirement.name == NAME:
            yield from wanted(*requirement.extras)
        else:
            yield requirement


def complaints(requirements: Iterator[Requirement], lock: dict[str, Locked]) -> list[str]:
    """Return what of it the lock does not meet; the same requirement may come more than once."""
    found = []
    for requirement in requirements:
        locked = lock.get(canonicalize_name(requirement.name))
        if locked is None or not requirement.specifier.contains(locked.version, prereleases=True):
            found.append(f"{requirement} against {locked and locked.version}: `make lock`")
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_releases_with_their_hashes_and_no_address_or_path(path: Path) -> None:
    assert len(read_lock(path.name)) == len(entries_of(path)) > 0
    assert not re.search(r"://|file:|@|^-|/", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "extra"),
    [("requirements.lock", "dev"), ("requirements-browser.lock", "browser"), ("requirements-llm.lock", "llamacpp")],
)
def test_a_lock_covers_what_the_project_asks_for(name: str, extra: str) -> None:
    assert complaints(wanted(extra), read_lock(name)) == []


def test_the_lock_of_the_runtime_covers_every_extra_that_a_worker_may_run_with() -> None:
    named = re.findall(r"^RUNTIME_EXTRAS = \$\(foreach extra,(.+?),", MAKEFILE, re.MULTILINE)[0].split()
    others = {"llamacpp", "testing", "fuzz", "browser", "bench", "dev"}
    assert others | set(named) == set(PYPROJECT["project"]["optional-dependencies"])
    assert complaints(wanted(*named), read_lock("requirements-runtime.lock")) == []


def test_the_lock_covers_what_the_project_is_built_with() -> None:
    requirements = map(Requirement, [*PYPROJECT["build-system"]["requires"], "editables"])
    assert complaints(iter(requirements), read_lock("requirements.lock")) == []


def test_the_lock_of_the_build_covers_it_too() -> None:
    requirements = map(Requirement, PYPROJECT["build-system"]["requires"])
    assert complaints(requirements, read_lock("requirements-build.lock")) == []


@pytest.mark.parametrize(
    "name", [path.name for path in LOCKS if path.stem not in ("requirements", "requirements-weights")]
)
def test_what_two_locks_have_in_common_is_the_same_release(name: str) -> None:
    lock, other = read_lock("requirements.lock"), read_lock(name)
    shared = lock.keys() & other.keys()
    assert len(shared) >= min(10, len(other))
    assert {key: lock[key].version for key in shared} == {key: other[key].version for key in shared}


def test_the_lock_is_whole_as_far_as_its_releases_are_installed() -> None:
    """It is installed without looking at dependencies, so that one that it lacks would be missed by nobody else."""
    lock = read_lock("requirements.lock")
    missing, seen = [], 0
    for name, locked in lock.items():
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(dist.version) != locked.version:
            continue  # its neighbour of another day may ask for something else
        seen += 1
        for requirement in map(Requirement, dist.requires or ()):
            is_meant = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_meant and canonicalize_name(requirement.name) not in lock:
                missing.append(f"{name} needs {requirement}")
    assert seen > 30
    assert missing == []


@pytest.mark.skipif("INGRESS_CI" not in os.environ, reason="elsewhere the newest releases are installed")
def test_where_a_change_lands_the_lock_is_what_is_installed() -> None:
    lock = {name: str(locked.version) for name, locked in read_lock("requirements.lock").items() if locked.is_for_here}
    assert {name: importlib.metadata.version(name) for name in lock} == lock
