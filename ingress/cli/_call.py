"""``ingress call``: send one request to a live worker and stream the answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import trio
from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number

from ..client import Client, ResponseStream, open_client
from ..client._bidirectional import BidirectionalStream
from ..errors import (
    IngressError,
    InvalidMessage,
    NoDialBack,
    NoInstances,
    Overloaded,
    RemoteError,
    StartupError,
    StreamIncomplete,
)
from ._bidi import open_conversation
from ._errors import EXIT_CLEAN, CommandError, nearest, usage
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
from ._payloads import json_line, read_instance_id, read_request, text_of, write
from ._tls_options import DEFAULT_SECURITY, SecurityOptions
from ._worker_options import check_seconds

# What is on its way when a stop is sent is read and not shown; a worker that goes on for longer is left.
STOP_TIMEOUT = 5.0

DEFAULT_CALL_HOME = "127.0.0.1"


@frozen
class CallOptions:
    """What the command line asks for, checked."""

    endpoint: str
    request: Any
    metadata: dict[str, str]
    headers: dict[str, str]
    instance_id: int | None
    stop_after: int | None
    wait: float
    call_home: str
    is_text: bool
    is_bidirectional: bool


def call(
    endpoint: str,
    /,
    *,
    data: Annotated[str, Parameter(name=["-d", "--data"], allow_leading_hyphen=True)] = "{}",
    metadata: Annotated[list[str] | None, Parameter(name=["-H", "--metadata"], negative=())] = None,
    header: Annotated[list[str] | None, Parameter(negative=())] = None,
    direct: str | None = None,
    bidi: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    text: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    stop_after: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    timeout: Annotated[
        float | None, Parameter(validator=lambda kind, value: value and check_seconds(kind, value))
    ] = None,
    wait: Annotated[float, Parameter(validator=check_seconds)] = 0.0,
    call_home: Annotated[str, Parameter(env_var="INGRESS_CALL_HOME")] = DEFAULT_CALL_HOME,
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
    data
        The request: JSON, @FILE, or - for standard input.
    metadata
        KEY=VALUE that reaches the engine as context.metadata; repeatable.
    header
        KEY=VALUE among the request's headers, such as traceparent=00-…; repeatable.
    direct
        Call this instance and no other; ingress ls shows them.
    bidi
        Call a bidirectional endpoint with the lines of standard input.
    text
        Print the text of the items, joined, instead of JSON lines.
    stop_after
        Ask the worker to stop after this many items.
    timeout
        Seconds for the whole call.
    wait
        Seconds to wait for a worker to appear.
    call_home
        Address of this host that the worker can dial.
    """
    output.set_up_logging()
    if bidi and data != "{}":
        raise usage("--bidi and -d exclude each other", "--bidi sends the lines of standard input", "--bidi without -d")
    options = CallOptions(
        endpoint=check_endpoint(endpoint, namespace),
        request=read_request(data),
        metadata=parse_pairs(metadata, "-H"),
        headers=parse_pairs(header, "--header"),
        instance_id=None if direct is None else read_instance_id(direct),
        stop_after=stop_after,
        wait=wait,
        call_home=call_home,
        is_text=text,
        is_bidirectional=bidi,
    )
    opened = discovery.open_shared()
    secured: dict[str, Any] = {"tls": security.tls(), "token_keys": security.token_keys()}
    tally = Tally(began=0.0)
    forced: list[int] = []

    async def run() -> None:
        with trio.move_on_after(timeout if timeout is not None else float("inf")) as scope:
            async with (
                cancelled_by_signal(forced),
                open_client(discovery=opened, host=options.call_home, **secured) as client,
            ):
                await _call(client, options, tally, discovery.describe(opened))
        if scope.cancelled_caught and not forced:
            raise CommandError(
                f"no whole answer within {timeout:g} s", f"{tally.items} items came", "a larger --timeout"
            )

    try:
        trio.run(run)
    except StartupError as exc:
        if not str(exc).startswith("cannot listen on"):
            raise
        raise CommandError(
            f"cannot take answers on {call_home}", str(exc), "--call-home with an address of this host"
        ) from exc
    except IngressError as exc:
        raise _failure(exc, options, tally) from exc
    finally:
        if options.is_text and tally.items:
            write(b"\n")
        if tally.items and not output.quiet and (output.verbose or sys.stderr.isatty()):
            output.stderr().print(tally.summary(), style="dim", soft_wrap=True)
    return 128 + forced[0] if forced else EXIT_CLEAN


async def _call(client: Client, options: CallOptions, tally: Tally, place: str) -> None:
    if options.wait:
        await client.wait_for_instances(options.endpoint, timeout=options.wait)
    if not client.instances(options.endpoint):
        raise nobody(client, options.endpoint, place, "call")
    tally.began = trio.current_time()
    try:
        async with _open(client, options) as responses:
            tally.instance_id = responses.instance_id
            await _print_items(responses, options, tally)
    except (TypeError, ValueError) as exc:
        raise usage("the request cannot be sent", str(exc), "JSON with text keys and 64-bit integers") from exc


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
    try:
        async for item in responses:
            tally.count(trio.current_time())
            write(text_of(item).encode(errors="replace") if options.is_text else json_line(item))
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


@asynccontextmanager
async def cancelled_by_signal(forced: list[int]) -> AsyncIterator[None]:
    """Cancel the block at the first SIGINT or SIGTERM, so that it leaves its stream in order; bounded."""
    failure: Exception | None = None
    # Taken until the block has been left: trio raises again what nobody took, and that would end the process.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            block = trio.CancelScope()

            async def listen() -> None:
                async for number in signals:
                    forced.append(number)
                    block.cancel()

            nursery.start_soon(listen)
            try:
                with block:
                    yield
            except Exception as exc:
                failure = exc  # out of the nursery it would come wrapped in a group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


# -- failing ----------------------------------------------------------------------------------------------------------


def nobody(client: Client, endpoint: str, place: str, verb: str) -> CommandError:
    """Return the error for an endpoint that discovery does not know, with the next thing to type."""
    known = sorted({str(record.endpoint_id) for record in client.instances()})
    guess = nearest(endpoint, known)
    return CommandError(
        f"nobody serves {endpoint}",
        f"{place} knows {', '.join(known[:5]) if known else 'no worker'}",
        f"ingress {verb} {guess}" if guess else "ingress ls, --wait 10 for a worker on its way, or another --file-kv",
    )


def _failure(exc: IngressError, options: CallOptions, tally: Tally) -> CommandError:
    came = f"after {tally.items} items" if tally.items else "before the first item"
    match exc:
        case RemoteError():
            return CommandError(f"the worker answered with an error, {came}", str(exc))
        case StreamIncomplete():
            return CommandError(
                f"the answer broke off {came}", str(exc), "the worker's log; --direct tries another one"
            )
        case Overloaded():
            return CommandError("the worker has no room", str(exc), "again in a moment, or --direct another instance")
        case NoDialBack():
            return CommandError("the worker never called home", str(exc), "--call-home with an address it can dial")
        case NoInstances():
            return CommandError(f"nobody to call for {options.endpoint}", str(exc), "ingress ls")
        case InvalidMessage():
            return CommandError("what was to be sent or came back breaks the rules", str(exc))
        case _:
            return CommandError("the call failed", str(exc), "the same command with -v")
