"""The last replies that sessions remember, as far as they are large: counted together, and dropped, oldest first, where
they are too many. Pure; knows nothing of what a reply says.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tidegate.engine.session import LastReply, Session, SharedReply


class DroppedReply(NamedTuple):
    """What is left of a reply that was dropped: of what chunk it was. ``fingerprint`` None: not even that is known."""

    start: int
    fingerprint: Hashable | None


class LargeReply:
    """A reply that counts: a session's ``own``, or one that many ``shared``.

    It leaves the count when no session remembers it any more.
    """

    __slots__ = ("__weakref__", "_length", "_own", "_shared")

    def __init__(self, own: LastReply | None, shared: SharedReply | None = None) -> None:
        self._own: LastReply | DroppedReply | None = own
        self._shared = shared
        self._length = 0 if shared is None else shared.length

    def recall(self, session: Session) -> LastReply | DroppedReply:
        if self._own is not None:
            return self._own
        return (
            DroppedReply(session.position - self._length, None)
            if self._shared is None
            else self._shared.recall(session)
        )

    def drop(self) -> None:
        """Forget what was answered."""
        if self._own is not None:
            self._own = DroppedReply(self._own.start, self._own.fingerprint)
        self._shared = None


class _CountedReply(weakref.ref[LargeReply]):
    """A large reply, and what it takes; it does not keep it."""

    __slots__ = ("num_bytes",)

    num_bytes: int


class Replies:
    """Large replies of one process, in the order in which they were given.

    Args:
        max_bytes: How much they may take together.

    Attributes:
        num_bytes: What they take.
        num_dropped: DroppedReply since the start.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._counted: dict[int, _CountedReply] = {}
        self.num_bytes = 0
        self.num_dropped = 0

    def hold(self, reply: LargeReply, num_bytes: int) -> None:
        """Count a reply of so many bytes; the oldest are dropped for it, if need be."""
        counted = _CountedReply(reply, self._leave)
        counted.num_bytes = num_bytes
        self._counted[id(counted)] = counted
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            oldest = next(iter(self._counted.values()))
            if (dropped := oldest()) is not None:
                dropped.drop()
                self.num_dropped += 1
            self._leave(oldest)

    def _leave(self, counted: weakref.ref[LargeReply]) -> None:
        assert isinstance(counted, _CountedReply)
        if self._counted.pop(id(counted), None) is not None:
            self.num_bytes -= counted.num_bytes
