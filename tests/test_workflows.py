"""The workflows of GitHub: what runs there is pinned, writes nothing, and obeys no name.

GitHub's own schema and linters hold their form; these are the rules that a change must not lose by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").iterdir())

READ_ONLY = {"contents": "read"}
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
USES = re.compile(r"^\s*(?:- )?uses: (.+?)\s*$", re.MULTILINE)

# Both run a stranger's change with the rights of the repository.
REFUSED_EVENTS = {"pull_request_target", "workflow_run"}


def complaints(text: str) -> Iterator[str]:
    """Say what is wrong with a workflow."""
    workflow = yaml.safe_load(text)
    events = workflow[True]  # YAML takes "on" for a boolean
    for event in sorted(REFUSED_EVENTS & set([events] if isinstance(events, str) else events)):
        yield f"runs on {event}"
    if workflow.get("permissions") != READ_ONLY:
        yield "its token may not only read"
    if "secrets." in text:
        yield "uses a secret"
    for used in USES.findall(text):
        if not PINNED.fullmatch(used):
            yield f"not pinned by a commit, with its version: {used}"
    for job_name, job in workflow["jobs"].items():
        yield from (f"{job_name}: {said}" for said in complaints_of_job(job))


def complaints_of_job(job: dict[str, Any]) -> Iterator[str]:
    if "permissions" in job:
        yield f"permissions {job['permissions']}"
    if "timeout-minutes" not in job:
        yield "no timeout"
    if str(job["runs-on"]).endswith("-latest"):
        yield "runs on whatever is the latest"
    for step in job["steps"]:
        is_checkout = str(step.get("uses", "")).startswith("actions/checkout@")
        if is_checkout and step["with"].get("persist-credentials") is not False:
            yield "leaves the token in the checkout"
        if "${{" in step.get("run", ""):
            yield "puts an expression into a shell's text"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_keeps_to_the_rules(path: Path) -> None:
    assert list(complaints(path.read_text(encoding="utf-8"))) == []


def test_the_rules_are_about_workflows_that_exist() -> None:
    assert {"ci.yml", "audit.yml"} <= {path.name for path in FILES}


def test_an_action_is_the_same_commit_wherever_it_is_used() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for used in USES.findall(path.read_text(encoding="utf-8")):
            pins.setdefault(used.partition("@")[0], set()).add(used)
    assert [each for each in pins.values() if len(each) > 1] == []


GOOD = """\
on: [push]
permissions:
  contents: read
jobs:
  run:
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    steps:
      - uses: actions/checkout@0123456789012345678901234567890123456789 # v1.2.3
        with:
          persist-credentials: false
      - run: make test
"""


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("make test", "make test", None),
        ("[push]", "pull_request_target", "runs on pull_request_target"),
        ("[push]", "{workflow_run: {}}", "runs on workflow_run"),
        ("contents: read", "contents: write", "its token may not only read"),
        ("permissions:\n  contents: read\n", "", "its token may not only read"),
        ("make test", "make test ${{ github.head_ref }}", "run: puts an expression into a shell's text"),
        ("make test", "make test\n        env: {T: '${{ secrets.T }}'}", "uses a secret"),
        ("@0123456789012345678901234567890123456789 # v1.2.3", "@v1", "not pinned by a commit"),
        (" # v1.2.3", "", "not pinned by a commit"),
        ("persist-credentials: false", "fetch-depth: 0", "run: leaves the token in the checkout"),
        ("    timeout-minutes: 5\n", "", "run: no timeout"),
        ("ubuntu-24.04", "ubuntu-latest", "run: runs on whatever is the latest"),
        ("    steps:", "    permissions: {id-token: write}\n    steps:", "run: permissions {'id-token': 'write'}"),
    ],
)
def test_what_breaks_a_rule_is_found(was: str, becomes: str, said: str | None) -> None:
    assert GOOD.count(was) == 1
    found = list(complaints(GOOD.replace(was, becomes)))
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)
