"""The bill of materials: what the lock files name, with every hash, and the same bytes each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ingress

from .test_lock import ROOT, entries_of, read_lock

LOCKS = ["requirements-runtime.lock", "requirements-llm.lock"]


def run(*locks: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(ROOT / ".ci" / "sbom.py"), *map(str, locks)]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)


def bill() -> Any:
    done = run(*[ROOT / ".ci" / name for name in LOCKS])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_names_each_release_of_the_locks_once_and_no_other() -> None:
    named = [(each["name"], each["version"]) for each in bill()["components"]]
    assert len(named) == len(set(named)) > 40
    assert set(named) == {(name, str(each.version)) for lock in LOCKS for name, each in read_lock(lock).items()}


def test_it_has_every_hash_and_where_a_release_is_meant_for_some_platforms_their_marker() -> None:
    components = bill()["components"]
    hashes = {
        each["content"] for part in components for place in part["externalReferences"] for each in place["hashes"]
    }
    lines = [entry for lock in LOCKS for entry in entries_of(ROOT / ".ci" / lock)]
    assert hashes == {part[:64] for line in lines for part in line.split("--hash=sha256:")[1:]}
    marked = {part["name"]: part["properties"][0]["value"] for part in components if "properties" in part}
    assert marked["uvloop"] == "implementation_name == 'cpython' and sys_platform != 'win32'"


def test_it_is_about_this_version_and_says_when_it_was_committed() -> None:
    metadata = bill()["metadata"]
    assert metadata["component"]["purl"] == f"pkg:pypi/ingress-dispatch@{ingress.__version__}"
    assert metadata["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_the_same_locks_give_the_same_bytes() -> None:
    locks = [ROOT / ".ci" / name for name in LOCKS]
    assert run(*locks).stdout == run(*reversed(locks)).stdout


def test_a_release_without_hashes_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text("attrs==26.1.0\n")
    done = run(lock)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no release with its hashes: attrs==26.1.0" in done.stderr
