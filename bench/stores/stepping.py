"""Steps of durable sessions beside those of ephemeral ones: all stores in turns, each with a server of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from bench.answers import check_answers
from bench.client import Figures, Mode, drive
from bench.measure import Goal, Plan, Rounds, Row, against, interleaved, skipped
from bench.metrics import read_counts
from bench.processes import Running, server
from bench.sessions import sessions
from bench.stores.places import BUILD, PLACES, MissingError, Place

BESIDE = Goal("none, for comparison", 1.0)
FULL = "Each group of commits waits for the disk; a sync alone (group sync us) tells how long."
ALWAYS = "Redis syncs its file before it answers."


@dataclass(frozen=True, slots=True)
class Load:
    """A way of stepping: its name in rows, the client's mode and options, how many sessions take part."""

    name: str
    mode: Mode
    options: dict[str, float]
    num_sessions: int


STREAM = Load("stream-64", "stream", {"connections": 64}, 64)
COLUMNAR = Load("columnar-256", "columnar", {"connections": 2, "lanes": 256}, 512)


def streams(plan: Plan) -> Iterator[Row]:
    """A step a message, 64 sessions."""
    goals = {
        "sqlite": Goal("≥ 0.7 of ephemeral, SQLite NORMAL", 0.7),
        "redis": Goal("≥ 0.5 of ephemeral, Redis with everysec", 0.5),
    }
    yield from _rows(STREAM, goals, plan)


def columnar(plan: Plan) -> Iterator[Row]:
    """256 sessions a message, two streams."""
    yield from _rows(COLUMNAR, {"sqlite": Goal("≥ 0.5 of ephemeral, SQLite NORMAL", 0.5)}, plan)


def _rows(load: Load, goals: dict[str, Goal], plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        places, missing = _places(stack)
        servers = {name: stack.enter_context(server(*place.flags)) for name, place in places.items()}
        num_checked = {name: _check(load, name, running) for name, running in servers.items()}
        counts = {name: read_counts(running) for name, running in servers.items()}
        steps = {name: partial(_step, load, name, servers[name], places[name].pids, plan) for name in servers}
        rounds = interleaved(plan.rounds, steps)
        load_average = os.getloadavg()[0]
        rows = {name: read_counts(servers[name]).since(before).rows_per_run for name, before in counts.items()}
    sync = sync_seconds(64) * 1e6
    for name in PLACES:
        if name == "ephemeral":
            continue
        goal = goals.get(name, BESIDE)
        if name not in servers:
            yield skipped(row_name(name, load), "steps/s", goal.text, missing)
            continue
        details: dict[str, Any] = {"rows_per_run": rows[name], "ephemeral_rows_per_run": rows["ephemeral"]}
        if name in {"sqlite-full", "redis-always"}:
            details["group_sync_us"] = sync
        details |= {"answers_checked": num_checked[name], "num_rounds": plan.rounds, "seconds_a_round": plan.seconds}
        details["load_average"] = load_average
        yield row_of(name, load, goal, rounds, details)


def row_name(place: str, load: Load) -> str:
    return f"store-{place}-{load.name}"


def row_of(place: str, load: Load, goal: Goal, rounds: Rounds[Figures], details: dict[str, Any]) -> Row:
    """The line of a store: its rate, held against that of ephemeral sessions."""
    figures: dict[str, Any] = {}
    for side, name in (("durable", place), ("ephemeral", "ephemeral")):
        figures |= {
            f"{side}_us_per_step": rounds.median(name, lambda it: it.server_us_per_step),
            f"{side}_cpu": rounds.median(name, lambda it: it.server_cpu),
            f"{side}_p50_us": rounds.median(name, lambda it: it.p50),
            f"{side}_p99_us": rounds.median(name, lambda it: it.p99),
        }
    row = against(
        row_name(place, load),
        "steps/s",
        goal,
        rounds,
        (place, "ephemeral"),
        lambda it: it.steps_per_s,
        **figures,
        **details,
    )
    note = {"sqlite-full": FULL, "redis-always": ALWAYS}.get(place, "")
    return replace(row, note=note) if goal is not BESIDE else replace(row, met=None, share=None, note=note)


def _places(stack: ExitStack) -> tuple[dict[str, Place], str]:
    """The places that this machine has, and why it lacks the others."""
    found, missing = {}, ""
    for name, place in PLACES.items():
        try:
            found[name] = stack.enter_context(place())
        except MissingError as error:
            missing = str(error)
    return found, missing


def _check(load: Load, place: str, running: Running) -> int:
    with sessions(running, load.num_sessions, durable=place != "ephemeral") as ids:
        return check_answers(load.mode, running, ids, load.options)


def _step(load: Load, place: str, running: Running, pids: Sequence[int], plan: Plan) -> Figures:
    """CPU time is that of the server and of what works for its store."""
    watched = {"watch": [running.pid, *pids]}
    with sessions(running, load.num_sessions, durable=place != "ephemeral") as ids:
        return drive(load.mode, running, {**plan.load, **load.options, **watched}, ids)


def sync_seconds(num_pages: int, tries: int = 30) -> float:
    """How long the disk takes to sync a group of so many pages of 4 KiB put to the end of a file: the median."""
    file = BUILD / "sync"
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        return median(_sync(descriptor, os.urandom(num_pages * 4096)) for _ in range(tries))
    finally:
        os.close(descriptor)
        file.unlink()


def _sync(descriptor: int, content: bytes) -> float:
    os.write(descriptor, content)
    started = time.perf_counter()
    os.fdatasync(descriptor)
    return time.perf_counter() - started
