"""The table of live sessions: look-up, least recent use, expiry without scans, and the memory of endings.

Pure: time is an argument, in seconds of one monotonic clock. It frees no slots and fails no work: it says who has
ended.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.session import Session, ended
from tidegate.errors import NotFoundError
from tidegate.limits import MAX_ENDINGS
from tidegate.slices import Slices

REMEMBERED_SECONDS = 3600.0
_SLACK = 1024
_LOOKED_AT = 2048  # ids that a page looks at between two yields: some 0.2 ms
_ABOVE_ALL = "\x7f"  # ids are of printable ASCII


class SessionTable:
    """Sessions by id, least recently used first."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._endings: OrderedDict[str, tuple[float, Phase]] = OrderedDict()
        # (when to look, id): a step moves a session's end but not its entry, which is put back when it comes up early.
        self._expiries: list[tuple[float, str]] = []
        self.num_ended: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def find(self, id_: str) -> Session | None:
        """Return the live session, or None."""
        return self._sessions.get(id_)

    def knows(self, id_: str) -> bool:
        """Whether a session of that id is live, or its ending is remembered."""
        return id_ in self._sessions or id_ in self._endings

    def get(self, id_: str) -> Session:
        """Return the live session.

        Raises:
            SessionEndedError: It ended, within memory.
            NotFoundError: It is unknown.
        """
        session = self._sessions.get(id_)
        if session is not None:
            return session
        ending = self._endings.get(id_)
        if ending is not None:
            raise ended(id_, ending[1])
        raise NotFoundError(f"unknown session {id_}", reason="UNKNOWN_SESSION")

    def add(self, session: Session) -> None:
        """Take in a session whose id is not in the table."""
        assert session.id not in self._sessions
        self._sessions[session.id] = session
        self._endings.pop(session.id, None)
        if (end := session.expires_at) is not None:
            heapq.heappush(self._expiries, (end, session.id))

    def touch(self, session: Session, now: float) -> None:
        """Make the session the most recently used."""
        session.used_at = now
        self._sessions.move_to_end(session.id)

    def touch_all(self, sessions: Iterable[Session], now: float) -> None:
        """Make them the most recently used, the last of them most."""
        move = self._sessions.move_to_end
        for session in sessions:
            session.used_at = now
            move(session.id)

    def end(self, session: Session, event: Event, now: float) -> None:
        """End the session and remember why."""
        session.end(event)
        del self._sessions[session.id]
        self.num_ended[session.phase.value] += 1
        self._endings[session.id] = (now, session.phase)
        while self._endings and (
            len(self._endings) > MAX_ENDINGS or next(iter(self._endings.values()))[0] <= now - REMEMBERED_SECONDS
        ):
            self._endings.popitem(last=False)
        if len(self._expiries) > 2 * len(self._sessions) + _SLACK:
            self._forget_expiries()

    def expired(self, now: float, limit: int) -> list[tuple[Session, Event]]:
        """Return up to ``limit`` sessions whose time is over, with the reason; the caller ends them."""
        over: dict[Session, Event] = {}  # an id that was opened anew has two entries
        while len(over) < limit and self._expiries and self._expiries[0][0] <= now:
            _, id_ = heapq.heappop(self._expiries)
            session = self._sessions.get(id_)
            end = session.expires_at if session is not None else None
            if session is None or end is None:
                continue
            if (event := session.overdue(now)) is not None:
                over[session] = event
            else:
                heapq.heappush(self._expiries, (end if end > now else now + 1.0, id_))
        return list(over.items())

    def find_evictable(self, now: float, idle_seconds: float) -> Session | None:
        """Return the least recently used session that has no work in hand, unless it was used within
        ``idle_seconds``.
        """
        for session in self._sessions.values():
            if session.used_at > now - idle_seconds:
                return None
            if not session.is_busy:
                return session
        return None

    def page(self, limit: int, after: str) -> Slices[tuple[list[Session], str]]:
        """Return up to ``limit`` sessions with ids above ``after``, by rising id, and the token of the next page or
        ''.
        """
        ids = iter(list(self._sessions))  # between two slices sessions come and go
        found: list[str] = []
        while some := list(islice(ids, _LOOKED_AT)):
            before = found[limit] if len(found) > limit else _ABOVE_ALL
            found = sorted([*found, *(id_ for id_ in some if after < id_ < before)])[: limit + 1]
            yield
        sessions = [session for id_ in found[:limit] if (session := self._sessions.get(id_)) is not None]
        return sessions, found[limit - 1] if len(found) > limit else ""

    def _forget_expiries(self) -> None:
        """Drop the entries of sessions that ended before their time: they would stay for as long as a day."""
        ends = ((session.expires_at, id_) for id_, session in self._sessions.items())
        self._expiries = [(end, id_) for end, id_ in ends if end is not None]
        heapq.heapify(self._expiries)
