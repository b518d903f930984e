"""How long a durable session lives, and what its end leaves of it. Pure: time is an argument, by the store's clock.

A client's closing is final. Expiry is not: clocks may be wrong, so a session that expired keeps its whole record while
its ending is remembered, and goes on where a replica, by its own view of the clock, finds that its time is not over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import NamedTuple

from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.session import DurableSession, LastReply
from tidegate.sessions.endings import REMEMBERED_SECONDS
from tidegate.sessions.records import (
    Body,
    Summary,
    encode_body,
    encode_step,
    encode_summary,
    key_of,
    make_head,
    new_revision,
)
from tidegate.sessions.stores.store import Due, Write

_AFTER = {Event.OUTLIVE: Phase.EXPIRED, Event.IDLE: Phase.IDLE}


class StoreClock:
    """The store's clock as of its last reading, and this process's own seconds since then.

    Args:
        monotonic: Seconds that only rise.
        wall: Seconds since the epoch, for as long as the store has not told its own.
    """

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._monotonic() + self._offset

    def set(self, time: float) -> None:
        """Take over what the store's clock says now."""
        self._offset = time - self._monotonic()


def end_of(summary: Summary) -> float | None:
    """When the session ends if no step comes, in seconds since the epoch; None for never."""
    return min((at for at, _ in _ends(summary)), default=None)


def overdue(summary: Summary, now: float) -> Phase | None:
    """Return how the session should have ended by ``now``, or None."""
    return next((_AFTER[event] for at, event in _ends(summary) if at <= now), None)


def ended_phase(summary: Summary, now: float) -> Phase | None:
    """Return how the session ended; None where it runs, or expired by a clock that ``now`` does not agree with."""
    if not summary.ended:
        return None
    phase = Phase(summary.ended)
    is_final = phase not in _AFTER.values() or not summary.body_bytes
    return phase if is_final or overdue(summary, now) is not None else None


class ExpiryVerdict(Enum):
    """What to do with a session whose time to be looked at has come."""

    LEAVE = auto()
    EXPIRE = auto()
    FORGET = auto()
    WATCH = auto()


class ExpiryDecision(NamedTuple):
    """What to do, and when to look again at what stays."""

    verdict: ExpiryVerdict
    again: float | None = None


def decide_expiry(summary: Summary, now: float, since: float | None) -> ExpiryDecision:
    """Say what to do with a session whose time to be looked at has come.

    Args:
        summary: The session's.
        now: By the store's clock.
        since: Seconds since this process saw the session end, where it did.
    """
    if since is not None and since < REMEMBERED_SECONDS:
        # Still to be remembered; or revived by a replica whose clock disagrees, which is not to be told so at once.
        return ExpiryDecision(ExpiryVerdict.LEAVE, now + REMEMBERED_SECONDS - since)
    if not summary.ended:
        return (
            ExpiryDecision(ExpiryVerdict.EXPIRE)
            if overdue(summary, now)
            else ExpiryDecision(ExpiryVerdict.LEAVE, end_of(summary))
        )
    if since is None and summary.ended_at > now:
        # By a clock that is ahead: what counts is an hour of this process's own.
        return ExpiryDecision(ExpiryVerdict.WATCH, now + REMEMBERED_SECONDS)
    if ended_phase(summary, now) is None:
        return ExpiryDecision(ExpiryVerdict.LEAVE, end_of(summary))
    if since is not None or summary.ended_at + REMEMBERED_SECONDS <= now:
        return ExpiryDecision(ExpiryVerdict.FORGET)
    return ExpiryDecision(ExpiryVerdict.LEAVE, summary.ended_at + REMEMBERED_SECONDS)


def closing_write(summary: Summary, expected: bytes, phase: Phase, now: float, body: Body | None = None) -> Write:
    """Return the write that ends a session for good: what is left remembers who it was and why it ended.

    With its ``body`` it remembers the last reply, too, for a repeat.
    """
    left, kept = Summary(), b""
    left.CopyFrom(summary)
    left.ended, left.ended_at = phase.value, now
    left.body_bytes = left.body_checksum = 0
    for field in ("chart", "checkpoints"):
        left.ClearField(field)
    if body is not None:
        body.ClearField("state")
        kept = encode_body(left, body)
    return _ending(left, expected, kept, now)._replace(attachments=_checkpoints_gone(summary))


def ending_step(session: DurableSession, position: int, last: LastReply, revision: bytes, now: float) -> Write:
    """Return the write of a step that its session ends with: as `closing_write`, and the reply is kept for a repeat."""
    summary = Summary.FromString(session.head.summary)
    gone = _checkpoints_gone(summary)
    summary.ClearField("checkpoints")
    head = make_head(summary, session.head.body)
    sealed, body = encode_step(head, revision, position, now, b"", last, ended=Phase.CLOSED)
    due = Due(now + REMEMBERED_SECONDS)
    return Write(session.key, session.revision, revision, sealed, body, due, is_listed=False, attachments=gone)


def _checkpoints_gone(summary: Summary) -> dict[str, bytes | None]:
    return {kept.name: None for kept in summary.checkpoints}


def expiry_write(summary: Summary, expected: bytes, phase: Phase, now: float) -> Write:
    """Return the write that ends a session whose time is over, and keeps what it would go on from."""
    left = Summary()
    left.CopyFrom(summary)
    left.ended, left.ended_at = phase.value, now
    return _ending(left, expected, None, now)


def _ending(left: Summary, expected: bytes, body: bytes | None, now: float) -> Write:
    revision = new_revision()
    due = Due(now + REMEMBERED_SECONDS)
    return Write(key_of(left), expected, revision, encode_summary(left, revision), body, due, is_listed=False)


def _ends(summary: Summary) -> Iterable[tuple[float, Event]]:
    if summary.HasField("ttl_seconds"):
        yield summary.created_at + summary.ttl_seconds, Event.OUTLIVE
    if summary.HasField("idle_seconds"):
        yield summary.used_at + summary.idle_seconds, Event.IDLE
