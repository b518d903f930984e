"""A store in a dict: what `store` asks for in its plainest form. Nothing outlives the process."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from tidegate.sessions.stores.store import Entry, Write


@dataclass(slots=True)
class _Kept:
    """All that is kept of one session."""

    entry: Entry
    is_listed: bool
    due: float | None
    attachments: dict[str, bytes] = field(default_factory=dict)


class MemoryStore:
    """Durable sessions of one process, for tests and for trying things out."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to let go of: a store that is started again holds what it held."""

    async def ping(self) -> None:
        """It always answers."""

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        return [kept.entry if (kept := self._kept.get(id_)) else None for id_ in ids]

    async def read_attachment(self, id: str, name: str) -> bytes | None:  # noqa: A002
        kept = self._kept.get(id)
        return kept.attachments.get(name) if kept else None

    async def write(self, writes: Sequence[Write]) -> list[bool]:
        return [self._put(write) for write in writes]

    async def delete(self, id: str, expected: bytes) -> bool:  # noqa: A002
        if not self._holds(id, expected):
            return False
        del self._kept[id]
        return True

    async def due(self, now: float, limit: int) -> list[str]:
        over = ((kept.due, id_) for id_, kept in self._kept.items() if kept.due is not None and kept.due <= now)
        return [id_ for _, id_ in heapq.nsmallest(limit, over)]

    async def postpone(self, id: str, at: float | None) -> None:  # noqa: A002
        if kept := self._kept.get(id):
            kept.due = at

    async def page(self, limit: int, after: str) -> list[tuple[str, Entry]]:
        above = ((id_, kept.entry) for id_, kept in self._kept.items() if kept.is_listed and id_ > after)
        return heapq.nsmallest(limit, above)

    def _holds(self, id_: str, revision: bytes | None) -> bool:
        kept = self._kept.get(id_)
        return (kept.entry.revision if kept else None) == revision

    def _put(self, write: Write) -> bool:
        if not self._holds(write.id, write.expected):
            return False
        entry = Entry(write.revision, write.record)
        kept = self._kept.setdefault(write.id, _Kept(entry, write.is_listed, due=None))
        kept.entry, kept.is_listed = entry, write.is_listed
        if write.due is not None:
            kept.due = write.due.at
        for name, content in write.attachments.items():
            if content is None:
                kept.attachments.pop(name, None)
            else:
                kept.attachments[name] = content
        return True
