"""What is remembered of sessions that ended: for some time, bounded in number and bytes. Time is an argument."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from tidegate.api import StepResult
from tidegate.engine.session import LastReply

REMEMBERED_SECONDS = 3600.0
"""How long an ending and its reason are remembered, and how long what expired may come back."""

_BESIDE_OUTPUTS = 1024
"""Bytes of a reply beside its outputs, about."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(NamedTuple):
    """A session that somebody knows: the version that it runs on, or ran on; of one that ended with a step, its last
    reply.
    """

    version: str
    last: LastReply | None = None

    @property
    def num_bytes(self) -> int:
        """About what it takes."""
        result = None if self.last is None else self.last.result
        return _BESIDE_OUTPUTS + (result.prediction.num_bytes if isinstance(result, StepResult) else 0)


class Endings(Generic[Key, Value]):
    """Something about each session that ended lately; the oldest is forgotten first.

    Args:
        seconds: How long it is remembered.
        max_number: How many are.
        max_bytes: How much they take together.
    """

    def __init__(
        self, seconds: float = REMEMBERED_SECONDS, max_number: float = math.inf, max_bytes: float = math.inf
    ) -> None:
        self._seconds = seconds
        self._max_number = max_number
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, tuple[float, int, Value]] = OrderedDict()
        self._num_bytes = 0

    def put(self, key: Key, value: Value, now: float, num_bytes: int = 0) -> None:
        """Remember that the session ended ``now``; what is too old or too much is forgotten."""
        self.discard(key)
        self._kept[key] = now, num_bytes, value
        self._num_bytes += num_bytes
        while self._kept and self._is_too_much(now):
            self.discard(next(iter(self._kept)))

    def find(self, key: Key, now: float) -> Value | None:
        """Return what is remembered; None where nothing is, or it is too long ago."""
        ended_at, _, value = self._kept.get(key, (-math.inf, 0, None))
        return value if now - ended_at < self._seconds else None

    def seconds_since(self, key: Key, now: float) -> float | None:
        """Return how long ago the session ended; None where that is not known."""
        kept = self._kept.get(key)
        return None if kept is None else now - kept[0]

    def discard(self, key: Key) -> None:
        """Forget the session, if it is known."""
        if key in self._kept:
            self._num_bytes -= self._kept.pop(key)[1]

    def _is_too_much(self, now: float) -> bool:
        ended_at, _, _ = next(iter(self._kept.values()))
        return (
            len(self._kept) > self._max_number or self._num_bytes > self._max_bytes or ended_at + self._seconds <= now
        )
