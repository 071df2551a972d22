"""The workflows of GitHub: what runs there is pinned, writes nothing unless it is said here, and obeys no name.

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

# The jobs that may do more than read, and what. Neither checks out or runs anything of the repository.
MAY_WRITE = {
    ("release.yml", "publish"): {"id-token": "write", "attestations": "write"},
    ("release.yml", "attach"): {"contents": "write"},
}

READ_ONLY = {"contents": "read"}
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
USES = re.compile(r"^\s*(?:- )?uses: (.+?)\s*$", re.MULTILINE)

# Both run a stranger's change with the rights of the repository.
REFUSED_EVENTS = {"pull_request_target", "workflow_run"}


def complaints(name: str, text: str) -> Iterator[str]:
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
        if not used.startswith("./") and not PINNED.fullmatch(used):
            yield f"not pinned by a commit, with its version: {used}"
    for job_name, job in workflow["jobs"].items():
        yield from (f"{job_name}: {said}" for said in complaints_of_job(job, MAY_WRITE.get((name, job_name))))


def complaints_of_job(job: dict[str, Any], may_write: dict[str, str] | None) -> Iterator[str]:
    if job.get("permissions", may_write) != may_write:
        yield f"permissions {job['permissions']}"
    if "uses" in job:
        return  # a workflow of ours, which is looked at itself
    if "timeout-minutes" not in job:
        yield "no timeout"
    if str(job["runs-on"]).endswith("-latest"):
        yield "runs on whatever is the latest"
    for step in job["steps"]:
        is_checkout = str(step.get("uses", "")).startswith("actions/checkout@")
        if is_checkout and may_write:
            yield "may write and checks out"
        if is_checkout and step["with"].get("persist-credentials") is not False:
            yield "leaves the token in the checkout"
        if "${{" in step.get("run", ""):
            yield "puts an expression into a shell's text"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_keeps_to_the_rules(path: Path) -> None:
    assert list(complaints(path.name, path.read_text(encoding="utf-8"))) == []


def test_the_rules_are_about_workflows_that_exist() -> None:
    assert {"ci.yml", "audit.yml", "release.yml"} <= {path.name for path in FILES}
    jobs = {path.name: yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"] for path in FILES}
    assert {place: jobs[place[0]][place[1]]["permissions"] for place in MAY_WRITE} == MAY_WRITE


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
    found = list(complaints("some.yml", GOOD.replace(was, becomes)))
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_a_job_that_may_write_runs_nothing_of_the_repository() -> None:
    text = GOOD.replace("  run:", "  attach:").replace("    steps:", "    permissions: {contents: write}\n    steps:")
    assert list(complaints("release.yml", text)) == ["attach: may write and checks out"]
