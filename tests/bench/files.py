"""How many files the benchmarks may open."""

from __future__ import annotations

import resource


def allow_many_files() -> None:
    """A thousand streams are a thousand files, in the workers too, which inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
