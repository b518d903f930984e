"""All sessions of this process, ephemeral and durable: opened, found, branched, listed, closed and expired here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from tidegate.api import CheckpointInfo, RestoreRequest, SessionInfo, SessionPage, SessionRequest
from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.engine.batch import Outcome, Step
from tidegate.engine.lifecycle import Event
from tidegate.engine.model import LoadedModel, Models
from tidegate.engine.session import DurableSession, Session
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    TidegateError,
    UnavailableError,
    shown,
    without_traceback,
)
from tidegate.limits import MAX_CHOSEN_A_SWEEP, MAX_FORKS, MAX_NAME_LENGTH
from tidegate.sessions.cache import SessionCache
from tidegate.sessions.committer import GroupCommitter, StoreStatistics
from tidegate.sessions.copies import DurableCopies
from tidegate.sessions.desk import Desk, unknown_checkpoint
from tidegate.sessions.durable import DurableDesk
from tidegate.sessions.expiry import StoreClock
from tidegate.sessions.ids import check_chosen, new_durable, new_ephemeral
from tidegate.sessions.last_replies import Remembered
from tidegate.sessions.party import Party
from tidegate.sessions.snapshot import SessionState, read_snapshot, take_snapshot
from tidegate.sessions.stores.store import Store
from tidegate.slices import Slicer, in_slices

log = logging.getLogger(__name__)


class SessionManager:
    """Every session that this process can serve.

    Args:
        settings: Lifetimes and room.
        clock: Of this process.
        store: Of durable sessions, not started yet; None: there are none.

    Attributes:
        models: To be set before the first call.
    """

    def __init__(self, settings: Settings, clock: Clock, store: Store | None) -> None:
        self._settings = settings
        self._clock = clock
        self._cache = SessionCache()
        self._store_clock = StoreClock(clock.monotonic, clock.wall)
        self._committer = None if store is None else GroupCommitter(store, settings.store_timeout, clock.monotonic)
        self._copies: DurableCopies | None = None
        if self._committer is not None:
            self._copies = DurableCopies(self._committer, self._cache, self._store_clock.now)

    @property
    def models(self) -> Models:
        return self._models

    @models.setter
    def models(self, models: Models) -> None:
        self._models = models
        self._desk = Desk(self._settings, models, self._clock, self._cache)
        self._durable: DurableDesk | None = None
        if self._committer is not None:
            self._durable = DurableDesk(
                self._settings, models, self._clock, self._store_clock, self._committer, self._cache, self._desk
            )

    async def start(self) -> None:
        """Open the store.

        Raises:
            ConfigurationError: It can never work.
        """
        if self._committer is not None:
            await self._committer.start()
        if self._durable is not None:
            await self._durable.start()

    async def wait_idle(self) -> None:
        """Return when no session is being loaded."""
        if self._durable is not None:
            await self._durable.wait_idle()

    async def stop(self) -> None:
        """Let go of the store, once the models are stopped."""
        if self._committer is not None:
            await self._committer.stop()

    @property
    def is_store_available(self) -> bool:
        """Whether the store of durable sessions can be written; True where there is none."""
        return self._committer is None or self._committer.is_available

    async def store_changed(self) -> None:
        """Return when `is_store_available` has changed."""
        if self._committer is None:
            await asyncio.Event().wait()
        else:
            await self._committer.changed.wait()
            self._committer.changed.clear()

    @property
    def num_sessions(self) -> int:
        """Sessions that are held here; those of durable ones are copies."""
        return self._desk.num_sessions + len(self._cache)

    @property
    def num_copies(self) -> int:
        return len(self._cache)

    @property
    def num_evicted(self) -> int:
        """Copies that left for want of room."""
        return self._cache.num_evicted

    @property
    def num_ended(self) -> dict[str, int]:
        """Ephemeral sessions that ended, by reason."""
        return self._desk.num_ended

    def store_statistics(self) -> StoreStatistics | None:
        return None if self._committer is None else self._committer.statistics()

    # ---- what is held here

    def find(self, id_: str) -> Session | None:
        """Return the session if it is held here."""
        live = self._desk.find(id_)
        if live is None and self._durable is not None:
            return self._durable.find(id_)
        return live

    async def load(self, id_: str) -> Session:
        """Return the session; its copy may leave again as soon as the caller waits for anything else."""
        while (live := self.find(id_)) is None:
            await self._elsewhere(id_).live(id_)
        return live

    def when_loaded(
        self, id_: str, then: Callable[[DurableSession], None], failed: Callable[[TidegateError], None]
    ) -> None:
        """Load a durable session that is not held here and call ``then``, in the order of the calls, or ``failed``.

        Raises:
            NotFoundError, SessionEndedError, FailedPreconditionError: It is no durable one.
        """
        self._elsewhere(id_).when_here(id_, then, failed)

    def touch(self, session: Session) -> None:
        """A step of the session was taken in: it is the most recently used now."""
        if isinstance(session, DurableSession):
            assert self._durable is not None
            self._durable.touch(session)
        else:
            self._desk.touch(session)

    def find_together(self, party: Party) -> bool:
        """Whether all of the party live here; its ``sessions`` are they then."""
        return self._desk.find_together(party)

    def touch_together(self, party: Party) -> None:
        """A step of each was taken in."""
        self._desk.touch_together(party)

    def evict_one(self) -> bool:
        """Free a slot, if any session may leave; return whether one did."""
        return self._desk.evict_one()

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        """Store what ended in a run (`engine.loop.Committer`)."""
        assert self._copies is not None
        return await self._copies.commit(steps)

    async def refresh(self, session: DurableSession) -> None:
        """Read a session's record into its copy (`engine.loop.Committer`)."""
        assert self._copies is not None
        await self._copies.refresh(session)

    # ---- open and close

    async def open(self, request: SessionRequest) -> SessionInfo:
        """Open a session, or return the one that an equal request with the same id opened.

        Raises:
            AlreadyExistsError: The id is taken by another request.
            OverloadedError: The arena is full and nothing in it may be evicted.
            FailedPreconditionError: It is to be durable, and there is no store.
        """
        if request.origin == "v1" and request.id is not None:
            check_chosen(request.id)
        if request.drift:
            _check_chart(self._models.get(request.model, request.version))
        return await self._open(request, None)

    async def close(self, id_: str, event: Event = Event.CLOSE) -> None:
        """End the session; closing twice succeeds."""
        await self._home(id_).close(id_, event)

    async def _open(self, request: SessionRequest, state: SessionState | None) -> SessionInfo:
        if not request.durable:
            if request.id is not None and self._durable is not None and not self._desk.knows(request.id):
                # Refused while the store is away: a durable session of that id would be answered from this one later.
                await self._durable.check_free(request.id)
            return self._desk.info_of(self._desk.open(request, state))
        if self._durable is None:
            raise FailedPreconditionError(
                "durable sessions need a store: this server keeps sessions in memory only", reason="NO_DURABLE_STORE"
            )
        if request.id is not None and self._desk.find(request.id) is not None:
            raise AlreadyExistsError(f"session {request.id} was opened as ephemeral", reason="SESSION_EXISTS")
        if state is not None:
            return await self._durable.open_at(request, state)
        return await self._durable.open(request)

    # ---- what callers may know

    async def get_info(self, id_: str) -> SessionInfo:
        """Return the session; NotFoundError, SessionEndedError."""
        return await self._home(id_).info(id_)

    async def get_infos(self, ids: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Return each session, or why it cannot be had; those that are not here are one question for the store."""
        found: dict[str, SessionInfo | TidegateError] = {}
        elsewhere: list[str] = []
        for id_ in ids:
            try:
                if isinstance(self._home(id_), DurableDesk):
                    elsewhere.append(id_)
                else:
                    found[id_] = self._desk.info_of(self._desk.get(id_))
            except TidegateError as error:
                found[id_] = without_traceback(error)
        if elsewhere:
            assert self._durable is not None
            try:
                found |= zip(elsewhere, await self._durable.infos(elsewhere), strict=True)
            except TidegateError as error:
                found |= dict.fromkeys(elsewhere, without_traceback(error))
        return [found[id_] for id_ in ids]

    async def get_page(self, limit: int, page_token: str) -> SessionPage:
        """Return a page of the sessions by rising id: the ephemeral ones here and all durable ones."""
        here, token = await in_slices(self._desk.page(limit, page_token))
        slicer, found = Slicer(), list[SessionInfo]()
        for session in here:
            found.append(self._desk.info_of(session))
            await slicer.give_way()
        if self._durable is not None:
            found += await self._durable.page(limit + 1, page_token)
            found.sort(key=lambda info: info.id)
        has_more = bool(token) or len(found) > limit
        return SessionPage(found[:limit], found[limit - 1].id if has_more else "")

    def recall_ephemeral(self, id_: str) -> Remembered | None:
        """Return what is remembered of a sequence that its client ended here, for a repeat of its last request."""
        return self._desk.recall(id_)

    async def recall_durable(self, id_: str) -> Remembered | None:
        """Return what is stored of a session that runs, or that its client ended with a step; None of any other."""
        return None if self._durable is None else await self._durable.recall(id_)

    # ---- branching

    async def fork(self, id_: str, ids: Sequence[str] | None, count: int | None) -> list[SessionInfo]:
        """Open sessions that go on from where this one is: with ``ids``, or ``count`` of them, one where neither is
        given. An equal repeat with ids returns what exists.

        Raises:
            AlreadyExistsError: An id is taken by another session.
        """
        state, request = await self._home(id_).moment(id_)
        slicer, children = Slicer(), list[SessionInfo]()
        for wanted in _children(ids, count):
            child = wanted or (new_durable() if request.durable else new_ephemeral(self._desk.replica))
            children.append(await self._open(replace(request, id=child), state.forked(id_, child)))
            await slicer.give_way()
        return children

    async def checkpoint(self, id_: str, name: str | None) -> CheckpointInfo:
        """Keep where the session is under a name; the oldest of more than eight is dropped."""
        return await self._home(id_).checkpoint(id_, name)

    async def rewind(self, id_: str, checkpoint: str) -> SessionInfo:
        """Take the session back to a checkpoint, which stays; NotFoundError where there is none of that name."""
        if len(checkpoint) > MAX_NAME_LENGTH:
            raise unknown_checkpoint(id_, checkpoint)
        return await self._home(id_).rewind(id_, checkpoint)

    async def upgrade(self, id_: str, version: str | None) -> SessionInfo:
        """Move the session to a version of its model, the highest where None.

        Raises:
            FailedPreconditionError: Its states have other names, dtypes or shapes.
        """
        return await self._home(id_).upgrade(id_, version)

    async def snapshot(self, id_: str) -> bytes:
        """Return the session as portable bytes."""
        state, request = await self._home(id_).moment(id_)
        return take_snapshot(state, request, self._clock.wall())

    async def restore(self, snapshot: bytes, request: RestoreRequest) -> SessionInfo:
        """Open a session from a snapshot; an equal repeat with an id returns what exists.

        Raises:
            InvalidInputError: The bytes are not a snapshot, or were altered.
            FailedPreconditionError: Its model is not here in that version, with that content, or has no chart.
        """
        if request.id is not None:
            check_chosen(request.id)
        state, was = read_snapshot(snapshot, self._models)
        if request.drift:
            _check_chart(state.model)
        wanted = replace(
            was,
            durable=request.durable,
            drift=was.drift if request.drift is None else request.drift,
            id=request.id,
            ttl_seconds=was.ttl_seconds if request.ttl_seconds is None else request.ttl_seconds,
            idle_seconds=was.idle_seconds if request.idle_seconds is None else request.idle_seconds,
        )
        return await self._open(wanted, state)

    # ---- expiry

    async def expire(self) -> None:
        """End the sessions whose time is over."""
        await self._desk.expire()
        if self._durable is not None:
            with suppress(UnavailableError):
                await self._durable.expire()
                await self._yield_ids(self._durable)

    async def _yield_ids(self, durable: DurableDesk) -> None:
        """End ephemeral sessions whose id another server has given to a durable one by now: the store's is true.

        A thousand at a time: an ephemeral session asks no store when it is stepped.
        """
        ids = self._desk.next_chosen(MAX_CHOSEN_A_SWEEP)
        for id_, found in zip(ids, await durable.infos(ids), strict=True):
            session = self._desk.find(id_) if isinstance(found, SessionInfo) else None
            if session is not None:
                log.warning("ephemeral session %s ends: %s", id_, Event.REPLACE.value)
                self._desk.end(session, Event.REPLACE)

    # ---- inside

    def _home(self, id_: str) -> Desk | DurableDesk:
        """Return where the session of that id belongs."""
        _check_known_length(id_)
        return self._desk if self._durable is None or self._desk.knows(id_) else self._durable

    def _elsewhere(self, id_: str) -> DurableDesk:
        """Return where a session that is not held here may be, or raise why it is nowhere."""
        _check_known_length(id_)
        if self._durable is None or self._desk.knows(id_):
            self._desk.get(id_)
        assert self._durable is not None
        return self._durable


def _check_chart(model: LoadedModel) -> None:
    if not model.quality.has_chart:
        raise FailedPreconditionError(f"{model.label} was not calibrated: it has no chart", reason="NO_CHART")


def _check_known_length(id_: str) -> None:
    """Raise NotFoundError where the id is longer than any: nobody is to look for it."""
    if len(id_) > MAX_NAME_LENGTH:
        raise NotFoundError(f"unknown session {shown(id_)}", reason="UNKNOWN_SESSION")


def _children(ids: Sequence[str] | None, count: int | None) -> list[str | None]:
    """Return the ids of a fork's children, None where the server makes them."""
    if ids and count:
        raise InvalidInputError("a fork takes ids or a count, not both", reason="BAD_FORK")
    if not ids:
        if not 0 <= (count or 0) <= MAX_FORKS:
            raise InvalidInputError(f"count must be 1 to {MAX_FORKS}", reason="BAD_FORK")
        return [None] * (count or 1)
    if len(ids) > MAX_FORKS or len(set(ids)) != len(ids):
        raise InvalidInputError(f"a fork takes up to {MAX_FORKS} ids, all different", reason="BAD_FORK")
    for each in ids:
        check_chosen(each)
    return list(ids)
