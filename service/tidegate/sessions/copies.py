"""Between the engines and the committer: stores what durable sessions' chunks did, and reads their records again.

Knows copies of sessions and their records; not who may open, find or close them (`durable`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tidegate.engine.batch import Outcome, Step
from tidegate.engine.engine import Engine
from tidegate.engine.lifecycle import Phase
from tidegate.engine.session import DurableSession, ended
from tidegate.errors import InternalError, NotFoundError, TidegateError, UnavailableError
from tidegate.faults import conceal
from tidegate.sessions.cache import SessionCache
from tidegate.sessions.committer import GroupCommitter
from tidegate.sessions.expiry import ended_phase, ending_step
from tidegate.sessions.records import (
    KeptChart,
    Record,
    decode_record,
    encode_head,
    encode_step,
    kept_chart,
    last_reply,
    new_revisions,
)
from tidegate.sessions.stores.store import Due, Entry, Write

log = logging.getLogger(__name__)


class DurableCopies:
    """Commits and refreshes the copies in ``cache``.

    Args:
        committer: Where records are.
        cache: The copies.
        now: Seconds since the epoch, by the store's clock.
    """

    def __init__(self, committer: GroupCommitter, cache: SessionCache, now: Callable[[], float]) -> None:
        self._committer = committer
        self._cache = cache
        self._now = now

    async def commit(self, steps: Sequence[Step]) -> list[Outcome]:
        """Store steps, each by compare-and-set on the revision that its session's copy was made from.

        One that cannot be encoded fails alone.
        """
        now = self._now()
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
            outcomes[place] = _outcome(write, written)
            if written is True:
                steps[place].session.has_expired = False
                if steps[place].work.ends:
                    self._leave(steps[place].session)
        return outcomes

    async def refresh(self, session: DurableSession) -> None:
        """Read the session's record into its copy and let its work go on; or fail that work, saying why."""
        engine: Engine = session.model.engine
        try:
            entry = await self._committer.read(session.key)
            self._take_in(session, entry)
        except Exception as error:  # noqa: BLE001 - told to the session's work
            engine.resume(session, conceal(error, f"the record of session {session.id} could not be read"))
        else:
            engine.resume(session)

    def _take_in(self, session: DurableSession, entry: Entry | None) -> None:
        """Make the copy what the record says; raises why its work cannot go on here."""
        session.check_open()
        if entry is None:
            self._leave(session)
            session.phase = Phase.CLOSED
            # Forgotten an hour after its end, or lost with the store: nobody here can tell.
            raise NotFoundError(f"unknown session {session.id}", reason="UNKNOWN_SESSION")
        with self._committer.meeting_damage():
            record = decode_record(session.key, entry)
        phase = ended_phase(record.summary, self._now())
        if phase is not None:
            self._leave(session)
            session.phase = phase
            raise ended(session.id, phase)
        if not is_of(record, session):
            self._leave(session)
            # Whoever asks again finds the session with its new model; what is waiting was encoded for the old one.
            session.phase = Phase.EVICTED
            summary = record.summary
            raise UnavailableError(
                f"session {session.id} was upgraded to {summary.model}/{summary.version} just now: send it again",
                reason="SESSION_MOVED",
                retry_after=0.0,
            )
        copy_in(session, entry, record)
        try:
            session.last = last_reply(record)
        except ValueError as error:
            raise _does_not_fit(session, error) from error

    def _leave(self, session: DurableSession) -> None:
        self._cache.drop(session)


def copy_in(session: DurableSession, entry: Entry, record: Record) -> None:
    """Make the copy what the record says, but for the last reply: who repeats has the record read again, and then it is
    looked at. The copy's model's engine must hold it.
    """
    summary, body = record
    try:
        session.model.engine.load(session, body.state)
    except ValueError as error:
        raise _does_not_fit(session, error) from error
    session.position = summary.position
    session.last = None
    if (kept := kept_chart(summary)) is not None:
        session.block_sum, session.chart = kept
    session.seed = body.seed
    session.revision = entry.revision
    session.head = encode_head(record)
    session.has_expired = bool(summary.ended)
    session.is_fresh = True


def _does_not_fit(session: DurableSession, error: ValueError) -> InternalError:
    log.error("the record of session %s does not fit its model: %s", session.id, error)
    return InternalError(f"session {session.id} cannot be read: its record is damaged", reason="STORE_CORRUPT")


def is_of(record: Record, session: DurableSession) -> bool:
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
        chart = KeptChart(scored.block_sum, scored.chart)
    if step.work.ends:
        return ending_step(session, step.position, step.last, revision, now)
    summary, body = encode_step(session.head, revision, step.position, now, step.state, step.last, chart)
    due = Due(now) if session.has_expired else None  # whoever looks puts it where it belongs
    return Write(session.key, session.revision, revision, summary, body, due)


def _outcome(write: Write, written: bool | TidegateError) -> Outcome:
    if isinstance(written, TidegateError):
        return written
    return write.revision if written else None
