"""Who is about to come back: sessions that were answered a moment ago and have not sent their next step yet.

A client that streams answers within milliseconds. While such clients are under way, it pays to hold the next run back
for a moment; when all who step are here already, waiting gains nothing. Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque

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
    """Sessions answered within the last ``horizon`` seconds that are not back yet, and callers without a session too.

    A caller is known by its session, or by the party of sessions that it steps together. One without has no name:
    whoever comes next counts as the one who was answered first.
    """

    def __init__(self, horizon: float) -> None:
        self._horizon = horizon
        # Oldest first: a session is put at the end whenever it is answered.
        self._away: dict[object, float] = {}
        self._nameless: deque[float] = deque()

    def answered(self, caller: object | None, now: float) -> None:
        """The caller got a reply and may come back soon."""
        if caller is None:
            self._nameless.append(now)
            return
        self._away.pop(caller, None)
        self._away[caller] = now

    def arrived(self, caller: object | None) -> None:
        """The caller is back, or its session is over."""
        if caller is not None:
            self._away.pop(caller, None)
        elif self._nameless:
            self._nameless.popleft()

    def num_expected(self, now: float) -> int:
        """How many are expected back."""
        away, nameless, oldest = self._away, self._nameless, now - self._horizon
        while away and away[first := next(iter(away))] <= oldest:
            del away[first]
        while nameless and nameless[0] <= oldest:
            nameless.popleft()
        return len(away) + len(nameless)
