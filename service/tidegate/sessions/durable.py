"""Durable sessions of this process: their truth is a record in the store, what is here is a cache of it.

Opening, closing, branching and expiry act on the record, by compare-and-set; only steps go through a copy. A copy that
fell behind finds out at its next commit, and reads the record again (`committer`, `engine.engine`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.core import CheckpointInfo, SessionInfo, SessionRequest
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    OverloadedError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
)
from tidegate.limits import MAX_CHECKPOINTS
from tidegate.registry import LoadedModel, Registry
from tidegate.sessions.cache import SessionCache
from tidegate.sessions.committer import copy_in, is_of
from tidegate.sessions.desk import Desk, check_layout, lifetimes, unknown_checkpoint
from tidegate.sessions.ids import check_checkpoint, new_durable
from tidegate.sessions.ledger import Ledger
from tidegate.sessions.lifecycle import TRANSITIONS, Event, Phase
from tidegate.sessions.moment import Moment
from tidegate.sessions.records import (
    REMEMBERED_SECONDS,
    Record,
    decode_record,
    end_of,
    ending,
    info_of,
    new_record,
    new_revision,
    overdue,
    phase_of,
    request_of,
)
from tidegate.sessions.session import DurableSession, ended
from tidegate.sessions.stores.store import FORMAT, Due, Entry, Write
from tidegate.v1 import records_pb2

log = logging.getLogger(__name__)

_TRIES = 16
_REAP = 256

Then = Callable[[DurableSession], None]
Failed = Callable[[TidegateError], None]


class DurableDesk:
    """Opens, finds, branches and closes durable sessions.

    Args:
        settings: Lifetimes.
        registry: Where models are found.
        clock: Both clocks; what is stored is of the wall clock.
        ledger: Where records are.
        cache: The copies here.
        ephemeral: Whose idle sessions may have to make room.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        clock: Clock,
        ledger: Ledger,
        cache: SessionCache,
        ephemeral: Desk,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._clock = clock
        self._ledger = ledger
        self._cache = cache
        self._ephemeral = ephemeral
        self._arriving: dict[str, list[tuple[Then, Failed]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- copies

    def find(self, id_: str) -> DurableSession | None:
        """Return the copy that is here, or None; one whose time seems over is read again first."""
        session = self._cache.find(id_)
        if session is None or id_ in self._arriving:
            return None
        if session.overdue(self._clock.monotonic()) is not None:
            self._drop(session)
            return None
        return session

    def when_here(self, id_: str, then: Then, failed: Failed) -> None:
        """Bring a copy of the session here and call ``then``, in the order of the calls, or ``failed``."""
        waiting = self._arriving.setdefault(id_, [])
        waiting.append((then, failed))
        if len(waiting) == 1:
            self._spawn(self._bring(id_))

    async def live(self, id_: str) -> DurableSession:
        """Return a copy of the session, here or brought here.

        Raises:
            NotFoundError, SessionEndedError: It is not, or not any more.
            FailedPreconditionError: Its model is not here.
            UnavailableError: The store is away.
        """
        session = self.find(id_)
        if session is not None:
            return session
        here: asyncio.Future[DurableSession] = asyncio.get_running_loop().create_future()
        self.when_here(
            id_,
            lambda it: _unless_done(here.set_result, here, it),
            lambda it: _unless_done(here.set_exception, here, it),
        )
        return await here

    async def wait_idle(self) -> None:
        """Return when no session is on its way here."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def touch(self, session: DurableSession) -> None:
        """A step of the session was taken in: it is the most recently used now."""
        session.used_at = self._clock.monotonic()
        self._cache.touch(session)

    async def _bring(self, id_: str) -> None:
        try:
            session = await self._load(id_)
        except Exception as error:
            told = error
            if not isinstance(error, TidegateError):
                log.exception("session %s could not be read", id_)
                told = InternalError(f"the session could not be read: {error}")
            assert isinstance(told, TidegateError)
            for _, failed in self._arriving.pop(id_):
                failed(told)
            return
        for then, failed in self._arriving.pop(id_):
            try:
                then(session)
            except Exception as error:
                log.exception("what waited for session %s failed", id_)
                failed(InternalError(f"the request failed: {error}"))

    async def _load(self, id_: str) -> DurableSession:
        entry, record = await self._open_record(id_)
        model = self._model_of(record)
        session = self._cache.find(id_)
        if session is not None and not is_of(record, session):
            if session.is_busy or session.is_reading:
                raise UnavailableError(
                    f"session {id_} was put on {record.model}/{record.version} just now: send it again",
                    reason="SESSION_MOVED",
                    retry_after=0.0,
                )
            self._drop(session)
            session = None
        return self._copy(model, entry, record) if session is None else session

    def _copy(self, model: LoadedModel, entry: Entry, record: Record) -> DurableSession:
        self._ephemeral.make_room(model)
        now, wall = self._clock.monotonic(), self._clock.wall()
        opened = now - (wall - record.created_at)
        session = DurableSession(
            id=record.id,
            model=model,
            request=request_of(record),
            seed=record.seed,
            created_at=record.created_at,
            used_at=now - max(0.0, wall - record.used_at),
            opened_at=opened,
            ttl_at=opened + record.ttl_seconds if record.HasField("ttl_seconds") else None,
            idle_seconds=record.idle_seconds if record.HasField("idle_seconds") else None,
        )
        model.engine.hold(session)
        try:
            copy_in(session, entry, record)
        except TidegateError:
            model.engine.release(session)
            raise
        self._cache.add(session)
        return session

    def _drop(self, session: DurableSession) -> None:
        """Let go of a copy that no work is in hand for."""
        self._cache.drop(session)
        session.model.engine.release(session)

    # ---- records

    async def info(self, id_: str) -> SessionInfo:
        _, record = await self._open_record(id_)
        return self._info(record)

    async def page(self, limit: int, after: str) -> list[SessionInfo]:
        """Return up to ``limit`` open sessions with ids above ``after``, by rising id."""
        infos: list[SessionInfo] = []
        while missing := limit - len(infos):
            found = await self._ledger.ask(lambda store: store.page(missing, after))  # noqa: B023 - asked before it changes
            now = self._clock.wall()
            records = [decode_record(entry) for _, entry in found]
            infos += [self._info(record) for record in records if overdue(record, now) is None]
            if len(found) < missing:
                break
            after = found[-1][0]
        return infos

    async def open(self, request: SessionRequest) -> SessionInfo:
        """Open a session, or return the one that an equal request with the same id opened."""
        return await self._open(request, self._registry.get(request.model, request.version), None)

    async def open_at(self, request: SessionRequest, moment: Moment) -> SessionInfo:
        """Open a session where ``moment`` is, or return the one that an equal request with the same id opened."""
        return await self._open(request, moment.model, moment)

    async def check_free(self, id_: str) -> None:
        """Raise AlreadyExistsError where an open session has that id."""
        entry = await self._ledger.read(id_)
        record = None if entry is None else decode_record(entry)
        if record is not None and not record.ended and overdue(record, self._clock.wall()) is None:
            raise AlreadyExistsError(f"session {id_} was opened as durable", reason="SESSION_EXISTS")

    async def close(self, id_: str, event: Event = Event.CLOSE) -> None:
        """End the session; closing twice succeeds."""

        async def end(entry: Entry, record: Record) -> Write:
            return self._ending(entry, record, TRANSITIONS[Phase.OPEN, event])

        try:
            await self._change(id_, end)
        except SessionEndedError:
            return
        self._end_copy(id_, event)
        await self._registry.retire()

    async def moment(self, id_: str) -> tuple[Moment, SessionRequest]:
        """Return where the session is, and what it was opened with."""
        _, record = await self._open_record(id_)
        return Moment(self._model_of(record), record.position, record.state, record.seed), request_of(record)

    async def checkpoint(self, id_: str, name: str | None) -> CheckpointInfo:
        """Keep where the session is; the oldest of more than eight is dropped."""
        if name is not None:
            check_checkpoint(name)
        made: list[CheckpointInfo] = []

        async def keep(entry: Entry, record: Record) -> Write:
            info = CheckpointInfo(name or f"{record.position}-{secrets.token_hex(3)}", record.position)
            made.append(info)
            return _keep(entry, record, info.checkpoint)

        await self._change(id_, keep)
        return made[-1]

    async def rewind(self, id_: str, name: str) -> SessionInfo:
        """Take the session back. What a copy anywhere still runs from where it was will not be stored."""
        changed: list[Record] = []

        async def rewind(entry: Entry, record: Record) -> Write:
            # Read behind the record: it is of this revision, or the write will not be made. An id and a checkpoint's
            # name may be given again, to another state.
            content = await self._ledger.ask(lambda store: store.read_attachment(id_, name))
            if content is None or name not in {kept.name for kept in record.checkpoints}:
                raise unknown_checkpoint(id_, name)
            kept = records_pb2.CheckpointRecord.FromString(content)
            record.position, record.state, record.used_at = kept.position, kept.state, self._clock.wall()
            record.ClearField("last")
            record.ClearField("chart")
            changed.append(record)
            return _replace(entry, record)

        await self._change(id_, rewind)
        return self._info(changed[-1])

    async def upgrade(self, id_: str, version: str | None) -> SessionInfo:
        """Move the session to another version of its model, which must keep the same state."""
        changed: list[Record] = []

        async def upgrade(entry: Entry, record: Record) -> Write:
            model = self._registry.get(record.model, version)
            check_layout(record.layout, model)
            _place(record, model)
            changed.append(record)
            return _replace(entry, record)

        await self._change(id_, upgrade)
        await self._registry.retire()
        return self._info(changed[-1])

    async def expire(self) -> None:
        """End the sessions whose time is over and forget endings that are old, whichever replica had them last."""
        found = _REAP
        while found == _REAP:
            now = self._clock.wall()
            ids = await self._ledger.ask(lambda store: store.due(now, _REAP))  # noqa: B023 - asked before it changes
            found = len(ids)
            if not ids:
                return
            looked = [await self._look_at(id_, entry, now) for id_, entry in await self._readable(ids, now)]
            over = [each for each in looked if each is not None]
            written = await self._ledger.write([write for write, _ in over])
            for (write, event), made in zip(over, written, strict=True):
                if made is True:  # otherwise a step may have come in time: the session goes on
                    self._end_copy(write.id, event)
            if any(isinstance(made, TidegateError) for made in written):
                return  # a full store would be asked the same again and again

    async def _readable(self, ids: Sequence[str], now: float) -> list[tuple[str, Entry]]:
        """Return what is stored of the sessions; one whose record is damaged is put off, and holds up nobody else."""
        try:
            entries = await self._ledger.ask(lambda store: store.read(ids))
        except UnavailableError as error:
            if error.reason != "STORE_CORRUPT":
                raise
            if len(ids) == 1:
                log.error("session %s cannot be read: %s", ids[0], error.message)  # noqa: TRY400 - an error of theirs
                await self._ledger.ask(lambda store: store.postpone(ids[0], now + REMEMBERED_SECONDS))
                return []
            return [found for id_ in ids for found in await self._readable([id_], now)]
        return [(id_, entry) for id_, entry in zip(ids, entries, strict=True) if entry is not None]

    async def _look_at(self, id_: str, entry: Entry, now: float) -> tuple[Write, Event] | None:
        """Return the write that ends a session whose time is over; put back one that came up early."""
        at: float | None
        try:
            record = decode_record(entry)
        except TidegateError as error:
            log.error("session %s cannot be read: %s", id_, error.message)  # noqa: TRY400 - an error of theirs
            at = now + REMEMBERED_SECONDS
        else:
            if record.ended:
                at = record.ended_at + REMEMBERED_SECONDS
                if at <= now:
                    await self._ledger.ask(lambda store: store.delete(id_, entry.revision))
                    return None
            else:
                event = overdue(record, now)
                if event is not None:
                    return self._ending(entry, record, _AFTER[event]), event
                at = end_of(record)
        await self._ledger.ask(lambda store: store.postpone(id_, at))
        return None

    # ---- inside

    async def _open(self, request: SessionRequest, model: LoadedModel, moment: Moment | None) -> SessionInfo:
        ttl, idle = lifetimes(request, self._settings)
        seed = request.seed if request.seed is not None else secrets.randbits(64)
        record = new_record(
            request.id or new_durable(), request, created_at=self._clock.wall(), seed=seed, ttl=ttl, idle=idle
        )
        if moment is not None:
            record.position, record.state, record.seed = moment.position, moment.state, moment.seed
            record.forked_from = moment.source
        _place(record, model)
        for _ in range(_TRIES):
            before = await self._ledger.read(record.id) if request.id is not None else None
            if before is not None and (existing := self._existing(before, record)) is not None:
                return self._info(existing)
            write = _first(before, record)
            if await self._ledger.write_one(write):
                self._keep_copy(model, Entry(write.revision, write.record), record)
                return self._info(record)
        raise _contended(record.id)

    def _keep_copy(self, model: LoadedModel, entry: Entry, record: Record) -> None:
        """Hold a copy of a session just opened, for its first step; where there is no room it is brought then."""
        if self._registry.find_loaded(record.model, record.version) is not model:
            return  # it was unloaded while the record was written: whoever steps is told so
        held = self._cache.find(record.id)
        if held is not None:
            if held.is_busy or held.is_reading:
                self._cache.distrust(record.id)
                return
            self._drop(held)  # of a session of that id that ended elsewhere, perhaps on another model
        try:
            self._copy(model, entry, record)
        except OverloadedError:
            log.debug("no room for a copy of session %s", record.id)

    def _existing(self, entry: Entry, wanted: Record) -> Record | None:
        """Return the open session that is stored where ``wanted`` should be, None where it has ended.

        Raises:
            AlreadyExistsError: It was opened with another request.
        """
        record = decode_record(entry)
        if record.ended or overdue(record, self._clock.wall()) is not None:
            return None
        if (record.request, record.forked_from) != (wanted.request, wanted.forked_from):
            raise AlreadyExistsError(f"session {record.id} was opened with another request", reason="SESSION_EXISTS")
        return record

    async def _open_record(self, id_: str) -> tuple[Entry, Record]:
        """Return the record of a session that runs; one whose time is over is ended now."""
        for _ in range(_TRIES):
            entry = await self._ledger.read(id_)
            if entry is None:
                self._ephemeral.check_not_ended(id_)
                raise NotFoundError(f"unknown session {id_}", reason="UNKNOWN_SESSION")
            record = decode_record(entry)
            phase = phase_of(record)
            if phase is not Phase.OPEN:
                raise ended(id_, phase)
            event = overdue(record, self._clock.wall())
            if event is None:
                return entry, record
            if await self._ledger.write_one(self._ending(entry, record, _AFTER[event])):
                self._end_copy(id_, event)
        raise _contended(id_)

    async def _change(self, id_: str, change: Callable[[Entry, Record], Awaitable[Write]]) -> None:
        """Change an open session's record, as often as it takes for nobody to come between."""
        for _ in range(_TRIES):
            entry, record = await self._open_record(id_)
            write = await change(entry, record)
            if await self._ledger.write_one(write):
                self._follow(write, record)
                return
        raise _contended(id_)

    def _follow(self, write: Write, record: Record) -> None:
        """Bring the copy here, if any, in step with a record that was just changed."""
        session = self._cache.find(write.id)
        if session is None:
            return
        if session.is_busy or session.is_reading:
            session.is_fresh = False
        elif is_of(record, session):
            copy_in(session, Entry(write.revision, write.record), record)
        else:
            self._drop(session)

    def _ending(self, entry: Entry, record: Record, phase: Phase) -> Write:
        return ending(record, entry.revision, phase, self._clock.wall())

    def _end_copy(self, id_: str, event: Event) -> None:
        """The session is over: so is the copy here, if any."""
        session = self._cache.find(id_)
        if session is not None:
            session.end(event)
            self._drop(session)

    def _model_of(self, record: Record) -> LoadedModel:
        model = self._registry.find_loaded(record.model, record.version)
        if model is None or model.bundle.sha256 != record.model_sha256:
            raise FailedPreconditionError(
                f"session {record.id} runs on {record.model}/{record.version}, which is not here with that content; "
                "the session is kept",
                reason="MODEL_GONE",
            )
        return model

    def _info(self, record: Record) -> SessionInfo:
        model = self._registry.find_loaded(record.model, record.version)
        return info_of(record, len(record.state) if model is None else model.manifest.state_bytes)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_AFTER = {Event.OUTLIVE: Phase.EXPIRED, Event.IDLE: Phase.IDLE}


def _place(record: Record, model: LoadedModel) -> None:
    """Put the record's session on a model."""
    record.model, record.version = model.manifest.name, model.manifest.version
    record.model_sha256, record.layout = model.bundle.sha256, model.layout
    record.ClearField("chart")


def _first(before: Entry | None, record: Record) -> Write:
    """Return the write of a new session, in the place of one that has ended, if any."""
    expected = None if before is None else before.revision
    gone: dict[str, bytes | None] = {}
    if before is not None:
        gone = {kept.name: None for kept in decode_record(before).checkpoints}
    return Write(
        record.id, expected, new_revision(), record.SerializeToString(), due=Due(end_of(record)), attachments=gone
    )


def _replace(entry: Entry, record: Record) -> Write:
    return Write(record.id, entry.revision, new_revision(), record.SerializeToString())


def _keep(entry: Entry, record: Record, name: str) -> Write:
    """Return the write that keeps where the session is under ``name``."""
    content = records_pb2.CheckpointRecord(
        format=FORMAT,
        version=record.version,
        model_sha256=record.model_sha256,
        position=record.position,
        state=record.state,
    ).SerializeToString()
    kept = [(it.name, it.position) for it in record.checkpoints if it.name != name] + [(name, record.position)]
    dropped, kept = kept[:-MAX_CHECKPOINTS], kept[-MAX_CHECKPOINTS:]
    del record.checkpoints[:]
    for each, position in kept:
        record.checkpoints.add(name=each, position=position)
    attachments: dict[str, bytes | None] = {each: None for each, _ in dropped}
    write = _replace(entry, record)
    return Write(write.id, write.expected, write.revision, write.record, attachments={**attachments, name: content})


def _contended(id_: str) -> UnavailableError:
    return UnavailableError(
        f"session {id_} is being changed by others all the time", reason="CONTENDED", retry_after=0.1
    )


def _unless_done(tell: Callable[[Any], None], future: asyncio.Future[DurableSession], what: Any) -> None:
    if not future.done():
        tell(what)
