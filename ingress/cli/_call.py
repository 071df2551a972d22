"""``ingress call``: send one request to a live worker and stream the answer."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated, Any

import trio
from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number

from .._text import printable
from ..abc import Discovery
from ..client import Client, ResponseStream, open_client
from ..client._bidirectional import BidirectionalStream
from ..errors import (
    IngressError,
    InvalidMessage,
    NoDialBack,
    NoInstances,
    NotAccepted,
    Overloaded,
    RemoteError,
    StreamIncomplete,
)
from ._bidi import open_conversation
from ._caller_options import DEFAULT_CALLER, DEFAULT_DATA, CallerOptions
from ._calling import cancelled_by_signal, find_worker, nobody_to_call, run_caller
from ._errors import EXIT_CLEAN, CommandError, usage
from ._figures import Tally
from ._options import (
    DEFAULT_DISCOVERY,
    DEFAULT_NAMESPACE,
    DEFAULT_OUTPUT,
    DiscoveryOptions,
    Namespace,
    OutputOptions,
    check_endpoint,
    parse_pairs,
)
from ._payloads import json_line, text_for, write
from ._tls_options import DEFAULT_SECURITY, SecurityOptions
from ._worker_flags import check_seconds

logger = logging.getLogger("ingress.cli")

# What is on its way when a stop is sent is read and not shown; a worker that goes on for longer is left.
STOP_TIMEOUT = 5.0

# Of several instances that do not take a request, which a worker that has just died does not, so many are asked.
MAX_TRIES = 4

# A traceback of an engine and more, and no screenful after screenful of somebody's text.
MAX_ERROR_TEXT = 4000


@frozen
class CallOptions:
    """What the command line asks for, checked."""

    endpoint: str
    request: Any
    metadata: dict[str, str]
    headers: dict[str, str]
    instance_id: int | None
    stop_after: int | None
    timeout: float
    wait: float
    call_home: str
    is_text: bool
    is_bidirectional: bool


def call(
    endpoint: str,
    /,
    *,
    caller: CallerOptions = DEFAULT_CALLER,
    header: Annotated[list[str] | None, Parameter(negative=())] = None,
    bidi: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    text: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    stop_after: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    timeout: Annotated[
        float | None, Parameter(validator=lambda kind, value: value and check_seconds(kind, value))
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    security: SecurityOptions = DEFAULT_SECURITY,
    discovery: DiscoveryOptions = DEFAULT_DISCOVERY,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> int:
    """Send one request to a live worker and stream the answer, one JSON line an item.

    With --bidi every line of standard input is a request of its own: sent as it comes, as JSON, or as a string where it
    is none; blank lines are skipped. Answers are printed as they come. The end of the input ends the requests and not
    the answers.

    Ctrl-C leaves the stream, which cancels the engine at the other end.

    Parameters
    ----------
    endpoint
        namespace.component.endpoint.
    header
        KEY=VALUE among the request's headers, such as traceparent=00-…; repeatable.
    bidi
        Call a bidirectional endpoint with the lines of standard input.
    text
        Print the text of the items, joined, instead of JSON lines; to a terminal with its control characters escaped.
    stop_after
        Ask the worker to stop after this many items.
    timeout
        Seconds for the whole call.
    """
    output.set_up_logging()
    if bidi and caller.data != DEFAULT_DATA:
        raise usage("--bidi and -d exclude each other", "--bidi sends the lines of standard input", "--bidi without -d")
    options = CallOptions(
        endpoint=check_endpoint(endpoint, namespace),
        request=caller.request(),
        metadata=caller.pairs(),
        headers=parse_pairs(header, "--header"),
        instance_id=caller.instance_id(),
        stop_after=stop_after,
        timeout=math.inf if timeout is None else timeout,
        wait=caller.wait,
        call_home=caller.call_home,
        is_text=text,
        is_bidirectional=bidi,
    )
    opened = discovery.open_shared()
    secured: dict[str, Any] = {"tls": security.tls(), "token_keys": security.token_keys()}
    tally = Tally(began=0.0)
    forced: list[int] = []
    run = partial(_run, options, opened, discovery.describe(opened), secured, tally, forced)
    try:
        run_caller(run, options.call_home, partial(_failure, options, tally))
    finally:
        if options.is_text and tally.items:
            write(b"\n")
        if tally.items and not output.quiet and (output.verbose or sys.stderr.isatty()):
            output.stderr().print(tally.summary(), style="dim", soft_wrap=True)
    return 128 + forced[0] if forced else EXIT_CLEAN


async def _run(
    options: CallOptions,
    discovery: Discovery,
    place: str,
    secured: Mapping[str, Any],
    tally: Tally,
    forced: list[int],
) -> None:
    """Make the call within its time; signals that end it are put into ``forced``."""
    with trio.move_on_after(options.timeout) as scope:
        async with (
            cancelled_by_signal(forced),
            open_client(discovery=discovery, host=options.call_home, **secured) as client,
        ):
            await _call(client, options, tally, place)
    if scope.cancelled_caught and not forced:
        raise CommandError(
            f"no whole answer within {options.timeout:g} s", f"{tally.items} items came", "a larger --timeout"
        )


async def _call(client: Client, options: CallOptions, tally: Tally, place: str) -> None:
    await find_worker(client, options.endpoint, wait=options.wait, place=place, verb="call")
    known = client.instances(options.endpoint)
    is_for_any = options.instance_id is None and not options.is_bidirectional
    try:
        for left in reversed(range(min(len(known), MAX_TRIES) if is_for_any else 1)):
            tally.began = trio.current_time()
            try:
                async with _open(client, options) as responses:
                    tally.instance_id = responses.instance_id
                    await _print_items(responses, options, tally)
                return
            except (NotAccepted, Overloaded) as exc:  # it has not run, and the client sets the instance aside
                if not left:
                    raise
                logger.info("trying another instance: %s", printable(exc))
    except TypeError as exc:
        raise usage("the request cannot be sent", str(exc), "JSON with text keys and 64-bit integers") from exc
    except ValueError as exc:
        raise usage("the request cannot be sent", str(exc), "ingress call --help") from exc


def _open(client: Client, options: CallOptions) -> AbstractAsyncContextManager[ResponseStream | BidirectionalStream]:
    how: dict[str, Any] = {
        "routing": "round_robin" if options.instance_id is None else "direct",
        "instance_id": options.instance_id,
        "metadata": options.metadata,
        "headers": options.headers,
    }
    if options.is_bidirectional:
        return open_conversation(client, options.endpoint, **how)
    return client.stream(options.endpoint, options.request, **how)


async def _print_items(responses: ResponseStream | BidirectionalStream, options: CallOptions, tally: Tally) -> None:
    is_terminal = sys.stdout.isatty()
    try:
        async for item in responses:
            tally.count(trio.current_time())
            write(text_for(item, is_terminal=is_terminal) if options.is_text else json_line(item))
            if tally.items == options.stop_after:
                break
        else:
            return
        with trio.move_on_after(STOP_TIMEOUT):
            await responses.stop()
            async for _ in responses:
                pass
    finally:
        tally.ended = trio.current_time()


def _failure(options: CallOptions, tally: Tally, exc: IngressError) -> CommandError:
    came = f"after {tally.items} items" if tally.items else "before the first item"
    match exc:
        case RemoteError():
            return CommandError(f"the worker answered with an error, {came}", printable(exc, MAX_ERROR_TEXT))
        case StreamIncomplete():
            return CommandError(
                f"the answer broke off {came}", str(exc), "the worker's log; --direct tries another one"
            )
        case Overloaded():
            return CommandError("the worker has no room", str(exc), "again in a moment, or --direct another instance")
        case NoDialBack():
            return CommandError("the worker never called home", str(exc), "--call-home with an address it can dial")
        case NoInstances():
            return nobody_to_call(options.endpoint, exc)
        case InvalidMessage():
            return CommandError("what was to be sent or came back breaks the rules", str(exc))
        case _:
            return CommandError("the call failed", str(exc), "the same command with -v")
