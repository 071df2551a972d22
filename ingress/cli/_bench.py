"""``ingress bench``: put a live worker under load, and tell what callers would see."""

from __future__ import annotations

import math
import sys
import time
from typing import Annotated, Any

import trio
from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number

from .._descriptors import raise_descriptor_limit
from ..client import Client, open_client
from ..client._lean_call import LeanCaller
from ..errors import IngressError, StartupError
from ..wire.messages import CodecName
from ._bench_report import Report, bench_document, print_report
from ._bench_screen import show_progress
from ._call import DEFAULT_CALL_HOME, cancelled_by_signal, nobody
from ._errors import EXIT_CLEAN, EXIT_FAILED, CommandError, usage
from ._load import Bounds, Load, Spacing, arrivals
from ._machine import machine_facts
from ._options import (
    DEFAULT_DISCOVERY,
    DEFAULT_NAMESPACE,
    DEFAULT_OUTPUT,
    AsJson,
    DiscoveryOptions,
    Namespace,
    OutputOptions,
    check_endpoint,
    parse_pairs,
)
from ._payloads import print_document, read_instance_id, read_request
from ._tls_options import DEFAULT_SECURITY, SecurityOptions
from ._worker_options import check_deadline, check_seconds

DEFAULT_CONCURRENCY = 8
DEFAULT_DURATION = 10.0
DEFAULT_WARM_UP = 1.0
DEFAULT_TIMEOUT = 60.0

# Each open call is a connection; beside them there are listeners, request connections and the files of discovery.
MOST_OPEN = 10_000
_OTHER_DESCRIPTORS = 64


def _check_rate(kind: object, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError("expected requests a second, more than 0")


@frozen
class BenchOptions:
    """What the command line asks for, checked."""

    endpoint: str
    request: Any
    metadata: dict[str, str]
    instance_id: int | None
    rate: float | None
    spacing: Spacing
    seed: int
    concurrency: int
    bounds: Bounds
    timeout: float
    wait: float
    most_open: int


def bench(
    endpoint: str,
    /,
    *,
    data: Annotated[str, Parameter(name=["-d", "--data"], allow_leading_hyphen=True)] = "{}",
    rate: Annotated[float | None, Parameter(validator=_check_rate)] = None,
    arrival: Annotated[Spacing | None, Parameter(name="--arrivals", show_default=False)] = None,
    seed: Annotated[int | None, Parameter(show_default=False)] = None,
    concurrency: Annotated[
        int | None, Parameter(name=["-c", "--concurrency"], validator=Number(gte=1), show_default=False)
    ] = None,
    requests: Annotated[int | None, Parameter(name=["-n", "--requests"], validator=Number(gte=1))] = None,
    duration: Annotated[float | None, Parameter(validator=check_deadline, show_default=False)] = None,
    warmup: Annotated[float, Parameter(validator=check_seconds)] = DEFAULT_WARM_UP,
    timeout: Annotated[float, Parameter(validator=check_deadline)] = DEFAULT_TIMEOUT,
    metadata: Annotated[list[str] | None, Parameter(name=["-H", "--metadata"], negative=())] = None,
    direct: str | None = None,
    codec: CodecName | None = None,
    wait: Annotated[float, Parameter(validator=check_seconds)] = 0.0,
    call_home: Annotated[str, Parameter(env_var="INGRESS_CALL_HOME")] = DEFAULT_CALL_HOME,
    namespace: Namespace = DEFAULT_NAMESPACE,
    security: SecurityOptions = DEFAULT_SECURITY,
    discovery: DiscoveryOptions = DEFAULT_DISCOVERY,
    as_json: AsJson = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Put a live worker under load: rates, latencies and a histogram, for 10 seconds unless told otherwise.

    With --rate requests are sent at fixed times, whatever becomes of the earlier ones, and latencies count from the
    time at which a request was due: what callers of that rate would see. Without it so many callers send their next
    request when they have their answer; their latencies are service times, and a worker that stalls is asked less.

    Ctrl-C ends it with the figures so far. Ends with 1 where a request failed.

    Parameters
    ----------
    endpoint
        namespace.component.endpoint.
    data
        The request: JSON, @FILE, or - for standard input.
    rate
        Requests a second: an open loop.
    arrival
        How the requests of --rate are spaced: constant (the default) or poisson.
    seed
        Repeats the times of --arrivals poisson; 0 unless given.
    concurrency
        Callers at once: a closed loop, of 8 unless given.
    requests
        How many requests to measure.
    duration
        Seconds in which to send requests; those under way then are waited for.
    warmup
        Seconds of the same load before, which are not counted.
    timeout
        Seconds after which a request counts as failed.
    metadata
        KEY=VALUE that reaches the engine as context.metadata; repeatable.
    direct
        Call this instance and no other; ingress ls shows them.
    codec
        Instead of the one that the worker announces.
    wait
        Seconds to wait for a worker to appear.
    call_home
        Address of this host that the worker can dial.
    """
    output.set_up_logging()
    _check_together(rate, arrival, seed, concurrency, requests, duration)
    callers = DEFAULT_CONCURRENCY if concurrency is None else concurrency
    if requests is None and duration is None:
        duration = DEFAULT_DURATION
    options = BenchOptions(
        endpoint=check_endpoint(endpoint, namespace),
        request=read_request(data),
        metadata=parse_pairs(metadata, "-H"),
        instance_id=None if direct is None else read_instance_id(direct),
        rate=rate,
        spacing=arrival or "constant",
        seed=seed or 0,
        concurrency=callers,
        bounds=Bounds(warmup, requests, duration),
        timeout=timeout,
        wait=wait,
        most_open=_most_open(callers if rate is None else 1),
    )
    opened = discovery.open_shared()
    settings: dict[str, Any] = {"tls": security.tls(), "token_keys": security.token_keys(), "codec": codec}
    # The timeout is the one bound of a call, and an instance that refuses is asked again, as the load has it.
    settings |= {"ack_timeout": timeout, "handshake_timeout": timeout, "set_aside": 0}
    machine = machine_facts()
    reports: list[Report] = []
    forced: list[int] = []

    async def run() -> None:
        async with open_client(discovery=opened, host=call_home, **settings) as client:
            screen = None if output.quiet or not sys.stderr.isatty() else output.stderr()
            await _find_worker(client, options, discovery.describe(opened))
            reports.append(await _run_load(client, options, machine, forced, screen))

    try:
        trio.run(run)
    except StartupError as exc:
        if not str(exc).startswith("cannot listen on"):
            raise
        raise CommandError(
            f"cannot take answers on {call_home}", str(exc), "--call-home with an address of this host"
        ) from exc
    except IngressError as exc:
        raise CommandError(f"nobody to call for {options.endpoint}", str(exc), "ingress ls") from exc
    (report,) = reports
    if as_json:
        print_document(bench_document(report))
    else:
        print_report(report, output.stdout())
    if forced:
        return 128 + forced[0]
    return EXIT_FAILED if report.measured.failed else EXIT_CLEAN


def _check_together(
    rate: float | None,
    arrival: Spacing | None,
    seed: int | None,
    concurrency: int | None,
    requests: int | None,
    duration: float | None,
) -> None:
    if rate is not None and concurrency is not None:
        raise usage(
            "--rate and --concurrency exclude each other",
            "a rate is kept however many requests are open; callers wait for their answers",
            "one of the two",
        )
    if requests is not None and duration is not None:
        raise usage("--requests and --duration exclude each other", "each says when the load ends", "one of the two")
    if rate is None and arrival is not None:
        raise usage(
            "--arrivals needs --rate", "callers send when they have their answers", f"--rate 100 --arrivals {arrival}"
        )
    if seed is not None and arrival != "poisson":
        raise usage("--seed needs --arrivals poisson", "nothing else is drawn", "--arrivals poisson --seed 1")


def _most_open(wanted: int) -> int:
    """Return how many calls may be open at once, having raised the limit of files as far as that goes.

    Raises:
        CommandError: fewer than are wanted.
    """
    most = max(wanted, MOST_OPEN)
    limit = raise_descriptor_limit(most + _OTHER_DESCRIPTORS)
    room = most if limit is None else min(most, limit - _OTHER_DESCRIPTORS)
    if room < wanted:
        raise usage(
            f"--concurrency {wanted} cannot be had",
            f"each caller holds a connection, and this process may open {limit} files",
            "a smaller --concurrency, or a higher ulimit -n",
        )
    return room


async def _find_worker(client: Client, options: BenchOptions, place: str) -> None:
    if options.wait:
        await client.wait_for_instances(options.endpoint, timeout=options.wait)
    if not client.instances(options.endpoint):
        raise nobody(client, options.endpoint, place, "bench")


def _make_caller(client: Client, options: BenchOptions) -> LeanCaller:
    caller = LeanCaller(
        client, options.endpoint, options.request, instance_id=options.instance_id, metadata=options.metadata
    )
    try:
        caller.check()
    except TypeError as exc:
        raise usage("the request cannot be sent", str(exc), "JSON with text keys and 64-bit integers") from exc
    return caller


async def _run_load(
    client: Client, options: BenchOptions, machine: dict[str, Any], forced: list[int], screen: Any
) -> Report:
    caller = _make_caller(client, options)
    load = Load(caller.call, options.bounds, timeout=options.timeout, most_open=options.most_open)
    codecs = sorted({record.request_plane_codec or "json" for record in client.instances(options.endpoint)})
    instances, began, busy = len(client.instances(options.endpoint)), time.perf_counter(), time.process_time()
    async with cancelled_by_signal(forced), trio.open_nursery() as nursery:
        if screen is not None:
            nursery.start_soon(show_progress, load, options.bounds, screen)
        try:
            if options.rate is not None:
                await load.run_open(arrivals(options.rate, options.spacing, options.seed))
            else:
                await load.run_closed(options.concurrency)
        finally:
            load.stop()
            nursery.cancel_scope.cancel()
    share = (time.process_time() - busy) / max(time.perf_counter() - began, 1e-9)
    return Report(
        endpoint=options.endpoint,
        instances=instances,
        codecs=tuple(codecs),
        rate=options.rate,
        spacing=options.spacing,
        seed=options.seed,
        concurrency=options.concurrency,
        bounds=options.bounds,
        timeout=options.timeout,
        machine=machine,
        measured=load.measured,
        most_open=load.most_open,
        open_limit=options.most_open,
        generator_share=share,
        is_interrupted=bool(forced),
    )
