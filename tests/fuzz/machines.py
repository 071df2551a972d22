"""The state machines of the suite, for as long as one likes: every ``RuleBasedStateMachine`` under ``tests``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

# Between two looks at the clock; and how many steps a conversation may have, four times those of the suite.
EXAMPLES = 50
STEPS = 200


def machines() -> list[type[RuleBasedStateMachine]]:
    """Import and return them all, in the order of their names."""
    return sorted(set(_machines()), key=lambda machine: machine.__name__)


def _machines() -> Iterator[type[RuleBasedStateMachine]]:
    for path in sorted(Path(__file__).parent.parent.glob("test_*.py")):
        if "RuleBasedStateMachine" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(f"tests.{path.stem}")
            for each in vars(module).values():
                is_machine = isinstance(each, type) and issubclass(each, RuleBasedStateMachine)
                if is_machine and each.__module__ == module.__name__:
                    yield each


def drive(machine: type[RuleBasedStateMachine], seconds: float) -> int:
    """Drive one machine for so long; returns in how many lives.

    Raises:
        Exception: what the machine fails with, after hypothesis has made its steps few and printed them.
    """
    ends, lives = time.monotonic() + seconds, 0
    while time.monotonic() < ends or not lives:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=False,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
        lives += EXAMPLES
    return lives
