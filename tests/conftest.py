"""Hypothesis profiles: ``fast`` for every run, ``tests`` for a thorough one.

``INGRESS_HYPOTHESIS_PROFILE=tests pytest`` chooses the second. Under ``CI=true`` both are derandomized, so that a run
can be repeated. No deadlines: other work on the machine is no failure.
"""

import os

from hypothesis import HealthCheck, settings

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
