"""Replicas under faults: clients step sessions while processes are killed, paused and drained and stores go away.

Afterwards each session must have answered like one that nothing ever happened to. `make chaos` is the long version.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.trial import Plan, run

ENDLESS = ("--idle-seconds", "none")

PLANS = {
    "replicas over one SQLite file": Plan(
        "sqlite", ("replica killed", "replica paused", "replica drained", "all replicas killed")
    ),
    "replicas over Redis": Plan("redis", ("replica killed", "replica paused", "replica drained", "replica killed")),
    "Redis itself": Plan(
        "redis", ("store killed", "line to the store cut", "store paused", "line to the store held", "store killed")
    ),
    "workers": Plan("sqlite", ("worker killed", "worker killed", "replica killed"), flags=("--workers", "2")),
    "clocks": Plan("redis", ("clock jumped", "replica killed", "clock jumped", "clock jumped"), flags=ENDLESS),
}


@pytest.mark.parametrize("name", PLANS)
async def test_no_step_is_lost_and_none_is_applied_twice(name: str, tmp_path: Path) -> None:
    plan = PLANS[name]
    report = await run(plan, tmp_path)
    assert report.problems == []
    assert (report.lost, report.twice) == (0, 0)
    assert sum(report.faults.values()) == len(plan.faults)
    assert report.acknowledged > 200
