"""A lock of each key: what belongs to one key happens one at a time, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Name = TypeVar("Name", bound=Hashable)


class KeyedLock(Generic[Name]):
    """Locks that are kept as long as somebody holds them or waits for them."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Name, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: Name) -> asyncio.Lock:
        """Return the key's lock; asyncio's locks are fair."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
