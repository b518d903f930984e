"""Records of durable sessions, as the store has them: read, judged, and changed by compare-and-set.

Opening, closing, branching and expiry act on the record; only steps go through a copy. What needs no state reads the
record's summary only. Knows nothing of models: who does is `manager`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from tidegate.api import CheckpointInfo, SessionKey
from tidegate.clock import Clock
from tidegate.engine.lifecycle import Phase
from tidegate.engine.session import ended
from tidegate.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    SessionEndedError,
    TidegateError,
    UnavailableError,
    known_names,
    shown,
    without_traceback,
)
from tidegate.limits import MAX_CHECKPOINTS, MAX_LOOKED_AT, MAX_LOOKS, MAX_SEEN_ENDINGS
from tidegate.sessions.committer import GroupCommitter
from tidegate.sessions.copies import DurableCopies
from tidegate.sessions.endings import REMEMBERED_SECONDS, Endings, Remembered
from tidegate.sessions.expiry import (
    ExpiryVerdict,
    StoreClock,
    closing_write,
    decide_expiry,
    end_of,
    ended_phase,
    expiry_write,
    overdue,
)
from tidegate.sessions.ids import DEFAULT_TENANT, SEQUENCE, key_of
from tidegate.sessions.records import (
    Record,
    Summary,
    decode_checkpoint,
    decode_record,
    decode_summary,
    encode_checkpoint,
    encode_record,
    last_reply,
    new_revision,
)
from tidegate.sessions.stores.store import Due, Entry, Stored, Write

_TRIES = 16

Attachments = dict[str, bytes | None]
Kept = TypeVar("Kept", Stored, Entry)


class DurableRecords:
    """The store's records, and what this process knows of them.

    Args:
        committer: All access to the store.
        copies: Those here follow what is done to their records.
        find_ending: How an ephemeral session of an id ended here, for who asks for one that is not stored.
        clock: Of this process.
        store_clock: Seconds since the epoch; read from the store at the start and at each sweep.
    """

    def __init__(
        self,
        committer: GroupCommitter,
        copies: DurableCopies,
        find_ending: Callable[[str, float], Phase | None],
        clock: Clock,
        store_clock: StoreClock,
    ) -> None:
        self._committer = committer
        self._copies = copies
        self._find_ending = find_ending
        self._clock = clock
        self._store_clock = store_clock
        # Sessions that this process saw end, by its own clock, which no other clock can mislead. What it ended itself
        # and finds running again was revived by a replica whose clock disagrees: ending it again at once would take
        # turns with that replica for ever. What it ended, it forgets only after it has itself seen an hour pass.
        self._seen_endings: Endings[tuple[SessionKey, float], None] = Endings(2 * REMEMBERED_SECONDS, MAX_SEEN_ENDINGS)

    def now(self) -> float:
        """Return seconds since the epoch, by the store's clock."""
        return self._store_clock.now()

    async def read_clock(self) -> None:
        """Go by the store's clock from now on; UnavailableError."""
        self._store_clock.set(await self._committer.ask(lambda store: store.time()))

    # ---- read

    async def read_open(self, id_: str) -> tuple[Entry, Record]:
        """Return the record of a session that runs; one whose time is over is ended now.

        Raises:
            NotFoundError, SessionEndedError: It does not run.
        """
        key = key_of(id_)
        entry = await self._read_running(key, lambda: self._committer.read(key))
        with self._committer.counting_damage():
            return entry, decode_record(key, entry)

    async def read_open_summary(self, id_: str) -> tuple[Stored, Summary]:
        """As `read_open`, without the body."""
        key = key_of(id_)
        stored = await self._read_running(key, lambda: self._committer.read_summary(key))
        return stored, decode_summary(key, stored)

    async def read_open_summaries(self, ids: Sequence[str]) -> list[Summary | TidegateError]:
        """Return the summary of each session that runs, or why there is none, by one question for all."""
        keys = list(map(key_of, ids))
        stored = await self._committer.read_summaries(keys)
        return [self._summary_or_error(key, each) for key, each in zip(keys, stored, strict=True)]

    async def page(self, limit: int, after: str) -> list[Summary]:
        """Return up to ``limit`` sessions that run with ids above ``after``, by rising id."""
        summaries: list[Summary] = []
        while missing := min(limit - len(summaries), MAX_LOOKED_AT):
            found = await self._committer.ask(lambda store: store.page(DEFAULT_TENANT, missing, after))  # noqa: B023 - asked before they change
            for id_, stored in found:
                summary = self._decode_or_none(key_of(id_), stored)
                if summary is not None and self._phase(stored, summary) is Phase.OPEN:
                    summaries.append(summary)
            if len(found) < missing:
                break
            after = found[-1][0]
        return summaries

    async def check_free(self, id_: str) -> None:
        """Raise AlreadyExistsError where a session of that id runs."""
        key = key_of(id_)
        stored = await self._committer.read_summary(key)
        if stored is not None and self._phase(stored, decode_summary(key, stored)) is Phase.OPEN:
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

    # ---- change

    async def create(self, record: Record, *, may_exist: bool) -> Entry | Summary:
        """Store the record of a new session; return it as stored, or the summary of the session that an equal request
        opened before.

        Raises:
            AlreadyExistsError: One of that id runs, of another request.
        """
        key = key_of(record.summary.id)
        for _ in range(_TRIES):
            before = await self._committer.read(key) if may_exist else None
            if before is not None and (existing := self._find_existing(before, record)) is not None:
                return existing
            write = _first_write(before, record)
            if await self._committer.write_one(write):
                return _entry(write)
        raise _contended(key.id)

    async def change(self, id_: str, change: Callable[[Record], Awaitable[Attachments]]) -> Record:
        """Change the record of a session that runs, as often as it takes for nobody to come between; return what it is
        then.
        """
        for _ in range(_TRIES):
            entry, record = await self.read_open(id_)
            attachments, due = await change(record), None
            if record.summary.ended:  # by a clock that was wrong
                record.summary.ClearField("ended")
                record.summary.ClearField("ended_at")
                due = Due(end_of(record.summary))
            revision = new_revision()
            summary, body = encode_record(record, revision)
            write = Write(key_of(id_), entry.revision, revision, summary, body, due, attachments=attachments)
            if await self._committer.write_one(write):
                self._copies.follow(_entry(write), record)
                return record
        raise _contended(id_)

    async def checkpoint(self, id_: str, new_name: Callable[[int], str]) -> CheckpointInfo:
        """Retain where the session is, under a name made of its position; the oldest of more than eight is dropped."""

        async def keep(record: Record) -> Attachments:
            summary = record.summary
            name = new_name(summary.position)
            kept = [(it.name, it.position) for it in summary.checkpoints if it.name != name]
            kept.append((name, summary.position))
            dropped, kept = kept[:-MAX_CHECKPOINTS], kept[-MAX_CHECKPOINTS:]
            del summary.checkpoints[:]
            for each, position in kept:
                summary.checkpoints.add(name=each, position=position)
            return {**{each: None for each, _ in dropped}, name: encode_checkpoint(key_of(summary.id), name, record)}

        newest = (await self.change(id_, keep)).summary.checkpoints[-1]
        return CheckpointInfo(newest.name, newest.position)

    async def rewind(self, id_: str, name: str) -> Summary:
        """Take the session back. What a copy anywhere still runs from where it was will not be stored."""
        key = key_of(id_)

        async def rewind(record: Record) -> Attachments:
            # Read behind the record: it is of this revision, or the write will not be made. An id and a checkpoint's
            # name may be given again, to another state.
            content = await self._committer.ask(lambda store: store.read_attachment(key, name))
            names = [kept.name for kept in record.summary.checkpoints]
            if content is None or name not in names:
                raise unknown_checkpoint(id_, name, names)
            with self._committer.counting_damage():
                kept = decode_checkpoint(key, name, content)
            record.summary.position, record.summary.used_at = kept.position, self.now()
            record.summary.ClearField("chart")
            record.body.state = kept.state
            record.body.ClearField("last")
            return {}

        return (await self.change(id_, rewind)).summary

    async def end(self, id_: str, phase: Phase) -> None:
        """End the session for good; SessionEndedError where it ended before."""
        for _ in range(_TRIES):
            if phase is Phase.CLOSED and id_.startswith(SEQUENCE):  # it may be asked again for its last reply
                entry, record = await self.read_open(id_)
                write = closing_write(record.summary, entry.revision, phase, self.now(), record.body)
            else:
                stored, summary = await self.read_open_summary(id_)
                write = closing_write(summary, stored.revision, phase, self.now())
            if await self._committer.write_one(write):
                self._copies.end(id_, phase)
                return
        raise _contended(id_)

    async def expire(self) -> None:
        """End the sessions whose time is over and forget endings that are old, whichever replica had them last."""
        await self.read_clock()
        for _ in range(MAX_LOOKS):
            now = self.now()
            keys = await self._committer.ask(lambda store: store.due(now, MAX_LOOKED_AT))  # noqa: B023 - asked before it changes
            if not keys:
                return
            stored = await self._committer.ask(lambda store: store.read_summaries(keys))  # noqa: B023 - likewise
            over: list[tuple[Write, Summary, Phase]] = []
            for key, each in zip(keys, stored, strict=True):
                summary = None if each is None else self._decode_or_none(key, each)
                if each is None or summary is None:
                    await self._postpone(key, None if each is None else now + REMEMBERED_SECONDS)
                elif (phase := await self._look_at(key, each, summary, now)) is not None:
                    over.append((expiry_write(summary, each.revision, phase, now), summary, phase))
            written = await self._committer.write([write for write, _, _ in over]) if over else []
            for (_, summary, phase), made in zip(over, written, strict=True):
                if made is True:  # otherwise a step may have come in time: the session goes on
                    self._on_expired(summary, phase)
            if any(isinstance(made, TidegateError) for made in written):
                return  # a full store would be asked the same again and again

    # ---- inside

    async def _read_running(self, key: SessionKey, read: Callable[[], Awaitable[Kept | None]]) -> Kept:
        """Return what is stored of a session that runs; one whose time is over is ended now.

        Raises:
            NotFoundError, SessionEndedError: It does not run.
        """
        for _ in range(_TRIES):
            stored = await read()
            if stored is None:
                raise self._missing(key.id)
            with self._committer.counting_damage():
                summary = decode_summary(key, stored)
            phase = self._phase(stored, summary)
            if phase is Phase.OPEN:
                return stored
            since = self._seconds_since(summary)
            if summary.ended or (since is not None and since < REMEMBERED_SECONDS):
                raise ended(key.id, phase)
            if await self._committer.write_one(expiry_write(summary, stored.revision, phase, self.now())):
                self._on_expired(summary, phase)
                raise ended(key.id, phase)
        raise _contended(key.id)

    def _summary_or_error(self, key: SessionKey, stored: Stored | None) -> Summary | TidegateError:
        if stored is None:
            return self._missing(key.id)
        try:
            with self._committer.counting_damage():
                summary = decode_summary(key, stored)
        except TidegateError as error:
            return without_traceback(error)
        phase = self._phase(stored, summary)
        return summary if phase is Phase.OPEN else ended(key.id, phase)

    def _decode_or_none(self, key: SessionKey, stored: Stored) -> Summary | None:
        """Return the summary; None of one that is damaged, which is logged and holds up nobody else."""
        with contextlib.suppress(InternalError, FailedPreconditionError), self._committer.counting_damage():
            return decode_summary(key, stored)
        return None

    def _missing(self, id_: str) -> NotFoundError | SessionEndedError:
        """Return the error for a session that is not stored: one that was ephemeral may have ended here."""
        phase = self._find_ending(id_, self._clock.monotonic())
        if phase is not None:
            return ended(id_, phase)
        return NotFoundError(f"unknown session {id_}", reason="UNKNOWN_SESSION")

    def _find_existing(self, entry: Entry, wanted: Record) -> Summary | None:
        """Return the session that runs where ``wanted`` should be, None where it has ended.

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

    def _phase(self, stored: Stored | Entry, summary: Summary) -> Phase:
        """Return how the session ended, or should have by now; OPEN where it runs."""
        now = self.now()
        phase = ended_phase(summary, now)
        if phase is None and self._copies.seconds_left(stored, summary) is None:
            phase = overdue(summary, now)
        return phase or Phase.OPEN

    async def _look_at(self, key: SessionKey, stored: Stored, summary: Summary, now: float) -> Phase | None:
        """Return how a session ends now, if it does; put back what came up early, forget what ended long ago."""
        if (left := self._copies.seconds_left(stored, summary)) is not None:
            await self._postpone(key, now + max(left, 1.0))
            return None
        look = decide_expiry(summary, now, self._seconds_since(summary))
        match look.verdict:
            case ExpiryVerdict.EXPIRE:
                return overdue(summary, now)
            case ExpiryVerdict.FORGET:
                await self._committer.ask(lambda store: store.delete(key, stored.revision))
                return None
            case ExpiryVerdict.WATCH:
                self._note_ending(summary)
        await self._postpone(key, look.again)
        return None

    async def _postpone(self, key: SessionKey, at: float | None) -> None:
        await self._committer.ask(lambda store: store.postpone(key, at))

    def _on_expired(self, summary: Summary, phase: Phase) -> None:
        self._note_ending(summary)
        self._copies.end(summary.id, phase)

    def _note_ending(self, summary: Summary) -> None:
        self._seen_endings.put(_identity(summary), None, self._clock.monotonic())

    def _seconds_since(self, summary: Summary) -> float | None:
        """Return how long ago this process saw the session end, if it did."""
        return self._seen_endings.seconds_since(_identity(summary), self._clock.monotonic())


def _identity(summary: Summary) -> tuple[SessionKey, float]:
    """A session that is opened again under the same key began at another time."""
    return SessionKey(summary.tenant, summary.id), summary.created_at


def _first_write(before: Entry | None, record: Record) -> Write:
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


def _contended(id_: str) -> UnavailableError:
    return UnavailableError(
        f"session {id_} is being changed by others all the time", reason="CONTENDED", retry_after=0.1
    )


def unknown_checkpoint(id_: str, name: str, names: Iterable[str] | None = None) -> NotFoundError:
    """Return the error for a session that has no such checkpoint; ``names`` are those that it has."""
    allowed = "" if names is None else known_names(name, names, "it has")
    return NotFoundError(f"session {id_} has no checkpoint {shown(name)}{allowed}", reason="UNKNOWN_CHECKPOINT")
