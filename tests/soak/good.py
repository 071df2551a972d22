"""Good callers: ask for random things in every way there is, and check that they get exactly those."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from attrs import frozen

import ingress
from ingress.errors import NotAccepted, Overloaded
from ingress.wire.messages import CodecName
from tests.raw_caller import open_raw_caller
from tests.reliability.served import NETWORK, Worker
from tests.soak.engine import BIDIRECTIONAL, GOOD, UNARY
from tests.soak.history import Account, Ending, Outcome

CALLERS = 16
CODECS: tuple[CodecName, ...] = ("json", "msgpack")

# Longer than any good request takes, also on a busy machine.
PATIENCE = 30.0

# Of a large body: some are decoded in a thread.
_LARGEST = 1 << 20

_numbers = itertools.count(1)


class WrongAnswer(Exception):
    """Something else came than was asked for."""


@frozen
class Caller:
    """One of the good ones; for one task."""

    worker: Worker
    client: ingress.Client
    codec: CodecName
    dice: random.Random
    account: Account

    async def call_until(self, over: trio.Event) -> None:
        """Call until it is over, one request after the other."""
        while not over.is_set():
            await self.call(self.dice.choices(KINDS, WEIGHTS)[0])
            await trio.sleep(self.dice.expovariate(1 / 0.02))

    async def call(self, kind: Kind) -> None:
        """One request; whatever else than its answer comes is noted as lost."""
        request_id = f"{GOOD}{next(_numbers)}"
        outcome, why = Outcome.LOST, "took too long"
        try:
            with trio.move_on_after(PATIENCE):
                outcome, why = await kind(self, request_id), ""
        except (Overloaded, NotAccepted) as exc:
            outcome, why = Outcome.REFUSED, repr(exc)
        except Exception as exc:
            why = repr(exc)
        self.account.endings.append(Ending(request_id, kind.__name__, outcome, why))

    def counting(self) -> tuple[dict[str, Any], list[Any]]:
        """A request for some chunks, and the chunks."""
        size, text = self.dice.randrange(1, 100), "é" * self.dice.randrange(200)
        pause = self.dice.choice([0, 0, 0.001, 0.01])
        return {"do": "count", "n": size, "text": text, "pause": pause}, [[number, text] for number in range(size)]


@asynccontextmanager
async def open_callers(worker: Worker, dice: random.Random, account: Account) -> AsyncIterator[list[Caller]]:
    """Callers on two clients of ours, one a codec.

    As patient as they are themselves: after an ack that a busy machine delays for longer than five seconds, a client
    would set the worker aside, and lose the requests of the next five.
    """
    async with AsyncExitStack() as stack:
        clients = []
        for codec in CODECS:
            opened = ingress.open_client(
                discovery=ingress.FileDiscovery(worker.directory / "kv"),
                codec=codec,
                connect_timeout=PATIENCE,
                ack_timeout=PATIENCE,
            )
            clients.append(await stack.enter_async_context(opened))
        for client, endpoint in itertools.product(clients, (UNARY, BIDIRECTIONAL)):
            await client.wait_for_instances(endpoint)
        yield [
            Caller(worker, clients[number % 2], CODECS[number % 2], random.Random(dice.random()), account)
            for number in range(CALLERS)
        ]


# -- kinds of requests -------------------------------------------------------------------------------------------------


async def count(caller: Caller, request_id: str) -> Outcome:
    request, expected = caller.counting()
    return _whole(await _items(caller, request_id, request), expected)


async def echo(caller: Caller, request_id: str) -> Outcome:
    request = {"list": list(range(caller.dice.randrange(5000)))}
    return _whole(await _items(caller, request_id, request), [request])


async def large(caller: Caller, request_id: str) -> Outcome:
    request = {"text": "x" * caller.dice.randrange(_LARGEST // 16, _LARGEST)}
    return _whole(await _items(caller, request_id, request), [request])


async def fail(caller: Caller, request_id: str) -> Outcome:
    text = "é" * caller.dice.randrange(200)
    try:
        await _items(caller, request_id, {"do": "raise", "text": text})
    except ingress.RemoteError as exc:
        if text in str(exc):
            return Outcome.TOLD
        raise
    raise WrongAnswer("an end, where a failure was asked for")


async def leave(caller: Caller, request_id: str) -> Outcome:
    """Close the stream in the middle: a kill."""
    request, expected = caller.counting()
    items: list[Any] = []
    async with caller.client.stream(UNARY, request, request_id=request_id) as responses:
        async for item in responses:
            items.append(item)
            if len(items) * 2 >= len(expected):
                break
    return _begun(items, expected)


async def stop(caller: Caller, request_id: str) -> Outcome:
    """Ask for a stop in the middle, and hear the rest."""
    request, expected = caller.counting()
    items: list[Any] = []
    async with caller.client.stream(UNARY, request, request_id=request_id) as responses:
        async for item in responses:
            items.append(item)
            if len(items) * 2 >= len(expected):
                await responses.stop()
    return _begun(items, expected)


async def cancel(caller: Caller, request_id: str) -> Outcome:
    """Be cancelled at whatever moment, before the ack as well as behind the last chunk."""
    request, expected = caller.counting()
    items: list[Any] = []
    with trio.move_on_after(caller.dice.expovariate(1 / 0.03)) as scope:
        async with caller.client.stream(UNARY, request, request_id=request_id) as responses:
            async for item in responses:
                items.append(item)
    return _begun(items, expected) if scope.cancelled_caught else _whole(items, expected)


async def raw(caller: Caller, request_id: str) -> Outcome:
    """Read to the very end: nothing follows the final frame but the sentinel, and nothing that."""
    request, expected = caller.counting()
    async with open_raw_caller(NETWORK) as own:
        connection = await own.connect(caller.worker)
        response = await own.call(connection, request, request_id=request_id, codec=caller.codec)
        await response.read_to_sentinel()
        await response.send_fin()
        said = await response.read_to_end()
    if not (said.is_whole and said.end == "fin" and not said.errors):
        raise WrongAnswer(f"the stream ended by {said.end or 'nothing'}: {said.errors}")
    return _whole(said.items, expected)


async def converse(caller: Caller, request_id: str) -> Outcome:
    items, expected = await _conversation(caller, request_id, is_left=False)
    return _whole(items, expected)


async def converse_and_leave(caller: Caller, request_id: str) -> Outcome:
    items, expected = await _conversation(caller, request_id, is_left=True)
    return _begun(items, expected)


Kind = Callable[[Caller, str], Coroutine[Any, Any, Outcome]]

# How often each is asked for, beside the others.
_MIXTURE: Sequence[tuple[Kind, int]] = (
    (count, 8),
    (echo, 3),
    (large, 2),
    (fail, 2),
    (leave, 2),
    (stop, 2),
    (cancel, 2),
    (raw, 2),
    (converse, 2),
    (converse_and_leave, 1),
)
KINDS = [kind for kind, _ in _MIXTURE]
WEIGHTS = [weight for _, weight in _MIXTURE]


async def _items(caller: Caller, request_id: str, request: Any) -> list[Any]:
    async with caller.client.stream(UNARY, request, request_id=request_id) as responses:
        return [item async for item in responses]


async def _conversation(caller: Caller, request_id: str, *, is_left: bool) -> tuple[list[Any], list[Any]]:
    expected = [[number, caller.dice.random()] for number in range(caller.dice.randrange(1, 20))]
    items: list[Any] = []
    async with caller.client.open_bidirectional(BIDIRECTIONAL, request_id=request_id) as call:
        for _, request in expected:
            await call.send(request)
            items.append(await anext(call))
        if not is_left:
            await call.close_input()
            items += [item async for item in call]
    return items, expected


def _whole(items: list[Any], expected: list[Any]) -> Outcome:
    if items != expected:
        raise WrongAnswer(f"{len(items)} items of {len(expected)}, or others")
    return Outcome.COMPLETE


def _begun(items: list[Any], expected: list[Any]) -> Outcome:
    """A stream that its own caller ended: what came is the beginning."""
    if items != expected[: len(items)]:
        raise WrongAnswer(f"{len(items)} items, and not the first of {len(expected)}")
    return Outcome.CANCELLED
