"""Somebody else's distribution, built and installed as a wheel: one shape that is no two-part frame, and one engine.

Nothing of it is known here but its wheel: it is found by its entry points, served by the command, and called over TCP.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingress._plugins import installed

ROOT = Path(__file__).parent.parent

PYPROJECT = """
[build-system]
requires = []                  # nothing is downloaded: the backend lies beside this file
build-backend = "backend"
backend-path = ["."]

[project]
name = "acme-ingress"
version = "1.0"

[project.entry-points."ingress.shapes"]
acme-lines = "acme_ingress:Lines"

[project.entry-points."ingress.engines"]
acme-shout = "acme_ingress:Shout"
"""

BACKEND = '''
"""The smallest build backend: a wheel is a zip file with a few lists in it."""
import tomllib, zipfile
from pathlib import Path

METADATA = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: acme\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"

def build_wheel(directory, config_settings=None, metadata_directory=None):
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    entries = []
    for group, points in project["entry-points"].items():
        entries += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    files = {
        "acme_ingress.py": Path("acme_ingress.py").read_text(),
        f"{stem}.dist-info/METADATA": METADATA.format(**project),
        f"{stem}.dist-info/WHEEL": WHEEL,
        f"{stem}.dist-info/entry_points.txt": "\\n".join(entries) + "\\n",
    }
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{stem}.dist-info/RECORD"])
    with zipfile.ZipFile(Path(directory) / f"{stem}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return f"{stem}-py3-none-any.whl"
'''

MODULE = '''
"""A shape of two lines of text, and an engine that shouts."""
from ingress import Context, Dialer, Engine, IngressDispatch, ParsedRequest
from ingress.errors import DeserializationError, InvalidMessage
from ingress.wire.messages import RequestControlMessage

MARK = bytes(8) + b"acme"

def encode(control, text):
    return MARK + control.encode() + b"\\n" + text.encode() + b"\\n"

class Lines(IngressDispatch[str]):
    def accepts(self, payload: bytes) -> bool:
        return payload.startswith(MARK)

    def read_control(self, payload: bytes) -> RequestControlMessage:
        return RequestControlMessage.decode(self._lines(payload)[0])

    async def parse_and_build_request(self, payload, control, dialer: Dialer) -> ParsedRequest[str]:
        try:
            return ParsedRequest(self._lines(payload)[1].decode(), control)
        except UnicodeDecodeError as exc:
            raise DeserializationError(f"not text: {exc}") from exc

    def example_payloads(self, control):
        return [encode(control, text) for text in ("hello world", "")]

    def _lines(self, payload):
        lines = payload[len(MARK):].split(b"\\n")
        if len(lines) != 3 or lines[2]:
            raise InvalidMessage(f"expected two lines, got {len(lines) - 1}")
        return lines

class Shout(Engine):
    async def generate(self, request: str, context: Context):
        for word in request.split():
            yield word.upper()
'''

CALLER = """
import sys, pathlib, trio, ingress
from acme_ingress import encode
from ingress.testing import stream_payload

def so_be_it(control):
    return encode(control, "so be it")

async def main():
    discovery = ingress.FileDiscovery(pathlib.Path(sys.argv[1]))
    async with ingress.open_client(discovery=discovery) as client:
        await client.wait_for_instances("demo.backend.generate")
        async with stream_payload(client, "demo.backend.generate", so_be_it) as words:
            print(*[word async for word in words])
        async with client.stream("demo.backend.generate", "in two parts") as words:
            print(*[word async for word in words])

trio.run(main)
"""


class CleanPython:
    """An interpreter with nothing of its own; what this project depends on is lent to it, so that nothing is
    downloaded."""

    def __init__(self, path: Path, *, with_source: bool = False) -> None:
        venv.create(path, with_pip=False, symlinks=os.name != "nt")
        folder = "Scripts" if os.name == "nt" else "bin"
        self.python = str(path / folder / f"python{'.exe' if os.name == 'nt' else ''}")
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(path), "platbase": str(path)}))
        lent = [sysconfig.get_path("purelib"), *([str(ROOT)] if with_source else [])]
        (self.site / "lent.pth").write_text("".join(f"{line}\n" for line in lent))

    def run(self, *arguments: str, cwd: Path, **options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            cwd=cwd,
            env=self.environment(**options),
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def environment(self, **options: str) -> dict[str, str]:
        kept = ("PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT")
        return {name: value for name, value in os.environ.items() if name in kept} | options

    def build(self, project: Path, wheels: Path) -> Path | None:
        """Build the wheel of a project; None where its backend cannot be downloaded."""
        wheels.mkdir(exist_ok=True)
        before = set(wheels.iterdir())
        finished = _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(project))
        if finished.returncode and "ould not find a version" in finished.stderr + finished.stdout:
            return None
        assert finished.returncode == 0, finished.stderr
        (wheel,) = set(wheels.iterdir()) - before
        return wheel

    def install(self, wheel: Path) -> None:
        finished = _pip("--python", self.python, "install", "--no-deps", "--no-index", str(wheel))
        assert finished.returncode == 0, finished.stderr


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> CleanPython:
    """A clean interpreter in which the wheel is installed."""
    path = tmp_path_factory.mktemp("third_party")
    project = path / "acme-ingress"
    project.mkdir()
    for name, text in (("pyproject.toml", PYPROJECT), ("backend.py", BACKEND), ("acme_ingress.py", MODULE)):
        (project / name).write_text(text, encoding="utf-8")
    python = CleanPython(path / "clean", with_source=True)
    wheel = python.build(project, path / "wheels")
    assert wheel is not None and wheel.name == "acme_ingress-1.0-py3-none-any.whl"
    python.install(wheel)
    return python


def test_its_entry_points_are_found_there_and_not_here(clean: CleanPython, tmp_path: Path) -> None:
    finished = clean.run("-m", "ingress", "plugins", "--json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = {(each["group"], each["name"]): each for each in json.loads(finished.stdout)["plugins"]}
    for key in (("ingress.shapes", "acme-lines"), ("ingress.engines", "acme-shout")):
        assert (found[key]["distribution"], found[key]["version"]) == ("acme-ingress", "1.0")
        assert found[key]["loads"] is True
        assert found[key]["problem"] is None
    assert not [point for point in installed("shapes") if point.name == "acme-lines"]
    assert (clean.site / "acme_ingress.py").is_file()


@pytest.mark.parametrize("name", ["acme-lines", "acme-shout"])
def test_it_passes_the_kit(name: str, clean: CleanPython, tmp_path: Path) -> None:
    request = ("-d", '"hello world"') if name == "acme-shout" else ()
    finished = clean.run("-m", "ingress", "check", name, *request, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "hold" in finished.stdout.splitlines()[-1]


@contextmanager
def served(clean: CleanPython, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker that serves the engine by its name."""
    worker = subprocess.Popen(
        [clean.python, "-m", "ingress", "serve", "acme-shout", "--file-kv", str(directory / "kv"), "--grace", "0"],
        cwd=directory,
        env=clean.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_it_is_served_by_name_and_called_in_its_own_shape_and_in_the_built_in_one(
    clean: CleanPython, tmp_path: Path
) -> None:
    with served(clean, tmp_path) as worker:
        finished = clean.run("-c", CALLER, str(tmp_path / "kv"), cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == "SO BE IT\nIN TWO PARTS\n"
        worker.send_signal(signal.SIGTERM)
        said, _ = worker.communicate(timeout=30)
        assert worker.returncode == 0, said
        assert "acme-shout (acme-ingress 1.0)" in said
