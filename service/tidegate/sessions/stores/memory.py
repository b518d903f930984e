"""A store in a dict: what `store` asks for in its plainest form. Nothing outlives the process. For tests."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from tidegate.api import SessionKey
from tidegate.clock import Clock
from tidegate.sessions.stores.store import Entry, Stored, Write


@dataclass(slots=True)
class _Kept:
    """All that is kept of one session."""

    entry: Entry
    is_listed: bool
    due: float | None
    attachments: dict[str, bytes] = field(default_factory=dict)


class MemoryStore:
    """Durable sessions of one process.

    Args:
        clock: It has none of its own.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._wall = (clock or Clock()).wall
        self._kept: dict[SessionKey, _Kept] = {}

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to let go of: a store that is started again holds what it held."""

    async def ping(self) -> None:
        """It always answers."""

    async def time(self) -> float:
        return self._wall()

    async def read(self, keys: Sequence[SessionKey]) -> list[Entry | None]:
        return [kept.entry if (kept := self._kept.get(key)) else None for key in keys]

    async def read_summaries(self, keys: Sequence[SessionKey]) -> list[Stored | None]:
        return [_without_body(kept.entry) if (kept := self._kept.get(key)) else None for key in keys]

    async def read_attachment(self, key: SessionKey, name: str) -> bytes | None:
        kept = self._kept.get(key)
        return kept.attachments.get(name) if kept else None

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        return [self._put(write) for write in writes]

    async def delete(self, key: SessionKey, expected: bytes) -> bool:
        if not self._holds(key, expected):
            return False
        del self._kept[key]
        return True

    async def due(self, now: float, limit: int) -> list[SessionKey]:
        over = ((kept.due, key) for key, kept in self._kept.items() if kept.due is not None and kept.due <= now)
        return [key for _, key in heapq.nsmallest(limit, over)]

    async def postpone(self, key: SessionKey, at: float | None) -> None:
        if kept := self._kept.get(key):
            kept.due = at

    async def page(self, tenant: str, limit: int, after: str) -> list[tuple[str, Stored]]:
        above = (
            (key.id, _without_body(kept.entry))
            for key, kept in self._kept.items()
            if kept.is_listed and key.tenant == tenant and key.id > after
        )
        return heapq.nsmallest(limit, above)

    def _holds(self, key: SessionKey, revision: bytes | None) -> bool:
        kept = self._kept.get(key)
        return (kept.entry.revision if kept else None) == revision

    def _put(self, write: Write) -> bool:
        if not self._holds(write.key, write.expected):
            return False
        kept = self._kept.get(write.key)
        body = write.body
        if body is None:
            body = kept.entry.body if kept else b""
        entry = Entry(write.revision, write.summary, body)
        if kept is None:
            kept = self._kept[write.key] = _Kept(entry, write.is_listed, None)
        kept.entry, kept.is_listed = entry, write.is_listed
        if write.due is not None:
            kept.due = write.due.at
        for name, content in write.attachments.items():
            if content is None:
                kept.attachments.pop(name, None)
            else:
                kept.attachments[name] = content
        return True


def _without_body(entry: Entry) -> Stored:
    return Stored(entry.revision, entry.summary)
