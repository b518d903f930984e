"""A live session: where it is, what it remembers, and what a chunk's position means to it.

The recurrent state itself lies in the arena; a session knows only its slot. Reading and deciding here never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

from tidegate.api import LAST_POSITION, SessionKey, SessionRequest
from tidegate.codecs.settings import Given
from tidegate.drift import NOT_WHOLE, ChartState
from tidegate.engine.lifecycle import TRANSITIONS, WHY, Event, Phase
from tidegate.engine.replies import DroppedReply
from tidegate.errors import FailedPreconditionError, InvalidInputError, PositionConflictError, SessionEndedError

if TYPE_CHECKING:
    from tidegate.engine.request import Request


class LastReply(NamedTuple):
    """The one unacknowledged chunk that a session remembers: where it started, what it was, what was answered.

    ``result`` is a ``StepResult``, or the ``Transcript`` of a generation, which grows while it runs.
    """

    start: int
    fingerprint: Hashable
    result: Any


class RecallableReply(Protocol):
    """A last reply that is found when a session asks for it: one that many sessions share, or a large one, which may be
    dropped.
    """

    def recall(self, session: Session) -> LastReply | DroppedReply: ...


class SharedReply(RecallableReply, Protocol):
    """One that many sessions share; ``length`` are the steps of each."""

    @property
    def length(self) -> int: ...


class PositionVerdict(Enum):
    """What to do with a chunk at the head of its session's queue."""

    APPLY = auto()
    REPEAT = auto()


@dataclass(slots=True, eq=False)
class Session:
    """One running sequence.

    ``slot`` is its row of the arena, or None before it has one. ``queue`` holds its work in order of arrival; only
    the head runs.
    ``block_sum`` is the surprise so far of the block of steps that ``position`` is in, ``band`` where the model expects
    the next value, ``chart`` the session's own control chart, where it was asked for (`engine.quality`).
    ``settings`` are its own values of the model's settings, which hold where a request gives none.
    ``opened_at``, ``ttl_at`` and ``used_at`` are seconds of a monotonic clock, ``created_at`` of the wall clock.
    """

    is_durable: ClassVar[bool] = False

    id: str
    model: Any
    request: SessionRequest
    seed: int
    created_at: float
    used_at: float
    opened_at: float = 0.0
    ttl_at: float | None = None
    idle_seconds: float | None = None
    slot: int | None = None
    position: int = 0
    phase: Phase = Phase.OPEN
    last: LastReply | RecallableReply | None = None
    queue: list[Request] = field(default_factory=list)  # a deque would take 600 bytes of every idle session
    block_sum: float = NOT_WHOLE
    band: tuple[float, float] | None = None
    chart: ChartState | None = None
    settings: Given = ()

    @property
    def expires_at(self) -> float | None:
        """When it ends if no step comes, on the monotonic clock; None for never."""
        ends = [self.ttl_at, self.used_at + self.idle_seconds if self.idle_seconds is not None else None]
        return min((end for end in ends if end is not None), default=None)

    @property
    def is_busy(self) -> bool:
        """Whether a chunk of it waits or runs."""
        return bool(self.queue)

    def overdue(self, now: float) -> Event | None:
        """Return why the session should have ended by ``now``, or None; work in hand may be finished first."""
        if self.queue:
            return None
        if self.ttl_at is not None and self.ttl_at <= now:
            return Event.OUTLIVE
        if self.idle_seconds is not None and self.used_at + self.idle_seconds <= now:
            return Event.IDLE
        return None

    def reset_quality(self) -> None:
        """The session is somewhere else than its last step left it: what was expected of the next one is void."""
        self.block_sum, self.band, self.chart = NOT_WHOLE, None, None

    def end(self, event: Event) -> None:
        """Move on by ``event``."""
        self.phase = TRANSITIONS[self.phase, event]

    def check_open(self) -> None:
        """Raise SessionEndedError, saying why, unless the session is open."""
        if self.phase is not Phase.OPEN:
            raise ended(self.id, self.phase)

    def decide(self, position: int | None, fingerprint: Callable[[], Hashable], steps: int = 0) -> PositionVerdict:
        """Say whether a chunk of up to so many steps applies at the current position or repeats the last one.

        Raises:
            PositionConflictError: It does neither.
            InvalidInputError: No session comes to that position.
            FailedPreconditionError: It would go beyond the last position.
        """
        if position is None or position == self.position:
            if self.position + steps > LAST_POSITION:
                raise FailedPreconditionError(
                    f"session {self.id} is at position {self.position}, and its last one is {LAST_POSITION}: "
                    "go on with another session",
                    reason="LAST_POSITION",
                )
            return PositionVerdict.APPLY
        if position > LAST_POSITION:
            raise InvalidInputError(f"position must be 0 to {LAST_POSITION}", reason="BAD_POSITION")
        last = self.recall()
        if last is None or position != last.start:
            raise PositionConflictError(
                f"session {self.id} is at position {self.position}, not {position}", position=self.position
            )
        if last.fingerprint is not None and fingerprint() != last.fingerprint:
            raise PositionConflictError(
                f"the chunk at position {position} was answered before, with another input or other options; "
                f"the session is at position {self.position}",
                position=self.position,
            )
        if isinstance(last, DroppedReply):
            raise PositionConflictError(
                f"the chunk at position {position} was applied, and its reply, a large one, is not kept any more: "
                f"the session is at position {self.position}",
                position=self.position,
                reason="REPLY_DROPPED",
            )
        return PositionVerdict.REPEAT

    def recall(self) -> LastReply | DroppedReply | None:
        """Return the last reply, or None where there is none to be repeated."""
        return self.last if self.last is None or isinstance(self.last, LastReply) else self.last.recall(self)

    def advance(self, steps: int, reply: LastReply | None, now: float) -> None:
        """Record a committed chunk of ``steps`` steps and its reply; None: it is remembered elsewhere."""
        self.position += steps
        self.last = reply
        self.used_at = now


class Head(NamedTuple):
    """What steps leave of a durable session's record as it is, encoded; the checksum is that of its key and summary."""

    checksum: int
    summary: bytes
    body: bytes


_NO_KEY, _NO_HEAD = SessionKey("", ""), Head(0, b"", b"")


@dataclass(slots=True, eq=False)
class DurableSession(Session):
    """A copy of a durable session, whose truth is its record in the store.

    Attributes:
        key: What the record is stored under.
        revision: Of the record that this is a copy of: what a commit must find in the store.
        head: The parts of the record that steps do not change.
        has_expired: Whether the record says that the session expired, which its next commit takes back.
        is_fresh: False once the record is known, or suspected, to have moved on: it must be read before the next run.
        is_reading: Whether it is being read.
    """

    is_durable: ClassVar[bool] = True

    key: SessionKey = _NO_KEY
    revision: bytes = b""
    head: Head = _NO_HEAD
    has_expired: bool = False
    is_fresh: bool = True
    is_reading: bool = False


def ended(id_: str, phase: Phase) -> SessionEndedError:
    """Return the error that tells a caller why session ``id_`` is over."""
    return SessionEndedError(f"session {id_} has ended: {WHY[phase]}", reason=phase.value)


class FoundSessions:
    """The sessions of a `tidegate.api.SessionGroup`, found once: while all are as they were, none is looked up again.

    What has ended never lives again, what has left has no slot, and steps only put a session's end off: so while all
    are as they were found, and none was overdue then, they are what a look-up would find.

    Args:
        sessions: As found, None where one is not held here.

    Attributes:
        model: Of the first one found.
        is_uniform: Whether all are held here, of one model, and durable or ephemeral alike.
        is_durable: Whether any is durable.
    """

    __slots__ = ("_sound_until", "is_durable", "is_uniform", "model", "sessions")

    def __init__(self, sessions: Sequence[Session | None]) -> None:
        self.sessions = sessions
        found = [session for session in sessions if session is not None]
        self.model: Any = found[0].model if found else None
        self.is_durable = any(session.is_durable for session in found)
        self.is_uniform = (
            len(found) == len(sessions)
            and all(session.model is self.model for session in found)
            and len({session.is_durable for session in found}) == 1
        )
        ends = [end for session in found if (end := session.expires_at) is not None]
        self._sound_until = min(ends, default=math.inf) if self.is_uniform else -math.inf

    def is_sound(self, now: float) -> bool:
        """Whether a look-up would find what was found."""
        if now >= self._sound_until:
            return False
        is_open, model = Phase.OPEN, self.model
        # `all` takes twice as long, and this is for each message.
        for session in cast("Sequence[Session]", self.sessions):
            if session.phase is not is_open or session.slot is None or session.model is not model:
                return False
        return True
