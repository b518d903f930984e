"""One run: replicas over a store, writers on their sessions, a storm over them, and at the end the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.bundles import write_tiny_bundle
from tests.chaos.cluster import Replica, running
from tests.chaos.history import Failure, History, Read, Step, write
from tests.chaos.offline import empty_sequence
from tests.chaos.storm import Site, Storm
from tests.chaos.transports import Calls, Http, Library, Streams, Transport
from tests.chaos.verify import Verdict, verify
from tests.chaos.writers import Habit, Writer
from tests.programs import require
from tests.proxy import proxy_to
from tests.redis import redis_server

MODEL = "tiny"
Kind = Callable[[Replica], Transport]

KINDS: dict[str, Kind] = {
    "calls": lambda replica: Calls(replica.grpc),
    "streams": lambda replica: Streams(replica.grpc),
    "http": lambda replica: Http(replica.http),
    "library": lambda replica: Library(replica.grpc, is_streaming=False),
    "library-streams": lambda replica: Library(replica.grpc, is_streaming=True),
}
CAST = (
    *((kind, habit) for kind in KINDS for habit in (Habit.PLAIN, Habit.REPEATS)),
    *((kind, habit) for kind in ("calls", "http") for habit in (Habit.REORDERS, Habit.REWINDS)),
)
"""Writers with sessions of their own."""
RIVALS = ("calls", "streams", "http")
"""Writers that share sessions, all of them."""
PROBE = (1, 2)
"""What every session is stepped by at the end."""
RECOVERY_SECONDS = 45


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: faults in order, over which store, how many replicas, sessions a writer.

    ``flags`` are the replicas' own.
    """

    store: Literal["sqlite", "redis"]
    faults: Sequence[str]
    seed: int = 0
    num_replicas: int = 2
    num_sessions: int = 2
    flags: tuple[str, ...] = ()
    appendfsync: str = "always"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. ``problems`` are answers that nothing explains; there should be none."""

    store: str
    seed: int
    faults: dict[str, int]
    num_sessions: int
    num_requests: int
    num_unknown: int
    unknown: dict[str, int]
    acknowledged: int
    lost: int
    twice: int
    problems: list[str]
    seconds: float


async def run(plan: Plan, folder: Path) -> Report:
    """Run ``plan``; what it needs is made in ``folder``, and a history with a problem stays there."""
    began = time.monotonic()
    bundle = write_tiny_bundle(folder / "bundles", MODEL)
    history = History()
    async with site(plan, folder) as place:
        storm = Storm(place, history, plan.seed)
        stuck = await _drive(plan, storm)
    write(folder / "history.jsonl", history.operations)
    verdicts = _verdicts(history, bundle)
    return Report(
        store=plan.store,
        seed=plan.seed,
        faults=dict(storm.num_faults),
        num_sessions=len(verdicts),
        num_requests=len(history.operations),
        num_unknown=history.unavailable.total(),
        unknown=dict(history.unavailable),
        acknowledged=sum(verdict.num_acknowledged for verdict in verdicts),
        lost=sum(verdict.num_lost for verdict in verdicts),
        twice=sum(verdict.num_twice for verdict in verdicts),
        problems=[*storm.problems, *stuck, *(verdict.problem for verdict in verdicts if verdict.problem)],
        seconds=round(time.monotonic() - began, 1),
    )


@contextlib.asynccontextmanager
async def site(plan: Plan, folder: Path) -> AsyncIterator[Site]:
    """Replicas over the plan's store, started, and that store; each replica of Redis has a line of its own to it."""
    async with contextlib.AsyncExitStack() as stack:
        place = Site([], clock=folder / "clock")
        stores = ["sqlite"] * plan.num_replicas
        if plan.store == "redis":
            place.redis = stack.enter_context(redis_server(appendfsync=plan.appendfsync))
            place.lines = [
                await stack.enter_async_context(proxy_to("127.0.0.1", place.redis.port))
                for _ in range(plan.num_replicas)
            ]
            stores = [f"redis://127.0.0.1:{line.port}/0" for line in place.lines]
        place.replicas = [_replica(plan, folder, number, store) for number, store in enumerate(stores)]
        await stack.enter_async_context(running(*place.replicas))
        yield place


def _replica(plan: Plan, folder: Path, number: int, store: str) -> Replica:
    flags = ("--store", store, "--data-dir", str(folder / "data"), *plan.flags)
    has_faults = number == 0 and "clock jumped" in plan.faults
    return Replica(folder / "bundles", f"r{number}", flags, wrong_clock(folder / "clock") if has_faults else {})


def wrong_clock(file: Path) -> dict[str, str]:
    """What makes a process's wall clock wrong by what ``file`` says; looked up at every reading."""
    require("libfaketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    file.write_text("+0")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


async def _drive(plan: Plan, storm: Storm) -> list[str]:
    """Let clients and faults loose, then ask what is left; return what does not come back."""
    replicas = storm.site.replicas
    async with contextlib.AsyncExitStack() as stack:
        writers = [await _writer(stack, plan, storm, *role) for role in _roles(plan)]
        await _open_all(replicas[0], [session for _, _, sessions in _roles(plan) for session in sessions])
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(writer.run(stop)) for writer in writers]
            raging = tasks.create_task(_rage(plan, storm))
            # Writers end early only where their sessions fail: a storm would wait for them in vain.
            ends: list[asyncio.Future[Any]] = [raging, asyncio.gather(*working, return_exceptions=True)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            raging.cancel()
            stop.set()
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                await _probe(stack, plan, storm)
        except TimeoutError:
            return [f"not every replica answers {RECOVERY_SECONDS} s after the last fault"]
    return []


async def _rage(plan: Plan, storm: Storm) -> None:
    await storm.rage(plan.faults)
    await storm.history.pass_by(100)


def _roles(plan: Plan) -> list[tuple[str, Habit, tuple[str, ...]]]:
    """Transport, habit and sessions of each writer."""
    numbers = range(plan.num_sessions)
    own = [(kind, habit, tuple(f"{kind}-{habit.name.lower()}-{n}" for n in numbers)) for kind, habit in CAST]
    return own + [(kind, Habit.PLAIN, tuple(f"shared-{n}" for n in numbers)) for kind in RIVALS]


async def _writer(
    stack: contextlib.AsyncExitStack, plan: Plan, storm: Storm, kind: str, habit: Habit, sessions: Sequence[str]
) -> Writer:
    transports = [KINDS[kind](replica) for replica in storm.site.replicas]
    for transport in transports:
        stack.push_async_callback(transport.close)
    return Writer(f"{kind}/{sessions[0]}", sessions, transports, habit, storm.history, plan.seed)


async def _open_all(replica: Replica, sessions: Sequence[str]) -> None:
    calls = Calls(replica.grpc)
    try:
        await asyncio.gather(*(calls.open(session, MODEL) for session in set(sessions)))
    finally:
        await calls.close()


async def _probe(stack: contextlib.AsyncExitStack, plan: Plan, storm: Storm) -> None:
    """Ask every replica for every session, and step it there: what it answers shows what it holds."""
    sessions = sorted(storm.history.by_session())
    for replica in storm.site.replicas:
        calls = Calls(replica.grpc)
        stack.push_async_callback(calls.close)
        probe = Writer(f"probe/{replica.name}", sessions, [calls], Habit.PLAIN, storm.history, plan.seed)
        for session in sessions:
            told = await probe.settle(session, Read())
            if not isinstance(told, Failure):
                await probe.settle(session, Step(told.position, PROBE))


def _verdicts(history: History, bundle: Path) -> list[Verdict]:
    empty = empty_sequence(bundle)
    return [verify(operations, empty) for operations in history.by_session().values()]


def as_table(reports: Sequence[Report]) -> str:
    """The figures of some runs, for people."""
    lines = []
    for report in reports:
        faults = ", ".join(f"{number} × {name}" for name, number in sorted(report.faults.items()))
        lines += [
            f"{report.store}, seed {report.seed}, {report.seconds:.0f} s: {faults}",
            f"  sessions {report.num_sessions}, requests {report.num_requests}, unknown outcomes {report.num_unknown}",
            f"  steps acknowledged {report.acknowledged}, lost {report.lost}, applied twice {report.twice}",
            *(f"  NOT EXPLAINED: {problem}" for problem in report.problems),
        ]
    return "\n".join(lines)
