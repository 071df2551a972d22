"""The opcodes that a request and a chunk take of the worker, by function: `python -m tests.bench.opcodes`.

Counted are those of frames of ours and of what these call, trio's, prometheus_client's and the standard library's; not
the scheduler's loop above them, nor the engine, nor the caller. They are the same on every machine, fast or busy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import trio
from attrs import frozen

from .lockstep import FrozenClock, LockstepCaller, open_lockstep

ROOT = Path(__file__).parents[2]

OURS = ("ingress/", "shapes/")

REQUEST = "one-chunk request"
NEVER_AWAITS = "chunk, engine never awaits"
GIVES_WAY = "chunk, engine gives way before each"
UNITS = (REQUEST, NEVER_AWAITS, GIVES_WAY)

# Of one answer. They fit into the socket's buffer, so that a send takes all there is.
CHUNKS = 256

WARM_UP = 20
ROUNDS = 15
CHUNK_ROUNDS = 3

_Tracer = Callable[[FrameType, str, Any], Any]


@frozen
class OpcodeCount:
    """What one request or one chunk takes, by function, as ``ingress/_pump.py pump_response_stream``."""

    functions: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.functions.values())

    @property
    def ours(self) -> float:
        """Those in our own files: no version of any other package changes them."""
        return sum(count for name, count in self.functions.items() if name.startswith(OURS))


@contextmanager
def counted_opcodes() -> Iterator[Counter[str]]:
    """Count what this thread executes inside, by function; filled in when the block ends.

    Whoever traced before, traces again after it. CPython 3.13 counts a function from its second call on.
    """
    functions: Counter[str] = Counter()
    counts: Counter[int] = Counter()
    codes: dict[int, tuple[CodeType, str]] = {}  # by identity, for functions of two files may be equal

    def count(frame: FrameType, event: str, argument: object) -> _Tracer:
        if event == "opcode":
            counts[id(frame.f_code)] += 1
        return count

    def begin(frame: FrameType, event: str, argument: object) -> _Tracer | None:
        code = frame.f_code
        if (known := codes.get(id(code))) is None:
            known = codes[id(code)] = code, _kind_of(code)
        kind = known[1]
        if kind == "tests":
            return None
        if kind == "below" and (frame.f_back is None or frame.f_back.f_trace is not count):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # 3.12 asks when tracing begins whether anybody wants opcodes
    sys.settrace(begin)
    try:
        yield functions
    finally:
        sys.settrace(before)
        for identity, executed in counts.items():
            code = codes[identity][0]
            functions[f"{_place_of(code)} {code.co_qualname}"] += executed


def _kind_of(code: CodeType) -> str:
    place = _place_of(code)
    return "ours" if place.startswith(OURS) else "tests" if place.startswith("tests/") else "below"


def _place_of(code: CodeType) -> str:
    """Where a function stands, without what differs between machines."""
    path = Path(code.co_filename)
    if not path.is_absolute():
        return code.co_filename  # <attrs generated …>
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return path.relative_to(ROOT).as_posix()
    roots = [place for place in map(Path, sys.path) if path.is_relative_to(place)]
    return path.relative_to(max(roots, key=lambda place: len(place.parts), default=path.parent)).as_posix()


async def measure_opcodes(caller: LockstepCaller) -> dict[str, OpcodeCount]:
    """Return the counts by unit; collections are to be off, for what they finalize would be counted too."""
    for _ in range(WARM_UP):
        await caller.call(caller.frame_of("tight", 1))
    request = await _median(caller, "tight", 1, ROUNDS)
    units = {REQUEST: OpcodeCount(request)}
    for unit, mode in ((NEVER_AWAITS, "tight"), (GIVES_WAY, "awaiting")):
        short = await _median(caller, mode, 1, CHUNK_ROUNDS)
        long = await _median(caller, mode, 1 + CHUNKS, CHUNK_ROUNDS)
        units[unit] = OpcodeCount({name: (long[name] - short[name]) / CHUNKS for name in long.keys() | short.keys()})
    return units


async def _median(caller: LockstepCaller, mode: str, chunks: int, rounds: int) -> Counter[str]:
    runs = []
    for _ in range(1 + rounds):  # the first is not whole; see counted_opcodes()
        frame = caller.frame_of(mode, chunks)
        with counted_opcodes() as counts:
            received = await caller.call(frame)
        if received != chunks:
            raise RuntimeError(f"{received} chunks came of {chunks}")
        runs.append(counts)
    middle = statistics.median_low(counts.total() for counts in runs[1:])
    return next(counts for counts in runs[1:] if counts.total() == middle)


async def _measure(clock: FrozenClock) -> dict[str, OpcodeCount]:
    async with open_lockstep(clock) as caller:
        return await measure_opcodes(caller)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.opcodes", description=__doc__)
    parser.add_argument("--top", type=int, default=25, help="so many functions of each")
    arguments, clock = parser.parse_args(), FrozenClock()
    for unit, count in trio.run(_measure, clock, clock=clock).items():
        print(f"{count.total:,.1f} opcodes a {unit}; {count.ours:,.1f} of them in {' and '.join(OURS)}")
        for name, opcodes in Counter(count.functions).most_common(arguments.top):
            print(f"  {opcodes:8.1f} {opcodes / count.total:6.1%}  {name}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
