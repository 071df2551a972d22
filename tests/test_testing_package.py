"""``ingress.testing`` as a package: what it needs to be imported, and what the shapes it speaks for may use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ingress.testing
from ingress.testing import PropertyFailed, strategies
from ingress.testing import _strategies as private_strategies

ROOT = Path(__file__).parent.parent

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pytest", "_pytest", "hypothesis"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_without_test_packages(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + program], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )


def test_the_checks_run_without_pytest_and_hypothesis() -> None:
    program = """
from ingress.testing import *
from ingress.testing import check_codec, check_engine, check_shape
from ingress.wire.codec import JsonCodec
from engines.echo import echo
from shapes import HeaderAndData
check_codec(JsonCodec(), examples=5)
check_engine(echo, ["x"], examples=2)
check_shape(HeaderAndData(), examples=5)
assert not {"pytest", "hypothesis"} & set(sys.modules)
"""
    finished = run_without_test_packages(program)
    assert finished.returncode == 0, finished.stderr


def test_without_hypothesis_the_strategies_name_the_extra() -> None:
    finished = run_without_test_packages("from ingress.testing import strategies")
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: ingress.testing.strategies needs hypothesis: pip install 'ingress-dispatch[testing]'"
    )


def test_every_strategy_is_public() -> None:
    tree = ast.parse(Path(private_strategies.__file__ or "").read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {name for name in defined if not name.startswith("_")} <= set(vars(strategies))


def test_a_failed_property_is_an_assertion_that_names_everything() -> None:
    failure = PropertyFailed(expected="this", got="that")
    failure.subject, failure.property, failure.seed = "Subject", "does so", 7
    assert isinstance(failure, AssertionError)
    assert str(failure) == "Subject: does so\n  expected  this\n  got       that\n  seed      7"


def test_public_names_are_documented() -> None:
    for name, value in vars(ingress.testing).items():
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("ingress.testing"):
            assert value.__doc__, name


# -- what shapes are made of -----------------------------------------------------------------------------------------


def imports_of(source: str) -> list[str]:
    """Every module a program imports, and every name from one as ``module:name``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [f"{module}:{alias.name}" for alias in node.names]
    return found


def lifecycle_imports(source: str) -> list[str]:
    """What a shape has no business with: an event loop, sockets, threads, metrics, and private modules of ingress."""
    forbidden = ("trio", "anyio", "asyncio", "socket", "threading", "prometheus_client", "ingress.metrics")
    wrong = []
    for imported in imports_of(source):
        module, _, name = imported.partition(":")
        parts = module.split(".")
        is_private = parts[0] == "ingress" and any(part.startswith("_") for part in [*parts, name])
        is_forbidden = any(f"{module}.{name}".startswith((f"{each}.", each)) for each in forbidden)
        if is_private or is_forbidden:
            wrong.append(imported)
    return wrong


@pytest.mark.parametrize("path", sorted((ROOT / "shapes").glob("**/*.py")), ids=lambda path: path.name)
def test_no_lifecycle_code_is_repeated_in_a_shape(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert lifecycle_imports(source) == []
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert not names & {"__import__", "exec", "eval"}
    attributes = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not attributes & {"metrics", "open_nursery", "aclose", "send_all", "receive_some", "request_in_flight"}


@pytest.mark.parametrize(
    "line",
    [
        "import trio",
        "import trio.abc",
        "from trio import open_nursery",
        "from ingress._handler import PushHandler",
        "from ingress import _handler",
        "from ingress.metrics import WorkerMetrics",
        "from ingress import metrics",
        "import socket",
        "def f():\n    import asyncio",
    ],
)
def test_lifecycle_code_would_be_found(line: str) -> None:
    assert len(lifecycle_imports(line)) == 1
