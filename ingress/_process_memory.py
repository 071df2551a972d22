"""What a process that does nothing but serve asks of its memory managers; see docs/design.md for the figures.

These are settings of a whole process, so only what owns one makes them: :func:`ingress.run` and the command.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import ctypes

# The C library maps what is larger on its own and gives it back when it is freed. By default this bound follows the
# largest block that was ever freed, up to 32 MiB: after one large request body, bodies are cut out of the heap, where
# any small thing behind one keeps its place from the system. Below the bound bodies cost what they did before; above
# it some 4 ms of CPU a MiB that comes in and goes out, for pages that are new each time.
MAPPED_FROM = 2 << 20

# Of free memory at the end of a heap, and each thread may have one, more goes back to the system. Streams of 1 MiB
# chunks take and free a few such blocks in turn: where they go back each time, a byte of theirs costs twice as much.
KEPT_FREE = 4 << 20

# Smaller blocks that are free among used ones go back to the system when they have become so many more; they are looked
# at now and then. It holds the heaps for some 10 ms for each 100 MB.
FREED = 64 << 20
LOOK_INTERVAL = 10.0

# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# An operator who has settings of his own knows why.
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def give_back_large_blocks() -> None:
    """Have what large bodies took given back to the system, at the start of a process.

    Does nothing where the C library is not the GNU one, or where the environment has settings for it.
    """
    if (library := _gnu_library()) is not None:
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_FREE)


async def give_back_freed_memory() -> None:
    """Until cancelled, give back to the system what has become free between things in use, in a thread.

    Returns at once where :func:`give_back_large_blocks` does nothing.
    """
    if (library := _gnu_library()) is None or (count_free := _counter_of_free_bytes(library)) is None:
        return

    def look(least: int) -> int:
        free = count_free()
        if free - least <= FREED:
            return min(free, least)
        library.malloc_trim(0)
        return free  # it is still free, and no longer there

    least = count_free()
    while True:
        await trio.sleep(LOOK_INTERVAL)
        least = await trio.to_thread.run_sync(look, least, abandon_on_cancel=True)


def _gnu_library() -> ctypes.CDLL | None:
    """Return the C library where it is ours to tell what to do."""
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    import ctypes

    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


def _counter_of_free_bytes(library: ctypes.CDLL) -> Callable[[], int] | None:
    """Return what counts the free bytes of all heaps, by mallinfo2(3); None where the C library is older than that."""
    import ctypes

    class Mallinfo2(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks"),
                *("fordblks", "keepcost"),
            )
        ]

    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = Mallinfo2
    return lambda: int(library.mallinfo2().fordblks)


def exempt_what_stays() -> None:
    """Exempt from garbage collection what is there once a process has started.

    It stays to the end, and a full collection that walks it holds the event loop for 30 ms; that of what came since,
    for one. Full collections come when a quarter has been added to what they walk, so that garbage goes sooner, too.
    """
    gc.collect()
    gc.freeze()
