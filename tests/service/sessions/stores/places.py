"""Where the suite keeps sessions: the same questions to a place of each kind, several stores on one place."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

from tests.redis import RedisServer
from tidegate.api import SessionKey
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.redis import RedisStore
from tidegate.sessions.stores.sqlite import SqliteStore
from tidegate.sessions.stores.store import DUE_CALLS, Due, Entry, Store, Stored, Write


class Place(Protocol):
    """What outlives a store."""

    def clear(self) -> None:
        """Forget everything; no store is open."""

    def store(self) -> Store:
        """A store here, not yet started."""


class MemoryPlace:
    """The store itself: all stores here are one."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._store = MemoryStore()

    def store(self) -> Store:
        return self._store


class SqlitePlace:
    """A file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._paths = (directory / f"{number}" / "sessions.sqlite" for number in itertools.count())
        self.clear()

    def clear(self) -> None:
        self._path = next(self._paths)

    def store(self) -> Store:
        return SqliteStore(self._path)


class RedisPlace:
    """A server's database."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def clear(self) -> None:
        self._server.call("FLUSHALL")

    def store(self) -> Store:
        return RedisStore(self._server.url)


@contextlib.asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


_NUMBERS = itertools.count(1)


def revision() -> bytes:
    """16 bytes that no other write has."""
    return next(_NUMBERS).to_bytes(16)


def key(id_: str, tenant: str = "t") -> SessionKey:
    return SessionKey(tenant, id_)


def keys(ids: Iterable[str]) -> list[SessionKey]:
    return [key(id_) for id_ in ids]


def first(id_: str, body: bytes = b"new", *, due: float | None = None, is_listed: bool = True) -> Write:
    """The write that opens a session."""
    return Write(key(id_), None, revision(), b"in short: " + body[:9], body, Due(due), is_listed)


def after(write: Write, body: bytes = b"stepped") -> Write:
    """A step after ``write``."""
    return Write(write.key, write.revision, revision(), b"in short: " + body[:9], body)


def entry(write: Write) -> Entry:
    """What is stored after a write."""
    assert write.body is not None
    return Entry(write.revision, write.summary, write.body)


def listed(*writes: Write) -> list[tuple[str, Stored]]:
    """What a page shows after some writes."""
    return [(write.key.id, Stored(write.revision, write.summary)) for write in writes]


async def all_due(store: Store, now: float) -> list[str]:
    """The ids of all that is due, sorted."""
    found = [each.id for _ in range(DUE_CALLS) for each in await store.due(now, 9999)]
    return sorted(set(found))
