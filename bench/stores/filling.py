"""Fills a store with sessions as a server would leave them: copies of the record of one that it opened and stepped.

They go through the store's own writes, in large groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from bench.processes import server
from bench.sessions import open_sessions, step_once
from bench.stores.places import Place
from tidegate.sessions.expiry import end_of
from tidegate.sessions.ids import key_of, new_durable
from tidegate.sessions.records import Body, Record, Summary, decode_record, encode_record, new_revisions
from tidegate.sessions.stores.store import DUE_CALLS, Due, Store, Write

GROUP = 2_000
KEPT = 50_000
"""How many of the ids are returned at most."""
POSITION = 1
"""Where all of them are."""


class Filled(NamedTuple):
    """Some of the sessions that are stored, evenly taken, how many there are, and the seconds that it took."""

    ids: list[str]
    num_stored: int
    seconds: float


def fill(place: Place, count: int, most_seconds: float) -> Filled:
    """Store ``count`` sessions, or as many as can be in ``most_seconds``."""
    template = made_by_server(place)
    return asyncio.run(_fill(place.store(), template, count, most_seconds))


def made_by_server(place: Place) -> Record:
    """The record of a session that a server opened and stepped here."""
    with server(*place.flags) as running:
        ids = open_sessions(running, 1, durable=True)
        step_once(running, ids)
        return asyncio.run(_read(place.store(), ids[0]))


def put_overdue(place: Place, template: Record, count: int) -> None:
    """Store sessions whose time is over, all at the same moment."""

    def age(record: Record) -> None:
        record.summary.created_at = record.summary.used_at = time.time() - 3600
        record.summary.idle_seconds = 60

    asyncio.run(_put(place.store(), _writes(template, count, age)))


def wait_expired(place: Place) -> None:
    """Return when no session's end is due."""
    asyncio.run(_wait_expired(place.store()))


async def _fill(store: Store, template: Record, count: int, most_seconds: float) -> Filled:
    every = max(1, count // KEPT)
    ids: list[str] = []
    done, started = 0, time.perf_counter()
    async with _opened(store):
        while done < count and time.perf_counter() - started < most_seconds:
            writes = _writes(template, min(GROUP, count - done))
            assert all(await store.write(writes))
            done += len(writes)
            ids += [write.key.id for write in writes[::every]]
    return Filled(ids, done, time.perf_counter() - started)


async def _put(store: Store, writes: Sequence[Write]) -> None:
    async with _opened(store):
        assert all(await store.write(writes))


async def _read(store: Store, id_: str) -> Record:
    async with _opened(store):
        (entry,) = await store.read([key_of(id_)])
    assert entry is not None
    return decode_record(key_of(id_), entry)


async def _wait_expired(store: Store) -> None:
    async with _opened(store):
        num_empty = 0  # a store may look at a part of what it holds at a time
        while num_empty < DUE_CALLS:
            num_empty = 0 if await store.due(time.time(), 1) else num_empty + 1
            if not num_empty:
                await asyncio.sleep(0.02)  # another process ends them


@contextlib.asynccontextmanager
async def _opened(store: Store) -> AsyncIterator[None]:
    await store.start()
    try:
        yield
    finally:
        await store.stop()


def _writes(template: Record, count: int, change: Callable[[Record], None] | None = None) -> list[Write]:
    record = Record(Summary(), Body())
    record.summary.CopyFrom(template.summary)
    record.body.CopyFrom(template.body)
    record.summary.created_at = record.summary.used_at = time.time()
    if change is not None:
        change(record)
    due, writes = Due(end_of(record.summary)), []
    for revision in new_revisions(count):
        record.summary.id = new_durable()
        summary, body = encode_record(record, revision)
        writes.append(Write(key_of(record.summary.id), None, revision, summary, body, due))
    return writes
