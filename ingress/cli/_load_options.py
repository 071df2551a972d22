"""The options of ``ingress bench`` about the load: how much of it, how it is spaced, and when it ends."""

from __future__ import annotations

import math
from typing import Annotated

from attrs import frozen
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from ._errors import usage
from ._load import Bounds, Spacing
from ._worker_flags import check_deadline, check_seconds

LOAD = Group("Load", sort_key=1)

DEFAULT_CONCURRENCY = 8
DEFAULT_DURATION = 10.0
DEFAULT_WARM_UP = 1.0
DEFAULT_TIMEOUT = 60.0


def _check_rate(kind: object, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError("expected requests a second, more than 0")


@Parameter(name="*")
@frozen
class LoadOptions:
    """An open loop, with a rate; or a closed one, of so many callers."""

    rate: Annotated[
        float | None, Parameter(group=LOAD, validator=_check_rate, help="Requests a second: an open loop.")
    ] = None
    arrival: Annotated[
        Spacing | None,
        Parameter(
            group=LOAD,
            name="--arrivals",
            show_default=False,
            help="How the requests of --rate are spaced: constant (the default) or poisson.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Parameter(group=LOAD, show_default=False, help="Repeats the times of --arrivals poisson; 0 unless given."),
    ] = None
    concurrency: Annotated[
        int | None,
        Parameter(
            group=LOAD,
            name=["-c", "--concurrency"],
            validator=Number(gte=1),
            show_default=False,
            help=f"Callers at once: a closed loop, of {DEFAULT_CONCURRENCY} unless given.",
        ),
    ] = None
    requests: Annotated[
        int | None,
        Parameter(group=LOAD, name=["-n", "--requests"], validator=Number(gte=1), help="How many requests to measure."),
    ] = None
    duration: Annotated[
        float | None,
        Parameter(
            group=LOAD,
            validator=check_deadline,
            show_default=False,
            help="Seconds in which to send requests; those under way then are waited for.",
        ),
    ] = None
    warmup: Annotated[
        float,
        Parameter(group=LOAD, validator=check_seconds, help="Seconds of the same load before, which are not counted."),
    ] = DEFAULT_WARM_UP
    timeout: Annotated[
        float, Parameter(group=LOAD, validator=check_deadline, help="Seconds after which a request counts as failed.")
    ] = DEFAULT_TIMEOUT

    @property
    def spacing(self) -> Spacing:
        return self.arrival or "constant"

    @property
    def callers(self) -> int:
        """How many there are, in a closed loop."""
        return DEFAULT_CONCURRENCY if self.concurrency is None else self.concurrency

    @property
    def bounds(self) -> Bounds:
        is_endless = self.requests is None and self.duration is None
        return Bounds(self.warmup, self.requests, DEFAULT_DURATION if is_endless else self.duration)

    def check(self) -> None:
        """Check what no single option can know.

        Raises:
            CommandError: two of them exclude each other, or one needs another.
        """
        if self.rate is not None and self.concurrency is not None:
            raise usage(
                "--rate and --concurrency exclude each other",
                "a rate is kept however many requests are open; callers wait for their answers",
                "one of the two",
            )
        if self.requests is not None and self.duration is not None:
            raise usage(
                "--requests and --duration exclude each other", "each says when the load ends", "one of the two"
            )
        if self.rate is None and self.arrival is not None:
            raise usage(
                "--arrivals needs --rate",
                "callers send when they have their answers",
                f"--rate 100 --arrivals {self.arrival}",
            )
        if self.seed is not None and self.arrival != "poisson":
            raise usage("--seed needs --arrivals poisson", "nothing else is drawn", "--arrivals poisson --seed 1")


DEFAULT_LOAD = LoadOptions()
