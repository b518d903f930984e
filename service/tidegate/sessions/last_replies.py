"""The last replies of ephemeral sequences that their clients ended, so that a repeat of the last request is answered.

A durable one's lies in its record. Bounded in bytes and in time; time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from tidegate.api import StepResult
from tidegate.engine.session import LastReply
from tidegate.limits import MAX_LAST_REPLY_BYTES

_SECONDS = 3600.0
_BESIDE_OUTPUTS = 1024
"""Bytes of a reply beside its outputs, about."""


class Remembered(NamedTuple):
    """A session that somebody knows: the version that it runs on, or ran on; of one that ended with a step, its last
    reply.
    """

    version: str
    last: LastReply | None = None


class LastReplies:
    """By session, those that ended last."""

    def __init__(self, max_bytes: int = MAX_LAST_REPLY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[float, int, Remembered]] = OrderedDict()
        self._num_bytes = 0

    def put(self, session: str, remembered: Remembered, now: float) -> None:
        """Remember what a session that ended was answered last; what is too old or too much is forgotten."""
        self.discard(session)
        assert remembered.last is not None
        size = _size(remembered.last)
        self._kept[session] = now, size, remembered
        self._num_bytes += size
        while self._kept and (self._num_bytes > self._max_bytes or self._oldest() + _SECONDS <= now):
            self.discard(next(iter(self._kept)))

    def find(self, session: str, now: float) -> Remembered | None:
        ended_at, _, remembered = self._kept.get(session, (now - _SECONDS, 0, None))
        return remembered if ended_at + _SECONDS > now else None

    def discard(self, session: str) -> None:
        if session in self._kept:
            self._num_bytes -= self._kept.pop(session)[1]

    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[0]


def _size(last: LastReply) -> int:
    return _BESIDE_OUTPUTS + (last.result.prediction.num_bytes if isinstance(last.result, StepResult) else 0)
