"""``python -m tests.soak [--seconds N] [--seed N]``: the figures of docs/reliability.md.

Ends with 1 where something good was lost or something stayed behind; a figure of the machine's speed that is missed is
only shown. With ``INGRESS_WRITE_DOCS=1``, as ``make soak`` has it, the table is written to the page.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import sys
from collections.abc import Sequence

import trio

from tests.reliability.table import PAGE, write
from tests.soak.handshakes import handshake_figures
from tests.soak.load import Figure, all_figures
from tests.soak.villainy import run_villainy

DEFAULT_SECONDS = 600.0


async def measure(seconds: float, seed: int) -> list[Figure]:
    print(f"a villain beside good callers, {seconds:g} s …", flush=True)
    figures = await run_villainy(seconds, seed)
    print("load …", flush=True)
    return [*figures, *await all_figures(), *await handshake_figures()]


def table(figures: Sequence[Figure], seconds: float) -> str:
    """The figures as the page has them."""
    rows = [("figure", "measured", "must"), ("---", "---", "---"), *(figure.cells() for figure in figures)]
    rows.append(("length of the villain's run", f"{seconds:g} s", ""))
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="of the villain")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # idle connections are many, here and in the worker
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    figures = trio.run(measure, options.seconds, seed)
    text = table(figures, options.seconds)
    print(text)
    if "INGRESS_WRITE_DOCS" in os.environ:
        PAGE.write_text(write(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    failed = [figure.name for figure in figures if figure.is_guard and not figure.is_met]
    for name in failed:
        print(f"NOT MET: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
