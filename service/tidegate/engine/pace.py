"""Who is about to come back: sessions that were answered a moment ago and have not sent their next step yet.

A client that streams answers within milliseconds. While such clients are under way, it pays to hold the next run back
for a moment; when all who step are here already, waiting gains nothing. Pure: time is an argument.
"""

from __future__ import annotations

from tidegate.sessions.session import Session

_MEMORY = 1 / 8
_WORTH = 0.25
_TRY_EVERY = 32


class Patience:
    """Whether waiting pays, learned from whether it did: clients with a slow rate of their own never hurry back."""

    def __init__(self) -> None:
        self._hope = 1.0
        self._num_declined = 0

    def is_worthwhile(self) -> bool:
        """Whether to wait now: where it mostly paid lately, and once in a while to find out."""
        if self._hope >= _WORTH:
            return True
        self._num_declined = (self._num_declined + 1) % _TRY_EVERY
        return self._num_declined == 0

    def learn(self, *, came: bool) -> None:
        """Take note whether anybody came while waiting."""
        self._hope += _MEMORY * (came - self._hope)


class Pace:
    """Sessions answered within the last ``horizon`` seconds that are not back yet."""

    def __init__(self, horizon: float) -> None:
        self._horizon = horizon
        # Oldest first: a session is put at the end whenever it is answered.
        self._away: dict[Session, float] = {}

    def answered(self, session: Session, now: float) -> None:
        """The session got a reply and may come back soon."""
        self._away.pop(session, None)
        self._away[session] = now

    def arrived(self, session: Session) -> None:
        """The session is back, or is over."""
        self._away.pop(session, None)

    def num_expected(self, now: float) -> int:
        """How many sessions are expected back."""
        away = self._away
        while away and away[first := next(iter(away))] <= now - self._horizon:
            del away[first]
        return len(away)
