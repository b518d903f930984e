"""Histories in which a replica that slept, or was told to end, meets a session that others have moved on.

Two replicas A and B over one store. What is told is checked as in the storms: by `tests.chaos.verify`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bundles import write_tiny_bundle
from tests.chaos.history import Conflict, Failure, History, Keep, Operation, Read, Reply, Rewind, Step, Told
from tests.chaos.offline import Sequence, empty_sequence
from tests.chaos.transports import Calls
from tests.chaos.verify import verify
from tests.chaos.writers import Habit, Writer
from tests.redis import redis_server
from tests.servers import RunningServer, serving
from tidegate.api import GeneratedToken, GenerationDone
from tidegate.client import AsyncClient, Client
from tidegate.client.requests import SamplingOptions

MODEL = "tiny"
OLD, NEW, NEXT = (5, 6), (7, 8), (9, 10, 11)


class Pair(NamedTuple):
    """Two replicas, and the sequence that nothing was fed to."""

    a: RunningServer
    b: RunningServer
    empty: Sequence


BOTH = pytest.mark.parametrize("pair", ["sqlite", "redis"], indirect=True)
SQLITE, REDIS = (pytest.mark.parametrize("pair", [store], indirect=True) for store in ("sqlite", "redis"))


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    bundle = write_tiny_bundle(tmp_path / "bundles", MODEL)
    with ExitStack() as stack:
        store = stack.enter_context(redis_server()).url if request.param == "redis" else "sqlite"
        flags = ("--store", store, "--data-dir", str(tmp_path / "data"))
        a, b = (stack.enter_context(serving(tmp_path / "bundles", *flags)) for _ in range(2))
        yield Pair(a, b, empty_sequence(bundle))


class Clients(NamedTuple):
    """One client of each replica; both log into one history."""

    a: Writer
    b: Writer
    history: History


@pytest.fixture
async def clients(pair: Pair) -> AsyncIterator[Clients]:
    history = History()
    calls = [Calls(pair.a.grpc), Calls(pair.b.grpc)]
    a, b = (Writer(name, (), [each], Habit.PLAIN, history, 0) for name, each in zip("ab", calls, strict=True))
    yield Clients(a, b, history)
    for each in calls:
        await each.close()


async def open_at(server: RunningServer, *sessions: str) -> None:
    """Open durable sessions by way of that replica."""
    async with AsyncClient(server.grpc) as client:
        for session in sessions:
            await client.open(MODEL, id=session, durable=True)


def position_in(told: Told) -> int:
    assert not isinstance(told, Failure)
    return told.position


def check(pair: Pair, operations: list[Operation]) -> None:
    assert verify(operations, pair.empty).problem is None


async def rewind(pair: Pair, clients: Clients, session: str) -> None:
    """At B: back to the start, then on."""
    await clients.b.settle(session, Rewind("start"))
    await clients.b.settle(session, Step(0, NEW))


async def reopen(pair: Pair, clients: Clients, session: str) -> None:
    """At B: closed, opened again under its id, and stepped."""
    async with AsyncClient(pair.b.grpc) as client:
        await (await client.session(session)).close()
        await (await client.open(MODEL, id=session, durable=True)).step(tokens=NEW)


async def restore(pair: Pair, clients: Clients, session: str) -> None:
    """At B: closed, and restored under its id from another session that is at the same position."""
    async with AsyncClient(pair.b.grpc) as client:
        other = await client.open(MODEL)
        await other.step(tokens=NEW)
        await (await client.session(session)).close()
        await client.restore(await other.snapshot(), id=session, durable=True)


@BOTH
async def test_a_stale_state_does_not_pass(pair: Pair, clients: Clients) -> None:
    """A holds a session after OLD. By way of B it is at the same position after NEW: A must not go on from OLD."""
    for change in (rewind, reopen, restore):
        session = f"s-{change.__name__}"
        await open_at(pair.a, session)
        await clients.a.settle(session, Keep("start"))
        assert isinstance(await clients.a.settle(session, Step(0, OLD)), Reply)
        await change(pair, clients, session)
        # A repeat of what A remembers is not one any more.
        assert await clients.a.settle(session, Step(0, OLD)) == Conflict(2)
        told = await clients.a.settle(session, Step(2, NEXT))
        assert isinstance(told, Reply)
        assert pair.empty.then(NEW).then(NEXT).gives(told, len(NEXT)), session


@BOTH
async def test_a_replica_that_slept_through_a_rewind_finds_out(pair: Pair, clients: Clients) -> None:
    """The stale step lies in A's socket while A is stopped, and B takes the session back and to the same position."""
    await open_at(pair.a, "s")
    await clients.a.settle("s", Keep("start"))
    await clients.a.settle("s", Step(0, OLD))
    pair.a.tell(signal.SIGSTOP)
    stale = asyncio.create_task(clients.a.try_once("s", Step(2, NEXT)))
    await rewind(pair, clients, "s")
    pair.a.tell(signal.SIGCONT)
    await stale
    for client in (clients.a, clients.b):
        await client.settle("s", Step(position_in(await client.settle("s", Read())), NEXT))
    check(pair, clients.history.operations)


@SQLITE
async def test_sessions_that_a_drained_replica_held_go_on_without_a_conflict(pair: Pair, clients: Clients) -> None:
    history, sessions = clients.history, [f"s-{number}" for number in range(8)]
    await open_at(pair.a, *sessions)

    async def step_until_refused(session: str) -> None:
        """At A until it has no answer any more; what had none goes to B."""
        position = 0
        while (told := await clients.a.try_once(session, Step(position, NEW))) is not None:
            position = position_in(told)
        for _ in range(3):
            position = position_in(await clients.b.settle(session, Step(position, NEW)))

    async with asyncio.TaskGroup() as tasks:
        for session in sessions:
            tasks.create_task(step_until_refused(session))
        await history.pass_by(20 * len(sessions))
        pair.a.tell(signal.SIGTERM)
    assert [each for each in history.operations if isinstance(each.told, Conflict)] == []
    for operations in history.by_session().values():
        check(pair, operations)
    assert await asyncio.to_thread(pair.a.wait) == 0


PROMPT = "Hello"
SAMPLING = SamplingOptions(max_tokens=400, temperature=0.9, top_p=0.95)
Events = AsyncIterator[GeneratedToken | GenerationDone]


def generated_without_faults(pair: Pair) -> list[int]:
    with Client(pair.b.grpc) as client, client.open(MODEL, seed=3) as session:
        *_, done = session.generate(PROMPT, **SAMPLING)
    assert isinstance(done, GenerationDone)
    return done.tokens


async def stop_in_a_generation(pair: Pair, client: AsyncClient) -> tuple[Events, list[int]]:
    """Generate at A until A is stopped, in the middle; return the events to come, and the tokens that were told."""
    session = await client.open(MODEL, id="g", durable=True, seed=3)
    events = session.generate(PROMPT, **SAMPLING)
    told = []
    for _ in range(5):
        event = await anext(events)
        assert isinstance(event, GeneratedToken)
        told.append(event.id)
    pair.a.tell(signal.SIGSTOP)
    return events, told


async def go_on_at(server: RunningServer) -> GenerationDone:
    """Repeat the generation, from the position at which it was begun."""
    async with AsyncClient(server.grpc) as client:
        session = await client.session("g")
        session.position = 0
        *_, done = [event async for event in session.generate(PROMPT, **SAMPLING)]
    assert isinstance(done, GenerationDone)
    return done


@REDIS
async def test_a_generation_that_was_cut_off_is_replayed_and_goes_on_elsewhere(pair: Pair) -> None:
    async with AsyncClient(pair.a.grpc) as client:
        _, told = await stop_in_a_generation(pair, client)
        pair.a.tell(signal.SIGKILL)
        done = await go_on_at(pair.b)
    assert done.tokens[: len(told)] == told
    assert done.tokens == generated_without_faults(pair)
    assert done.position == len(PROMPT) + len(done.tokens)


@SQLITE
async def test_two_replicas_that_run_one_generation_tell_the_same(pair: Pair) -> None:
    """A wakes up in the middle of what B has brought to its end; its client hears the rest all the same."""
    async with AsyncClient(pair.a.grpc) as client:
        events, told = await stop_in_a_generation(pair, client)
        done = await go_on_at(pair.b)
        pair.a.tell(signal.SIGCONT)
        *rest, last = [event async for event in events]
        assert last == done
        assert told + [event.id for event in rest if isinstance(event, GeneratedToken)] == done.tokens
        assert (await client.session("g")).position == done.position
    assert done.tokens == generated_without_faults(pair)
