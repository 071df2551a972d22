"""Which peers run here, and the table of what each pair did."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import compatibility, peers

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
    scenario = request.node.originalname.removeprefix("test_").replace("_", " ")
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
