"""Slots: never refused while one is free, never more than N + Q, in order, and none lost."""

from __future__ import annotations

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from ingress._admission import Admission, Slot
from ingress.errors import Overloaded


class Slots(RuleBasedStateMachine):
    """Requests come, leave and give up in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(3, 2)
        self.held: list[Slot] = []

    @rule()
    def admit(self) -> None:
        if len(self.held) < 5:
            self.held.append(self.admission.admit())
        else:
            with pytest.raises(Overloaded, match="worker at capacity"):
                self.admission.admit()

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 4), times=st.integers(1, 2))
    def release(self, which: int, times: int) -> None:
        slot = self.held.pop(which % len(self.held))
        for _ in range(times):  # releasing twice is harmless
            slot.release()

    @invariant()
    def the_first_three_run_and_the_rest_waits(self) -> None:
        assert [slot.is_granted for slot in self.held] == [True] * min(3, len(self.held)) + [False] * (
            len(self.held) - 3
        )
        assert self.admission.running == min(3, len(self.held))
        assert self.admission.queued == max(0, len(self.held) - 3)


TestSlots = Slots.TestCase


async def test_the_line_moves_in_order() -> None:
    order: list[int] = []

    async def take(slot: Slot, number: int) -> None:
        await slot.wait_granted()
        order.append(number)
        slot.release()

    admission = Admission(1, 10)
    first = admission.admit()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(take, admission.admit(), number)
        await wait_all_tasks_blocked()
        assert order == []
        first.release()
    assert order == list(range(10))
    assert (admission.running, admission.queued) == (0, 0)


async def test_a_slot_that_was_granted_to_a_waiter_being_cancelled_is_passed_on() -> None:
    admission = Admission(1, 2)
    first, second, third = (admission.admit() for _ in range(3))
    with trio.move_on_after(0):
        try:
            await second.wait_granted()
        finally:
            first.release()  # grants the second, which is being cancelled
            second.release()
    assert third.is_granted
    third.release()
    assert admission.running == 0


@pytest.mark.parametrize(("running", "queued"), [(0, 0), (-1, 5), (1, -1)])
def test_limits_that_make_no_sense_are_refused(running: int, queued: int) -> None:
    with pytest.raises(ValueError, match="engine_request_limit must be at least 1"):
        Admission(running, queued)
