"""Where ephemeral sessions are opened, found, branched, evicted and closed: the table of sessions together with the
arenas that hold their states. Their only truth is here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from tidegate.api import CheckpointInfo, SessionInfo, SessionRequest
from tidegate.clock import Clock
from tidegate.config import LONGEST_LIFE, Settings
from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.model import LoadedModel, Models
from tidegate.engine.session import LastReply, Session
from tidegate.engine.work import Turn
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SessionEndedError,
    shown,
)
from tidegate.limits import CHECKPOINT_BYTES, MAX_CHECKPOINTS
from tidegate.sessions.cache import SessionCache
from tidegate.sessions.ids import SEQUENCE, check_checkpoint, new_ephemeral, replica_of
from tidegate.sessions.last_replies import LastReplies, Remembered
from tidegate.sessions.party import Party
from tidegate.sessions.snapshot import SessionState
from tidegate.sessions.table import SessionTable
from tidegate.slices import Slicer, Slices

log = logging.getLogger(__name__)

_ENDED_AT_ONCE = 32  # some 0.3 ms; a hundred thousand may be over at one time


class Desk:
    """Ephemeral sessions of one process."""

    def __init__(self, settings: Settings, models: Models, clock: Clock, cache: SessionCache) -> None:
        self._settings = settings
        self._models = models
        self._clock = clock
        self._cache = cache
        self._table = SessionTable()
        # What few sessions have lies beside them: a hundred thousand others need not pay for it.
        self._sources: dict[str, str] = {}
        self._checkpoints: dict[str, OrderedDict[str, SessionState]] = {}
        self._last_replies = LastReplies()
        # Sessions under ids that servers did not make: another server may give such an id to a durable session.
        self._chosen: OrderedDict[str, None] = OrderedDict()
        self.replica = settings.replica or secrets.token_hex(3)

    @property
    def num_sessions(self) -> int:
        return len(self._table)

    @property
    def num_ended(self) -> dict[str, int]:
        """Sessions that ended, by reason."""
        return dict(self._table.num_ended)

    def knows(self, id_: str) -> bool:
        """Whether the id is that of a session here, or can only be that of an ephemeral one."""
        return self._table.find(id_) is not None or replica_of(id_) is not None

    def check_not_ended(self, id_: str) -> None:
        """Raise SessionEndedError where a session of that id ended here, within memory."""
        if self._table.knows(id_):
            self._table.get(id_)

    def open(self, request: SessionRequest, moment: SessionState | None = None) -> Session:
        """Open a session, at its beginning or where ``moment`` is, or return the one that an equal request with the
        same id opened.
        """
        source = "" if moment is None else moment.source
        if request.id is not None and (existing := self._existing(request, source)) is not None:
            return existing
        model = self._models.get(request.model, request.version) if moment is None else moment.model
        session = self._make(request, model)
        self.make_room_for_one(model)
        model.engine.hold(session)
        if moment is not None:
            session.position, session.seed = moment.position, moment.seed
            model.engine.load(session, moment.state)
            self._sources[session.id] = source
        model.num_sessions += 1
        self._table.add(session)
        self._last_replies.discard(session.id)
        if request.id is not None and replica_of(request.id) is None:
            self._chosen[session.id] = None
        return session

    def find(self, id_: str) -> Session | None:
        """Return the live session, or None."""
        session = self._table.find(id_)
        return None if session is None or self._end_if_overdue(session) else session

    def get(self, id_: str) -> Session:
        """Return the live session.

        Raises:
            SessionEndedError: It ended, within memory.
            NotFoundError: It is unknown.
            FailedPreconditionError: It lives on another replica.
        """
        return self.find(id_) or self._missing(id_)

    def recall(self, id_: str) -> Remembered | None:
        """Return what is remembered of a sequence that its client ended, for a repeat of its last request."""
        return self._last_replies.find(id_, self._clock.monotonic())

    def next_chosen(self, limit: int) -> list[str]:
        """Return up to so many ids that clients chose, of sessions that are here: others each time, in turn."""
        ids = list(islice(self._chosen, limit))
        for id_ in ids:
            self._chosen.move_to_end(id_)
        return ids

    def touch(self, session: Session) -> None:
        """A step of the session was taken in: it is the most recently used now."""
        if session.phase is Phase.OPEN:
            self._table.touch(session, self._clock.monotonic())

    def find_together(self, party: Party) -> bool:
        """Whether all of the party live here; its ``sessions`` are they then."""
        if party.is_found(self._clock.monotonic()):
            return True
        found = [session for id_ in party.ids if not id_.startswith(SEQUENCE) and (session := self.find(id_))]
        if len(found) < len(party.ids):
            return False
        party.put(found)
        return True

    def touch_together(self, party: Party) -> None:
        """A step of each was taken in."""
        self._table.touch_all(party.sessions, self._clock.monotonic())

    def page(self, limit: int, after: str) -> Slices[tuple[list[Session], str]]:
        """Return some sessions by rising id, and the next page's token."""
        return self._table.page(limit, after)

    async def close(self, id_: str, event: Event = Event.CLOSE) -> None:
        """End the session. One that has ended already is no error; one that never was is."""
        try:
            session = self.get(id_)
        except SessionEndedError:
            return
        self.end(session, event)
        await self._models.retire()

    async def expire(self) -> None:
        """End the sessions whose time is over."""
        slicer = Slicer()
        while over := self._table.expired(self._clock.monotonic(), _ENDED_AT_ONCE):
            for session, event in over:
                try:
                    self.end(session, event)
                except Exception:
                    log.exception("session %s could not be ended", session.id)
            await slicer.give_way()

    async def info(self, id_: str) -> SessionInfo:
        return self.info_of(self.get(id_))

    def info_of(self, session: Session) -> SessionInfo:
        """Return what callers may know of a session."""
        end = session.expires_at
        manifest = session.model.manifest
        return SessionInfo(
            id=session.id,
            model=manifest.name,
            version=manifest.version,
            position=session.position,
            durable=False,
            created_at=session.created_at,
            expires_at=None if end is None else session.created_at + end - session.opened_at,
            state_bytes=manifest.state_bytes,
            checkpoints=tuple(self._checkpoints.get(session.id, ())),
            origin=session.request.origin,
            drift=None if session.chart is None else session.chart.told(),
        )

    # ---- branching

    async def moment(self, id_: str) -> tuple[SessionState, SessionRequest]:
        """Return where the session is, as far as it is committed, and what it was opened with."""
        session = self.get(id_)
        return self._moment(session), session.request

    async def open_at(self, request: SessionRequest, moment: SessionState) -> SessionInfo:
        return self.info_of(self.open(request, moment))

    async def checkpoint(self, id_: str, name: str | None) -> CheckpointInfo:
        """Keep where the session is, within the arenas' budget; the oldest of more than eight is dropped."""
        session = self.get(id_)
        name = name or f"{session.position}-{secrets.token_hex(3)}"
        check_checkpoint(name)
        moment = self._moment(session)
        self._take_room(_size(moment))
        session.check_open()  # it may have been the one that was evicted
        kept = self._checkpoints.setdefault(session.id, OrderedDict())
        dropped = [kept.pop(name)] if name in kept else []
        kept[name] = moment
        if len(kept) > MAX_CHECKPOINTS:
            dropped.append(kept.popitem(last=False)[1])
        self._give_room(dropped)
        return CheckpointInfo(name, session.position)

    async def rewind(self, id_: str, name: str) -> SessionInfo:
        """Take the session back, once the work before is done."""
        session = self.get(id_)
        await self._in_turn(session, lambda: self._rewind(session, name))
        return self.info_of(session)

    async def upgrade(self, id_: str, version: str | None) -> SessionInfo:
        """Move the session to another version of its model, once the work before is done."""
        session = self.get(id_)
        await self._in_turn(session, lambda: self._upgrade(session, version))
        await self._models.retire()
        return self.info_of(session)

    async def _in_turn(self, session: Session, act: Callable[[], None]) -> None:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        session.model.loop.submit(Turn(session, act, done))
        self.touch(session)
        await done

    def _moment(self, session: Session) -> SessionState:
        model: LoadedModel = session.model
        return SessionState(model, session.position, model.engine.dump(session), session.seed)

    def _rewind(self, session: Session, name: str) -> None:
        kept = self._checkpoints.get(session.id, OrderedDict())
        if name not in kept:
            raise unknown_checkpoint(session.id, name)
        moment = kept[name]
        session.position, session.last = moment.position, None
        session.model.engine.load(session, moment.state)

    def _upgrade(self, session: Session, version: str | None) -> None:
        old: LoadedModel = session.model
        new = self._models.get(old.manifest.name, version)
        check_layout(old.layout, new)
        if len(session.queue) > 1:
            raise FailedPreconditionError(f"session {session.id} has steps waiting", reason="SESSION_BUSY")
        if new is old:
            return
        state = old.engine.dump(session)
        self._make_room(new)
        old.engine.let_go(session)
        new.engine.hold(session)
        session.model = new
        new.engine.load(session, state)
        old.num_sessions -= 1
        new.num_sessions += 1

    # ---- room and end

    def make_room_for_one(self, model: LoadedModel) -> None:
        """Make sure that one more session may be held, if need be by evicting; an active session is never evicted."""
        while len(self._table) + len(self._cache) >= self._settings.max_sessions:
            if not self.evict_one():
                raise OverloadedError(
                    f"{self._settings.max_sessions} sessions are held, all used within {self._settings.evict_idle:g} s",
                    reason="TOO_MANY_SESSIONS",
                    retry_after=max(1.0, self._settings.evict_idle / 2),
                )
        self._make_room(model)

    def _make_room(self, model: LoadedModel) -> None:
        if not model.engine.can_hold():
            raise self._full()

    def _take_room(self, num_bytes: int) -> None:
        """Take bytes of the arenas' budget, if need be by evicting."""
        while not self._models.budget.can_take(num_bytes):
            if not self.evict_one():
                raise self._full()
        self._models.budget.take(num_bytes)

    def _give_room(self, moments: Iterable[SessionState]) -> None:
        for moment in moments:
            self._models.budget.give(_size(moment))

    def _full(self) -> OverloadedError:
        return OverloadedError(
            f"the arena is full of sessions used within {self._settings.evict_idle:g} s",
            reason="ARENA_FULL",
            retry_after=max(1.0, self._settings.evict_idle / 2),
        )

    def evict_one(self) -> bool:
        """Let a copy of a durable session leave, or else evict the least recently used session, if none used it lately;
        return whether there was one.
        """
        if self._cache.evict_one():
            return True
        victim = self._table.find_evictable(self._clock.monotonic(), self._settings.evict_idle)
        if victim is not None:
            self.end(victim, Event.EVICT)
        return victim is not None

    def end(self, session: Session, event: Event) -> None:
        """End a live session: its waiting work fails with the reason."""
        now = self._clock.monotonic()
        is_ended = event is Event.CLOSE and session.id.startswith(SEQUENCE)
        if is_ended and isinstance(last := session.recall(), LastReply):
            self._last_replies.put(session.id, Remembered(session.model.manifest.version, last), now)
        self._table.end(session, event, now)
        self._sources.pop(session.id, None)
        self._chosen.pop(session.id, None)
        self._give_room(self._checkpoints.pop(session.id, {}).values())
        session.model.num_sessions -= 1
        session.model.engine.release(session)

    def _existing(self, request: SessionRequest, source: str) -> Session | None:
        assert request.id is not None
        session = self.find(request.id)
        if session is None:
            return None
        if session.request != request or self._sources.get(session.id, "") != source:
            raise AlreadyExistsError(f"session {request.id} was opened with another request", reason="SESSION_EXISTS")
        return session

    def _make(self, request: SessionRequest, model: LoadedModel) -> Session:
        now = self._clock.monotonic()
        ttl, idle = lifetimes(request, self._settings)
        return Session(
            id=request.id or new_ephemeral(self.replica),
            model=model,
            request=request,
            seed=request.seed if request.seed is not None else secrets.randbits(64),
            created_at=self._clock.wall(),
            used_at=now,
            opened_at=now,
            ttl_at=None if ttl is None else now + ttl,
            idle_seconds=idle,
        )

    def _end_if_overdue(self, session: Session) -> bool:
        event = session.overdue(self._clock.monotonic())
        if event is not None:
            self.end(session, event)
        return event is not None

    def _missing(self, id_: str) -> Session:
        """Raise the error that says why ``id_`` is not here."""
        try:
            return self._table.get(id_)
        except NotFoundError:
            owner = replica_of(id_) or self.replica
            if owner != self.replica:
                raise FailedPreconditionError(
                    f"session {id_} lives on replica {owner}, this is {self.replica}", reason="NOT_ON_THIS_REPLICA"
                ) from None
            raise


def _size(moment: SessionState) -> int:
    """The bytes that a checkpoint takes."""
    return len(moment.state) + CHECKPOINT_BYTES


def lifetimes(request: SessionRequest, settings: Settings) -> tuple[float | None, float | None]:
    """Return the session's time to live and idle time, in seconds; None for no end.

    Raises:
        InvalidInputError: One is not positive, or beyond reason.
    """
    for name, seconds in (("ttl_seconds", request.ttl_seconds), ("idle_seconds", request.idle_seconds)):
        if seconds is not None and not 0 < seconds <= LONGEST_LIFE:
            raise InvalidInputError(
                f"{name} must be a positive number of seconds, at most {LONGEST_LIFE:.0f}", reason="BAD_LIFETIME"
            )
    ttl = request.ttl_seconds if request.ttl_seconds is not None else settings.ttl_seconds
    return ttl, request.idle_seconds if request.idle_seconds is not None else settings.idle_seconds


def check_layout(layout: bytes, model: LoadedModel) -> None:
    """Raise FailedPreconditionError unless a state of ``layout`` fits the model."""
    if layout != model.layout:
        parts = ", ".join(f"{name} {plane.dtype}{list(plane.row_shape)}" for name, plane in model.planes.items())
        raise FailedPreconditionError(
            f"the session's state does not fit {model.label}, which has {parts}", reason="LAYOUT_DIFFERS"
        )


def unknown_checkpoint(id_: str, name: str) -> NotFoundError:
    return NotFoundError(f"session {id_} has no checkpoint {shown(name)}", reason="UNKNOWN_CHECKPOINT")
