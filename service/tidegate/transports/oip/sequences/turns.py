"""Turns: what belongs to one key happens one at a time, in the order of arrival, whoever of those waiting gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Name = TypeVar("Name", bound=Hashable)


class Turns(Generic[Name]):
    """A lock of each key, kept as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Name, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: Name) -> asyncio.Lock:
        """What to hold during the turn; asyncio's locks are fair."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
