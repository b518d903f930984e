"""Durable sessions of this process: their truth is a record in the store, what is here is a cache of it.

Opening, closing, branching and expiry act on the record, by compare-and-set; only steps go through a copy. A copy that
fell behind finds out at its next commit, and reads the record again (`copies`, `engine.engine`). What needs no
state reads the record's summary only.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tidegate.api import CheckpointInfo, SessionInfo, SessionRequest
from tidegate.clock import Clock
from tidegate.config import Settings
from tidegate.engine.lifecycle import TRANSITIONS, Event, Phase
from tidegate.engine.model import LoadedModel, Models
from tidegate.engine.session import DurableSession, ended
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    OverloadedError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
    without_traceback,
)
from tidegate.faults import conceal
from tidegate.limits import MAX_CHECKPOINTS, MAX_LOOKED_AT, MAX_LOOKS
from tidegate.sessions.cache import SessionCache
from tidegate.sessions.committer import GroupCommitter
from tidegate.sessions.copies import copy_in, is_of
from tidegate.sessions.desk import Desk, check_layout, lifetimes, unknown_checkpoint
from tidegate.sessions.expiry import (
    REMEMBERED_SECONDS,
    Endings,
    StoreClock,
    Verdict,
    closing,
    end_of,
    ended_phase,
    expiring,
    look_at,
    overdue,
)
from tidegate.sessions.ids import DEFAULT_TENANT, SEQUENCE, check_checkpoint, key_of, new_durable
from tidegate.sessions.last_replies import Remembered
from tidegate.sessions.records import (
    Record,
    Summary,
    decode_checkpoint,
    decode_record,
    decode_summary,
    encode_checkpoint,
    encode_record,
    info_of,
    last_reply,
    new_record,
    new_revision,
    request_of,
)
from tidegate.sessions.snapshot import SessionState
from tidegate.sessions.stores.store import Due, Entry, SessionKey, Stored, Write

log = logging.getLogger(__name__)

_TRIES = 16

Attachments = dict[str, bytes | None]
Kept = TypeVar("Kept", Stored, Entry)
Then = Callable[[DurableSession], None]
Failed = Callable[[TidegateError], None]


class DurableDesk:
    """Opens, finds, branches and closes durable sessions.

    Args:
        settings: Lifetimes.
        models: Where models are found.
        clock: Seconds that only rise.
        store_clock: Seconds since the epoch; read from the store at the start and at each sweep.
        committer: Where records are.
        cache: The copies here.
        ephemeral: Whose idle sessions may have to make room.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        clock: Clock,
        store_clock: StoreClock,
        committer: GroupCommitter,
        cache: SessionCache,
        ephemeral: Desk,
    ) -> None:
        self._settings = settings
        self._models = models
        self._clock = clock
        self._store_clock = store_clock
        self._committer = committer
        self._cache = cache
        self._ephemeral = ephemeral
        self._endings = Endings()
        self._arriving: dict[str, list[tuple[Then, Failed]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Read the store's clock; a store that is away is asked again by the first sweep."""
        with suppress(UnavailableError):
            await self._read_clock()

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
        except Exception as error:  # noqa: BLE001 - told to who waits
            told = conceal(error, f"session {id_} could not be read")
            for _, failed in self._arriving.pop(id_):
                failed(told)
            return
        for then, failed in self._arriving.pop(id_):
            try:
                then(session)
            except Exception as error:  # noqa: BLE001 - told to who waits
                failed(conceal(error, f"what waited for session {id_} failed"))

    async def _load(self, id_: str) -> DurableSession:
        entry, record = await self._open_record(id_)
        model = self._model_of(record.summary)
        session = self._cache.find(id_)
        if session is not None and not is_of(record, session):
            if session.is_busy or session.is_reading:
                raise UnavailableError(
                    f"session {id_} was put on {record.summary.model}/{record.summary.version} just now: send it again",
                    reason="SESSION_MOVED",
                    retry_after=0.0,
                )
            self._drop(session)
            session = None
        return self._copy(model, entry, record) if session is None else session

    def _copy(self, model: LoadedModel, entry: Entry, record: Record) -> DurableSession:
        self._ephemeral.make_room_for_one(model)
        summary = record.summary
        now, wall = self._clock.monotonic(), self._store_clock.now()
        opened = now - (wall - summary.created_at)
        session = DurableSession(
            id=summary.id,
            model=model,
            request=request_of(record),
            seed=record.body.seed,
            created_at=summary.created_at,
            used_at=now - max(0.0, wall - summary.used_at),
            opened_at=opened,
            ttl_at=opened + summary.ttl_seconds if summary.HasField("ttl_seconds") else None,
            idle_seconds=summary.idle_seconds if summary.HasField("idle_seconds") else None,
            key=key_of(summary.id),
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
        _, summary = await self._open_summary(id_)
        return self._info(summary)

    async def infos(self, ids: Sequence[str]) -> list[SessionInfo | TidegateError]:
        """Return each session, or why it cannot be had, by one question for all."""
        keys = list(map(key_of, ids))
        stored = await self._committer.read_summaries(keys)
        return [self._info_or_error(key, each) for key, each in zip(keys, stored, strict=True)]

    def _info_or_error(self, key: SessionKey, stored: Stored | None) -> SessionInfo | TidegateError:
        try:
            if stored is None:
                self._ephemeral.check_not_ended(key.id)
                return NotFoundError(f"unknown session {key.id}", reason="UNKNOWN_SESSION")
            with self._committer.meeting_damage():
                summary = decode_summary(key, stored)
        except TidegateError as error:
            return without_traceback(error)
        phase = self._phase(stored, summary)
        return self._info(summary) if phase is Phase.OPEN else ended(key.id, phase)

    async def page(self, limit: int, after: str) -> list[SessionInfo]:
        """Return up to ``limit`` open sessions with ids above ``after``, by rising id."""
        infos: list[SessionInfo] = []
        while missing := min(limit - len(infos), MAX_LOOKED_AT):
            found = await self._committer.ask(lambda store: store.page(DEFAULT_TENANT, missing, after))  # noqa: B023 - asked before they change
            for id_, stored in found:
                summary = self._readable(key_of(id_), stored)
                if summary is not None and self._phase(stored, summary) is Phase.OPEN:
                    infos.append(self._info(summary))
            if len(found) < missing:
                break
            after = found[-1][0]
        return infos

    async def open(self, request: SessionRequest) -> SessionInfo:
        """Open a session, or return the one that an equal request with the same id opened."""
        return await self._open(request, self._models.get(request.model, request.version), None)

    async def open_at(self, request: SessionRequest, moment: SessionState) -> SessionInfo:
        """Open a session where ``moment`` is, or return the one that an equal request with the same id opened."""
        return await self._open(request, moment.model, moment)

    async def check_free(self, id_: str) -> None:
        """Raise AlreadyExistsError where an open session has that id."""
        key = key_of(id_)
        stored = await self._committer.read_summary(key)
        if stored is None:
            return
        if self._phase(stored, decode_summary(key, stored)) is Phase.OPEN:
            raise AlreadyExistsError(f"session {id_} was opened as durable", reason="SESSION_EXISTS")

    async def recall(self, id_: str) -> Remembered | None:
        """Return what is stored of a session that runs, or that its client ended with a step: then with its last reply,
        for a repeat. None of any other.
        """
        key = key_of(id_)
        stored = await self._committer.read_summary(key)
        if stored is None:
            return None
        summary = decode_summary(key, stored)
        phase = self._phase(stored, summary)
        if phase is Phase.OPEN:
            return Remembered(summary.version)
        if phase is not Phase.CLOSED or not summary.body_bytes:
            return None
        entry = await self._committer.read(key)
        record = None if entry is None else decode_record(key, entry)
        if record is None or record.summary.ended != Phase.CLOSED.value:
            return None  # it was begun anew meanwhile
        return Remembered(record.summary.version, last_reply(record))

    async def close(self, id_: str, event: Event = Event.CLOSE) -> None:
        """End the session; closing twice succeeds."""
        for _ in range(_TRIES):
            try:
                write = await self._close(id_, TRANSITIONS[Phase.OPEN, event])
            except SessionEndedError:
                return
            if await self._committer.write_one(write):
                self._end_copy(id_, TRANSITIONS[Phase.OPEN, event])
                await self._models.retire()
                return
        raise _contended(id_)

    async def _close(self, id_: str, phase: Phase) -> Write:
        """Return the write that ends the session; one that is a sequence may be asked again for its last reply."""
        if phase is Phase.CLOSED and id_.startswith(SEQUENCE):
            entry, record = await self._open_record(id_)
            return closing(record.summary, entry.revision, phase, self._store_clock.now(), record.body)
        stored, summary = await self._open_summary(id_)
        return closing(summary, stored.revision, phase, self._store_clock.now())

    async def moment(self, id_: str) -> tuple[SessionState, SessionRequest]:
        """Return where the session is, and what it was opened with."""
        _, record = await self._open_record(id_)
        model = self._model_of(record.summary)
        return SessionState(model, record.summary.position, record.body.state, record.body.seed), request_of(record)

    async def checkpoint(self, id_: str, name: str | None) -> CheckpointInfo:
        """Keep where the session is; the oldest of more than eight is dropped."""
        if name is not None:
            check_checkpoint(name)
        made: list[CheckpointInfo] = []

        async def keep(record: Record) -> Attachments:
            position = record.summary.position
            made.append(CheckpointInfo(name or f"{position}-{secrets.token_hex(3)}", position))
            return _keep(record, made[-1].checkpoint)

        await self._change(id_, keep)
        return made[-1]

    async def rewind(self, id_: str, name: str) -> SessionInfo:
        """Take the session back. What a copy anywhere still runs from where it was will not be stored."""
        key = key_of(id_)

        async def rewind(record: Record) -> Attachments:
            # Read behind the record: it is of this revision, or the write will not be made. An id and a checkpoint's
            # name may be given again, to another state.
            content = await self._committer.ask(lambda store: store.read_attachment(key, name))
            if content is None or name not in {kept.name for kept in record.summary.checkpoints}:
                raise unknown_checkpoint(id_, name)
            with self._committer.meeting_damage():
                kept = decode_checkpoint(key, name, content)
            record.summary.position, record.summary.used_at = kept.position, self._store_clock.now()
            record.summary.ClearField("chart")
            record.body.state = kept.state
            record.body.ClearField("last")
            return {}

        return self._info((await self._change(id_, rewind)).summary)

    async def upgrade(self, id_: str, version: str | None) -> SessionInfo:
        """Move the session to another version of its model, which must keep the same state."""

        async def upgrade(record: Record) -> Attachments:
            model = self._models.get(record.summary.model, version)
            check_layout(record.body.layout, model)
            _place(record, model)
            return {}

        record = await self._change(id_, upgrade)
        await self._models.retire()
        return self._info(record.summary)

    # ---- the end

    async def expire(self) -> None:
        """End the sessions whose time is over and forget endings that are old, whichever replica had them last."""
        await self._read_clock()
        for _ in range(MAX_LOOKS):
            now = self._store_clock.now()
            keys = await self._committer.ask(lambda store: store.due(now, MAX_LOOKED_AT))  # noqa: B023 - asked before it changes
            if not keys:
                return
            stored = await self._committer.ask(lambda store: store.read_summaries(keys))  # noqa: B023 - likewise
            over: list[tuple[Write, Summary, Phase]] = []
            for key, each in zip(keys, stored, strict=True):
                summary = None if each is None else self._readable(key, each)
                if each is None or summary is None:
                    await self._postpone(key, None if each is None else now + REMEMBERED_SECONDS)
                elif (phase := await self._look_at(key, each, summary, now)) is not None:
                    over.append((expiring(summary, each.revision, phase, now), summary, phase))
            written = await self._committer.write([write for write, _, _ in over]) if over else []
            for (_, summary, phase), made in zip(over, written, strict=True):
                if made is True:  # otherwise a step may have come in time: the session goes on
                    self._has_ended(summary, phase)
            if any(isinstance(made, TidegateError) for made in written):
                return  # a full store would be asked the same again and again

    async def _look_at(self, key: SessionKey, stored: Stored, summary: Summary, now: float) -> Phase | None:
        """Return how a session ends now, if it does; put back what came up early, forget what ended long ago."""
        if (again := self._used_until(stored, summary)) is not None:
            await self._postpone(key, now + max(again, 1.0))
            return None
        look = look_at(summary, now, self._seconds_since(summary))
        match look.verdict:
            case Verdict.EXPIRE:
                return overdue(summary, now)
            case Verdict.FORGET:
                await self._committer.ask(lambda store: store.delete(key, stored.revision))
                return None
            case Verdict.WATCH:
                self._endings.note(summary, self._clock.monotonic())
        await self._postpone(key, look.again)
        return None

    async def _postpone(self, key: SessionKey, at: float | None) -> None:
        await self._committer.ask(lambda store: store.postpone(key, at))

    # ---- inside

    async def _open(self, request: SessionRequest, model: LoadedModel, moment: SessionState | None) -> SessionInfo:
        ttl, idle = lifetimes(request, self._settings)
        seed = request.seed if request.seed is not None else secrets.randbits(64)
        key, now = key_of(request.id or new_durable()), self._store_clock.now()
        record = new_record(key, request, created_at=now, seed=seed, ttl=ttl, idle=idle)
        if moment is not None:
            record.summary.position = moment.position
            record.body.state, record.body.seed, record.body.forked_from = moment.state, moment.seed, moment.source
        _place(record, model)
        for _ in range(_TRIES):
            before = await self._committer.read(key) if request.id is not None else None
            if before is not None and (existing := self._existing(before, record)) is not None:
                return self._info(existing)
            write = _first(before, record)
            if await self._committer.write_one(write):
                self._keep_copy(model, write, record)
                return self._info(record.summary)
        raise _contended(key.id)

    def _keep_copy(self, model: LoadedModel, write: Write, record: Record) -> None:
        """Hold a copy of a session just opened, for its first step; where there is no room it is brought then."""
        id_ = write.key.id
        if self._models.find_loaded(record.summary.model, record.summary.version) is not model:
            return  # it was unloaded while the record was written: whoever steps is told so
        held = self._cache.find(id_)
        if held is not None:
            if held.is_busy or held.is_reading:
                self._cache.distrust(id_)
                return
            self._drop(held)  # of a session of that id that ended elsewhere, perhaps on another model
        try:
            self._copy(model, _entry(write), record)
        except OverloadedError:
            log.debug("no room for a copy of session %s", id_)

    def _existing(self, entry: Entry, wanted: Record) -> Summary | None:
        """Return the open session that is stored where ``wanted`` should be, None where it has ended.

        Raises:
            AlreadyExistsError: It was opened with another request.
        """
        key = key_of(wanted.summary.id)
        summary = decode_summary(key, entry)
        if self._phase(entry, summary) is not Phase.OPEN:
            return None
        body = decode_record(key, entry).body
        if (body.request, body.forked_from) != (wanted.body.request, wanted.body.forked_from):
            raise AlreadyExistsError(f"session {key.id} was opened with another request", reason="SESSION_EXISTS")
        return summary

    async def _open_record(self, id_: str) -> tuple[Entry, Record]:
        """Return the record of a session that runs; one whose time is over is ended now."""
        key = key_of(id_)
        entry = await self._running(key, lambda: self._committer.read(key))
        with self._committer.meeting_damage():
            return entry, decode_record(key, entry)

    async def _open_summary(self, id_: str) -> tuple[Stored, Summary]:
        """As `_open_record`, without the body."""
        key = key_of(id_)
        stored = await self._running(key, lambda: self._committer.read_summary(key))
        return stored, decode_summary(key, stored)

    async def _running(self, key: SessionKey, read: Callable[[], Awaitable[Kept | None]]) -> Kept:
        """Return what is stored of a session that runs; one whose time is over is ended now.

        Raises:
            NotFoundError, SessionEndedError: It does not run.
        """
        for _ in range(_TRIES):
            stored = await read()
            if stored is None:
                self._ephemeral.check_not_ended(key.id)
                raise NotFoundError(f"unknown session {key.id}", reason="UNKNOWN_SESSION")
            with self._committer.meeting_damage():
                summary = decode_summary(key, stored)
            now = self._store_clock.now()
            phase = self._phase(stored, summary)
            if phase is Phase.OPEN:
                return stored
            since = self._seconds_since(summary)
            if summary.ended or (since is not None and since < REMEMBERED_SECONDS):
                raise ended(key.id, phase)
            if await self._committer.write_one(expiring(summary, stored.revision, phase, now)):
                self._has_ended(summary, phase)
                raise ended(key.id, phase)
        raise _contended(key.id)

    async def _change(self, id_: str, change: Callable[[Record], Awaitable[Attachments]]) -> Record:
        """Change an open session's record, as often as it takes for nobody to come between; return what it is then."""
        for _ in range(_TRIES):
            entry, record = await self._open_record(id_)
            attachments, due = await change(record), None
            if record.summary.ended:  # by a clock that was wrong
                record.summary.ClearField("ended")
                record.summary.ClearField("ended_at")
                due = Due(end_of(record.summary))
            revision = new_revision()
            summary, body = encode_record(record, revision)
            write = Write(key_of(id_), entry.revision, revision, summary, body, due, attachments=attachments)
            if await self._committer.write_one(write):
                self._follow(write, record)
                return record
        raise _contended(id_)

    def _follow(self, write: Write, record: Record) -> None:
        """Bring the copy here, if any, in step with a record that was just changed."""
        session = self._cache.find(write.key.id)
        if session is None:
            return
        if session.is_busy or session.is_reading:
            session.is_fresh = False
        elif is_of(record, session):
            copy_in(session, _entry(write), record)
        else:
            self._drop(session)

    def _has_ended(self, summary: Summary, phase: Phase) -> None:
        """The session was ended here: so is the copy, if any."""
        self._endings.note(summary, self._clock.monotonic())
        self._end_copy(summary.id, phase)

    def _end_copy(self, id_: str, phase: Phase) -> None:
        session = self._cache.find(id_)
        if session is not None:
            session.phase = phase
            self._drop(session)

    def _phase(self, stored: Stored | Entry, summary: Summary) -> Phase:
        """Return how the session ended, or should have by now; OPEN where it runs."""
        now = self._store_clock.now()
        return ended_phase(summary, now) or self._overdue(stored, summary, now) or Phase.OPEN

    def _overdue(self, stored: Stored | Entry, summary: Summary, now: float) -> Phase | None:
        """As `expiry.overdue`; but what was used here in time is used, whatever a clock says that was set meanwhile."""
        return None if self._used_until(stored, summary) is not None else overdue(summary, now)

    def _used_until(self, stored: Stored | Entry, summary: Summary) -> float | None:
        """Return the seconds that a session has left which was used here in time, by this process's own seconds; None
        of one that was not, or that has no end.
        """
        now, session = self._clock.monotonic(), self._copy_of(stored, summary)
        if session is None or session.overdue(now) is not None or (end := session.expires_at) is None:
            return None
        return end - now

    def _seconds_since(self, summary: Summary) -> float | None:
        """Return how long ago this process saw the session end, if it did."""
        return self._endings.seconds_since(summary, self._clock.monotonic())

    def _copy_of(self, stored: Stored | Entry, summary: Summary) -> DurableSession | None:
        """Return the copy here of just that record, if any."""
        session = self._cache.find(summary.id)
        return session if session is not None and session.revision == stored.revision else None

    def _readable(self, key: SessionKey, stored: Stored) -> Summary | None:
        """Return the summary; None of one that is damaged, which is logged and holds up nobody else."""
        with suppress(InternalError, FailedPreconditionError), self._committer.meeting_damage():
            return decode_summary(key, stored)
        return None

    def _model_of(self, summary: Summary) -> LoadedModel:
        model = self._models.find_loaded(summary.model, summary.version)
        if model is None or model.bundle.sha256 != summary.model_sha256:
            raise FailedPreconditionError(
                f"session {summary.id} runs on {summary.model}/{summary.version}, which is not here with that content; "
                "the session is kept",
                reason="MODEL_GONE",
            )
        return model

    def _info(self, summary: Summary) -> SessionInfo:
        model = self._models.find_loaded(summary.model, summary.version)
        state_bytes = summary.state_bytes if model is None else model.manifest.state_bytes
        return info_of(summary, state_bytes, end_of(summary))

    async def _read_clock(self) -> None:
        self._store_clock.set(await self._committer.ask(lambda store: store.time()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _place(record: Record, model: LoadedModel) -> None:
    """Put the record's session on a model."""
    summary = record.summary
    summary.model, summary.version = model.manifest.name, model.manifest.version
    summary.model_sha256, summary.state_bytes = model.bundle.sha256, model.manifest.state_bytes
    summary.ClearField("chart")
    record.body.layout = model.layout


def _first(before: Entry | None, record: Record) -> Write:
    """Return the write of a new session, in the place of one that has ended, if any."""
    key, expected, gone = key_of(record.summary.id), None, {}
    if before is not None:
        expected, gone = before.revision, {kept.name: None for kept in decode_summary(key, before).checkpoints}
    revision = new_revision()
    summary, body = encode_record(record, revision)
    return Write(key, expected, revision, summary, body, Due(end_of(record.summary)), attachments=gone)


def _entry(write: Write) -> Entry:
    assert write.body is not None
    return Entry(write.revision, write.summary, write.body)


def _keep(record: Record, name: str) -> Attachments:
    """Retain where the session is under ``name``; return what is stored beside the record for it."""
    summary = record.summary
    kept = [(it.name, it.position) for it in summary.checkpoints if it.name != name] + [(name, summary.position)]
    dropped, kept = kept[:-MAX_CHECKPOINTS], kept[-MAX_CHECKPOINTS:]
    del summary.checkpoints[:]
    for each, position in kept:
        summary.checkpoints.add(name=each, position=position)
    return {**{each: None for each, _ in dropped}, name: encode_checkpoint(key_of(summary.id), name, record)}


def _contended(id_: str) -> UnavailableError:
    return UnavailableError(
        f"session {id_} is being changed by others all the time", reason="CONTENDED", retry_after=0.1
    )


def _unless_done(tell: Callable[[Any], None], future: asyncio.Future[DurableSession], what: Any) -> None:
    if not future.done():
        tell(what)
