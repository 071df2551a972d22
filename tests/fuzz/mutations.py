"""The plain loop: mutated captures against a decoder, keeping what behaves in a new way."""

from __future__ import annotations

import random
import secrets
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

from ingress.errors import IngressError
from ingress.testing._payloads import garbage, smallest
from tests.fuzz.targets import Target

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
