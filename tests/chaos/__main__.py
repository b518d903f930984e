"""The long version: many faults over each store, drawn from a seed, and losses of power; figures as a table and JSON.

usage: python -m tests.chaos [--seed N] [--kills N] [--json FILE] [--keep DIR]

Ends with 1 where a step was lost or applied twice, or an answer has no explanation: its history stays in DIR.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.power import Loss, lose_power
from tests.chaos.storm import ON_ANY_STORE, ON_REDIS
from tests.chaos.trial import Plan, Report, as_table, run

KILLS_A_ROUND = 10
"""New sessions are opened for each round, so that no history grows too long to be searched."""
POWER = (("sqlite", "normal"), ("sqlite", "full"), ("redis", "always"), ("redis", "everysec"))
STEPS_BEFORE_LOSS = 20_000
ENDLESS = ("--idle-seconds", "none")
EVERYSEC = Plan("redis", ("store killed",) * 10, appendfsync="everysec")


def plans(num_kills: int, seed: int) -> Iterator[Plan]:
    """Rounds with that many kills of replicas and workers in all, over both stores in turn, among all other faults."""
    chance = random.Random(seed)
    for number in range(-(-num_kills // KILLS_A_ROUND)):
        round_seed = seed + number
        match number % 4:
            case 0 | 2:
                faults = ["replica killed"] * KILLS_A_ROUND + [*ON_REDIS, "clock jumped"]
                plan = Plan("redis", _shuffled(faults, chance), round_seed, num_replicas=3, flags=ENDLESS)
            case 1:
                faults = ["replica killed"] * KILLS_A_ROUND + [*ON_ANY_STORE, "clock jumped"]
                plan = Plan("sqlite", _shuffled(faults, chance), round_seed, flags=ENDLESS)
            case _:
                faults = ["worker killed"] * KILLS_A_ROUND + ["replica killed", "replica drained"]
                plan = Plan("sqlite", _shuffled(faults, chance), round_seed, flags=("--workers", "2"))
        yield plan


def _shuffled(faults: Sequence[str], chance: random.Random) -> tuple[str, ...]:
    return tuple(chance.sample(faults, len(faults)))


def main() -> int:
    arguments = _arguments()
    folder: Path = arguments.keep or Path(tempfile.mkdtemp(prefix="tidegate-chaos-"))
    reports = []
    for number, plan in enumerate(plans(arguments.kills, arguments.seed)):
        reports.append(asyncio.run(run(plan, folder / f"round-{number}")))
        _say(as_table(reports[-1:]))
    # What `everysec` loses when Redis is killed is measured, and no error.
    beside = asyncio.run(run(EVERYSEC, folder / "everysec"))
    losses = [
        asyncio.run(lose_power(store, sync, folder / f"power-{store}-{sync}", STEPS_BEFORE_LOSS))
        for store, sync in POWER
    ]
    figures = {
        "total": total(reports),
        "rounds": [asdict(each) for each in reports],
        "everysec": asdict(beside),
        "power": [asdict(each) for each in losses],
    }
    text = json.dumps(figures, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    _say(text)
    _say(summary(reports, losses))
    _say(f"beside, with everysec: {as_table([beside])}")
    return int(any(report.problems for report in reports))


def total(reports: Sequence[Report]) -> dict[str, Any]:
    """The figures of all rounds together."""
    faults: Counter[str] = Counter()
    for report in reports:
        faults.update(report.faults)
    return {
        "faults": dict(faults),
        "num_faults": faults.total(),
        "num_kills": sum(number for name, number in faults.items() if name.endswith("killed")),
        "num_requests": sum(report.num_requests for report in reports),
        "num_unknown": sum(report.num_unknown for report in reports),
        "acknowledged": sum(report.acknowledged for report in reports),
        "lost": sum(report.lost for report in reports),
        "twice": sum(report.twice for report in reports),
        "unexplained": sum(len(report.problems) for report in reports),
    }


def summary(reports: Sequence[Report], losses: Sequence[Loss]) -> str:
    """Everything on one screen."""
    figures = total(reports)
    lines = [f"{number:8} × {name}" for name, number in sorted(figures["faults"].items())]
    lines += [
        f"{figures['num_requests']:8} requests",
        f"{figures['num_unknown']:8} of unknown outcome",
        f"{figures['acknowledged']:8} steps acknowledged",
        f"{figures['lost']:8} steps lost",
        f"{figures['twice']:8} steps applied twice",
        f"{figures['unexplained']:8} answers without explanation",
        *(
            f"{loss.lost:8} of {loss.acknowledged} acknowledged steps gone with the power: {loss.store}"
            for loss in losses
        ),
    ]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
