"""What has to hold for every wire shape, one method a property."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from attrs import field, frozen

from .._failures import describe_failure
from ..abc import IngressDispatch
from ..errors import IngressError, ResponseStreamError
from ..wire.messages import RequestControlMessage
from ._call import Answer, Call
from ._dialer import MemoryDialer
from ._faults import Faults, with_faults
from ._leaks import StepTrigger, TaskWatch, instrument, open_sockets, touching_nothing
from ._memory import MemoryNetwork
from ._outcome import fail, show
from ._payloads import cuts, garbage, payloads_of, smallest
from ._pipes import pipe_pair
from ._run import within
from ._shape_complaints import complaint_about, complaint_before_the_ack
from ._stage import Stage, open_stage
from ._watched_shape import CHUNKS, KitEngine, WatchedShape

AT_ONCE = 10

Cut = Callable[[Stage, Call], None]
"""Ends a request between two steps of its tasks."""


@frozen
class ShapeProperties:
    """The properties of one shape; see :func:`ingress.testing.check_shape` for the fields."""

    shape: IngressDispatch[Any]
    payloads: Sequence[bytes] = field(repr=False)
    expected: Mapping[bytes, Any]
    others: Sequence[IngressDispatch[Any]]
    frames: Sequence[bytes] | None
    is_framed: bool
    examples: int
    timeout: float

    def all(self) -> dict[str, Callable[[random.Random], Any]]:
        """Return the properties by name, in the order in which a newcomer meets them."""
        properties: dict[str, Callable[[random.Random], Any]] = {
            "is the only shape that accepts its payloads": self.accepts_alone,
            "reads its control message from the payload and nothing else": self.reads_control,
            "turns each payload into a request and its answer": self.answers,
            f"answers {AT_ONCE} at once": self.answers_at_once,
            "answers when bytes come one by one": self.answers_in_crumbs,
            "garbage gives an IngressError and nothing else": self.refuses_garbage,
            "a payload cut anywhere is refused": self.refuses_cut_payloads,
            "garbage on a request stream gives an IngressError": self.refuses_garbage_frames,
            "dials what it announces, and tells when that fails": self.dials_what_it_announces,
            "leaves nothing open and keeps nothing of a request": self.leaves_nothing,
            "cancelled at every await, leaves nothing": partial(self.cut, "cancelled", _cancel),
            "stopped at every await, leaves nothing": partial(self.cut, "stopped", _stop),
            "killed at every await, leaves nothing": partial(self.cut, "killed", _kill),
        }
        if not self.is_framed:
            del properties["a payload cut anywhere is refused"]
        return properties

    # -- before the ack ----------------------------------------------------------------------------------------------

    async def accepts_alone(self, rng: random.Random) -> None:
        for payload in self.payloads:
            if (answer := self.shape.accepts(payload)) is not True:
                fail("accepts() to be True for its own payloads", f"{answer!r} for {show(payload)}")
            for other in self.others:
                if other.accepts(payload):
                    fail("no other installed shape to accept its payloads", f"{_name(other)} accepts {show(payload)}")
        for other in self.others:
            for payload in payloads_of(other):
                if other.accepts(payload) and self.shape.accepts(payload):
                    fail("accepts() to be False for another shape's payloads", f"True for one of {_name(other)}")

    async def reads_control(self, rng: random.Random) -> None:
        for payload in self.payloads:
            before = bytes(payload)
            with touching_nothing() as touched:
                first, second = ((self.shape.read_control(payload), self.shape.accepts(payload)) for _ in range(2))
                list(self.shape.request_streams(first[0]))
            if touched:
                fail("accepts, read_control and request_streams to be pure", f"they touch {', '.join(touched)}")
            if not isinstance(first[0], RequestControlMessage):
                fail("read_control to return a RequestControlMessage", show(first[0]))
            if first != second or payload != before:
                fail("the same answer each time", f"{show(first)} and then {show(second)}")

    # -- round trips -------------------------------------------------------------------------------------------------

    async def answers(self, rng: random.Random) -> None:
        for payload in self.payloads:
            requests = []
            for _ in range(2):
                async with self._stage() as (stage, _, engine):
                    answer = await (await self._push(stage, payload)).finish()
                    self._check_answer(answer)
                    await stage.check_nothing_left("after an answer")
                    if len(engine.seen) != 1:
                        fail("one request for the engine from one payload", f"{len(engine.seen)}: {show(engine.seen)}")
                    requests.append(engine.seen)
            if requests[0] != requests[1]:
                fail("the same request from the same payload", f"{show(requests[0])}, then {show(requests[1])}")
            if payload in self.expected and requests[0][0] != self.expected[payload]:
                fail(f"the request {show(self.expected[payload])}", show(requests[0][0]))

    async def answers_at_once(self, rng: random.Random) -> None:
        async with self._stage() as (stage, _, _engine):
            for payload in self.payloads:  # each for itself: several may name the same streams
                calls = [await self._push(stage, payload) for _ in range(AT_ONCE)]
                for call in calls:
                    self._check_answer(await call.finish())
            await stage.check_nothing_left(f"after {AT_ONCE} at once")

    async def answers_in_crumbs(self, rng: random.Random) -> None:
        crumbs = Faults(trickle=1)
        network = MemoryNetwork(with_faults(crumbs, lambda: pipe_pair(16), accepting=crumbs))
        async with self._stage(network) as (stage, _, _engine):
            for payload in self.payloads:
                self._check_answer(await (await self._push(stage, payload)).finish())
            await stage.check_nothing_left("after an answer")

    def _check_answer(self, answer: Answer) -> None:
        if answer.errors or not answer.is_whole:
            fail("a whole answer: prologue, chunks, final frame, sentinel", answer.describe())
        if answer.items != CHUNKS:
            fail(f"the engine's chunks {CHUNKS}", show(answer.items))

    # -- garbage -----------------------------------------------------------------------------------------------------

    async def refuses_garbage(self, rng: random.Random) -> None:
        for data in garbage(rng, self.payloads, self.examples):
            if (complaint := await complaint_about(self.shape, data, self.timeout)) is not None:
                smaller = smallest(data, lambda data: complaint_before_the_ack(self.shape, data)[0] == complaint)
                fail("an IngressError or a request", f"{complaint}, from {show(smaller, 400)}")

    async def refuses_cut_payloads(self, rng: random.Random) -> None:
        for payload in self.payloads:
            for at in cuts(rng, payload, self.examples):
                complaint = await complaint_about(self.shape, payload[:at], self.timeout, may_be_request=False)
                if complaint is not None:
                    fail("an IngressError, or check_shape(…, is_framed=False)", f"{complaint}, cut at byte {at}")

    async def refuses_garbage_frames(self, rng: random.Random) -> None:
        watched = WatchedShape(self.shape)
        for payload in self.payloads:
            await watched.parse_and_build_request(payload, self.shape.read_control(payload), MemoryDialer())
        for decode in watched.decoders:
            for data in garbage(rng, self.frames or (b'{"n":1}', b"\x81\xa1n\x01"), self.examples):
                try:
                    decode(data)
                except IngressError:
                    pass
                except Exception as exc:
                    fail("an IngressError or a request", f"{describe_failure(exc)}, from the frame {show(data, 400)}")

    # -- what is left ------------------------------------------------------------------------------------------------

    async def dials_what_it_announces(self, rng: random.Random) -> None:
        for payload in self.payloads:
            async with self._stage() as (stage, watched, _):
                announced = list(self.shape.request_streams(self.shape.read_control(payload)))
                await (await self._push(stage, payload)).finish()
                if unannounced := [stream for stream in watched.dialled if stream not in announced]:
                    fail("request_streams to name every stream it opens", f"it opened {show(unannounced)}")
            if not watched.dialled:
                continue
            failure = ResponseStreamError("nobody listens there")
            try:
                with within(self.timeout, "parse_and_build_request to return"):
                    control = self.shape.read_control(payload)
                    await self.shape.parse_and_build_request(payload, control, MemoryDialer(failure=failure))
            except IngressError:
                continue
            fail("the dialer's error to come out of parse_and_build_request", "a request")

    async def leaves_nothing(self, rng: random.Random) -> None:
        for payload in self.payloads:
            before = open_sockets()
            async with self._stage() as (stage, watched, _):
                watch = TaskWatch(stage.nursery)
                with instrument(watch):
                    await (await self._push(stage, payload)).finish()
                    await stage.check_nothing_left("after an answer")
                if tasks := watch.left():
                    fail("no task left after an answer", f"task {', '.join(tasks)} still runs")
            opened = [sock for key, sock in open_sockets().items() if key not in before]
            if opened:
                fail("no socket left open: a shape asks its dialer for streams", f"{len(opened)} open: {opened[0]!r}")
            if kept := watched.kept():
                fail("nothing of a request kept after its end", f"the shape still holds its {', '.join(kept)}")

    async def cut(self, how: str, end: Cut, rng: random.Random) -> None:
        """End a request between any two steps of its tasks, once at each."""
        budget = max(self.examples // len(self.payloads), 1)
        for payload in self.payloads:
            steps = await self._cut_at(payload, None, end, "")
            for at in range(1, steps + 1) if steps <= budget else sorted(rng.sample(range(1, steps + 1), budget)):
                await self._cut_at(payload, at, end, f"when {how} at step {at} of {steps}")

    async def _cut_at(self, payload: bytes, at: int | None, end: Cut, when: str) -> int:
        async with self._stage() as (stage, _, _engine):
            watch, call = TaskWatch(stage.nursery), await self._push(stage, payload)
            trigger = StepTrigger(at, partial(end, stage, call))
            with instrument(watch), instrument(trigger):
                await call.finish()
            await stage.check_nothing_left(when)
            if tasks := watch.left():
                fail(f"no task left {when}", f"task {', '.join(tasks)} still runs")
            return trigger.steps

    # -- helpers -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _stage(
        self, network: MemoryNetwork | None = None
    ) -> AsyncIterator[tuple[Stage, WatchedShape, KitEngine]]:
        watched, engine = WatchedShape(self.shape), KitEngine()
        async with open_stage([watched], engine, network=network, timeout=self.timeout) as stage:
            yield stage, watched, engine

    async def _push(self, stage: Stage, payload: bytes) -> Call:
        try:
            return await stage.push(payload, self.frames)
        except IngressError as exc:
            fail("its payload to be taken", f"{type(exc).__name__}: {exc}, for {show(payload)}")


def _cancel(stage: Stage, call: Call) -> None:
    call.scope.cancel()


def _stop(stage: Stage, call: Call) -> None:
    for context in stage.open_requests:
        context.stop()


def _kill(stage: Stage, call: Call) -> None:
    for context in stage.open_requests:
        context.kill("killed by the check")


def _name(shape: IngressDispatch[Any]) -> str:
    return type(shape).__name__
