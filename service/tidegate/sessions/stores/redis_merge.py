"""The first names of many sorted lists, of which a few of each are read at a time. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import NamedTuple


class Lack(NamedTuple):
    """What must be read of a list: so many names of those above one."""

    number: int
    num_wanted: int
    above: bytes


class Merge:
    """Finds the smallest names.

    Args:
        num_lists: How many lists there are; no name is in two.
        limit: How many names are wanted.
        after: Above which.
    """

    def __init__(self, num_lists: int, limit: int, after: bytes) -> None:
        self._limit = limit
        self._names: list[list[bytes]] = [[] for _ in range(num_lists)]
        self._last = [after] * num_lists
        self._open = set(range(num_lists))
        # Names are spread evenly: twice its share is enough of nearly every list.
        self._count = 2 * limit // num_lists + 2

    def first(self) -> list[bytes]:
        """Return the smallest names of those read."""
        return nsmallest(self._limit, (name for names in self._names for name in names))

    def lacking(self) -> list[Lack]:
        """Return what must be read before `first` is right; nothing where it is."""
        first = self.first()
        # A list that was read up to the last of them, or beyond, holds no other that belongs among them.
        end = first[-1] if len(first) == self._limit else None
        return [
            Lack(at, self._count, self._last[at]) for at in sorted(self._open) if end is None or self._last[at] < end
        ]

    def take(self, lacking: Sequence[Lack], replies: Sequence[Sequence[bytes]]) -> None:
        """Take in what was read."""
        for (at, count, _), names in zip(lacking, replies, strict=True):
            self._names[at] += names
            if len(names) < count:
                self._open.discard(at)
            else:
                self._last[at] = names[-1]
        self._count *= 2
