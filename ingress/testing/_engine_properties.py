"""What has to hold for every engine, one method a property."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from attrs import define, field, frozen

from .._engine_run import DEFAULT_CLEANUP_TIMEOUT
from .._plugins import load_shape
from ..abc import Engine
from ..errors import IngressError
from ..wire.codec import codec_named
from ..wire.messages import CodecName, ControlWord
from ._call import Answer, Call
from ._memory import MemoryNetwork
from ._outcome import PropertyFailed, fail, show
from ._payloads import bidirectional_payload, control_message, unary_payload
from ._pipes import pipes
from ._stage import Stage, open_stage
from ._watched_engine import INJECTED, OnSuspend, Run, WatchedEngine

AT_ONCE = 100

STRANGE_REQUESTS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e300,
    "",
    "\0",
    [],
    [[]],
    {},
    {"": None},
    {"n": "many"},
    {"a": {"b": [1]}},
)
"""Requests that few engines are made for."""

SMALL_PIPE = 512
SLOW_READS = 50


_ids = itertools.count(1)  # of calls that are made at once, each must get its own answer


@frozen
class Case:
    """One call: a request, or for a bidirectional engine all of its requests."""

    requests: Sequence[Any]
    is_bidirectional: bool

    async def push(self, stage: Stage, codec: CodecName = "msgpack") -> Call:
        control = control_message(f"request-{next(_ids)}", codec=codec, bidirectional=self.is_bidirectional)
        encode = codec_named(codec).encode
        if self.is_bidirectional:
            return await stage.push(bidirectional_payload(control), [encode(request) for request in self.requests])
        return await stage.push(unary_payload(self.requests[0], control))


@define
class EngineProperties:
    """The properties of one engine, asked in one way; see :func:`ingress.testing.check_engine` for the fields."""

    engine: Engine
    cases: Sequence[Case]
    codecs: Sequence[CodecName]
    examples: int
    timeout: float
    max_chunks: int
    _answers: dict[tuple[int, CodecName], list[Any]] = field(factory=dict, init=False)
    """What each case is answered in each codec, where that is the same every time."""
    _suspensions: int = field(default=0, init=False)

    def all(self) -> dict[str, Callable[[random.Random], Any]]:
        """Return the properties by name, in the order in which a newcomer meets them."""
        return {
            "answers every request": self.answers,
            "its chunks are the same in every codec": self.chunks_survive,
            f"answers {AT_ONCE} at once": self.answers_at_once,
            "waits for a slow reader": self.waits_for_a_slow_reader,
            "stops before its first chunk": partial(self.ends_before_its_first_chunk, _stop),
            "stops between chunks": partial(self.ends_at_a_word, ControlWord.STOP),
            "is killed before its first chunk": partial(self.ends_before_its_first_chunk, _kill),
            "is killed between chunks": partial(self.ends_at_a_word, ControlWord.KILL),
            "is left by its caller between chunks": partial(self.ends_at_a_word, None),
            "stopped at every await, ends and leaves nothing": partial(self.ends_at_every_await, _stop),
            "killed at every await, ends and leaves nothing": partial(self.ends_at_every_await, _kill),
            "a failure before its first chunk goes home": partial(self.tells_failure, 0),
            "a failure between chunks goes home": partial(self.tells_failure, 1),
            "answers or refuses what it was not made for": self.bears_strange_requests,
        }

    async def first_answered(self, cases: Sequence[Case]) -> Case:
        """Find a case that the engine answers with chunks and without an error."""
        complaints = []
        for case in cases:
            async with self._stage() as (stage, _):
                answer = await self._finish(await case.push(stage))
                if answer.items and not answer.errors:
                    return case
                complaints.append(answer.errors[0].message if answer.errors else "no chunk")
        got = f"for {show(cases[0].requests[0])}: {complaints[0]}"
        raise PropertyFailed(expected="requests that it answers, given as requests=…", got=got)

    # -- answers -----------------------------------------------------------------------------------------------------

    async def answers(self, rng: random.Random) -> None:
        seen: dict[tuple[int, CodecName], list[Any]] = {}
        for index, case in enumerate(self.cases):
            for codec in (*self.codecs, *self.codecs):
                async with self._stage() as (stage, engine):
                    answer = await self._finish(await case.push(stage, codec))
                    self._check_answer(case, answer)
                    await self._check_ended(stage, engine, "after an answer")
                    self._suspensions = max(self._suspensions, *(run.suspensions for run in engine.runs))
                    if seen.setdefault((index, codec), answer.items) == answer.items:
                        self._answers[index, codec] = answer.items
                    else:
                        self._answers.pop((index, codec), None)

    async def chunks_survive(self, rng: random.Random) -> None:
        for case in self.cases:
            async with self._stage() as (stage, engine):
                await self._finish(await case.push(stage))
                for chunk in engine.runs[0].chunks:
                    self._check_chunk(chunk)

    def _check_chunk(self, chunk: Any) -> None:
        decoded = []
        for name in self.codecs:
            codec = codec_named(name)
            try:
                item = codec.decode_item(codec.encode_item(chunk)).annotated
            except IngressError as exc:
                fail(f"a chunk that {name} can hold", f"{show(chunk)}: {exc}")
            decoded.append(item)
        for name, item in zip(self.codecs, decoded, strict=True):
            if item != decoded[0]:
                fail(
                    "the same chunk in every codec; keys are text, numbers finite, and bytes are for msgpack alone",
                    f"{show(chunk)} arrives as {show(getattr(decoded[0], 'data', None))} in {self.codecs[0]}, "
                    f"as {show(getattr(item, 'data', None))} in {name}",
                )

    async def answers_at_once(self, rng: random.Random) -> None:
        async with self._stage() as (stage, engine):
            chosen = [(rng.randrange(len(self.cases)), rng.choice(self.codecs)) for _ in range(AT_ONCE)]
            calls = [await self.cases[index].push(stage, codec) for index, codec in chosen]
            async with trio.open_nursery() as nursery:
                for call in calls:
                    nursery.start_soon(self._finish, call)
            for (index, codec), call in zip(chosen, calls, strict=True):
                self._check_answer(self.cases[index], call.answer, self._answers.get((index, codec)))
            await self._check_ended(stage, engine, f"after {AT_ONCE} at once")

    async def waits_for_a_slow_reader(self, rng: random.Random) -> None:
        codec = self.codecs[0]
        for index, case in enumerate(self.cases):
            async with self._stage(MemoryNetwork(pipes(SMALL_PIPE))) as (stage, engine):
                known = self._answers.get((index, codec))
                size = 40 + len(repr(known)) // SLOW_READS
                answer = await self._finish(await case.push(stage, codec), max_bytes=size, pause=0.05)
                self._check_answer(case, answer, known)
                await self._check_ended(stage, engine, "after a slow reader")

    def _check_answer(self, case: Case, answer: Answer, known: list[Any] | None = None) -> None:
        if answer.was_cut:
            return
        if answer.errors or not answer.is_whole:
            fail(f"a whole answer to {show(case.requests)}", answer.describe())
        if known is not None and answer.items != known:
            fail(f"the same answer as alone, {show(known)}", show(answer.items))

    # -- ends --------------------------------------------------------------------------------------------------------

    async def ends_before_its_first_chunk(self, end: OnSuspend, rng: random.Random) -> None:
        await self._ends_at(end, lambda run: run.suspensions == 1 and not run.chunks, "before its first chunk")

    async def ends_at_every_await(self, end: OnSuspend, rng: random.Random) -> None:
        awaits = range(1, min(self._suspensions, 10 * self.max_chunks) + 1)
        budget = max(self.examples // len(self.cases), 1)
        for at in awaits if len(awaits) <= budget else sorted(rng.sample(awaits, budget)):
            await self._ends_at(end, partial(_is_at, at), f"at its await {at}")

    async def _ends_at(self, end: OnSuspend, is_there: Callable[[Run], bool], where: str) -> None:
        for case in self.cases:
            async with self._stage() as (stage, engine):

                def end_there(run: Run) -> None:
                    if run.ended_by_check_at is None and is_there(run):
                        run.ended_by_check_at = trio.current_time()
                        end(run)

                engine.on_suspend = end_there
                await self._finish(await case.push(stage))
                await self._check_ended(stage, engine, f"when ended {where}")

    async def ends_at_a_word(self, word: ControlWord | None, rng: random.Random) -> None:
        for case in self.cases:
            async with self._stage(MemoryNetwork(pipes(SMALL_PIPE))) as (stage, engine):
                call = await case.push(stage)
                await call.read(lambda said: bool(said.annotated) or said.has_sentinel)
                for run in engine.runs:
                    run.ended_by_check_at = trio.current_time()
                if word is None:
                    await call.leave()
                    await call.over("the engine to end after its caller left")
                else:
                    await call.say(word)
                    await self._finish(call)
                await self._check_ended(stage, engine, "when ended between chunks")

    async def tells_failure(self, after: int, rng: random.Random) -> None:
        for case in self.cases:
            async with self._stage() as (stage, engine):
                engine.fail_after = after
                answer = await self._finish(await case.push(stage))
                await self._check_ended(stage, engine, "after a failure")
                if any(run.has_failed for run in engine.runs) and (
                    not answer.is_whole or [error.message for error in answer.errors] != [INJECTED]
                ):
                    fail(f"{after} chunks, an error event and the end", answer.describe())

    async def bears_strange_requests(self, rng: random.Random) -> None:
        async with self._stage() as (stage, engine):
            for request in STRANGE_REQUESTS:
                strange = Case([request], self.cases[0].is_bidirectional)
                answer = await self._finish(await strange.push(stage))
                if not answer.was_cut and not answer.is_whole:
                    fail(f"an answer or an error event for {request!r}", answer.describe())
            await self._check_ended(stage, engine, "after strange requests")
            answer = await self._finish(await self.cases[0].push(stage, self.codecs[0]))
            self._check_answer(self.cases[0], answer, self._answers.get((0, self.codecs[0])))

    # -- helpers -----------------------------------------------------------------------------------------------------

    async def _finish(self, call: Call, **reading: Any) -> Answer:
        return await call.finish(self.max_chunks, **reading)

    async def _check_ended(self, stage: Stage, engine: WatchedEngine, when: str) -> None:
        await stage.check_nothing_left(when)
        for run in engine.runs:
            if run.is_stubborn:
                fail(f"the engine to end {when}", f"it swallows trio.Cancelled: {run.swallowed} times, until given up")
            if not run.is_over:
                fail(f"the engine to end {when}", f"it still runs after {len(run.chunks)} chunks")
            if run.cleanup_error is not None:
                error = run.cleanup_error
                fail(f"a quiet cleanup {when}", f"{type(error).__name__}: {error}")
            if run.ended_by_check_at is not None:
                took = run.over_at - run.ended_by_check_at
                if took > DEFAULT_CLEANUP_TIMEOUT:
                    fail(f"the engine to end within {DEFAULT_CLEANUP_TIMEOUT:g} s {when}", f"it took {took:.1f} s")

    @asynccontextmanager
    async def _stage(self, network: MemoryNetwork | None = None) -> AsyncIterator[tuple[Stage, WatchedEngine]]:
        watched = WatchedEngine(self.engine)
        shapes = [load_shape(name) for name in ("header-and-data", "header-only")]
        async with open_stage(shapes, watched, network=network, timeout=self.timeout) as stage:
            yield stage, watched


def _is_at(suspension: int, run: Run) -> bool:
    return run.suspensions == suspension


def _stop(run: Run) -> None:
    run.context.stop()


def _kill(run: Run) -> None:
    run.context.kill("killed by the check")
