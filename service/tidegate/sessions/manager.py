"""All sessions of this process, ephemeral and durable: opened, found, branched, listed, closed and expired here.

An ephemeral session lives in an arena of this process and nowhere else. A durable one is a record in the store
(`durable`), of which a copy is held here while it is stepped (`copies`). Which of the two a session is, is decided in
`_records_of`, by its id; both kinds share the arenas (`residents`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, cast

from tidegate.api import (
    CheckpointInfo,
    RestoreRequest,
    SessionGroup,
    SessionInfo,
    SessionPage,
    SessionRequest,
    StoreStatistics,
)
from tidegate.clock import Clock
from tidegate.config import LONGEST_LIFE, Settings
from tidegate.engine.lifecycle import TRANSITIONS, Event, Phase
from tidegate.engine.model import LoadedModel, Models
from tidegate.engine.request import Barrier, Outcome, Step
from tidegate.engine.session import DurableSession, FoundSessions, LastReply, Session, ended
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
    shown,
    without_traceback,
)
from tidegate.faults import conceal
from tidegate.limits import (
    CHECKPOINT_BYTES,
    MAX_CHECKPOINTS,
    MAX_CHOSEN_A_SWEEP,
    MAX_FORKS,
    MAX_LAST_REPLY_BYTES,
    MAX_NAME_LENGTH,
)
from tidegate.sessions.committer import GroupCommitter
from tidegate.sessions.copies import DurableCopies
from tidegate.sessions.durable import Attachments, DurableRecords, unknown_checkpoint
from tidegate.sessions.endings import Endings, Remembered
from tidegate.sessions.expiry import StoreClock, end_of
from tidegate.sessions.ids import (
    SEQUENCE,
    check_checkpoint,
    check_chosen,
    key_of,
    new_durable,
    new_ephemeral,
    replica_of,
)
from tidegate.sessions.records import Record, Summary, info_of, new_record, request_of
from tidegate.sessions.residents import Residents
from tidegate.sessions.snapshot import SessionState, read_snapshot, take_snapshot
from tidegate.sessions.stores.store import Store
from tidegate.slices import Slicer, in_slices

log = logging.getLogger(__name__)

_ENDED_AT_ONCE = 32  # some 0.3 ms; a hundred thousand may be over at one time

OnLoaded = Callable[[Session], None]
OnFailed = Callable[[TidegateError], None]


class SessionManager:
    """Every session that this process can serve. It is also what engines commit durable steps through
    (`engine.loop.Committer`).

    Args:
        settings: Lifetimes and room.
        models: The loaded ones.
        clock: Of this process; ephemeral sessions expire by it, durable ones by the store's.
        store: Of durable sessions, not started yet; None: there are none.
    """

    def __init__(self, settings: Settings, models: Models, clock: Clock, store: Store | None) -> None:
        self._settings = settings
        self._models = models
        self._clock = clock
        self._replica = settings.replica or secrets.token_hex(3)
        self._residents = Residents()
        # What few ephemeral sessions have lies beside them: a hundred thousand others need not pay for it.
        self._sources: dict[str, str] = {}
        self._checkpoints: dict[str, OrderedDict[str, SessionState]] = {}
        # Of sequences that their clients ended, so that a repeat of the last request is answered.
        self._last_replies: Endings[str, Remembered] = Endings(max_bytes=MAX_LAST_REPLY_BYTES)
        # Ephemeral sessions under ids that servers did not make: another server may give such an id to a durable one.
        self._chosen: OrderedDict[str, None] = OrderedDict()
        self._committer: GroupCommitter | None = None
        self._records: DurableRecords | None = None
        if store is not None:
            store_clock = StoreClock(clock.monotonic, clock.wall)
            self._committer = GroupCommitter(store, settings.store_timeout, clock.monotonic)
            self._copies = DurableCopies(self._committer, self._residents, clock, store_clock, self._make_room_for_one)
            find_ending = self._residents.find_ending
            self._records = DurableRecords(self._committer, self._copies, find_ending, clock, store_clock)
        # Durable sessions that are being loaded, and who waits for each.
        self._loading: dict[str, list[tuple[OnLoaded, OnFailed]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the store and read its clock; a store that is away is asked again by the first sweep.

        Raises:
            ConfigurationError: It can never work.
        """
        if self._committer is not None and self._records is not None:
            await self._committer.start()
            with suppress(UnavailableError):
                await self._records.read_clock()

    async def wait_idle(self) -> None:
        """Return when no session is being loaded."""
        while self._tasks:
            await asyncio.wait(self._tasks)

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
        return len(self._residents)

    @property
    def num_copies(self) -> int:
        return self._residents.num_copies

    @property
    def num_evicted(self) -> int:
        """Copies that left for want of room."""
        return self._residents.num_evicted

    @property
    def num_ended(self) -> dict[str, int]:
        """Ephemeral sessions that ended, by reason."""
        return dict(self._residents.num_ended)

    def store_statistics(self) -> StoreStatistics | None:
        return None if self._committer is None else self._committer.statistics()

    # ---- for steps

    def find(self, id_: str) -> Session | None:
        """Return the session if it is held here."""
        session = self._find_ephemeral(id_)
        if session is None and self._records is not None and id_ not in self._loading:
            return self._copies.find(id_)
        return session

    async def load(self, id_: str) -> Session:
        """Return the session; its copy may leave again as soon as the caller waits for anything else.

        Raises:
            NotFoundError, SessionEndedError: It is not, or not any more.
            FailedPreconditionError: It lives on another replica, or its model is not here.
            UnavailableError: The store is away.
        """
        while (session := self.find(id_)) is None:
            loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def on_loaded(_: Session, loaded: asyncio.Future[None] = loaded) -> None:
                if not loaded.done():
                    loaded.set_result(None)

            def on_failed(error: TidegateError, loaded: asyncio.Future[None] = loaded) -> None:
                if not loaded.done():
                    loaded.set_exception(error)

            self.when_loaded(id_, on_loaded, on_failed)
            await loaded
        return session

    def when_loaded(self, id_: str, on_loaded: OnLoaded, on_failed: OnFailed) -> None:
        """Load a session that is not held here and call ``on_loaded``, in the order of the calls, or ``on_failed``.

        Raises:
            NotFoundError, SessionEndedError, FailedPreconditionError: The id is an ephemeral one's, which is not here.
        """
        records = self._records_of(id_)
        if records is None:
            on_loaded(self._get_ephemeral(id_))
            return
        waiting = self._loading.setdefault(id_, [])
        waiting.append((on_loaded, on_failed))
        if len(waiting) == 1:
            task = asyncio.create_task(self._load(records, id_))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _load(self, records: DurableRecords, id_: str) -> None:
        try:
            entry, record = await records.read_open(id_)
            session = self._copies.load(self._model_of(record.summary), entry, record)
        except Exception as error:  # noqa: BLE001 - told to who waits
            told = conceal(error, f"session {id_} could not be read")
            for _, on_failed in self._loading.pop(id_):
                on_failed(told)
            return
        for on_loaded, on_failed in self._loading.pop(id_):
            try:
                on_loaded(session)
            except Exception as error:  # noqa: BLE001 - told to who waits
                on_failed(conceal(error, f"what waited for session {id_} failed"))

    def touch(self, session: Session) -> None:
        """A step of the session was taken in: it is the most recently used now."""
        self._residents.touch(session, self._clock.monotonic())

    def find_group(self, group: SessionGroup) -> FoundSessions:
        """Return the group's sessions as they are now."""
        found: FoundSessions | None = group.found
        if found is None or (found.is_durable and self._loading) or not found.is_sound(self._clock.monotonic()):
            found = FoundSessions([None if id_.startswith(SEQUENCE) else self.find(id_) for id_ in group.ids])
            group.found = found
        return found

    def touch_all(self, found: FoundSessions) -> None:
        """A step of each session that is held here was taken in."""
        now = self._clock.monotonic()
        if found.is_uniform and not found.is_durable:
            self._residents.touch_all(cast("Sequence[Session]", found.sessions), now)
            return
        for session in found.sessions:
            if session is not None:
                self._residents.touch(session, now)

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        """Store what ended in a run."""
        return await self._copies.commit(steps)

    async def refresh(self, session: DurableSession) -> None:
        """Read a session's record into its copy, and let its work go on."""
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
        """End the session. One that has ended already is no error; one that never was is."""
        records = self._records_of(id_)
        try:
            if records is None:
                self._end(self._get_ephemeral(id_), event)
            else:
                await records.end(id_, TRANSITIONS[Phase.OPEN, event])
        except SessionEndedError:
            return
        await self._models.retire()

    async def _open(self, request: SessionRequest, start: SessionState | None) -> SessionInfo:
        """Open a session at its beginning, or where ``start`` is."""
        if request.durable:
            return await self._open_durable(request, start)
        if request.id is not None and (records := self._records_of(request.id)) is not None:
            # Refused while the store is away: a durable session of that id would be answered from this one later.
            await records.check_free(request.id)
        return self._info(self._open_ephemeral(request, start))

    def _open_ephemeral(self, request: SessionRequest, start: SessionState | None) -> Session:
        source = "" if start is None else start.source
        existing = None if request.id is None else self._find_ephemeral(request.id)
        if existing is not None:
            if existing.request != request or self._sources.get(existing.id, "") != source:
                raise AlreadyExistsError(
                    f"session {existing.id} was opened with another request", reason="SESSION_EXISTS"
                )
            return existing
        model = self._models.get(request.model, request.version) if start is None else start.model
        now = self._clock.monotonic()
        ttl, idle = _lifetimes(request, self._settings)
        own = model.settings.encode(request.inputs)
        session = Session(
            id=request.id or new_ephemeral(self._replica),
            model=model,
            request=request,
            seed=request.seed if request.seed is not None else secrets.randbits(64),
            created_at=self._clock.wall(),
            used_at=now,
            opened_at=now,
            ttl_at=None if ttl is None else now + ttl,
            idle_seconds=idle,
            settings=own,
        )
        self._make_room_for_one(model)
        model.engine.allocate_slot(session)
        if start is not None:
            session.position, session.seed = start.position, start.seed
            model.engine.load(session, start.state)
            self._sources[session.id] = source
        self._residents.add(session)
        self._last_replies.discard(session.id)
        if request.id is not None and replica_of(request.id) is None:
            self._chosen[session.id] = None
        return session

    async def _open_durable(self, request: SessionRequest, start: SessionState | None) -> SessionInfo:
        if self._records is None:
            raise FailedPreconditionError(
                "durable sessions need a store: this server keeps sessions in memory only", reason="NO_DURABLE_STORE"
            )
        if request.id is not None and self._find_ephemeral(request.id) is not None:
            raise AlreadyExistsError(f"session {request.id} was opened as ephemeral", reason="SESSION_EXISTS")
        model = self._models.get(request.model, request.version) if start is None else start.model
        model.settings.encode(request.inputs)  # what does not fit is refused before anything is stored
        ttl, idle = _lifetimes(request, self._settings)
        seed = request.seed if request.seed is not None else secrets.randbits(64)
        key, now = key_of(request.id or new_durable()), self._records.now()
        record = new_record(key, request, created_at=now, seed=seed, ttl=ttl, idle=idle)
        if start is not None:
            record.summary.position = start.position
            record.body.state, record.body.seed, record.body.forked_from = start.state, start.seed, start.source
        _put_on(record, model)
        created = await self._records.create(record, may_exist=request.id is not None)
        if isinstance(created, Summary):
            return self._info_of(created)
        # Unless the model was unloaded while the record was written: whoever steps is told so.
        if self._models.find_loaded(record.summary.model, record.summary.version) is model:
            self._copies.load_new(model, created, record)
        return self._info_of(record.summary)

    # ---- what callers may know

    async def get_info(self, id_: str) -> SessionInfo:
        """Return the session; NotFoundError, SessionEndedError."""
        records = self._records_of(id_)
        if records is None:
            return self._info(self._get_ephemeral(id_))
        _, summary = await records.read_open_summary(id_)
        return self._info_of(summary)

    async def get_infos(self, ids: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Return each session, or why it cannot be had; durable ones are one question for the store."""
        found: dict[str, SessionInfo | TidegateError] = {}
        durable: list[str] = []
        for id_ in ids:
            try:
                if self._records_of(id_) is None:
                    found[id_] = self._info(self._get_ephemeral(id_))
                else:
                    durable.append(id_)
            except TidegateError as error:
                found[id_] = without_traceback(error)
        if self._records is not None and durable:
            try:
                summaries = await self._records.read_open_summaries(durable)
            except TidegateError as error:
                found |= dict.fromkeys(durable, without_traceback(error))
            else:
                for id_, each in zip(durable, summaries, strict=True):
                    found[id_] = self._info_of(each) if isinstance(each, Summary) else each
        return [found[id_] for id_ in ids]

    async def get_page(self, limit: int, page_token: str) -> SessionPage:
        """Return a page of the sessions by rising id: the ephemeral ones here and all durable ones."""
        here, token = await in_slices(self._residents.page(limit, page_token))
        slicer, found = Slicer(), list[SessionInfo]()
        for session in here:
            found.append(self._info(session))
            await slicer.give_way()
        if self._records is not None:
            found += map(self._info_of, await self._records.page(limit + 1, page_token))
            found.sort(key=lambda info: info.id)
        if token:  # what is stored beyond it comes behind ephemeral sessions that were not looked at
            found = [info for info in found if info.id <= token]
        # Sessions may have ended between two slices: then the page is shorter, or empty, and the list goes on.
        return SessionPage(found[:limit], found[limit - 1].id if len(found) > limit else token)

    def recall_ephemeral(self, id_: str) -> Remembered | None:
        """Return what is remembered of a sequence that its client ended here, for a repeat of its last request."""
        return self._last_replies.find(id_, self._clock.monotonic())

    async def recall_durable(self, id_: str) -> Remembered | None:
        """Return what is stored of a session that runs, or that its client ended with a step; None of any other."""
        return None if self._records is None else await self._records.recall(id_)

    def _info(self, session: Session) -> SessionInfo:
        """Return what callers may know of an ephemeral session."""
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
            drift=None if session.chart is None else session.chart.to_drift(),
        )

    def _info_of(self, summary: Summary) -> SessionInfo:
        """Return what callers may know of a durable session."""
        model = self._models.find_loaded(summary.model, summary.version)
        state_bytes = summary.state_bytes if model is None else model.manifest.state_bytes
        return info_of(summary, state_bytes, end_of(summary))

    # ---- branching

    async def fork(self, id_: str, ids: Sequence[str] | None, count: int | None) -> list[SessionInfo]:
        """Open sessions that go on from where this one is: with ``ids``, or ``count`` of them, one where neither is
        given. An equal repeat with ids returns what exists.

        Raises:
            AlreadyExistsError: An id is taken by another session.
        """
        state, request = await self._get_state(id_)
        slicer, children = Slicer(), list[SessionInfo]()
        for wanted in _children(ids, count):
            child = wanted or (new_durable() if request.durable else new_ephemeral(self._replica))
            children.append(await self._open(replace(request, id=child), state.forked(id_, child)))
            await slicer.give_way()
        return children

    async def snapshot(self, id_: str) -> bytes:
        """Return the session as portable bytes."""
        state, request = await self._get_state(id_)
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

    async def _get_state(self, id_: str) -> tuple[SessionState, SessionRequest]:
        """Return where the session is, as far as it is committed, and what it was opened with."""
        records = self._records_of(id_)
        if records is None:
            session = self._get_ephemeral(id_)
            return _state_of(session), session.request
        _, record = await records.read_open(id_)
        model, body = self._model_of(record.summary), record.body
        return SessionState(model, record.summary.position, body.state, body.seed), request_of(record)

    async def checkpoint(self, id_: str, name: str | None) -> CheckpointInfo:
        """Keep where the session is under a name; the oldest of more than eight is dropped."""

        def new_name(position: int) -> str:
            return name or f"{position}-{secrets.token_hex(3)}"

        records = self._records_of(id_)
        session = None if records is not None else self._get_ephemeral(id_)
        if name:
            check_checkpoint(name)
        if records is not None:
            return await records.checkpoint(id_, new_name)
        assert session is not None
        return self._checkpoint_ephemeral(session, new_name(session.position))

    def _checkpoint_ephemeral(self, session: Session, name: str) -> CheckpointInfo:
        """Checkpoints count in the arenas' budget."""
        state = _state_of(session)
        while not self._models.budget.can_take(_num_bytes(state)):
            if not self.evict_one():
                raise self._full()
        session.check_open()  # it may have been the one that was evicted
        self._models.budget.take(_num_bytes(state))
        kept = self._checkpoints.setdefault(session.id, OrderedDict())
        dropped = [kept.pop(name)] if name in kept else []
        kept[name] = state
        if len(kept) > MAX_CHECKPOINTS:
            dropped.append(kept.popitem(last=False)[1])
        self._give_back(dropped)
        return CheckpointInfo(name, session.position)

    async def rewind(self, id_: str, checkpoint: str) -> SessionInfo:
        """Take the session back to a checkpoint, which stays; NotFoundError where there is none of that name."""
        if len(checkpoint) > MAX_NAME_LENGTH:
            raise unknown_checkpoint(id_, checkpoint)
        if (records := self._records_of(id_)) is not None:
            return self._info_of(await records.rewind(id_, checkpoint))
        session = self._get_ephemeral(id_)

        def rewind() -> None:
            kept = self._checkpoints.get(session.id, OrderedDict())
            state = kept.get(checkpoint)
            if state is None:
                raise unknown_checkpoint(session.id, checkpoint, kept)
            session.position, session.last = state.position, None
            session.model.engine.load(session, state.state)

        await self._after_steps(session, rewind)
        return self._info(session)

    async def upgrade(self, id_: str, version: str | None) -> SessionInfo:
        """Move the session to a version of its model, the highest where None.

        Raises:
            FailedPreconditionError: Its states have other names, dtypes or shapes.
        """
        if (records := self._records_of(id_)) is None:
            session = self._get_ephemeral(id_)
            await self._after_steps(session, lambda: self._upgrade_ephemeral(session, version))
            await self._models.retire()
            return self._info(session)

        async def upgrade(record: Record) -> Attachments:
            model = self._models.get(record.summary.model, version)
            _check_layout(record.body.layout, model)
            _put_on(record, model)
            return {}

        record = await records.change(id_, upgrade)
        await self._models.retire()
        return self._info_of(record.summary)

    def _upgrade_ephemeral(self, session: Session, version: str | None) -> None:
        old: LoadedModel = session.model
        new = self._models.get(old.manifest.name, version)
        _check_layout(old.layout, new)
        if len(session.queue) > 1:
            raise FailedPreconditionError(f"session {session.id} has steps waiting", reason="SESSION_BUSY")
        if new is old:
            return
        state = old.engine.dump(session)
        self._make_room(new)
        old.engine.release_slot(session)
        new.engine.allocate_slot(session)
        session.model = new
        new.engine.load(session, state)
        old.num_sessions -= 1
        new.num_sessions += 1

    async def _after_steps(self, session: Session, act: Callable[[], None]) -> None:
        """Act on an ephemeral session once the work before is done."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        session.model.loop.submit(Barrier(session, act, done))
        self.touch(session)
        await done

    # ---- room

    def evict_one(self) -> bool:
        """Free a slot: let the least recently used copy of a durable session leave, or else evict the least recently
        used ephemeral session, if nobody used it lately. Return whether there was one.
        """
        session = self._residents.find_evictable(self._clock.monotonic(), self._settings.evict_idle)
        if isinstance(session, DurableSession):
            self._residents.drop_copy(session)
            self._residents.num_evicted += 1
        elif session is not None:
            self._end(session, Event.EVICT)
        return session is not None

    def _make_room_for_one(self, model: LoadedModel) -> None:
        """Make sure that one more session may be held, if need be by evicting; an active session is never evicted."""
        while len(self._residents) >= self._settings.max_sessions:
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

    def _full(self) -> OverloadedError:
        return OverloadedError(
            f"the arena is full of sessions used within {self._settings.evict_idle:g} s",
            reason="ARENA_FULL",
            retry_after=max(1.0, self._settings.evict_idle / 2),
        )

    def _give_back(self, states: Iterable[SessionState]) -> None:
        for state in states:
            self._models.budget.give(_num_bytes(state))

    # ---- expiry

    async def expire(self) -> None:
        """End the sessions whose time is over: ephemeral ones by this process's clock, durable ones by the store's."""
        slicer = Slicer()
        while over := self._residents.expired(self._clock.monotonic(), _ENDED_AT_ONCE):
            for session, event in over:
                try:
                    self._end(session, event)
                except Exception:
                    log.exception("session %s could not be ended", session.id)
            await slicer.give_way()
        if self._records is not None:
            with suppress(UnavailableError):
                await self._records.expire()
                await self._yield_ids(self._records)

    async def _yield_ids(self, records: DurableRecords) -> None:
        """End ephemeral sessions whose id another server has given to a durable one by now: the store's is true.

        A thousand at a time, in turn: an ephemeral session asks no store when it is stepped.
        """
        ids = list(islice(self._chosen, MAX_CHOSEN_A_SWEEP))
        for id_ in ids:
            self._chosen.move_to_end(id_)
        for id_, found in zip(ids, await records.read_open_summaries(ids), strict=True):
            session = self._find_ephemeral(id_) if isinstance(found, Summary) else None
            if session is not None:
                log.warning("ephemeral session %s ends: %s", id_, Event.REPLACE.value)
                self._end(session, Event.REPLACE)

    def _end(self, session: Session, event: Event) -> None:
        """End an ephemeral session: its waiting work fails with the reason."""
        now = self._clock.monotonic()
        if event is Event.CLOSE and session.id.startswith(SEQUENCE) and isinstance(last := session.recall(), LastReply):
            remembered = Remembered(session.model.manifest.version, last)
            self._last_replies.put(session.id, remembered, now, remembered.num_bytes)
        self._sources.pop(session.id, None)
        self._chosen.pop(session.id, None)
        self._give_back(self._checkpoints.pop(session.id, {}).values())
        self._residents.end(session, event, now)

    # ---- where a session is

    def _records_of(self, id_: str) -> DurableRecords | None:
        """Return where the session is stored; None where it is ephemeral, or can only be.

        Raises:
            NotFoundError: The id is longer than any: nobody is to look for it.
        """
        if len(id_) > MAX_NAME_LENGTH:
            raise NotFoundError(f"unknown session {shown(id_)}", reason="UNKNOWN_SESSION")
        is_ephemeral = self._residents.find(id_) is not None or replica_of(id_) is not None
        return None if is_ephemeral else self._records

    def _find_ephemeral(self, id_: str) -> Session | None:
        """Return the ephemeral session that is live; one whose time is over ends now."""
        session = self._residents.find(id_)
        if session is not None and (event := session.overdue(self._clock.monotonic())) is not None:
            self._end(session, event)
            return None
        return session

    def _get_ephemeral(self, id_: str) -> Session:
        """Return the ephemeral session that is live.

        Raises:
            SessionEndedError: It ended, within memory.
            NotFoundError: It is unknown.
            FailedPreconditionError: It lives on another replica.
        """
        session = self._find_ephemeral(id_)
        if session is not None:
            return session
        phase = self._residents.find_ending(id_, self._clock.monotonic())
        if phase is not None:
            raise ended(id_, phase)
        owner = replica_of(id_) or self._replica
        if owner != self._replica:
            raise FailedPreconditionError(
                f"session {id_} lives on replica {owner}, this is {self._replica}", reason="NOT_ON_THIS_REPLICA"
            )
        raise NotFoundError(f"unknown session {id_}", reason="UNKNOWN_SESSION")

    def _model_of(self, summary: Summary) -> LoadedModel:
        model = self._models.find_loaded(summary.model, summary.version)
        if model is None or model.bundle.sha256 != summary.model_sha256:
            raise FailedPreconditionError(
                f"session {summary.id} runs on {summary.model}/{summary.version}, which is not here with that content; "
                "the session is kept",
                reason="MODEL_GONE",
            )
        return model


def _state_of(session: Session) -> SessionState:
    """Return where an ephemeral session is, as far as it is committed."""
    model: LoadedModel = session.model
    return SessionState(model, session.position, model.engine.dump(session), session.seed)


def _num_bytes(checkpoint: SessionState) -> int:
    return len(checkpoint.state) + CHECKPOINT_BYTES


def _put_on(record: Record, model: LoadedModel) -> None:
    """Put the record's session on a model."""
    summary = record.summary
    summary.model, summary.version = model.manifest.name, model.manifest.version
    summary.model_sha256, summary.state_bytes = model.bundle.sha256, model.manifest.state_bytes
    summary.ClearField("chart")
    record.body.layout = model.layout


def _lifetimes(request: SessionRequest, settings: Settings) -> tuple[float | None, float | None]:
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


def _check_layout(layout: bytes, model: LoadedModel) -> None:
    """Raise FailedPreconditionError unless a state of ``layout`` fits the model."""
    if layout != model.layout:
        parts = [f"{name} {plane.dtype}{list(plane.row_shape)}" for name, plane in model.planes.items()]
        parts += [f"setting {spec.name} {spec.dtype}{list(spec.row_shape)}" for spec in model.manifest.settings]
        raise FailedPreconditionError(
            f"the session's state does not fit {model.label}, which has {', '.join(parts)}", reason="LAYOUT_DIFFERS"
        )


def _check_chart(model: LoadedModel) -> None:
    if not model.quality.has_chart:
        raise FailedPreconditionError(f"{model.label} was not calibrated: it has no chart", reason="NO_CHART")


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
