"""A million stored sessions beside ten thousand: what opening, bringing, stepping and expiring one cost, and starting.

A server each. Costs are CPU time, of the server and of what works for its store; disturbances of the machine touch it
least. How long the same took stands in the details.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.client import drive
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved, skipped
from bench.processes import Running, server
from bench.sessions import open_sessions, sessions, step_once
from bench.stores.filling import POSITION, Filled, fill, made_by_server, put_overdue, wait_expired
from bench.stores.places import PLACES, MissingError, Place
from tidegate.sessions.records import Record

FEW, MANY, MANY_IN_A_QUICK_RUN = 10_000, 1_000_000, 20_000
MOST_SECONDS = 300
REDIS_BYTES = 12 * 2**30
"""Of memory that must be free for a Redis with a million sessions."""
OPENED, BROUGHT, EXPIRED, ACTIVE = 1_000, 1_000, 4_000, 64
GOAL = Goal("within 20 % of 10,000 stored sessions", 1.2, is_least=False)


class Cost(NamedTuple):
    """Microseconds for one session or step: of CPU time, and on the clock."""

    cpu: float
    wall: float


class Start(NamedTuple):
    """Seconds until a server was ready, and the bytes that it had read by then."""

    seconds: float
    read_bytes: int


@dataclass(slots=True)
class Stored:
    """A place with sessions in it, and a server there. ``untouched`` are ids of sessions that no server has held."""

    place: Place
    filled: Filled
    running: Running
    untouched: list[str] = field(default_factory=list)

    @property
    def pids(self) -> Sequence[int]:
        return self.running.pid, *self.place.pids


def on_sqlite(plan: Plan) -> Iterator[Row]:
    yield from _rows("sqlite", plan)


def on_redis(plan: Plan) -> Iterator[Row]:
    """Only where there is memory for them."""
    if not plan.is_quick and _available_bytes() < REDIS_BYTES:
        why = f"a Redis with a million sessions needs {REDIS_BYTES // 2**30} GiB of free memory"
        yield skipped("store-million-redis", "µs", GOAL.text, why)
        return
    try:
        yield from _rows("redis", plan)
    except MissingError as error:
        yield skipped("store-million-redis", "µs", GOAL.text, str(error))


def _rows(name: str, plan: Plan) -> Iterator[Row]:
    many = MANY_IN_A_QUICK_RUN if plan.is_quick else MANY
    with ExitStack() as stack:
        places = {count: stack.enter_context(PLACES[name]()) for count in (FEW, many)}
        filled = {count: fill(place, count, MOST_SECONDS) for count, place in places.items()}
        starts = interleaved(
            2 * plan.rounds, {"many": partial(_start, places[many]), "few": partial(_start, places[FEW])}
        )
        yield _start_row(name, filled[many], starts, plan)
        template = made_by_server(places[FEW])
        stored = {
            count: Stored(places[count], filled[count], stack.enter_context(server(*places[count].flags)))
            for count in places
        }
        for each in stored.values():
            each.untouched = random.sample(each.filled.ids, k=len(each.filled.ids))
        asked: dict[str, Callable[[Stored], Cost]] = {
            "open": _open,
            "bring": _bring,
            "step": lambda it: _step(it, plan),
            "expire": lambda it: _expire(it, template),
        }
        for what, options in asked.items():
            costs = interleaved(
                plan.rounds, {"many": partial(options, stored[many]), "few": partial(options, stored[FEW])}
            )
            yield row_of(f"store-million-{name}-{what}", filled[many].num_stored, costs, plan)


def row_of(name: str, count: int, costs: Rounds[Cost], plan: Plan) -> Row:
    return against(
        name,
        "µs CPU",
        GOAL,
        costs,
        ("many", "few"),
        lambda cost: cost.cpu,
        stored=count,
        many_wall_us=costs.median("many", lambda cost: cost.wall),
        few_wall_us=costs.median("few", lambda cost: cost.wall),
        wall_ratio=costs.ratio("many", "few", lambda cost: cost.wall).median,
        num_rounds=plan.rounds,
        load_average=os.getloadavg()[0],
    )


def _start_row(name: str, filled: Filled, starts: Rounds[Start], plan: Plan) -> Row:
    details: dict[str, Any] = {
        "stored": filled.num_stored,
        "filled_in_s": filled.seconds,
        "many_read_mb": starts.median("many", lambda start: start.read_bytes / 1e6),
        "few_read_mb": starts.median("few", lambda start: start.read_bytes / 1e6),
        "num_rounds": 2 * plan.rounds,
        "load_average": os.getloadavg()[0],
    }
    row_name, names = f"store-million-{name}-start", ("many", "few")
    return against(row_name, "s to ready", GOAL, starts, names, lambda start: start.seconds, **details)


def _start(place: Place) -> Start:
    with server(*place.flags) as running:
        lines = Path(f"/proc/{running.pid}/io").read_text(encoding="ascii").splitlines()
        read = next(line for line in lines if line.startswith("rchar:"))
        return Start(running.ready_after, int(read.split()[1]))


def _open(stored: Stored) -> Cost:
    return _cost(stored.pids, OPENED, lambda: open_sessions(stored.running, OPENED, durable=True))


def _bring(stored: Stored) -> Cost:
    """The first step here of sessions that only the store knows."""
    ids = [stored.untouched.pop() for _ in range(BROUGHT)]
    return _cost(stored.pids, BROUGHT, lambda: step_once(stored.running, ids, POSITION))


def _step(stored: Stored, plan: Plan) -> Cost:
    with sessions(stored.running, ACTIVE, durable=True) as ids:
        load = {**plan.load, "connections": ACTIVE, "watch": list(stored.pids)}
        figures = drive("stream", stored.running, load, ids)
    return Cost(figures.server_us_per_step, 1e6 / figures.steps_per_s)


def _expire(stored: Stored, template: Record) -> Cost:
    """From when they are stored, overdue, until the server has ended them all, which it looks for once a second."""
    put_overdue(stored.place, template, EXPIRED)
    return _cost(stored.pids, EXPIRED, lambda: wait_expired(stored.place))


def _cost(pids: Sequence[int], count: int, job: Callable[[], object]) -> Cost:
    cpu, wall = cpu_seconds(pids), time.perf_counter()
    job()
    return Cost((cpu_seconds(pids) - cpu) * 1e6 / count, (time.perf_counter() - wall) * 1e6 / count)


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of processes since they began: clock_getcpuclockid(3), which Python does not have."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
