"""Copies of durable sessions: made of a record, stored after each tick, read again once the record has moved on.

The truth is the record in the store; a copy that fell behind finds out at its next commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tidegate.clock import Clock
from tidegate.engine.lifecycle import Phase
from tidegate.engine.model import LoadedModel
from tidegate.engine.request import Outcome, Step
from tidegate.engine.session import DurableSession, ended
from tidegate.errors import (
    InternalError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    TidegateError,
    UnavailableError,
)
from tidegate.faults import conceal
from tidegate.sessions.committer import GroupCommitter
from tidegate.sessions.expiry import StoreClock, ended_phase, ending_step
from tidegate.sessions.ids import key_of
from tidegate.sessions.records import (
    Record,
    StoredChart,
    Summary,
    decode_chart,
    decode_record,
    encode_head,
    encode_step,
    last_reply,
    new_revisions,
    request_of,
)
from tidegate.sessions.residents import Residents
from tidegate.sessions.stores.store import Due, Entry, Stored, Write
from tidegate.wire.settings import decode_inputs

log = logging.getLogger(__name__)


class DurableCopies:
    """The copies among the residents, in step with their records.

    Args:
        committer: Where records are.
        residents: Where copies are.
        clock: Of this process.
        store_clock: Of the store.
        make_room: Makes room for one more session on a model, or raises OverloadedError.
    """

    def __init__(
        self,
        committer: GroupCommitter,
        residents: Residents,
        clock: Clock,
        store_clock: StoreClock,
        make_room: Callable[[LoadedModel], None],
    ) -> None:
        self._committer = committer
        self._residents = residents
        self._clock = clock
        self._store_clock = store_clock
        self._make_room = make_room

    # ---- between the engines and the store

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        """Store steps, each by compare-and-set on the revision that its session's copy was made from.

        One that cannot be encoded fails alone.
        """
        now = self._store_clock.now()
        outcomes: list[Outcome] = [None] * len(steps)
        writes: list[Write] = []
        places: list[int] = []
        for place, (step, revision) in enumerate(zip(steps, new_revisions(len(steps)), strict=True)):
            try:
                writes.append(_write(step, revision, now))
                places.append(place)
            except Exception as error:  # noqa: BLE001 - told to the step that it concerns
                outcomes[place] = conceal(error, f"a step of session {step.session.id} could not be encoded")
        results = await self._committer.write(writes) if writes else []
        for place, write, written in zip(places, writes, results, strict=True):
            outcomes[place] = written if isinstance(written, TidegateError) else write.revision if written else None
            if written is True:
                steps[place].session.has_expired = False
                if steps[place].request.ends:
                    self._residents.remove_copy(steps[place].session)
        return outcomes

    async def refresh(self, session: DurableSession) -> None:
        """Read the session's record into its copy and let its work go on; or fail that work, saying why."""
        engine = session.model.engine
        try:
            entry = await self._committer.read(session.key)
            self._update(session, entry)
        except Exception as error:  # noqa: BLE001 - told to the session's work
            engine.resume(session, conceal(error, f"the record of session {session.id} could not be read"))
        else:
            engine.resume(session)

    def _update(self, session: DurableSession, entry: Entry | None) -> None:
        """Make the copy what the record says; raises why its work cannot go on here."""
        session.check_open()
        if entry is None:
            self._residents.remove_copy(session)
            session.phase = Phase.CLOSED
            # Forgotten an hour after its end, or lost with the store: nobody here can tell.
            raise NotFoundError(f"unknown session {session.id}", reason="UNKNOWN_SESSION")
        with self._committer.counting_damage():
            record = decode_record(session.key, entry)
        phase = ended_phase(record.summary, self._store_clock.now())
        if phase is not None:
            self._residents.remove_copy(session)
            session.phase = phase
            raise ended(session.id, phase)
        if not _is_of(record, session):
            self._residents.remove_copy(session)
            # Whoever asks again finds the session with its new model; what is waiting was encoded for the old one.
            session.phase = Phase.EVICTED
            summary = record.summary
            raise UnavailableError(
                f"session {session.id} was upgraded to {summary.model}/{summary.version} just now: send it again",
                reason="SESSION_MOVED",
                retry_after=0.0,
            )
        _copy_in(session, entry, record)
        try:
            session.last = last_reply(record)
        except ValueError as error:
            raise _does_not_fit(session, error) from error

    # ---- come and go

    def find(self, id_: str) -> DurableSession | None:
        """Return the copy, or None; one whose time seems over leaves, and is to be made of its record again."""
        session = self._residents.find_copy(id_)
        if session is not None and session.overdue(self._clock.monotonic()) is not None:
            self._residents.drop_copy(session)
            return None
        return session

    def load(self, model: LoadedModel, entry: Entry, record: Record) -> DurableSession:
        """Return the copy of a record that was just read, a new one where none is here.

        Raises:
            OverloadedError: There is no room for it.
            UnavailableError: A copy on another model is here, and work of it is in hand.
        """
        summary = record.summary
        session = self._residents.find_copy(summary.id)
        if session is not None and not _is_of(record, session):
            if session.is_busy or session.is_reading:
                raise UnavailableError(
                    f"session {summary.id} was put on {summary.model}/{summary.version} just now: send it again",
                    reason="SESSION_MOVED",
                    retry_after=0.0,
                )
            self._residents.drop_copy(session)
            session = None
        return self._make(model, entry, record) if session is None else session

    def load_new(self, model: LoadedModel, entry: Entry, record: Record) -> None:
        """Make a copy of a session that was just opened, for its first step; where there is no room it is made then."""
        session = self._residents.find_copy(record.summary.id)
        if session is not None:
            if session.is_busy or session.is_reading:
                session.is_fresh = False
                return
            self._residents.drop_copy(session)  # of a session of that id that ended elsewhere, perhaps on another model
        try:
            self._make(model, entry, record)
        except OverloadedError:
            log.debug("no room for a copy of session %s", record.summary.id)

    def _make(self, model: LoadedModel, entry: Entry, record: Record) -> DurableSession:
        self._make_room(model)
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
        model.engine.allocate_slot(session)
        try:
            _copy_in(session, entry, record)
        except TidegateError:
            model.engine.release(session)
            raise
        self._residents.add(session)
        return session

    def follow(self, entry: Entry, record: Record) -> None:
        """Bring the copy here, if any, in step with a record that was just changed."""
        session = self._residents.find_copy(record.summary.id)
        if session is None:
            return
        if session.is_busy or session.is_reading:
            session.is_fresh = False
        elif _is_of(record, session):
            _copy_in(session, entry, record)
        else:
            self._residents.drop_copy(session)

    def end(self, id_: str, phase: Phase) -> None:
        """The session was ended here: so is the copy, if any."""
        session = self._residents.find_copy(id_)
        if session is not None:
            session.phase = phase
            self._residents.drop_copy(session)

    def seconds_left(self, stored: Stored | Entry, summary: Summary) -> float | None:
        """Return the seconds that a session has left which was used here in time, by this process's own seconds,
        whatever a clock says that was set meanwhile; None of one that was not, or that has no end.
        """
        now, session = self._clock.monotonic(), self._residents.find_copy(summary.id)
        if session is None or session.revision != stored.revision or session.overdue(now) is not None:
            return None
        return None if session.expires_at is None else session.expires_at - now


def _copy_in(session: DurableSession, entry: Entry, record: Record) -> None:
    """Make the copy what the record says, but for the last reply: who repeats has the record read again, and then it is
    looked at. The copy's model's engine must hold it.
    """
    summary, body = record
    try:
        session.model.engine.load(session, body.state)
        session.settings = session.model.settings.encode(decode_inputs(body.request.inputs))
    except (ValueError, InvalidInputError) as error:
        raise _does_not_fit(session, error) from error
    session.position = summary.position
    session.last = None
    if (kept := decode_chart(summary)) is not None:
        session.block_sum, session.chart = kept
    session.seed = body.seed
    session.revision = entry.revision
    session.head = encode_head(record)
    session.has_expired = bool(summary.ended)
    session.is_fresh = True


def _does_not_fit(session: DurableSession, error: Exception) -> InternalError:
    log.error("the record of session %s does not fit its model: %s", session.id, error)
    return InternalError(f"session {session.id} cannot be read: its record is damaged", reason="STORE_CORRUPT")


def _is_of(record: Record, session: DurableSession) -> bool:
    """Whether the record's session runs on the copy's model, version and content."""
    bundle = session.model.bundle
    summary = record.summary
    return (summary.model, summary.version, summary.model_sha256) == (
        bundle.manifest.name,
        bundle.manifest.version,
        bundle.sha256,
    )


def _write(step: Step, revision: bytes, now: float) -> Write:
    session = step.session
    scored, chart = step.scored, None
    if scored is not None and session.request.drift:
        chart = StoredChart(scored.block_sums[step.row], scored.charts.get(step.row, session.chart))
    if step.request.ends:
        return ending_step(session, step.position, step.last, revision, now)
    summary, body = encode_step(session.head, revision, step.position, now, step.state, step.last, chart)
    due = Due(now) if session.has_expired else None  # whoever looks puts it where it belongs
    return Write(session.key, session.revision, revision, summary, body, due)
