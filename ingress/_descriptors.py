"""The limit of open files of this process."""

from __future__ import annotations

import contextlib

# Twice what the most connections and a full worker take together. More would do no good, and harms children that close
# or scan every descriptor they could have.
ENOUGH_DESCRIPTORS = 65_536


def reachable_descriptors(enough: int = ENOUGH_DESCRIPTORS) -> int | None:
    """Return the limit that :func:`raise_descriptor_limit` leads to; None where there is none to be known."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which has no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return max(soft, enough if hard == resource.RLIM_INFINITY else min(hard, enough))


def raise_descriptor_limit(enough: int = ENOUGH_DESCRIPTORS) -> int | None:
    """Raise the soft limit to ``enough``, as far as the hard one allows; children inherit it.

    For whoever owns the process. Returns the limit that there is then, None where there is none.
    """
    wanted = reachable_descriptors(enough)
    if wanted is None:
        return None
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # what the system will not give, the process does without
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
