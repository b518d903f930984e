"""The durable sessions that this process holds a copy of, least recently used first. Any of them may leave at any time:
the truth is in the store.
"""

from __future__ import annotations

from collections import OrderedDict

from tidegate.engine.session import DurableSession


class SessionCache:
    """Copies by id."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, DurableSession] = OrderedDict()
        self.num_evicted = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, id_: str) -> DurableSession | None:
        """Return the copy, or None."""
        return self._sessions.get(id_)

    def add(self, session: DurableSession) -> None:
        """Take in a copy of a session that there was none of."""
        assert session.id not in self._sessions
        self._sessions[session.id] = session
        session.model.num_sessions += 1

    def touch(self, session: DurableSession) -> None:
        """Make the copy the most recently used."""
        if self._sessions.get(session.id) is session:
            self._sessions.move_to_end(session.id)

    def drop(self, session: DurableSession) -> None:
        """Let go of the copy; its slot is free once no work of it runs. What waits must be failed or finished first."""
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
            session.model.num_sessions -= 1

    def distrust(self, id_: str) -> None:
        """The session's record was changed other than by a step: a copy here, if any, must be read again."""
        session = self._sessions.get(id_)
        if session is not None:
            session.is_fresh = False

    def evict_one(self) -> bool:
        """Free the slot of the least recently used copy that no work is in hand for; return whether there was one."""
        for session in self._sessions.values():
            if not session.is_busy and not session.is_reading:
                self.drop(session)
                session.model.engine.release(session)
                self.num_evicted += 1
                return True
        return False
