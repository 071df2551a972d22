"""Who is one caller, and what one may have."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ingress._shares import SharedBudget, caller_of, share_of_peer

CALLERS = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", ""])
MOST, LARGEST = 6400, 100


class Budget(RuleBasedStateMachine):
    """Callers that take what they are told there is room for, and give back what they have taken."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = SharedBudget(MOST, LARGEST)
        self.taken: list[tuple[str, int]] = []

    def held(self, caller: str | None = None) -> int:
        return sum(size for who, size in self.taken if caller in (None, who))

    @rule(caller=CALLERS, size=st.integers(1, MOST))
    def take(self, caller: str, size: int) -> None:
        of_caller, of_all = self.held(caller) + size, self.held() + size
        match self.budget.excess(caller, size):
            case None:
                self.budget.take(caller, size)
                self.taken.append((caller, size))
            case "peer":
                assert caller and of_caller > 0.75 * MOST
            case "all":
                assert of_all > MOST and (not caller or of_caller > MOST / 64 or of_all > 1.25 * MOST)

    @rule(which=st.integers(0))
    def give_back(self, which: int) -> None:
        if self.taken:
            self.budget.give_back(*self.taken.pop(which % len(self.taken)))

    @invariant()
    def nobody_has_more_than_a_share_and_all_no_more_than_there_is(self) -> None:
        assert self.budget.held == self.held() <= 1.25 * MOST
        callers = {caller for caller, _ in self.taken}
        assert all(self.held(caller) <= 0.75 * MOST for caller in callers if caller)
        assert self.held() <= MOST or any(caller and self.held(caller) <= MOST / 64 for caller in callers)

    @invariant()
    def who_holds_nothing_finds_a_little(self) -> None:
        if self.held() <= MOST:
            assert self.budget.excess("10.9.9.9", LARGEST) is None

    def teardown(self) -> None:
        for caller, size in self.taken:
            self.budget.give_back(caller, size)
        assert self.budget.held == 0
        assert self.budget.excess("10.0.0.1", int(0.75 * MOST)) is None


TestBudget = Budget.TestCase


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("", ""),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_of_ipv6_a_network_of_64_bits_is_one_caller(address: str, caller: str) -> None:
    assert caller_of(address) == caller


def test_one_caller_has_three_quarters_and_one_at_least() -> None:
    assert [share_of_peer(most) for most in (1, 4, 100)] == [1, 3, 75]


def test_the_largest_has_room_however_small_the_budget_is() -> None:
    budget = SharedBudget(10, 100)
    assert budget.excess("10.0.0.1", 100) is None
    assert budget.excess("10.0.0.1", 101) == "peer"
    assert budget.excess("", 101) == "all"
