"""``ingress bench``: put a live worker under load, and tell what callers would see."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio
from attrs import frozen

from .._descriptors import raise_descriptor_limit
from ..abc import Discovery
from ..client import Client, open_client
from ..client._lean_call import LeanCaller
from ..wire.messages import CodecName
from ._bench_report import Report, bench_document, print_report
from ._bench_screen import show_progress
from ._caller_options import DEFAULT_CALLER, CallerOptions
from ._calling import cancelled_by_signal, find_worker, nobody_to_call, run_caller
from ._errors import EXIT_CLEAN, EXIT_FAILED, usage
from ._load import Load, arrivals
from ._load_options import DEFAULT_LOAD, LoadOptions
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
)
from ._payloads import print_document
from ._tls_options import DEFAULT_SECURITY, SecurityOptions

# Each open call is a connection; beside them there are listeners, request connections and the files of discovery.
MOST_OPEN = 10_000
_OTHER_DESCRIPTORS = 64


@frozen
class BenchOptions:
    """What the command line asks for, checked."""

    endpoint: str
    request: Any
    metadata: dict[str, str]
    instance_id: int | None
    wait: float
    call_home: str
    load: LoadOptions
    most_open: int


def bench(
    endpoint: str,
    /,
    *,
    caller: CallerOptions = DEFAULT_CALLER,
    load: LoadOptions = DEFAULT_LOAD,
    codec: CodecName | None = None,
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
    codec
        Instead of the one that the worker announces.
    """
    output.set_up_logging()
    load.check()
    options = BenchOptions(
        endpoint=check_endpoint(endpoint, namespace),
        request=caller.request(),
        metadata=caller.pairs(),
        instance_id=caller.instance_id(),
        wait=caller.wait,
        call_home=caller.call_home,
        load=load,
        most_open=_most_open(load.callers if load.rate is None else 1),
    )
    opened = discovery.open_shared()
    settings: dict[str, Any] = {"tls": security.tls(), "token_keys": security.token_keys(), "codec": codec}
    screen = None if output.quiet or not sys.stderr.isatty() else output.stderr()
    reports: list[Report] = []
    forced: list[int] = []
    run = partial(_run, options, opened, discovery.describe(opened), settings, screen, reports, forced)
    run_caller(run, options.call_home, partial(nobody_to_call, options.endpoint))
    (report,) = reports
    if as_json:
        print_document(bench_document(report))
    else:
        print_report(report, output.stdout())
    if forced:
        return 128 + forced[0]
    return EXIT_FAILED if report.measured.failed else EXIT_CLEAN


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


async def _run(
    options: BenchOptions,
    discovery: Discovery,
    place: str,
    settings: Mapping[str, Any],
    screen: Any,
    reports: list[Report],
    forced: list[int],
) -> None:
    """Measure, and put what came of it into ``reports``; signals that end it are put into ``forced``."""
    machine = machine_facts()
    timeout = options.load.timeout
    # The timeout is the one bound of a call, and an instance that refuses is asked again, as the load has it.
    bounds: dict[str, Any] = {"ack_timeout": timeout, "handshake_timeout": timeout, "set_aside": 0}
    async with open_client(discovery=discovery, host=options.call_home, **settings, **bounds) as client:
        await find_worker(client, options.endpoint, wait=options.wait, place=place, verb="bench")
        reports.append(await _run_load(client, options, machine, forced, screen))


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
    asked = options.load
    load = Load(caller.call, asked.bounds, timeout=asked.timeout, most_open=options.most_open)
    codecs = sorted({record.request_plane_codec or "json" for record in client.instances(options.endpoint)})
    instances, began, busy = len(client.instances(options.endpoint)), time.perf_counter(), time.process_time()
    async with cancelled_by_signal(forced), trio.open_nursery() as nursery:
        if screen is not None:
            nursery.start_soon(show_progress, load, asked.bounds, screen)
        try:
            if asked.rate is not None:
                await load.run_open(arrivals(asked.rate, asked.spacing, asked.seed or 0))
            else:
                await load.run_closed(asked.callers)
        finally:
            load.stop()
            nursery.cancel_scope.cancel()
    share = (time.process_time() - busy) / max(time.perf_counter() - began, 1e-9)
    return Report(
        endpoint=options.endpoint,
        instances=instances,
        codecs=tuple(codecs),
        rate=asked.rate,
        spacing=asked.spacing,
        seed=asked.seed or 0,
        concurrency=asked.callers,
        bounds=asked.bounds,
        timeout=asked.timeout,
        machine=machine,
        measured=load.measured,
        most_open=load.most_open,
        open_limit=options.most_open,
        generator_share=share,
        is_interrupted=bool(forced),
    )
