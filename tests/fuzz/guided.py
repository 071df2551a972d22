"""``python -m tests.fuzz.guided --seconds N TARGET``: one decoder under atheris, which follows what the code covers.

A program of its own, because atheris instruments modules while they are imported, and never comes back: it ends the
process, with another code than 0 where it found something.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # where it installs

with atheris.instrument_imports(include=["ingress.wire"]):
    from ingress.errors import IngressError
    from tests.fuzz.targets import TARGETS

from tests.fuzz.mutations import MAX_SECONDS, MAX_SIZE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=[target.name for target in TARGETS])
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    (target,) = (target for target in TARGETS if target.name == options.target)

    def once(data: bytes) -> None:
        with contextlib.suppress(IngressError):
            target.attack(data)

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed[:MAX_SIZE])
        found = Path(tempfile.gettempdir()) / f"ingress-fuzz-{target.name}-"
        flags = [
            f"-max_total_time={max(1, round(options.seconds))}",
            f"-max_len={MAX_SIZE}",
            f"-timeout={MAX_SECONDS * 10:.0f}",  # instrumented code is several times as slow
            f"-artifact_prefix={found}",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *flags, corpus], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
