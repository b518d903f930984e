"""The life of a session as a table.

A session is OPEN from its first moment. It ends once, for one reason, and what has ended stays ended: the reason is
remembered for a while so that a late step is told why, then the id is unknown.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where a session is in its life; the value is the ``reason`` that callers see."""

    OPEN = "OPEN"
    CLOSED = "SESSION_CLOSED"
    EXPIRED = "SESSION_EXPIRED"
    IDLE = "SESSION_IDLE"
    EVICTED = "SESSION_EVICTED"
    RESTARTED = "SEQUENCE_RESTARTED"
    REPLACED = "SESSION_REPLACED"


class Event(Enum):
    """What can end a session."""

    CLOSE = "its client closed it"
    OUTLIVE = "its time to live is over"
    IDLE = "no step came within its idle time"
    EVICT = "its place was needed and it was the least recently used"
    RESTART = "a sequence of the same name was started"
    REPLACE = "a durable session was opened under its id on another server"


TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.OPEN, Event.CLOSE): Phase.CLOSED,
    (Phase.OPEN, Event.OUTLIVE): Phase.EXPIRED,
    (Phase.OPEN, Event.IDLE): Phase.IDLE,
    (Phase.OPEN, Event.EVICT): Phase.EVICTED,
    (Phase.OPEN, Event.RESTART): Phase.RESTARTED,
    (Phase.OPEN, Event.REPLACE): Phase.REPLACED,
    (Phase.CLOSED, Event.CLOSE): Phase.CLOSED,  # closing twice succeeds
    (Phase.EXPIRED, Event.CLOSE): Phase.EXPIRED,
    (Phase.IDLE, Event.CLOSE): Phase.IDLE,
    (Phase.EVICTED, Event.CLOSE): Phase.EVICTED,
    (Phase.RESTARTED, Event.CLOSE): Phase.RESTARTED,
    (Phase.REPLACED, Event.CLOSE): Phase.REPLACED,
}

WHY: dict[Phase, str] = {
    Phase.CLOSED: Event.CLOSE.value,
    Phase.EXPIRED: Event.OUTLIVE.value,
    Phase.IDLE: Event.IDLE.value,
    Phase.EVICTED: Event.EVICT.value,
    Phase.RESTARTED: Event.RESTART.value,
    Phase.REPLACED: Event.REPLACE.value,
}
