"""Plug-ins by entry point: found by name and loaded lazily; broken and duplicate ones name their distributions and
disturb nobody else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ingress import _plugins
from ingress._plugins import GROUPS, claims, distribution_of, installed, load, load_shape, load_shapes
from ingress._worker import Worker
from ingress.discovery import MemoryDiscovery
from ingress.errors import PluginError
from ingress.testing import MemoryNetwork
from shapes import HeaderAndData, HeaderOnly

SHAPE = """
from shapes import HeaderAndData
class Mine(HeaderAndData): pass
"""


class Site:
    """A directory of installed distributions, as pip leaves them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, name: str, version: str, entry_points: str, **modules: str) -> None:
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, source in modules.items():
            (self.path / f"{module}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_the_groups_are_those_of_the_documentation() -> None:
    assert GROUPS == ("shapes", "engines", "discovery", "planes") == get_args(_plugins.GroupName)


def test_the_built_in_ones_are_found_like_anyones() -> None:
    assert {"header-and-data", "header-only"} <= {point.name for point in installed("shapes")}
    assert {"echo", "markov"} <= {point.name for point in installed("engines")}
    assert load("shapes", "header-and-data") is HeaderAndData


@pytest.mark.parametrize("group", GROUPS)
def test_a_plug_in_of_any_group_is_loaded_by_name_and_not_before(site: Site, group: Any) -> None:
    site.install("acme", "1.2", f"[ingress.{group}]\nacme = acme_things:thing\n", acme_things="thing = object()")
    (point,) = claims(group, "acme")
    assert distribution_of(point) == "acme 1.2"
    assert "acme_things" not in sys.modules
    assert load(group, "acme") is sys.modules["acme_things"].thing


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    with pytest.raises(PluginError, match=r"no plug-in named 'eco' in ingress.engines; installed: .*echo"):
        load("engines", "eco")
    with pytest.raises(PluginError, match=r"no plug-in named 'x' in ingress.planes; installed: none"):
        load("planes", "x")


@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        ("acme_a:thing", "import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("acme_a:thing", "thing = 1/0", "ZeroDivisionError: division by zero"),
        ("acme_a:thing", "raise SystemExit(3)", "SystemExit: 3"),
        ("acme_a:thing", "other = 1", "AttributeError: module 'acme_a' has no attribute 'thing'"),
        ("acme_none:thing", "", "ModuleNotFoundError: No module named 'acme_none'"),
    ],
)
def test_a_broken_one_names_its_distribution_and_the_reason(site: Site, target: str, source: str, reason: str) -> None:
    site.install("acme-broken", "0.1", f"[ingress.engines]\nbroken = {target}\n", acme_a=source)
    with pytest.raises(PluginError) as caught:
        load("engines", "broken")
    assert str(caught.value) == f"plug-in 'broken' of acme-broken 0.1 ({target}) does not load: {reason}"
    assert caught.value.__cause__ is not None
    assert load("engines", "echo") is not None


@pytest.mark.parametrize("second", ["acme_two:thing", "acme_one:thing"])
def test_a_name_that_two_distributions_claim_is_an_error_that_names_both(site: Site, second: str) -> None:
    site.install("acme-one", "1.0", "[ingress.engines]\nmine = acme_one:thing\n", acme_one="thing = 1")
    site.install("acme-two", "2.0", f"[ingress.engines]\nmine = {second}\nother = acme_two:thing\n", acme_two="thing=2")
    with pytest.raises(PluginError) as caught:
        load("engines", "mine")
    assert str(caught.value) == (
        f"plug-in 'mine' in ingress.engines is claimed by acme-one 1.0 (acme_one:thing) and "
        f"acme-two 2.0 ({second}); uninstall one"
    )
    assert "acme_one" not in sys.modules
    assert load("engines", "other") == 2


# -- shapes ----------------------------------------------------------------------------------------------------------


def test_an_installed_shape_serves_every_worker(site: Site) -> None:
    site.install("acme", "1.0", "[ingress.shapes]\nacme = acme_shape:Mine\n", acme_shape=SHAPE)
    names = [type(shape).__name__ for shape in load_shapes()]
    assert names == ["Mine", "HeaderAndData", "HeaderOnly"]  # by the names of their entry points


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('no gpu')", "does not load: ImportError: no gpu"),
        ("Mine = 3", "is no IngressDispatch class: 3"),
        ("from ingress import IngressDispatch\nclass Mine(IngressDispatch): pass", "cannot be made: TypeError"),
        (SHAPE + "    def __init__(self, size): pass", "cannot be made: TypeError"),
    ],
)
def test_a_broken_shape_is_left_out_of_workers_and_told(
    site: Site, source: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = source.replace("pass\n    def", "\n    def")
    site.install("acme", "1.0", "[ingress.shapes]\nacme = acme_shape:Mine\n", acme_shape=source)
    assert [type(shape) for shape in load_shapes()] == [HeaderAndData, HeaderOnly]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and reason in record.getMessage() and "acme" in record.getMessage()
    with pytest.raises(PluginError, match=r"plug-in 'acme'"):
        load_shape("acme")


def test_a_worker_starts_although_a_shape_is_claimed_twice(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.install("acme-one", "1.0", "[ingress.shapes]\nacme = acme_shape:Mine\n", acme_shape=SHAPE)
    site.install("acme-two", "2.0", "[ingress.shapes]\nacme = acme_two:Mine\n", acme_two=SHAPE)

    async def echo(request: Any) -> Any:
        return request

    Worker({"demo.backend.generate": echo}, discovery=MemoryDiscovery(), network=MemoryNetwork())
    assert "claimed by acme-one 1.0 (acme_shape:Mine) and acme-two 2.0 (acme_two:Mine)" in caplog.text


def test_without_any_shape_a_worker_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plugins, "installed", lambda group: [])
    with pytest.raises(PluginError, match="no shape is installed"):
        list(load_shapes())
