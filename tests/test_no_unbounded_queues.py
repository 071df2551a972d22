"""No queue without a bound: what a peer fills and nobody empties ends the process."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ingress", "shapes", "engines")

# Queues whose bound stands elsewhere, by the file and the attribute, and where that is.
BOUNDED_ELSEWHERE = {
    ("ingress/handover.py", "_chunks"): "the other thread is held at its budget of bytes that nobody has taken",
    ("ingress/handover.py", "_ready"): "each handover stands in it once, and there is one for each admitted request",
    ("engines/_loop_thread.py", "_calls"): "a few for each admitted request; the loop empties it in one go",
    ("ingress/_stray_messages.py", "unraisable"): "no more are put in than a hundred",
    ("ingress/_last_resort.py", "_orders"): "one for each signal to the process, from whoever may end it",
    ("ingress/_log_writer.py", "_lines"): "lines over the limit are dropped and counted",
    (
        "ingress/_request_memory.py",
        "_discarded",
    ): "what is in it counts as held still, of which there is a limit",
    ("ingress/_request_stream.py", "_items"): "the reader stops at a limit of bytes that nobody has taken",
    ("ingress/client/_request_connection.py", "_unsent"): "one for each call that waits, and callers are our own tasks",
    ("ingress/client/_request_connection.py", "_unacked"): "as above; a connection without acks is given up",
}

# The names under which queues are made, and which of their arguments is the bound.
QUEUES = {"deque": ("maxlen", 1), "Queue": ("maxsize", 0), "SimpleQueue": ("", 0), "LifoQueue": ("maxsize", 0),
          "PriorityQueue": ("maxsize", 0), "open_memory_channel": ("max_buffer_size", 0)}  # fmt: skip


def unbounded(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the attribute or name of each queue without a bound."""
    tree = ast.parse(source)
    targets = {
        id(node.value): _name(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (found := QUEUES.get(_name(node.func))) is not None:
            keyword, place = found
            bound = next((each.value for each in node.keywords if each.arg == keyword), None)
            bound = node.args[place] if bound is None and len(node.args) > place else bound
            if bound is None or _is_no_bound(bound):
                yield node.lineno, targets.get(id(node), "?")


def _name(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Tuple):
        return ",".join(_name(each) for each in node.elts)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def _is_no_bound(bound: ast.expr) -> bool:
    text = ast.unparse(bound)
    return text in ("None", "0", "float('inf')") or text.split(".")[-1] == "inf"


FOUND = [
    (path.relative_to(ROOT).as_posix(), line, name)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    for line, name in unbounded(path.read_text(encoding="utf-8"))
]


def test_every_queue_has_a_bound_or_a_reason() -> None:
    assert [found for found in FOUND if (found[0], found[2]) not in BOUNDED_ELSEWHERE] == []


def test_no_reason_is_left_over() -> None:
    assert set(BOUNDED_ELSEWHERE) - {(file, name) for file, _, name in FOUND} == set()


@pytest.mark.parametrize(
    "source",
    [
        "a = trio.open_memory_channel(math.inf)",
        "a = trio.open_memory_channel[int](inf)",
        "a = open_memory_channel(float('inf'))",
        "self.a = deque()",
        "a: deque[int] = deque([1])",
        "a = queue.Queue()",
        "a = Queue(maxsize=0)",
        "a = asyncio.Queue(0)",
        "a = SimpleQueue()",
    ],
)
def test_queues_without_a_bound_are_found(source: str) -> None:
    assert list(unbounded(source)) == [(1, "a")]


@pytest.mark.parametrize(
    "source",
    ["a = trio.open_memory_channel[int](5)", "a = deque(x, 5)", "a = deque(maxlen=n)", "a = Queue(n)", "a = []"],
)
def test_queues_with_a_bound_are_not(source: str) -> None:
    assert list(unbounded(source)) == []
