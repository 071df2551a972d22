"""Who may import whom: errors ← wire ← abc ← the parts ← the handler ← the worker ← the ways in ← third parties.

The table is data. Each row may import the rows above it, and a package itself; nothing else.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).parent.parent

TABLE: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "_checks",
        "_descriptors",
        "_fair_line",
        "_forks",
        "_hosts",
        "_life",
        "_patience",
        "_per_run",
        "_shares",
        "_signals",
        "_socket_options",
        "_unstarted",
        "_version",
    ),
    (
        "_bucket_counts",
        "_heavy_work",
        "_json_lines",
        "_log_repeats",
        "_log_writer",
        "_memory_watermark",
        "_network",
        "_process_memory",
        "_tallies",
        "_text",
        "_weight",
        "wire",
    ),
    ("_chunk_size", "_host_addresses", "_log_tracebacks", "_request_memory", "_rotation", "_stream_limits"),
    ("handover",),
    ("_logging", "_response_writer", "_threads", "_tracing", "abc", "_collectors", "_failures"),
    ("_context", "_dialled", "_engine_end", "bodies", "_request_log", "otel", "tls"),
    ("_dial_outcomes", "_open_doors", "_stray_messages", "_token", "_typed"),
    ("metrics",),
    (
        "_admission",
        "_dial_limits",
        "_dial_policy",
        "_engine",
        "_plugins",
        "_pump",
        "_request_stream",
        "discovery",
        "planes",
    ),
    ("_dial_guard",),
    ("_dialback", "_task_tree"),
    ("_response",),
    ("_engine_run", "_ledger"),
    ("_push_gate",),
    ("_handler", "_legacy"),
    ("models", "status"),
    ("_drain", "_switchboard"),
    ("_worker_options",),
    ("_worker_parts",),
    ("_worker", "client"),
    ("_last_resort",),
    ("_serve",),
    ("testing",),
    ("", "cli"),  # "" is ingress/__init__.py
    ("__main__",),
)

RANKS: Mapping[str, int] = {name: rank for rank, row in enumerate(TABLE) for name in row}

# Where sans-IO ends: nothing under ingress.wire knows of a loop, a clock, a log or a socket.
WIRE_MAY_NOT_IMPORT = {"trio", "logging", "socket", "time", "asyncio", "threading", "ssl", "select", "os"}

PACKAGES_OF_THIRD_PARTIES = ("shapes", "engines")


@frozen
class Import:
    """One imported module, where it stands."""

    importer: str
    imported: str
    place: str
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import that runs; what stands under TYPE_CHECKING does not."""
    importer = module_of(path)
    package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
    tree = ast.parse(path.read_text())
    type_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, place, id(node) in lazy)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # "from . import x" and "from .package import module" name a module, the others a name in one.
                deeper = f"{module}.{alias.name}"
                is_module = (ROOT / deeper.replace(".", "/")).with_suffix(".py").exists()
                yield Import(importer, deeper if is_module else module, place, id(node) in lazy)


@functools.cache
def all_imports(*packages: str) -> list[Import]:
    return [
        each for package in packages for path in sorted((ROOT / package).rglob("*.py")) for each in imports_of(path)
    ]


def part_of(module: str) -> str:
    """``ingress.client._routing`` is of the part ``client``."""
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_a_place_in_the_table() -> None:
    parts = {part_of(module_of(path)) for path in (ROOT / "ingress").rglob("*.py")}
    assert parts - RANKS.keys() == set(), "give it the row it belongs in"


def test_modules_import_only_what_stands_above_them() -> None:
    offending = [
        str(each)
        for each in all_imports("ingress")
        if each.imported.split(".")[0] == "ingress"
        and part_of(each.imported) != part_of(each.importer)
        and RANKS.get(part_of(each.imported), 99) >= RANKS.get(part_of(each.importer), -1)
    ]
    assert offending == []


def test_nothing_in_ingress_imports_the_packages_of_third_parties() -> None:
    offending = [
        str(each)
        for each in all_imports("ingress")
        if each.imported.split(".")[0] in (*PACKAGES_OF_THIRD_PARTIES, "tests")
    ]
    assert offending == []


def test_no_module_imports_itself_by_a_detour() -> None:
    graph: dict[str, set[str]] = {}
    for each in all_imports("ingress"):
        if not each.is_lazy and each.imported.startswith("ingress"):
            graph.setdefault(each.importer, set()).add(each.imported)

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, (*trail, module))
            done.add(module)

    done: set[str] = set()
    for module in graph:
        visit(module, ())


def test_the_wire_is_sans_io() -> None:
    offending = [
        str(each) for each in all_imports("ingress/wire") if each.imported.split(".")[0] in WIRE_MAY_NOT_IMPORT
    ]
    assert offending == []


def test_built_in_shapes_and_engines_import_public_names_only() -> None:
    """They are what a third party would write, and what a newcomer copies."""
    offending = [
        str(each)
        for each in all_imports(*PACKAGES_OF_THIRD_PARTIES)
        if each.imported.split(".")[0] == "ingress" and any(part.startswith("_") for part in each.imported.split("."))
    ]
    assert offending == []


@pytest.mark.parametrize("package", PACKAGES_OF_THIRD_PARTIES)
def test_no_private_name_is_taken_out_of_a_public_module(package: str) -> None:
    offending = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {alias.name}"
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ingress")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert offending == []


# What a request's life is made of; it stands in the handler, once.
LIFECYCLE = {"trio", "asyncio", "threading", "socket", "ingress.metrics", "ingress.planes", "prometheus_client"}
LIFECYCLE_WORDS = re.compile(r"nursery|cancel|prologue|sentinel|sleep|metric|count|pump|send_all|receive_some|aclose")


def test_the_built_in_shapes_repeat_nothing_of_a_requests_life() -> None:
    """Neither its modules, however they are imported, nor its verbs, nor a scope, a task or a loop of its own."""
    offending = [str(each) for each in all_imports("shapes") if each.imported in LIFECYCLE]
    for path in sorted((ROOT / "shapes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_scope = isinstance(node, (ast.AsyncWith, ast.With, ast.AsyncFor, ast.Try, ast.While))
            name = getattr(node, "id", None) or getattr(node, "attr", None) or ""
            if is_scope or LIFECYCLE_WORDS.search(name) or name in ("__import__", "import_module"):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                offending.append(f"{place}: {name or type(node).__name__}")
    assert offending == []


def test_the_built_in_shapes_import_nothing_but_ingress_and_the_codec() -> None:
    allowed = {"__future__", "collections.abc", "typing", "msgspec", "ingress.abc", "ingress.bodies", "ingress.errors"}
    imported = {each.imported for each in all_imports("shapes") if not each.imported.startswith("shapes.")}
    assert {name for name in imported if not name.startswith("ingress.wire.")} <= allowed
