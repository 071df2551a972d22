"""A process that serves gives back what large bodies took, and does not walk its own start for garbage."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the GNU C library")

# A large block has been freed once; then some are freed that came together, with something smaller behind each.
BODIES = """
import os
from ingress._process_memory import give_back_large_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

give_back_large_blocks()
bytearray(b"x" * (8 << 20))
before = resident()
bodies = [(b"x" * (3 << 20), b"x" * 60_000) for _ in range(20)]
kept = [small for _, small in bodies]
del bodies
print((resident() - before) >> 20)
"""

# Of blocks too small to be mapped every other is freed, so that no end of a heap is free.
HOLES = """
import os, trio
from ingress import _process_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main():
    before = resident()
    blocks = [b"x" * (256 << 10) for _ in range(800)]
    _process_memory.LOOK_INTERVAL = 0.05
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_process_memory.give_back_freed_memory)
        await trio.sleep(0.2)
        del blocks[::2]
        with trio.move_on_after(float(os.environ["PATIENCE"])):
            while resident() - before > 120 << 20:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    print((resident() - before) >> 20)

_process_memory.give_back_large_blocks()
trio.run(main)
"""

FROZEN = """
import gc, os, signal
import ingress

def on_started(worker):
    print(gc.get_freeze_count())
    os.kill(os.getpid(), signal.SIGTERM)

async def generate(request):
    yield request

ingress.run(generate, linger=0, on_started=on_started)
"""


def said_by(program: str, variables: Mapping[str, str]) -> int:
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(result.stdout)


def test_l11_what_large_bodies_took_goes_back_to_the_system_though_small_things_lie_behind_it() -> None:
    assert said_by(BODIES, {}) < 10


def test_l11_what_is_freed_between_things_in_use_goes_back_too() -> None:
    assert said_by(HOLES, {"PATIENCE": "30"}) <= 120


def test_an_operator_s_own_settings_keep_it() -> None:
    assert said_by(HOLES, {"MALLOC_MMAP_THRESHOLD_": "33554432", "PATIENCE": "0.3"}) > 150


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_MMAP_THRESHOLD_": "33554432"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}],
    ids=str,
)
def test_an_operator_s_own_settings_are_left_alone(variables: Mapping[str, str]) -> None:
    assert said_by(BODIES, variables) > 30


def test_what_is_there_after_the_start_is_exempt_from_collections(tmp_path: Path) -> None:
    assert said_by(FROZEN, {"DYN_FILE_KV": str(tmp_path)}) > 10_000
