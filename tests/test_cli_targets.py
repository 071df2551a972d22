"""What ``ingress serve`` can be pointed at, and how it says that it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import engines.echo
from ingress.cli._errors import CommandError
from ingress.cli._targets import resolve_target


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules, path = set(sys.modules), sys.path[:]
    monkeypatch.chdir(tmp_path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def refused(target: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        resolve_target(target)
    assert caught.value.exit_code == 3
    return caught.value


def test_an_installed_engine_is_found_by_name() -> None:
    target = resolve_target("echo")
    assert target.engine is engines.echo.echo
    assert target.label == "echo (built in)"


def test_an_unknown_engine_gets_the_nearest_suggested() -> None:
    error = refused("mrkov")
    assert error.what == "no engine is named 'mrkov'"
    assert error.remedy == "ingress serve markov"


def test_a_file_is_loaded_with_its_neighbours() -> None:
    write("neighbour_a.py", "WORDS = ['a']\n")
    write("hello_a.py", "import neighbour_a\nasync def generate(request):\n    yield neighbour_a.WORDS\n")
    assert resolve_target("hello_a.py:generate").label == "hello_a.py:generate"


def test_a_file_without_an_attribute_means_generate() -> None:
    write("hello_b.py", "async def generate(request):\n    yield 1\n")
    assert resolve_target("hello_b.py").engine.__name__ == "generate"


def test_a_file_named_like_a_loaded_module_does_not_replace_it() -> None:
    write("json.py", "async def generate(request):\n    yield 1\n")
    import json

    resolve_target("json.py")
    assert sys.modules["json"] is json


def test_a_module_of_the_current_directory_is_found() -> None:
    write("hello_c.py", "class Engines:\n    @staticmethod\n    async def one(request):\n        yield 1\n")
    assert resolve_target("hello_c:Engines.one").label == "hello_c:Engines.one"


def test_an_engine_class_is_made_once() -> None:
    write(
        "hello_d.py",
        "import ingress\nclass Mine(ingress.Engine):\n    def generate(self, request, context): ...\n",
    )
    target = resolve_target("hello_d.py:Mine")
    assert type(target.engine).__name__ == "Mine"


def test_a_wrong_signature_is_told_with_its_line_and_its_remedy() -> None:
    write("hello_e.py", "\n\nasync def generate(request, ctx, extra):\n    yield 1\n")
    error = refused("hello_e.py")
    assert error.what == "hello_e.py:3 generate(request, ctx, extra) cannot be an engine"
    assert error.why == "needs 1 or 2 arguments (request, context), has 3"
    assert error.remedy == "remove 'extra'"


@pytest.mark.parametrize(
    ("target", "what", "why"),
    [
        ("no_such.py", "there is no file no_such.py", "looked in"),
        ("no_such_module:x", "there is no module 'no_such_module'", "neither installed nor in"),
        ("broken.py", "broken.py cannot be imported", "ZeroDivisionError at broken.py:2: division by zero"),
        ("broken:x", "broken cannot be imported", "ZeroDivisionError at broken.py:2"),
        ("typo.py", "typo.py cannot be imported", "SyntaxError at typo.py:1"),
        ("lacking:x", "lacking cannot be imported", "ModuleNotFoundError at lacking.py:1: No module named 'nowhere'"),
        ("fine.py:generat", "fine.py has no 'generat'", "it defines generate"),
        ("fine.py:NUMBER", "3 is no engine", "expected a function"),
        ("fine.py:Needy", "fine.py:Needy cannot be an engine", "TypeError"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_sentence(target: str, what: str, why: str) -> None:
    write("broken.py", "x = 1\ny = x / 0\n")
    write("typo.py", "def (:\n")
    write("lacking.py", "import nowhere\n")
    write(
        "fine.py",
        "import ingress\nNUMBER = 3\nasync def generate(request):\n    yield 1\n"
        "class Needy(ingress.Engine):\n"
        "    def __init__(self, model): ...\n    def generate(self, request, context): ...\n",
    )
    error = refused(target)
    assert error.what == what
    assert why in error.why
    assert error.remedy
