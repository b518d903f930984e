"""Where the suite keeps sessions: the same questions to a place of each kind, several stores on one place."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from tests.redis import RedisServer
from tidegate.sessions.stores.memory import MemoryStore
from tidegate.sessions.stores.redis import RedisStore
from tidegate.sessions.stores.sqlite import SqliteStore
from tidegate.sessions.stores.store import Due, Store, Write


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


def first(id_: str, record: bytes = b"new", *, due: float | None = None, is_listed: bool = True) -> Write:
    """The write that opens a session."""
    return Write(id_, None, revision(), record, Due(due), is_listed)


def after(write: Write, record: bytes = b"stepped") -> Write:
    """A step after ``write``."""
    return Write(write.id, write.revision, revision(), record)
