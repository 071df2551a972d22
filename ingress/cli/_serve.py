"""``ingress serve``: run engines as a worker until told to stop."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from typing import Annotated

import trio
from cyclopts import Parameter

from .._descriptors import raise_descriptor_limit
from .._process_memory import exempt_what_stays, give_back_large_blocks
from .._serve import make_worker, serve_until_signalled
from .._worker import Worker
from ..abc import Discovery
from ..errors import IngressError
from ._deadline_options import DEFAULT_DEADLINES, DeadlineOptions
from ._drain import show_drain
from ._errors import EXIT_FAILED, EXIT_STARTUP, CommandError, usage
from ._logging import wants_json
from ._model_options import DEFAULT_MODELS, ModelFlags
from ._options import DEFAULT_DISCOVERY, DEFAULT_OUTPUT, DiscoveryOptions, OutputOptions, check_endpoint
from ._screen import Row, call_command, command_lines, print_card
from ._status_options import DEFAULT_STATUS, StatusFlags
from ._targets import Target, resolve_asyncio_targets, resolve_target
from ._tls_options import DEFAULT_SECURITY, SecurityOptions
from ._trace_options import DEFAULT_TRACES, TraceFlags
from ._worker_options import DEFAULT_WORKER, WorkerOptions

logger = logging.getLogger("ingress.cli")

EXAMPLE_REQUEST = '{"prompt":"hello"}'


def serve(
    *targets: str,
    endpoint: Annotated[list[str] | None, Parameter(negative=())] = None,
    asyncio: Annotated[bool, Parameter(negative=())] = False,
    worker: WorkerOptions = DEFAULT_WORKER,
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
    """
    log_writer = output.set_up_logging(logging.INFO)
    raise_descriptor_limit()
    endpoints = pair_endpoints(targets, endpoint or [], worker.namespace)
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
        code = _run(made, served, worker, discovery, opened, output)
    logger.info("stopped: %s", _ending(made, code))
    return code


def _run(
    made: Worker,
    served: dict[str, Target],
    worker: WorkerOptions,
    discovery: DiscoveryOptions,
    opened: Discovery,
    output: OutputOptions,
) -> int:
    """Serve until told to stop; return the exit code."""
    is_started = False
    console = output.stderr()
    is_on_terminal = console.is_terminal and not (console.is_dumb_terminal or output.quiet or wants_json(os.environ))
    show = functools.partial(show_drain, console=console if is_on_terminal else None)

    def on_started(started: Worker) -> None:
        nonlocal is_started
        is_started = True
        exempt_what_stays()
        if output.quiet or wants_json(os.environ):
            pages = f", status on {started.status.url}" if started.status.url else ""
            tls = f" ({_tls_of(started)[1:]})" if started.tls is not None else ""
            logger.info("serving %s on %s%s%s", ", ".join(served), started.address, tls, pages)
        else:
            with contextlib.suppress(BrokenPipeError):  # nobody to read it is no reason not to serve
                _show_card(started, served, worker, discovery, opened, output)

    give_back_large_blocks()
    try:
        return trio.run(functools.partial(serve_until_signalled, made, on_started, beside=show))
    except IngressError:
        raise
    except Exception as exc:
        logger.debug("traceback", exc_info=exc)
        raise CommandError(
            "the worker failed" if is_started else "the worker could not start",
            f"{type(exc).__name__}: {exc}",
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


def _show_card(
    worker: Worker,
    served: dict[str, Target],
    options: WorkerOptions,
    discovery: DiscoveryOptions,
    opened: Discovery,
    output: OutputOptions,
) -> None:
    console = output.stderr()
    other = "json" if worker.codec == "msgpack" else "msgpack"
    rows: list[Row] = [[("endpoint", name), ("engine", target.label)] for name, target in served.items()]
    rows += [
        [
            ("request", f"{worker.plane}{_tls_of(worker)} {worker.address}"),
            ("codec", f"{worker.codec}, reads {other} too"),
        ],
        [("discovery", discovery.describe(opened)), ("instance", f"{worker.instance_id:x}")],
        [
            ("limits", f"{options.engine_request_limit} at once + {options.request_queue_limit} in line"),
            ("drain", f"{options.grace:g} s + up to {options.drain_budget:g} s"),
        ],
    ]
    rows += [
        [("model", card.name), ("input", "token ids" if card.takes_tokens else "text")]
        for card in worker.models.cards.values()
    ]
    if worker.status.url:
        rows.append([("status", f"{worker.status.url}{worker.status.options.health_path}")])
    print_card(console, rows)
    if not opened.is_shared:
        return
    console.print("Ctrl-C once drains, twice quits. In another terminal:", style="dim", soft_wrap=True)
    name, engine = next(iter(served)), next(iter(worker.engines.values()))
    asking = ["-d", EXAMPLE_REQUEST] if engine.is_unary else ["--bidi"]
    parts = call_command(name, asking, discovery.flags_to_repeat)
    console.print(command_lines(console, parts), soft_wrap=True)


def _tls_of(worker: Worker) -> str:
    if worker.tls is None:
        return ""
    return "+mtls" if worker.tls.options.is_mutual else "+tls"


def _ending(worker: Worker, code: int) -> str:
    if code > 128:
        return "forced by a second signal"
    if worker.cancelled_by_drain:
        return f"drained, {worker.cancelled_by_drain} requests cancelled by the budget"
    return "drained, every request was answered"
