"""Which store the settings ask for. Imports only what that store needs."""

from __future__ import annotations

from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.sessions.stores.store import Store

SQLITE_FILE = "sessions.sqlite3"


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
