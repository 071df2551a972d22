"""Which peers run here, and the table of what each pair did."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import compatibility, peers
from .frontend import Frontend, running_frontend

CLIENT_VERSIONS = ("1.0.2", "1.2.1", "1.4.2", "1.6.1")
WORKER_VERSIONS = ("1.2.1", "1.6.1")

Observe = Callable[[str], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, versions in (("client_version", CLIENT_VERSIONS), ("worker_version", WORKER_VERSIONS)):
        if fixture in metafunc.fixturenames:
            newest = max(versions)
            marks = {version: [pytest.mark.smoke] if version == newest else [] for version in versions}
            metafunc.parametrize(
                fixture, [pytest.param(version, marks=marks[version]) for version in versions], indirect=True
            )


@pytest.fixture
def client_version(request: pytest.FixtureRequest) -> str:
    return _usable(str(request.param))


@pytest.fixture
def worker_version(request: pytest.FixtureRequest) -> str:
    return _usable(str(request.param))


def _usable(version: str) -> str:
    if not peers.is_installed(version):
        pytest.skip(f"ai-dynamo-runtime {version} is not installed; `make interop` installs it")
    # A 1.0.2 client advertises the machine's first address, which must be one of a namespace of its own.
    if peers.needs_namespace(version) != peers.is_namespaced():
        pytest.skip(f"{version} runs in the other half of `make interop`")
    return version


@pytest.fixture
def file_kv(tmp_path: Path) -> Path:
    """The discovery directory that both sides share."""
    return tmp_path / "kv"


@pytest.fixture
def observed(request: pytest.FixtureRequest) -> Observe:
    """Note what the pair did, for the table of docs/compatibility.md."""
    parameters = request.node.callspec.params
    if "client_version" in parameters:
        pair = f"client {parameters['client_version']}"
    else:
        pair = f"worker {parameters.get('worker_version') or parameters['bidirectional_version']}"
    codec = parameters.get("codec")
    scenario = re.sub(r"^test_([a-z]\d\d_)*", "", request.node.originalname).replace("_", " ")
    if "bidirectional_version" in parameters:
        scenario = f"both ways: {scenario}"

    def note(what: str) -> None:
        compatibility.note(scenario, pair, f"{codec}: {what}" if codec else what)

    return note


@pytest.fixture(scope="session", autouse=True)
def compatibility_table() -> Iterator[None]:
    """At the end hold the observations against the table in the docs, or write it where asked."""
    yield
    compatibility.finish(write="INGRESS_WRITE_DOCS" in os.environ)


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A real HTTP frontend, started once for the tests of a module; each test brings models of its own."""
    if not peers.is_installed(peers.FRONTEND):
        pytest.skip(f"{peers.FRONTEND} is not installed; `make interop` installs it")
    if peers.is_namespaced():
        pytest.skip("the frontend runs in the other half of `make interop`")
    with running_frontend(tmp_path_factory.mktemp("frontend")) as running:
        yield running


@pytest.fixture
def model_name(request: pytest.FixtureRequest) -> str:
    """A model's name that no other test has; it is the namespace of its worker too."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:60].strip("-")
