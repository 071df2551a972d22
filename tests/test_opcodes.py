"""The counter of opcodes: whose it counts, and that it leaves everything as it was."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .bench.opcodes import ROOT, counted_opcodes


def made(place: str, source: str, **names: Any) -> Callable[[], None]:
    """Make the function ``f`` of a source text as if it stood in that file."""
    exec(compile(source, str(ROOT / place), "exec"), names)  # noqa: S102 - the texts below
    f: Callable[[], None] = names["f"]
    return f


def counted(function: Callable[[], None]) -> Counter[str]:
    with counted_opcodes():  # CPython 3.13 counts a function from its second call on
        function()
    with counted_opcodes() as counts:
        function()
    return counts


def assigning(times: int) -> str:
    return "def f():\n" + "    x = 1\n" * times


def test_each_opcode_of_ours_is_counted_also_after_the_interpreter_has_specialized() -> None:
    short, long = made("ingress/made_up.py", assigning(10)), made("ingress/made_up.py", assigning(30))
    for _ in range(50):
        before, after = counted(short), counted(long)
        assert after["ingress/made_up.py f"] - before["ingress/made_up.py f"] == 20 * len(("LOAD_CONST", "STORE_FAST"))


def test_what_ours_call_is_counted_and_what_tests_call_is_not() -> None:
    library = made("../elsewhere/library.py", assigning(5))
    ours = made("shapes/made_up.py", "def f():\n    call()\n", call=library)
    tests = made("tests/made_up.py", "def f():\n    call()\n", call=library)
    assert {name.split()[0].split("/")[-1] for name in counted(ours)} == {"made_up.py", "library.py"}
    assert not counted(tests) and not counted(library)
    assert counted(made("shapes/made_up.py", "def f():\n    call()\n", call=tests)).keys() == {"shapes/made_up.py f"}


def test_whoever_traced_before_traces_again_afterwards() -> None:
    def theirs(frame: object, event: str, argument: object) -> None: ...

    before = sys.gettrace()
    sys.settrace(theirs)
    try:
        with pytest.raises(ZeroDivisionError), counted_opcodes():
            _ = 1 / 0
        assert sys.gettrace() is theirs
    finally:
        sys.settrace(before)
