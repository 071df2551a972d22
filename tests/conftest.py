"""Hypothesis profiles: ``fast`` for every run, ``tests`` for a thorough one.

``INGRESS_HYPOTHESIS_PROFILE=tests pytest`` chooses the second. Under ``CI=true`` both are derandomized, so that a run
can be repeated. No deadlines: other work on the machine is no failure.
"""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ingress._log_writer import LineWriter

IS_CI = os.environ.get("CI", "").lower() in ("1", "true")

for name, max_examples in (("fast", 40), ("tests", 1000)):
    settings.register_profile(
        name,
        deadline=None,
        derandomize=IS_CI,
        max_examples=max_examples,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("INGRESS_HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    """Undo what a command that ran in the test's process made of the log."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, LineWriter)]
