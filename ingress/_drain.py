"""The orderly end of a worker, once its records are withdrawn: linger, refuse, finish, and cut what takes too long."""

from __future__ import annotations

import logging

import trio

from ._context import OpenRequests
from ._handler import GOODBYE_TIMEOUT
from ._life import Life, Phase
from ._text import named
from .status import DRAINING, HealthState

logger = logging.getLogger("ingress.worker")

# Callers learn of a withdrawal within milliseconds; those that had chosen this worker just before are still served.
DEFAULT_LINGER = 2.0

# Five seconds under the grace period that Kubernetes gives by default.
DEFAULT_DRAIN_BUDGET = 25.0


async def drain(life: Life, requests: OpenRequests, health: HealthState, linger: float, budget: float) -> None:
    """Return when no request is open any more, or the time of those that are is over."""
    # 1. Linger: callers that chose this worker before it was withdrawn are still served.
    life.enter(Phase.LINGERING, linger)
    logger.info("draining: withdrawn, accepting for %g s more", linger)
    await trio.sleep(linger)
    # 2. Refuse, and let what runs finish.
    life.enter(Phase.REFUSING, budget)
    health.hold(DRAINING, "draining: requests are refused")
    logger.info("draining: %d open, budget %g s", len(requests), budget)
    with trio.move_on_after(budget):
        await requests.wait_idle()
        return
    # 3. Tell and cancel what is over the budget.
    life.enter(Phase.CANCELLING, GOODBYE_TIMEOUT)
    overdue = list(requests)
    life.cancelled_by_drain = len(overdue)
    logger.warning("draining: budget over, cancelling %s", ", ".join(named(context.id, 64) for context in overdue[:20]))
    for context in overdue:
        context.shut_down()
    with trio.move_on_after(GOODBYE_TIMEOUT):
        await requests.wait_idle()
