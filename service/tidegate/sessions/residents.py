"""The sessions that are held in the arenas: look-up, least recent use, expiry without scans, and how they ended.

Pure: time is an argument, in seconds of one monotonic clock.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import islice

from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.session import DurableSession, Session
from tidegate.limits import MAX_ENDINGS
from tidegate.sessions.endings import Endings
from tidegate.slices import Slices

_SLACK = 1024
_LOOKED_AT = 2048  # ids that a page looks at between two yields: some 0.2 ms
_ABOVE_ALL = "\x7f"  # ids are of printable ASCII


class Residents:
    """Ephemeral sessions, whose only truth is here, and copies of durable ones, which may leave at any time.

    Each by id, least recently used first. A copy may stand beside an ephemeral session of the same id, until that ends.

    Attributes:
        num_ended: Ephemeral sessions that ended, by reason.
        num_evicted: Copies that left for want of room.
    """

    def __init__(self) -> None:
        self._ephemeral: OrderedDict[str, Session] = OrderedDict()
        self._copies: OrderedDict[str, DurableSession] = OrderedDict()
        self._endings: Endings[str, Phase] = Endings(max_number=MAX_ENDINGS)
        # (when to look, id): a step moves a session's end but not its entry, which is put back when it comes up early.
        self._expiries: list[tuple[float, str]] = []
        self.num_ended: Counter[str] = Counter()
        self.num_evicted = 0

    def __len__(self) -> int:
        return len(self._ephemeral) + len(self._copies)

    @property
    def num_copies(self) -> int:
        return len(self._copies)

    def find(self, id_: str) -> Session | None:
        """Return the ephemeral session, or None."""
        return self._ephemeral.get(id_)

    def find_copy(self, id_: str) -> DurableSession | None:
        """Return the copy of the durable session, or None."""
        return self._copies.get(id_)

    def find_ending(self, id_: str, now: float) -> Phase | None:
        """Return how an ephemeral session of that id ended, within memory."""
        return self._endings.find(id_, now)

    # ---- come, stay, go

    def add(self, session: Session) -> None:
        """Take in a session whose id is not here."""
        session.model.num_sessions += 1
        if isinstance(session, DurableSession):
            assert session.id not in self._copies
            self._copies[session.id] = session
            return
        assert session.id not in self._ephemeral
        self._ephemeral[session.id] = session
        self._endings.discard(session.id)
        if (end := session.expires_at) is not None:
            heapq.heappush(self._expiries, (end, session.id))

    def touch(self, session: Session, now: float) -> None:
        """Make the session the most recently used, if it is still here."""
        session.used_at = now
        sessions: OrderedDict[str, Session] | OrderedDict[str, DurableSession]
        sessions = self._copies if session.is_durable else self._ephemeral
        if sessions.get(session.id) is session:
            sessions.move_to_end(session.id)

    def touch_all(self, sessions: Iterable[Session], now: float) -> None:
        """Make ephemeral sessions the most recently used, the last of them most."""
        move = self._ephemeral.move_to_end
        for session in sessions:
            session.used_at = now
            move(session.id)

    def end(self, session: Session, event: Event, now: float) -> None:
        """End an ephemeral session and remember why: its waiting work fails with the reason, its slot is freed."""
        session.end(event)
        del self._ephemeral[session.id]
        self.num_ended[session.phase.value] += 1
        self._endings.put(session.id, session.phase, now)
        if len(self._expiries) > 2 * len(self._ephemeral) + _SLACK:
            self._forget_expiries()
        session.model.num_sessions -= 1
        session.model.engine.release(session)

    def remove_copy(self, session: DurableSession) -> None:
        """Forget the copy, whose work is in hand: its slot is freed when that is over."""
        if self._copies.get(session.id) is session:
            del self._copies[session.id]
            session.model.num_sessions -= 1

    def drop_copy(self, session: DurableSession) -> None:
        """Let the copy leave: its waiting work fails, its slot is freed."""
        self.remove_copy(session)
        session.model.engine.release(session)

    # ---- who has to go

    def expired(self, now: float, limit: int) -> list[tuple[Session, Event]]:
        """Return up to ``limit`` ephemeral sessions whose time is over, with the reason; the caller ends them."""
        over: dict[Session, Event] = {}  # an id that was opened anew has two entries
        while len(over) < limit and self._expiries and self._expiries[0][0] <= now:
            _, id_ = heapq.heappop(self._expiries)
            session = self._ephemeral.get(id_)
            end = session.expires_at if session is not None else None
            if session is None or end is None:
                continue
            if (event := session.overdue(now)) is not None:
                over[session] = event
            else:
                heapq.heappush(self._expiries, (end if end > now else now + 1.0, id_))
        return list(over.items())

    def find_evictable(self, now: float, idle_seconds: float) -> Session | None:
        """Return the least recently used session that has no work in hand: a copy, with which nothing is lost, or else
        an ephemeral session that was not used within ``idle_seconds``.
        """
        for copy in self._copies.values():
            if not copy.is_busy and not copy.is_reading:
                return copy
        for session in self._ephemeral.values():
            if session.used_at > now - idle_seconds:
                return None
            if not session.is_busy:
                return session
        return None

    def page(self, limit: int, after: str) -> Slices[tuple[list[Session], str]]:
        """Return up to ``limit`` ephemeral sessions with ids above ``after``, by rising id, and the token of the next
        page or ''.
        """
        ids = iter(list(self._ephemeral))  # between two slices sessions come and go
        found: list[str] = []
        while some := list(islice(ids, _LOOKED_AT)):
            before = found[limit] if len(found) > limit else _ABOVE_ALL
            found = sorted([*found, *(id_ for id_ in some if after < id_ < before)])[: limit + 1]
            yield
        sessions = [session for id_ in found[:limit] if (session := self._ephemeral.get(id_)) is not None]
        return sessions, found[limit - 1] if len(found) > limit else ""

    def _forget_expiries(self) -> None:
        """Drop the entries of sessions that ended before their time: they would stay for as long as a day."""
        ends = ((session.expires_at, id_) for id_, session in self._ephemeral.items())
        self._expiries = [(end, id_) for end, id_ in ends if end is not None]
        heapq.heapify(self._expiries)
