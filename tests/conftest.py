"""What every test shares: reproducible property tests. `--hypothesis-profile=explore` looks for new examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Services that a test starts within its own process keep nothing on the disk unless it asks for it. Servers that are
# started as users start them do not see this (tests/servers.py).
os.environ["TIDEGATE_STORE"] = "memory"

# A loaded machine is no failure, hence no deadline and no complaint of slowness; the same examples on every run, hence
# derandomize.
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("ci")
