"""What the verbs that call a worker have in common: finding it, leaving in order, and saying why it failed."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from ..client import Client
from ..errors import IngressError, StartupError
from ._errors import CommandError, nearest


def run_caller(
    run: Callable[[], Awaitable[None]], call_home: str, failure: Callable[[IngressError], CommandError]
) -> None:
    """Run a caller to its end.

    Args:
        failure: puts in words what a call raised.

    Raises:
        CommandError: it failed.
        StartupError: a plug-in or a file cannot be used.
    """
    try:
        trio.run(run)
    except StartupError as exc:
        if not str(exc).startswith("cannot listen on"):
            raise
        raise CommandError(
            f"cannot take answers on {call_home}", str(exc), "--call-home with an address of this host"
        ) from exc
    except IngressError as exc:
        raise failure(exc) from exc


async def find_worker(client: Client, endpoint: str, *, wait: float, place: str, verb: str) -> None:
    """Return once there is an instance of the endpoint.

    Raises:
        NoInstances: none has appeared within ``wait`` seconds.
        CommandError: there is none, with the next thing to type.
    """
    if wait:
        await client.wait_for_instances(endpoint, timeout=wait)
    if client.instances(endpoint):
        return
    known = sorted({str(record.endpoint_id) for record in client.instances()})
    guess = nearest(endpoint, known)
    raise CommandError(
        f"nobody serves {endpoint}",
        f"{place} knows {', '.join(known[:5]) if known else 'no worker'}",
        f"ingress {verb} {guess}" if guess else "ingress ls, --wait 10 for a worker on its way, or another --file-kv",
    )


def nobody_to_call(endpoint: str, exc: IngressError) -> CommandError:
    """Return the error for an endpoint whose instances cannot be called."""
    return CommandError(f"nobody to call for {endpoint}", str(exc), "ingress ls")


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
