"""Plug-ins by entry point: found by name and loaded lazily; broken and duplicate ones name their distributions and
disturb nobody else."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from attrs import fields

import ingress
from ingress import _plugins, make_worker
from ingress._network import TcpNetwork
from ingress._plugins import (
    GROUPS,
    claims,
    distribution_of,
    installed,
    load,
    load_discovery,
    load_shape,
    load_shapes,
)
from ingress.abc import PlaneOptions
from ingress.cli import main
from ingress.discovery import MemoryDiscovery
from ingress.errors import PluginError, StartupError
from ingress.planes import TcpRequestPlane
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
    assert GROUPS == ("shapes", "engines", "adapters", "discovery", "planes") == get_args(_plugins.GroupName)


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
    with pytest.raises(PluginError, match=r"no plug-in named 'x' in ingress.planes; installed: tcp"):
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

    make_worker({"demo.backend.generate": echo}, discovery=MemoryDiscovery(), network=MemoryNetwork())
    assert "claimed by acme-one 1.0 (acme_shape:Mine) and acme-two 2.0 (acme_two:Mine)" in caplog.text


def test_without_any_shape_a_worker_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plugins, "installed", lambda group: [])
    with pytest.raises(PluginError, match="no shape is installed"):
        list(load_shapes())


# -- discovery and planes --------------------------------------------------------------------------------------------

# Both are small and real: a directory under a name of its own, and a plane whose pushes come over the TCP one's port
# but whose records say otherwise.
ACME = """
from pathlib import Path
from ingress import FileDiscovery
from ingress.abc import RequestPlane
from ingress.errors import StartupError
from ingress.planes import TcpRequestPlane

class Acme(FileDiscovery):
    location = "acme://there"

def discovery(environ):
    if "ACME_DIRECTORY" not in environ:
        raise StartupError("acme discovery needs a place: ACME_DIRECTORY is not set")
    return Acme(Path(environ["ACME_DIRECTORY"]))

def plane(options):
    return Marked(TcpRequestPlane(options))

class Marked(RequestPlane):
    def __init__(self, inner): self.inner = inner
    def transport(self, path): return {**self.inner.transport(path), "acme": "yes"}
    async def serve(self, receive, *, task_status):
        await self.inner.serve(receive, task_status=task_status)
    address = property(lambda self: f"acme {self.inner.address}")
    own_addresses = property(lambda self: self.inner.own_addresses)

broken = 1 / 0 if "BROKEN" in __import__("os").environ else None
nothing = lambda given: None
"""

ENTRY_POINTS = """
[ingress.discovery]
acme = acme_places:discovery
acme-none = acme_places:nothing
[ingress.planes]
acme = acme_places:plane
acme-none = acme_places:nothing
"""


async def words(request: Any) -> Any:
    for word in request.split():
        yield word


async def call(discovery: ingress.Discovery) -> list[Any]:
    async with (
        ingress.open_client(discovery=discovery) as client,
        client.stream("demo.backend.generate", "hello there") as responses,
    ):
        return [item async for item in responses]


async def test_a_worker_takes_its_discovery_and_its_plane_by_name(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("acme", "1.0", ENTRY_POINTS, acme_places=ACME)
    monkeypatch.setenv("ACME_DIRECTORY", str(tmp_path / "kv"))
    async with ingress.serving(words, discovery="acme", plane="acme", linger=0.0) as worker:
        discovery = ingress.FileDiscovery(tmp_path / "kv")
        async with discovery.open_view() as view:
            (record,) = view.instances()
        assert record.transport["acme"] == "yes"
        assert worker.address == f"acme {record.transport['tcp'].partition('/')[0]}"
        assert worker.plane == "acme"
        assert await call(discovery) == ["hello", "there"]
        async with ingress.open_client(discovery="acme") as client:
            assert client.instances() == (record,)


async def test_a_plane_may_be_an_object(site: Site) -> None:
    discovery = MemoryDiscovery()
    plane = TcpRequestPlane(PlaneOptions(network=TcpNetwork()))
    async with ingress.serving(words, discovery=discovery, plane=plane, linger=0.0) as worker:
        assert worker.plane == "TcpRequestPlane"
        assert worker.address == plane.address
        assert await call(discovery) == ["hello", "there"]


def test_what_a_factory_does_wrong_is_told_with_its_distribution(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("acme", "1.0", ENTRY_POINTS, acme_places=ACME)
    with pytest.raises(StartupError, match="acme discovery needs a place"):
        load_discovery("acme", {})
    with pytest.raises(PluginError, match=r"'acme-none' of acme 1.0 in ingress.discovery makes no Discovery: None"):
        load_discovery("acme-none", {})
    options: dict[str, Any] = {"discovery": MemoryDiscovery(), "network": MemoryNetwork()}
    with pytest.raises(PluginError, match=r"'acme-none' of acme 1.0 in ingress.planes makes no RequestPlane: None"):
        make_worker({"demo.backend.generate": words}, plane="acme-none", **options)
    with pytest.raises(
        PluginError, match=r"no plug-in named 'nats' in ingress.planes; installed: acme, acme-none, tcp"
    ):
        make_worker({"demo.backend.generate": words}, plane="nats", **options)


def test_the_command_finds_workers_through_a_plug_in(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("acme", "1.0", ENTRY_POINTS, acme_places=ACME)
    assert main(["ls", "--discovery", "acme"]) == 3
    assert capsys.readouterr().err.splitlines()[:2] == [
        "error: acme discovery needs a place",
        "  why: ACME_DIRECTORY is not set",
    ]
    monkeypatch.setenv("ACME_DIRECTORY", str(tmp_path / "kv"))
    assert main(["ls", "--discovery", "acme", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["discovery"] == {"backend": "acme", "location": "acme://there"}
    assert main(["call", "demo.backend.generate", "--discovery", "acme"]) == 1
    assert "acme acme://there knows no worker" in capsys.readouterr().err
    assert main(["serve", "echo", "--discovery", "acne"]) == 2
    assert "--discovery acne cannot be used" in capsys.readouterr().err
    assert main(["serve", "echo", "--discovery", "acme-none"]) == 3
    assert "plug-in 'acme-none' of acme 1.0 in ingress.discovery makes no Discovery" in capsys.readouterr().err
    assert main(["serve", "echo", "--plane", "acme-none", "--discovery", "mem"]) == 3
    assert "plug-in 'acme-none' of acme 1.0 in ingress.planes makes no RequestPlane" in capsys.readouterr().err


# -- what others' trouble does ---------------------------------------------------------------------------------------


def test_a_list_of_entry_points_that_cannot_be_read_hides_nobody_elses(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("acme-bad", "0.1", "[ingress.shapes]\nthis is no entry point\n")
    site.install("acme", "1.0", "[ingress.shapes]\nacme = acme_shape:Mine\n", acme_shape=SHAPE)
    names = {type(shape).__name__ for shape in load_shapes()}
    assert names == {"Mine", "HeaderAndData", "HeaderOnly"}
    (record,) = caplog.records
    assert "acme_bad-0.1.dist-info cannot be read" in record.getMessage()


def test_plugins_tells_what_does_not_load_in_any_group_and_lists_the_others(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"[ingress.{group}]\nbad = acme_bad:thing\n" for group in GROUPS)
    site.install("acme-bad", "0.1", lines, acme_bad="thing = 3")
    site.install("acme-one", "1.0", "[ingress.planes]\nmine = acme_one:thing\n", acme_one="thing = print")
    site.install("acme-two", "2.0", "[ingress.planes]\nmine = acme_one:thing\n")
    assert main(["plugins", "--json"]) == 1
    captured = capsys.readouterr()
    found = {(each["group"], each["name"], each["distribution"]): each for each in json.loads(captured.out)["plugins"]}
    for group in GROUPS:
        bad = found[f"ingress.{group}", "bad", "acme-bad"]
        assert (bad["version"], bad["loads"]) == ("0.1", False)
        assert "acme-bad 0.1" in bad["problem"] and "3" in bad["problem"]
    assert found["ingress.planes", "tcp", "ingress-dispatch"]["problem"] is None
    for name in ("acme-one", "acme-two"):
        mine = found["ingress.planes", "mine", name]
        assert mine["loads"] is True
        assert "is claimed by acme-one 1.0 (acme_one:thing) and acme-two 2.0 (acme_one:thing)" in mine["problem"]
    assert captured.err.count("is claimed by") == 1


def test_a_plane_is_told_its_options_by_name_so_that_one_more_shifts_none() -> None:
    assert all(each.kw_only for each in fields(PlaneOptions))
