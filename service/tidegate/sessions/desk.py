"""Where sessions are opened, found, evicted and closed: the table of sessions together with the arenas that hold
their states.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Protocol

from tidegate.config import LONGEST_LIFE, Settings
from tidegate.core import SessionInfo, SessionRequest
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SessionEndedError,
)
from tidegate.registry import LoadedModel, Registry
from tidegate.sessions.lifecycle import Event, Phase
from tidegate.sessions.session import Session
from tidegate.sessions.table import SessionTable

_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_EPHEMERAL = "e~"
"""Ids that the server makes for ephemeral sessions are ``e~<replica>~<random>``; clients may not choose such."""


class ClockLike(Protocol):
    """Seconds that only rise, and seconds since the epoch."""

    @property
    def monotonic(self) -> Callable[[], float]: ...
    @property
    def wall(self) -> Callable[[], float]: ...


class Desk:
    """Sessions of one process."""

    def __init__(self, settings: Settings, registry: Registry, clock: ClockLike) -> None:
        self._settings = settings
        self._registry = registry
        self._clock = clock
        self._table = SessionTable()
        self.replica = settings.replica or secrets.token_hex(3)

    @property
    def num_sessions(self) -> int:
        return len(self._table)

    @property
    def num_ended(self) -> dict[str, int]:
        """Sessions that ended, by reason."""
        return dict(self._table.num_ended)

    def open(self, request: SessionRequest) -> Session:
        """Open a session, or return the one that an equal request with the same id opened."""
        if request.durable:
            raise FailedPreconditionError(
                "durable sessions need a store: this server keeps sessions in memory only", reason="NO_DURABLE_STORE"
            )
        if request.id is not None and (existing := self._existing(request)) is not None:
            return existing
        model = self._registry.get(request.model, request.version)
        session = self._make(request, model)
        self._make_room(model)
        model.engine.hold(session)
        model.num_sessions += 1
        self._table.add(session)
        return session

    def get(self, id_: str) -> Session:
        """Return the live session.

        Raises:
            SessionEndedError: It ended, within memory.
            NotFoundError: It is unknown.
            FailedPreconditionError: It lives on another replica.
        """
        session = self._table.find(id_)
        if session is None:
            return self._missing(id_)
        if self._end_if_overdue(session):
            return self._table.get(id_)
        return session

    def touch(self, session: Session) -> None:
        """A step of the session was taken in: it is the most recently used now."""
        if session.phase is Phase.OPEN:
            self._table.touch(session, self._clock.monotonic())

    def page(self, limit: int, after: str) -> tuple[list[Session], str]:
        """Return some sessions by rising id, and the next page's token."""
        return self._table.page(limit, after)

    async def close(self, id_: str) -> None:
        """End the session. One that has ended already is no error; one that never was is."""
        try:
            session = self.get(id_)
        except SessionEndedError:
            return
        self._end(session, Event.CLOSE)
        await self._registry.retire()

    async def expire(self) -> None:
        """End the sessions whose time is over, and let go of models that nobody needs any more."""
        for session, event in self._table.expired(self._clock.monotonic()):
            self._end(session, event)
        await self._registry.retire()

    def info(self, session: Session) -> SessionInfo:
        """Return what callers may know of a session."""
        end = session.expires_at
        manifest = session.model.manifest
        return SessionInfo(
            id=session.id,
            model=manifest.name,
            version=manifest.version,
            position=session.position,
            durable=session.request.durable,
            created_at=session.created_at,
            expires_at=None if end is None else session.created_at + end - session.opened_at,
            state_bytes=manifest.state_bytes,
        )

    def _existing(self, request: SessionRequest) -> Session | None:
        assert request.id is not None
        if not _ID.fullmatch(request.id) or request.id.startswith(_EPHEMERAL):
            raise InvalidInputError(
                f"{request.id!r} is not a session id: 1 to 128 of A-Z a-z 0-9 . _ ~ -, not beginning with {_EPHEMERAL}",
                reason="BAD_SESSION_ID",
            )
        session = self._table.find(request.id)
        if session is None or self._end_if_overdue(session):
            return None
        if session.request != request:
            raise AlreadyExistsError(f"session {request.id} was opened with another request", reason="SESSION_EXISTS")
        return session

    def _make(self, request: SessionRequest, model: LoadedModel) -> Session:
        for name, seconds in (("ttl_seconds", request.ttl_seconds), ("idle_seconds", request.idle_seconds)):
            if seconds is not None and not 0 < seconds <= LONGEST_LIFE:
                raise InvalidInputError(
                    f"{name} must be a positive number of seconds, at most {LONGEST_LIFE:.0f}", reason="BAD_LIFETIME"
                )
        now = self._clock.monotonic()
        ttl = request.ttl_seconds if request.ttl_seconds is not None else self._settings.ttl_seconds
        idle = request.idle_seconds if request.idle_seconds is not None else self._settings.idle_seconds
        return Session(
            id=request.id or f"{_EPHEMERAL}{self.replica}~{secrets.token_urlsafe(16)}",
            model=model,
            request=request,
            seed=request.seed if request.seed is not None else secrets.randbits(64),
            created_at=self._clock.wall(),
            used_at=now,
            opened_at=now,
            ttl_at=None if ttl is None else now + ttl,
            idle_seconds=idle,
        )

    def _make_room(self, model: LoadedModel) -> None:
        """Evict the least recently used sessions until the arena has a slot; an active one is never evicted."""
        while not model.engine.can_hold():
            victim = self._table.find_evictable(self._clock.monotonic(), self._settings.evict_idle)
            if victim is None:
                raise OverloadedError(
                    f"the arena is full of sessions used within {self._settings.evict_idle:g} s",
                    reason="ARENA_FULL",
                    retry_after=max(1.0, self._settings.evict_idle / 2),
                )
            self._end(victim, Event.EVICT)

    def _end_if_overdue(self, session: Session) -> bool:
        event = session.overdue(self._clock.monotonic())
        if event is not None:
            self._end(session, event)
        return event is not None

    def _end(self, session: Session, event: Event) -> None:
        self._table.end(session, event, self._clock.monotonic())
        session.model.num_sessions -= 1
        session.model.engine.release(session)

    def _missing(self, id_: str) -> Session:
        """Raise the error that says why ``id_`` is not here."""
        try:
            return self._table.get(id_)
        except NotFoundError:
            owner = id_.split("~")[1] if id_.startswith(_EPHEMERAL) and id_.count("~") >= 2 else self.replica
            if owner != self.replica:
                raise FailedPreconditionError(
                    f"session {id_} lives on replica {owner}, this is {self.replica}", reason="NOT_ON_THIS_REPLICA"
                ) from None
            raise
