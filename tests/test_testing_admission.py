"""Admission as a state machine: never refuses while a slot is free, never holds more than N + Q, lets the line in
order."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from trio.testing import wait_all_tasks_blocked

from ingress._admission import Admission, Slot
from ingress.errors import Overloaded


@define
class Model:
    """What a worker's admission is: a set of those inside, a queue of those in line."""

    limit: int
    room: int
    inside: list[Slot] = field(factory=list)
    line: list[Slot] = field(factory=list)
    refused: int = 0


class AdmissionMachine(RuleBasedStateMachine):
    """Requests come, finish, leave the line, and are released twice; after each step the model must agree."""

    slots: Bundle[Slot] = Bundle("slots")

    @initialize(limit=st.integers(1, 4), room=st.integers(0, 4))
    def start(self, limit: int, room: int) -> None:
        self.admission = Admission(limit, room)
        self.model = Model(limit, room)

    @rule(target=slots)
    def arrive(self) -> Any:
        model = self.model
        has_slot, has_room = len(model.inside) < model.limit, len(model.line) < model.room
        try:
            slot = self.admission.admit()
        except Overloaded as exc:
            assert not has_slot and not has_room, "refused while there was room"
            assert str(exc) == "worker at capacity"
            model.refused += 1
            return multiple()  # nothing that could end
        assert has_slot or has_room, "admitted more than N + Q"
        assert slot.is_granted == has_slot, "sent to the line while a slot was free"
        (model.inside if has_slot else model.line).append(slot)
        return slot

    @rule(slot=consumes(slots))
    def end(self, slot: Slot) -> None:
        """A request finishes, or one in line is killed."""
        slot.release()
        slot.release()  # a second time is none
        model = self.model
        if slot in model.line:
            model.line.remove(slot)
            return
        model.inside.remove(slot)
        if model.line:
            model.inside.append(model.line.pop(0))

    @rule(slot=slots)
    def ask(self, slot: Slot) -> None:
        assert slot.is_granted == (slot in self.model.inside)

    @invariant()
    def the_model_agrees(self) -> None:
        if not hasattr(self, "model"):
            return
        admission, model = self.admission, self.model
        assert (admission.running, admission.queued) == (len(model.inside), len(model.line))
        assert admission.rejected == model.refused
        assert admission.running <= model.limit and admission.queued <= model.room
        assert all(slot.is_granted for slot in model.inside) and not any(slot.is_granted for slot in model.line)
        assert not model.line or len(model.inside) == model.limit, "somebody waits while a slot is free"


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


@pytest.mark.parametrize(("limit", "room"), [(0, 0), (-1, 3), (1, -1)])
def test_limits_that_cannot_be_are_refused(limit: int, room: int) -> None:
    with pytest.raises(ValueError, match="engine_request_limit must be at least 1"):
        Admission(limit, room)
