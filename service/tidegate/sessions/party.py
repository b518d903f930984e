"""A party: ephemeral sessions that one caller steps together, again and again. Found once, it need not be looked up for
each message. Knows sessions and time; who finds them is `sessions/desk.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tidegate.engine.lifecycle import Phase
from tidegate.engine.session import Session


class Party:
    """The sessions of these ids, all different, in this order.

    What has ended never lives again, and steps only put a session's end off: so while all are open and none was overdue
    when they were found, they are what a look-up would find. ``sessions`` is replaced, never changed; ``model`` is that
    of all, None where they differ.
    """

    __slots__ = ("_sound_until", "ids", "model", "sessions")

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.sessions: Sequence[Session] = ()
        self.model: Any = None
        self._sound_until = -math.inf

    def put(self, sessions: Sequence[Session]) -> None:
        """Remember who was found."""
        ends = [end for session in sessions if (end := session.expires_at) is not None]
        self._sound_until = min(ends, default=math.inf)
        self.sessions = sessions
        model = sessions[0].model
        self.model = model if all(session.model is model for session in sessions) else None

    def is_found(self, now: float) -> bool:
        """Whether all are known to be live, and on the model that they were found on."""
        if now >= self._sound_until:
            return False
        is_open, model = Phase.OPEN, self.model
        for session in self.sessions:  # noqa: SIM110 - half as long as `all`, and this is done for each message
            if session.phase is not is_open or session.model is not model:
                return False
        return True
