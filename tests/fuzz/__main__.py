"""``python -m tests.fuzz [--seconds N] [TARGET …]``: attack every decoder, beginning with the captures.

Coverage-guided by atheris where that is installed, else by a plain loop of mutations that keeps what behaves in a new
way. Then the state machines of the suite run, with longer lives and for as long. A finding is printed, its bytes are
written to a file, and the run ends with 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz.machines import drive, machines
from tests.fuzz.mutations import Finding, attack, report, run_once
from tests.fuzz.targets import TARGETS, Target

DEFAULT_SECONDS = 120.0

Tell = Callable[[str], object]


def attack_decoders(targets: Sequence[Target], seconds: float, seed: int, tell: Tell = print) -> int:
    """Attack all targets, each for its share of the time; returns the exit code."""
    share = seconds / len(targets)
    is_guided = importlib.util.find_spec("atheris") is not None
    how = "guided by coverage (atheris)" if is_guided else f"mutations (atheris is not installed), seed {seed}"
    tell(f"{len(targets)} decoders, {share:.1f} s each, {how}")
    attack_one = attack_guided if is_guided else attack
    code = 0
    for target in targets:
        try:
            tell(f"  {target.name:16} {attack_one(target, share, seed):>10,} inputs")
        except Finding as finding:
            report(finding)
            code = 1
    return code


def attack_guided(target: Target, seconds: float, seed: int) -> int:
    """Run atheris in a process of its own; returns how many inputs it tried.

    Raises:
        Finding: with the bytes that it kept.
    """
    command = [sys.executable, "-m", "tests.fuzz.guided", "--seconds", str(seconds), target.name]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = finished.stdout + finished.stderr
    if finished.returncode:
        kept = re.search(r"Test unit written to (\S+)", said)
        data = Path(kept[1]).read_bytes() if kept else b""
        raise Finding(target, data, AssertionError(f"atheris ended with {finished.returncode}:\n{said[-4000:]}"))
    tried = re.search(r"number_of_executed_units: (\d+)", said)
    return int(tried[1]) if tried else 0


def drive_machines(seconds: float, tell: Tell = print) -> int:
    """Drive every state machine for its share of the time; returns the exit code."""
    found = machines()
    share = seconds / len(found)
    tell(f"{len(found)} state machines, {share:.1f} s each")
    code = 0
    for machine in found:
        try:
            tell(f"  {machine.__name__:16} {drive(machine, share):>10,} lives")
        except Exception:
            traceback.print_exc()
            code = 1
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(target.name for target in TARGETS))
    parser.add_argument(
        "--seconds",
        type=float,
        default=DEFAULT_SECONDS,
        help="for all together; half of them for the state machines where no target is named",
    )
    parser.add_argument("--seed", type=int, default=None, help="of the mutations")
    parser.add_argument("--input", type=Path, help="attack with this file alone")
    options = parser.parse_args(arguments)
    by_name = {target.name: target for target in TARGETS}
    if unknown := set(options.targets) - set(by_name):
        parser.error(f"no target named {', '.join(sorted(unknown))}; known: {', '.join(by_name)}")
    targets = [by_name[name] for name in options.targets or by_name]
    if options.input is not None:
        for target in targets:
            print(target.name, run_once(target, options.input.read_bytes()))
        return 0
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    if options.targets:
        return attack_decoders(targets, options.seconds, seed)
    logging.disable()  # the machines provoke whatever the log would tell of
    return attack_decoders(targets, options.seconds / 2, seed) | drive_machines(options.seconds / 2)


if __name__ == "__main__":
    sys.exit(main())
