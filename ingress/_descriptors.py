"""The limit of open files of this process."""

from __future__ import annotations

import contextlib

# Twice what the most connections and a full worker take together. More would do no good, and harms children that close
# or scan every descriptor they could have.
ENOUGH_DESCRIPTORS = 65_536


def reachable_descriptors() -> int | None:
    """Return the limit that :func:`raise_descriptor_limit` leads to; None where there is none to be known."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which has no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return max(soft, ENOUGH_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_DESCRIPTORS))


def raise_descriptor_limit() -> None:
    """Raise the soft limit as far as the hard one allows; children inherit it. For whoever owns the process."""
    wanted = reachable_descriptors()
    if wanted is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # what the system will not give, the worker does without
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
