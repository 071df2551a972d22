"""Several processes' ``/health`` and ``/progress`` as one page each. Pure: documents in, document out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from ._health import NOT_READY, READY


@frozen(kw_only=True)
class ProcessState:
    """What is known of one process, whoever asked it."""

    number: int
    pid: int | None
    instance: str = ""
    restarts: int = 0
    trouble: str | None = None
    """Why it cannot be asked, or did not answer; None where it did."""

    is_running: bool = True
    """Started, and not ended: it should have answered."""

    page: Mapping[str, Any] = field(factory=dict)
    """What it answered."""

    @property
    def is_ready(self) -> bool:
        return self.trouble is None and self.page.get("status") == READY


def combine_health(processes: Sequence[ProcessState], *, uptime: float, is_verbose: bool) -> dict[str, Any]:
    """Return the body of ``/health``: ready when every process is, an endpoint when it is in every process."""
    is_ready = bool(processes) and all(process.is_ready for process in processes)
    endpoints: dict[str, str] = {}
    for process in processes:
        for name, state in (_mapping(process.page.get("endpoints"))).items():
            endpoints[name] = state if endpoints.get(name, READY) == READY else NOT_READY
    if any(process.trouble is not None for process in processes):
        endpoints = dict.fromkeys(endpoints, NOT_READY)
    shown: dict[str, Any] = {
        "status": READY if is_ready else NOT_READY,
        "uptime": {"secs": int(uptime), "nanos": int(uptime % 1 * 1e9)},
        "endpoints": endpoints,
    }
    if is_verbose:
        shown["reasons"] = {what: why for process in processes for what, why in _reasons(process)}
        shown["processes"] = [
            {
                **process.page,
                "status": READY if process.is_ready else NOT_READY,
                "process": process.number,
                "pid": process.pid,
                "instance": process.instance,
                "restarts": process.restarts,
            }
            for process in processes
        ]
    return shown


def _reasons(process: ProcessState) -> Iterable[tuple[str, str]]:
    name = f"process {process.number}"
    if process.trouble is not None:
        return [(name, process.trouble)]
    return [(f"{name}: {what}", str(why)) for what, why in _mapping(process.page.get("reasons")).items()]


def combine_progress(processes: Iterable[ProcessState], stall_threshold: float) -> dict[str, Any]:
    """Return the body of ``/progress``: stalled when one process is, or runs and does not answer."""
    running = [process for process in processes if process.is_running]
    words = ["stalled" if process.trouble is not None else process.page.get("status") for process in running]
    ages = [age for process in running if isinstance(age := process.page.get("last_chunk_age_seconds"), int | float)]
    counts = [count for process in running if isinstance(count := process.page.get("running"), int)]
    return {
        "status": next((word for word in ("stalled", "ok") if word in words), "idle"),
        "running": sum(counts),
        "last_chunk_age_seconds": min(ages, default=None),
        "stall_threshold_seconds": int(stall_threshold) if stall_threshold == int(stall_threshold) else stall_threshold,
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
