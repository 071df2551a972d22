"""``ingress serve``: run engines as a worker until told to stop."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter
from cyclopts.validators import Number

from .._descriptors import raise_descriptor_limit
from .._failures import text_of
from .._log_writer import LineWriter
from .._process_memory import exempt_what_stays, give_back_large_blocks
from .._serve import make_worker, serve_until_signalled
from .._signals import is_ctrl_c
from .._stray_messages import log_stray_messages
from .._text import printable
from .._worker import Worker
from ..abc import Discovery
from ..errors import IngressError
from ._deadline_options import DEFAULT_DEADLINES, DeadlineOptions
from ._drain import show_drain
from ._errors import EXIT_FAILED, EXIT_STARTUP, CommandError, usage
from ._logging import wants_json
from ._model_options import DEFAULT_MODELS, ModelFlags
from ._options import DEFAULT_DISCOVERY, DEFAULT_OUTPUT, DiscoveryOptions, OutputOptions, check_endpoint
from ._parent_line import ParentLine
from ._processes import MAX_PROCESSES, serve_processes
from ._started import StartedWorker, announce
from ._status_options import DEFAULT_STATUS, StatusFlags
from ._targets import resolve_asyncio_targets, resolve_target
from ._tls_options import DEFAULT_SECURITY, SecurityOptions
from ._trace_options import DEFAULT_TRACES, TraceFlags
from ._worker_flags import DEFAULT_WORKER, WorkerFlags

logger = logging.getLogger("ingress.cli")


def serve(
    *targets: str,
    endpoint: Annotated[list[str] | None, Parameter(negative=())] = None,
    asyncio: Annotated[bool, Parameter(negative=())] = False,
    processes: Annotated[int, Parameter(env_var="INGRESS_PROCESSES", validator=Number(gte=1, lte=MAX_PROCESSES))] = 1,
    worker: WorkerFlags = DEFAULT_WORKER,
    deadlines: DeadlineOptions = DEFAULT_DEADLINES,
    status: StatusFlags = DEFAULT_STATUS,
    security: SecurityOptions = DEFAULT_SECURITY,
    traces: TraceFlags = DEFAULT_TRACES,
    models: ModelFlags = DEFAULT_MODELS,
    discovery: DiscoveryOptions = DEFAULT_DISCOVERY,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Run engines as a worker until told to stop.

    The first SIGTERM or Ctrl-C leaves discovery and lets running requests finish; the second ends at once.

    Parameters
    ----------
    targets
        module:attr, file.py:attr (attr is generate if left out), or the name of an installed engine.
    endpoint
        namespace.component.endpoint of the first target, of the second, and so on. A single target has a default.
    asyncio
        The targets are asyncio handlers, as written for Dynamo: async def generate(request, context).
    processes
        Worker processes that serve the same, each an instance of its own; a crashed one is started again.
    """
    parent = ParentLine.find(os.environ)
    log_writer = output.set_up_logging(logging.INFO, process=None if parent is None else parent.number)
    log_stray_messages()
    raise_descriptor_limit()
    with contextlib.nullcontext() if parent is None else parent.failures_reported():
        if parent is None:  # whose processes need none, should it be removed later
            check_working_directory()
        status.check()
        endpoints = pair_endpoints(targets, endpoint or [], worker.namespace)
        if parent is None and processes > 1:
            return serve_processes(processes, worker, status, discovery, output, log_writer)
        if parent is not None:
            worker, status = parent.own_options(worker, status)
        found = resolve_asyncio_targets(targets) if asyncio else [resolve_target(text) for text in targets]
        served = dict(zip(endpoints, found, strict=True))
        opened = discovery.open()
        options = {
            "discovery": opened,
            "status": status.options(endpoints, worker.namespace),
            "model": models.cards(endpoints),
            "tls": security.tls(),
            "token_keys": security.token_keys(),
            **worker.keywords(served),
            **deadlines.keywords(),
        }
        # Outside the event loop: the last spans hold up nothing but the end of the process, and that not for long.
        with traces.tracer() as tracer:
            made = make_worker({name: target.engine for name, target in served.items()}, tracer=tracer, **options)
            made.metrics.log_lines_dropped = lambda: log_writer.dropped
            labels = {name: target.label for name, target in served.items()}
            code = _run(made, labels, parent, worker, discovery, opened, output, log_writer)
    logger.info("stopped: %s", _ending(made, code))
    return code


def _run(
    made: Worker,
    labels: Mapping[str, str],
    parent: ParentLine | None,
    worker: WorkerFlags,
    discovery: DiscoveryOptions,
    opened: Discovery,
    output: OutputOptions,
    log_writer: LineWriter,
) -> int:
    """Serve until told to stop; return the exit code."""
    is_started = False
    console = output.stderr()
    is_quiet = output.quiet or wants_json(os.environ) or parent is not None
    is_on_terminal = console.is_terminal and not (console.is_dumb_terminal or is_quiet)
    show = functools.partial(show_drain, console=console if is_on_terminal else None, log_writer=log_writer)

    def on_started(started: Worker) -> None:
        nonlocal is_started
        is_started = True
        exempt_what_stays()
        facts = StartedWorker.of(started, labels)
        if parent is not None:
            parent.report_started(facts)
        else:
            url, health_path = started.status.url, started.status.options.health_path
            announce([facts], url, health_path, worker, discovery, opened, output, log_writer)

    give_back_large_blocks()
    try:
        return trio.run(functools.partial(serve_until_signalled, made, on_started, beside=show, supervision=parent))
    except IngressError:
        raise
    except BaseException as exc:  # an engine may call sys.exit, too
        if is_ctrl_c(exc):
            raise
        logger.debug("traceback", exc_info=exc)
        raise CommandError(
            "the worker failed" if is_started else "the worker could not start",
            f"{type(exc).__name__}: {printable(text_of(exc))}",
            "the same command with -v shows where",
            exit_code=EXIT_FAILED if is_started else EXIT_STARTUP,
        ) from exc


def pair_endpoints(targets: Sequence[str], endpoints: Sequence[str], namespace: str) -> list[str]:
    """Return the full name of each target's endpoint.

    Raises:
        CommandError: no target, a wrong count, a bad name, or a name given twice.
    """
    if not targets:
        raise usage("nothing to serve", "`ingress serve` needs a target", "ingress serve markov, or hello.py:generate")
    if not endpoints and len(targets) == 1:
        endpoints = ["backend.generate"]
    if len(endpoints) != len(targets):
        raise usage(
            f"{len(targets)} targets and {len(endpoints)} endpoints do not pair up",
            "the first --endpoint is for the first target, the second for the second",
            f"ingress serve {' '.join(targets)} "
            + " ".join(f"--endpoint {namespace}.backend.{number}" for number in range(1, len(targets) + 1)),
        )
    names = [check_endpoint(text, namespace) for text in endpoints]
    if len(set(names)) < len(names):
        raise usage("an endpoint is given twice", ", ".join(names), "a name of its own for each target")
    return names


def check_working_directory() -> None:
    """Raise CommandError where there is none: paths that are relative, and those that are shown, mean nothing then."""
    try:
        Path.cwd()
    except OSError as exc:
        what, why = "there is no working directory", f"it has been removed, or may not be read: {exc.strerror}"
        raise CommandError(what, why, "cd to a directory that exists", exit_code=EXIT_STARTUP) from exc


def _ending(worker: Worker, code: int) -> str:
    if code > 128:
        return "ended at once by a signal"
    if worker.cancelled_by_drain:
        return f"drained, {worker.cancelled_by_drain} requests cancelled by the budget"
    return "drained, every request was answered"
