"""Admission as a state machine: never refuses while a slot is free, never holds more than N + Q, lets the line in
order, whatever a policy says and whoever's deadline passes."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from ingress._admission import Admission, Slot
from ingress.abc import AdmissionPolicy, Arrival, Load
from ingress.errors import Overloaded, PolicyFailed, QueueDeadlinePassed
from ingress.wire.messages import ConnectionInfo, RequestControlMessage
from ingress.wire.records import EndpointId

Verdict = Literal["yes", "no", "bug"]

CONTROL = RequestControlMessage(
    "id", "single_in", "many_out", ConnectionInfo("127.0.0.1:1", "s", "id", "response").to_address()
)


def arrival(number: int = 0) -> Arrival:
    return Arrival(EndpointId("demo", "backend", "generate"), number, CONTROL, {}, None)


class Whim(AdmissionPolicy):
    """Says what it was told to say, and keeps an account of who is in."""

    def __init__(self) -> None:
        self.verdict: Verdict = "yes"
        self.inside: Counter[int] = Counter()
        self.asked = 0

    def admit(self, arrival: Arrival, load: Load) -> None:
        self.asked += 1
        if self.verdict == "no":
            raise Overloaded("not today")
        if self.verdict == "bug":
            raise ZeroDivisionError
        assert load.running < load.engine_request_limit or load.queued < load.request_queue_limit
        self.inside[arrival.size] += 1

    def release(self, arrival: Arrival) -> None:
        self.inside[arrival.size] -= 1


@define
class Model:
    """What a worker's admission is: a set of those inside, a queue of those in line, and who is being told."""

    limit: int
    room: int
    inside: list[Slot] = field(factory=list)
    line: list[Slot] = field(factory=list)
    overdue: list[Slot] = field(factory=list)
    refused: int = 0


class AdmissionMachine(RuleBasedStateMachine):
    """Requests come, finish, leave the line, wait too long, and are released twice; the model must always agree."""

    slots: Bundle[Slot] = Bundle("slots")

    @initialize(limit=st.integers(1, 4), room=st.integers(0, 4), has_policy=st.booleans())
    def start(self, limit: int, room: int, has_policy: bool) -> None:
        self.policy = Whim() if has_policy else None
        self.admission = Admission(limit, room, policy=self.policy)
        self.model = Model(limit, room)
        self.numbers = 0

    @rule(target=slots, verdict=st.sampled_from(["yes", "yes", "yes", "no", "bug"]))
    def arrive(self, verdict: Verdict) -> Any:
        model, policy = self.model, self.policy
        has_slot = len(model.inside) < model.limit
        has_room = len(model.line) + len(model.overdue) < model.room
        asked = 0
        if policy is not None:
            policy.verdict, asked = verdict, policy.asked
        self.numbers += 1
        try:
            slot = self.admission.admit(arrival(self.numbers))
        except Overloaded as exc:
            model.refused += 1
            if has_slot or has_room:
                assert policy is not None and verdict == "no", "refused while there was room"
                assert str(exc) == "not today"
            else:
                assert str(exc) == "worker at capacity"
                assert policy is None or policy.asked == asked, "a policy is asked where there is room"
            return multiple()  # nothing that could end
        except PolicyFailed:
            assert policy is not None and verdict == "bug" and (has_slot or has_room)
            return multiple()
        assert has_slot or has_room, "admitted more than N + Q"
        assert policy is None or verdict == "yes", "let in against the policy"
        assert slot.is_granted == has_slot, "sent to the line while a slot was free"
        (model.inside if has_slot else model.line).append(slot)
        return slot

    @rule(slot=consumes(slots))
    def end(self, slot: Slot) -> None:
        """A request finishes, or one in line is killed, or one that waited too long has been told."""
        slot.release()
        slot.release()  # a second time is none
        model = self.model
        for waiting in (model.line, model.overdue):
            if slot in waiting:
                waiting.remove(slot)
                return
        model.inside.remove(slot)
        if model.line:
            model.inside.append(model.line.pop(0))

    @rule(slot=slots)
    def wait_too_long(self, slot: Slot) -> None:
        """The deadline passes: of no effect for whoever is inside, or overdue already."""
        self.admission.expire(slot)
        if slot in self.model.line:
            self.model.line.remove(slot)
            self.model.overdue.append(slot)

    @rule(slot=slots)
    def ask(self, slot: Slot) -> None:
        assert slot.is_granted == (slot in self.model.inside)

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "model"):
            return
        admission, model = self.admission, self.model
        waiting = [*model.line, *model.overdue]
        assert (admission.running, admission.queued) == (len(model.inside), len(waiting))
        assert admission.rejected == model.refused
        assert admission.running <= model.limit and admission.queued <= model.room
        assert all(slot.is_granted for slot in model.inside) and not any(slot.is_granted for slot in waiting)
        assert not model.line or len(model.inside) == model.limit, "somebody waits while a slot is free"
        if self.policy is not None:
            assert sum(self.policy.inside.values()) == len(model.inside) + len(waiting)
            assert set(self.policy.inside.values()) <= {0, 1}, "released twice, or not at all"


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(stateful_step_count=40)


async def test_the_line_is_let_in_in_the_order_in_which_it_came() -> None:
    admission = Admission(1, 3)
    first, *line = [admission.admit() for _ in range(4)]
    came: list[int] = []

    async def wait(number: int, slot: Slot) -> None:
        await slot.wait_granted()
        came.append(number)
        slot.release()

    async with trio.open_nursery() as nursery:
        for number, slot in reversed(list(enumerate(line))):  # whoever asks first is not first in line for it
            nursery.start_soon(wait, number, slot)
        await wait_all_tasks_blocked()
        assert came == []
        first.release()
    assert came == [0, 1, 2]
    assert (admission.running, admission.queued) == (0, 0)


@define
class Visit:
    """A request: when it comes, how long it runs, and what became of it."""

    comes: float
    runs: float
    began: float | None = None
    told: float | None = None
    refused: bool = False


visits = st.lists(
    st.builds(Visit, comes=st.integers(0, 20).map(float), runs=st.integers(1, 12).map(float)), max_size=12
)


@given(visits=visits, limit=st.integers(1, 3), room=st.integers(0, 4), deadline=st.integers(1, 8))
def test_nobody_waits_longer_than_the_deadline_and_nobody_is_told_sooner(
    visits: list[Visit], limit: int, room: int, deadline: int
) -> None:
    """Each in a time of its own, so that who is first is never a draw."""
    admission = Admission(limit, room, queue_deadline=deadline + 0.5)

    async def visit(mine: Visit, offset: float) -> None:
        await trio.sleep(mine.comes + offset)
        came = trio.current_time()
        free = limit - admission.running
        try:
            slot = admission.admit()
        except Overloaded:
            mine.refused = True
            assert free == 0
            return
        try:
            await slot.wait_granted()
            mine.began = trio.current_time()
            assert mine.began - came <= deadline + 0.5 + 1e-6
            assert free == 0 or mine.began == came
            await trio.sleep(mine.runs)
        except QueueDeadlinePassed as exc:
            mine.told = trio.current_time()
            assert mine.told - came == pytest.approx(deadline + 0.5)
            assert str(exc) == f"no slot became free within {deadline + 0.5:g} s"
            assert admission.running == limit, "a slot is free"
        finally:
            slot.release()

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            for number, each in enumerate(visits):
                nursery.start_soon(visit, each, number * 0.001)

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
    assert all((v.began is not None) + (v.told is not None) + v.refused == 1 for v in visits)
    assert (admission.running, admission.queued) == (0, 0)


@pytest.mark.parametrize(("limit", "room"), [(0, 0), (-1, 3), (1, -1)])
def test_limits_that_cannot_be_are_refused(limit: int, room: int) -> None:
    with pytest.raises(ValueError, match="engine_request_limit must be at least 1"):
        Admission(limit, room)


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
def test_a_deadline_that_cannot_be_is_refused(deadline: float) -> None:
    with pytest.raises(ValueError, match="queue_deadline must be more than 0 s, got"):
        Admission(1, 1, queue_deadline=deadline)
