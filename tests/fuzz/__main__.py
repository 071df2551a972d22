"""``python -m tests.fuzz [--seconds N] [TARGET …]``: attack every decoder, beginning with the captures.

Coverage-guided by atheris where that is installed, else by a plain loop of mutations that keeps what behaves in a new
way. A finding is printed, written to a file, and ends the run with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ingress.errors import IngressError
from ingress.testing._payloads import garbage, smallest
from tests.fuzz.targets import TARGETS, Target

DEFAULT_SECONDS = 60.0

# Guards are linear and inputs small: what takes longer is a finding.
MAX_SECONDS = 1.0

MAX_SIZE = 8 * 1024


class Finding(Exception):
    """A decoder did what it must not."""

    def __init__(self, target: Target, data: bytes, failure: BaseException) -> None:
        super().__init__(f"{target.name}: {type(failure).__name__}: {failure}")
        self.target, self.data, self.failure = target, data, failure


def run_once(target: Target, data: bytes) -> str:
    """Attack once; returns a signature of how the decoder behaved.

    Raises:
        Finding: as it must not.
    """
    started = time.perf_counter()
    try:
        signature = f"ok {target.attack(data)!r}"
    except IngressError as exc:
        place = traceback.extract_tb(exc.__traceback__)[-1]
        signature = f"{type(exc).__name__} {place.filename}:{place.lineno}"
    except Exception as exc:
        raise Finding(target, data, exc) from exc
    if (took := time.perf_counter() - started) > MAX_SECONDS:
        raise Finding(target, data, TimeoutError(f"took {took:.1f} s for {len(data)} bytes"))
    return signature


def attack(target: Target, seconds: float, seed: int) -> int:
    """Attack with mutated captures for so long; returns how often.

    Raises:
        Finding: with the smallest input that was found to fail in the same way.
    """
    rng = random.Random(f"{seed}/{target.name}")
    corpus = list(target.seeds())
    seen: set[str] = set()
    runs, ends = 0, time.monotonic() + seconds
    try:
        for data in corpus:
            seen.add(run_once(target, data))
            runs += 1
        while time.monotonic() < ends:
            for data in garbage(rng, rng.sample(corpus, min(len(corpus), 8)), 200):
                signature = run_once(target, data[:MAX_SIZE])
                runs += 1
                if signature not in seen and len(seen) < 5000:
                    seen.add(signature)
                    corpus.append(data[:MAX_SIZE])
    except Finding as finding:
        smaller = smallest(finding.data, partial(_fails_alike, finding))
        raise Finding(target, smaller, finding.failure) from finding.failure
    return runs


def _fails_alike(finding: Finding, data: bytes) -> bool:
    try:
        run_once(finding.target, data)
    except Finding as exc:
        return type(exc.failure) is type(finding.failure)
    return False


def report(finding: Finding) -> None:
    """Say what was found and keep the bytes."""
    path = Path(tempfile.gettempdir()) / f"ingress-fuzz-{finding.target.name}-{secrets.token_hex(4)}.bin"
    path.write_bytes(finding.data)
    traceback.print_exception(finding.failure)
    print(f"\nFOUND {finding}\n  {finding.data!r:.400}")
    print(f"  again: python -m tests.fuzz --input {path} {finding.target.name}")


def attack_guided(target: Target, seconds: float) -> None:
    """Hand the target to atheris, which never returns."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # where it installs

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.instrument_all()

        def once(data: bytes) -> None:
            with contextlib.suppress(IngressError):
                target.attack(data)

        atheris.Setup([sys.argv[0], f"-max_total_time={seconds:.0f}", f"-max_len={MAX_SIZE}", corpus], once)
        atheris.Fuzz()


def run_all(targets: Sequence[Target], seconds: float, seed: int, tell: Callable[[str], object] = print) -> int:
    """Attack all targets, each for its share of the time; returns the exit code."""
    share = seconds / len(targets)
    is_guided = importlib.util.find_spec("atheris") is not None
    tell(f"{len(targets)} decoders, {share:.1f} s each, {'atheris' if is_guided else f'mutations, seed {seed}'}")
    code = 0
    for target in targets:
        if is_guided:
            command = [sys.executable, "-m", "tests.fuzz", "--guided", "--seconds", str(max(share, 1)), target.name]
            code = max(code, min(subprocess.run(command, check=False).returncode, 1))
            continue
        try:
            runs = attack(target, share, seed)
        except Finding as finding:
            report(finding)
            code = 1
        else:
            tell(f"  {target.name:16} {runs:>10,} inputs")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(target.name for target in TARGETS))
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="for all of them together")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations")
    parser.add_argument("--input", type=Path, help="attack with this file alone")
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    by_name = {target.name: target for target in TARGETS}
    if unknown := set(options.targets) - set(by_name):
        parser.error(f"no target named {', '.join(sorted(unknown))}; known: {', '.join(by_name)}")
    targets = [by_name[name] for name in options.targets or by_name]
    if options.input is not None:
        for target in targets:
            print(target.name, run_once(target, options.input.read_bytes()))
        return 0
    if options.guided:
        attack_guided(targets[0], options.seconds)
        return 0
    return run_all(targets, options.seconds, secrets.randbelow(10**6) if options.seed is None else options.seed)


if __name__ == "__main__":
    sys.exit(main())
