"""Which store the settings ask for, and its migration. Imports only what that store needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.errors import ConfigurationError
from tidegate.sessions.stores.store import Store

SQLITE_FILE = "sessions.sqlite3"
_MIGRATION_TIMEOUT = 60.0
"""Seconds for an answer of Redis: nobody waits for a step."""


def make_store(settings: Settings, clock: Clock | None = None) -> Store | None:
    """Return the store of durable sessions, not started yet; None for ``none``: there are none then.

    Args:
        settings: Which one.
        clock: For a store that has none of its own.

    Raises:
        ConfigurationError: The URL is not one, or the package that it needs is not installed.
    """
    if settings.store == "none":
        return None
    if settings.store == "sqlite":
        from tidegate.sessions.stores.sqlite import SqliteStore

        path = settings.data_dir / SQLITE_FILE
        return SqliteStore(path, settings.sqlite_sync, busy_seconds=settings.store_timeout, clock=clock)
    from tidegate.sessions.stores.redis import RedisStore

    return RedisStore(settings.store, timeout=settings.store_timeout)


class Migrated(NamedTuple):
    """What `migrate_store` did; ``backup`` is the file that what was there before is kept in."""

    num_sessions: int
    num_damaged: int
    backup: str | None = None


def migrate_store(settings: Settings, progress: Callable[[int, int], None]) -> Migrated:
    """Bring the store of a server that does not run to the format that is served.

    Raises:
        ConfigurationError: There is no store, or it cannot be migrated.
        UnavailableError: It does not answer, or is in use.
    """
    if settings.store == "none":
        raise ConfigurationError("--store none: there is nothing to migrate")
    if settings.store == "sqlite":
        from tidegate.sessions.stores.sqlite_file import FileSettings, migrate_file

        path = settings.data_dir / SQLITE_FILE
        if not path.exists():
            raise ConfigurationError(f"session store {path}: no such file: name its directory by --data-dir")
        file = FileSettings(path, "full", settings.store_timeout, None)
        num_sessions, num_damaged, backup = migrate_file(file, progress)
        return Migrated(num_sessions, num_damaged, None if backup is None else str(backup))
    from tidegate.sessions.stores.redis import check_installed

    check_installed()
    from tidegate.sessions.stores.redis_migration import migrate

    return Migrated(*asyncio.run(migrate(settings.store, _MIGRATION_TIMEOUT, progress)))
