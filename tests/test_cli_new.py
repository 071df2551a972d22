"""``ingress new``: what it writes works as it is, and what it cannot write it says."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ingress.cli import main
from ingress.cli._new import check_name, templates

from .test_third_party import CleanPython

KINDS = ("engine", "shape")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "PYTEST_"))}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_whole_and_says_what_to_do_next(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", kind, "my-thing"]) == 0
    out = capsys.readouterr().out
    files = {path.name: path.read_text() for path in (here / "my-thing").iterdir()}
    assert set(files) == {"README.md", "pyproject.toml", "my_thing.py", "test_my_thing.py"}
    assert all(f"my-thing/{name}" in out for name in files)
    assert "cd my-thing" in out and "ingress check my_thing:MyThing" in out
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "my-thing"
    assert project["project"]["entry-points"] == {f"ingress.{kind}s": {"my-thing": "my_thing:MyThing"}}
    for name, text in files.items():
        assert "$" not in text, name
        assert "MODULE" not in text, name


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_tests_pass_as_written(kind: str, here: Path) -> None:
    assert main(["new", kind, "hello", "-q"]) == 0
    finished = run_in(here / "hello", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "2 passed" in finished.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_formatted_and_typed_as_this_project_is(kind: str, here: Path) -> None:
    pytest.importorskip("ruff")
    pytest.importorskip("mypy")
    assert main(["new", kind, "hello", "-q"]) == 0
    # Without this project's settings: a newcomer has none.
    (here / "hello" / "ruff.toml").write_text('line-length = 120\nlint.select = ["E", "F", "W", "I", "UP", "B"]\n')
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy", "--strict", "hello.py"]):
        finished = run_in(here / "hello", sys.executable, "-m", *command)
        assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)  # two environments are made and filled
def test_wheels_of_both_kinds_pass_their_tests_in_a_clean_environment(here: Path) -> None:
    """This project's own wheel is built and installed too, so its templates and entry points are in it."""
    clean = CleanPython(here / "clean")
    own = clean.build(Path(__file__).parent.parent, here / "wheels")
    if own is None:
        pytest.skip("the build backend cannot be had: no network")
    clean.install(own)
    for kind in KINDS:
        name = f"my-{kind}"
        assert clean.run("-m", "ingress", "new", kind, name, "-q", cwd=here).returncode == 0
        wheel = clean.build(here / name, here / "wheels")
        assert wheel is not None
        clean.install(wheel)
        (here / name / f"my_{kind}.py").unlink()  # so that its tests can only mean the installed one
        for command in (["pytest", "-q", "-p", "no:cacheprovider"], ["ingress", "check", name]):
            finished = clean.run("-m", *command, cwd=here / name)
            assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Hello World", "hello_world"),
        ("1st", "st"),
        ("-x", "usage"),
        ("json", "my_json"),
        ("class", "my_class"),
        ("ingress", "my_ingress"),
        ("a--b", "a_b"),
        ("a/b", "a_b"),
        ("..", "my_engine"),
        ("grüße", "gr_e"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(
    name: str, remedy: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "engine", name]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(here.iterdir()) == []
    if remedy != "usage":
        assert check_name(remedy)


def test_what_exists_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "hello").mkdir()
    assert main(["new", "shape", "hello"]) == 1
    assert "hello exists" in capsys.readouterr().err
    assert list((here / "hello").iterdir()) == []


def test_it_can_be_put_elsewhere(here: Path) -> None:
    assert main(["new", "engine", "hello", "-C", str(here / "a" / "b"), "-q"]) == 0
    assert (here / "a" / "b" / "hello" / "hello.py").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_the_templates_are_files_of_the_package(kind: str) -> None:
    names = [template.name for template in templates(kind)]  # type: ignore[arg-type]  # one of both
    assert names == ["MODULE.py.tmpl", "README.md.tmpl", "pyproject.toml.tmpl", "test_MODULE.py.tmpl"]
