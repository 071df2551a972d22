"""Run the interop suite in both of its halves: `python -m tests.interop [PYTEST ARGUMENT…]`.

A 1.0.2 client advertises the machine's first address and no other; its half runs in a network namespace of its own, so
that nothing leaves the machine.
"""

from __future__ import annotations

import subprocess
import sys

from . import peers


def main() -> int:
    command = [sys.executable, "-m", "pytest", "tests/interop", *sys.argv[1:]]
    outcome = subprocess.run(command, check=False).returncode
    if not peers.can_namespace():
        print("no network namespaces here: the 1.0.2 half is skipped", file=sys.stderr)
        return outcome
    return subprocess.run(peers.namespaced([*command, "-k", "1.0.2"]), check=False).returncode or outcome


if __name__ == "__main__":
    sys.exit(main())
