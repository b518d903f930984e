"""The engine: what happens to work between its arrival and its reply, but for waiting.

It owns the scheduler, the arena and the order of each session's work, and is synchronous and free of clocks:
``loop.py`` calls its parts in the order of a tick (plan, gather, *run*, read, *commit*, scatter, reply) and does the
waiting in between.

Who owns which state: a session's committed state lies in ``session.slot``. The working state of a chunk in several
pieces, of a generation without a session, and of a durable session's chunk that is being stored, lies in
``work.scratch`` until the work is over. A commit swaps the two.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from tidegate.api import Prediction, StepResult, Tensor
from tidegate.codecs import Codec
from tidegate.codecs.rows import FEW
from tidegate.engine.arena import INITIAL, ArenaLike, Slots
from tidegate.engine.batch import Batch, Counts, Outcome, Outputs, Step
from tidegate.engine.cohort import Cohort, Told, stack
from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.meter import Meter
from tidegate.engine.pace import Pace
from tidegate.engine.quality import Quality
from tidegate.engine.reading import Reading
from tidegate.engine.replies import LargeReply, Replies
from tidegate.engine.sampler import sample, uniform
from tidegate.engine.scheduler import Plan, Scheduler
from tidegate.engine.session import DurableSession, LastReply, Session, Verdict, ended
from tidegate.engine.work import GENERATED, STEP, Generation, Transcript, Turn, Work
from tidegate.errors import (
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    PositionConflictError,
    TidegateError,
    UnavailableError,
)
from tidegate.faults import conceal
from tidegate.limits import SMALL_REPLY_BYTES

log = logging.getLogger(__name__)

_UNUSABLE = "a row's result could not be used"

_HORIZON_SECONDS = 0.02


class Engine:
    """One model's work.

    Args:
        codec: Reads the outputs.
        arena: Holds the states; its plane ``num_states`` is the kept output, where the codec keeps one.
        num_states: How many of the arena's planes are states.
        scheduler: Says who runs next.
        max_queue: Chunks that may wait.
        make_room: Makes one slot free, if it can, where the arena is full; returns whether it did.
        replies: Counts the last replies that are large; None: none is dropped.
        raw: Reads the outputs for those who ask for them as they are.
        quality: Watches how well the model predicts; None where nobody does.
    """

    def __init__(  # noqa: PLR0913
        self,
        codec: Codec,
        arena: ArenaLike,
        num_states: int,
        scheduler: Scheduler,
        max_queue: int,
        *,
        make_room: Callable[[], bool] = lambda: False,
        replies: Replies | None = None,
        raw: Codec | None = None,
        quality: Quality | None = None,
    ) -> None:
        self._reading = Reading(codec, raw)
        self._arena = arena
        self._num_states = num_states
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._replies = replies or Replies(sys.maxsize)
        self._pace = Pace(_HORIZON_SECONDS)
        self._waiting: set[Work] = set()  # everything that is not answered yet
        self._cohorts: set[Cohort] = set()  # likewise; their lanes are
        self._num_together = 0
        self._running: set[Work | Cohort] = set()  # what is in a run, or being stored
        self._unread: list[DurableSession] = []
        self._make_room = make_room
        self._num_runs = self._num_rows = self._num_steps = self._num_failed_runs = 0
        self._rows_per_run: Counter[int] = Counter()
        self.meter = Meter()
        self._quality = quality

    @property
    def num_waiting(self) -> int:
        """Work that is not answered yet, each lane of a cohort counted."""
        return len(self._waiting) + self._num_together

    @property
    def num_runnable(self) -> int:
        """Work that waits for a run."""
        return len(self._scheduler)

    @property
    def has_full_run(self) -> bool:
        """Whether no further row would find room in the next run."""
        together = sum(cohort.num_rows - 1 for cohort in self._cohorts if cohort not in self._running)
        return len(self._scheduler) + together >= self._scheduler.max_rows

    def take_unread(self) -> list[DurableSession]:
        """Return the sessions whose records must be read before their work goes on; `resume` says that one was."""
        unread, self._unread = self._unread, []
        return unread

    def num_expected(self, now: float) -> int:
        """Callers that were answered a moment ago and are likely to come back any moment."""
        return self._pace.num_expected(now)

    def statistics(self) -> Counts:
        return Counts(
            self._num_runs,
            self._num_rows,
            self._num_steps,
            self._num_failed_runs,
            dict(self._rows_per_run),
            self.num_waiting,
        )

    # ---- sessions and work arrive

    def can_hold(self) -> bool:
        """Whether the arena has a slot for one more, after making room where that helps."""
        while not self._arena.can_allocate():
            if not self._make_room():
                return False
        return True

    def hold(self, session: Session) -> None:
        """Give the session its slot. Ask ``can_hold`` first."""
        session.slot = self._arena.allocate()

    def let_go(self, session: Session) -> None:
        """Take the session's slot back, while only a `Turn` of it is in hand: it moves to another engine."""
        self._pace.arrived(session)
        self._free_slot(session)

    def dump(self, session: Session) -> bytes:
        """Return the session's committed state and kept output; nothing at position 0, where it is the initial one."""
        if session.position == 0:
            return b""
        assert session.slot is not None
        return self._arena.dump(session.slot)

    def load(self, session: Session, state: bytes) -> None:
        """Give the session the state that `dump` returned.

        Raises:
            ValueError: It is not of this model's size.
        """
        assert session.slot is not None
        session.lose_track()
        if state:
            self._arena.load(session.slot, state)

    def submit(self, work: Work) -> None:
        """Let work wait its turn, behind its session's other work.

        Raises:
            OverloadedError: The queue is full.
        """
        if self.num_waiting >= self._max_queue:
            raise OverloadedError(f"{self._max_queue} chunks are waiting already", reason="QUEUE_FULL", retry_after=1.0)
        self._waiting.add(work)
        self._pace.arrived(work.session)
        if work.session is None:
            self._scheduler.add(work)
            return
        work.session.queue.append(work)
        if len(work.session.queue) == 1:
            self._admit_head(work.session)

    def submit_together(self, cohort: Cohort) -> bool:
        """Let a cohort wait its turn, where it can go as one; return whether it does."""
        size = cohort.num_rows
        if size > self._scheduler.max_rows or self.num_waiting + size > self._max_queue or not cohort.can_start():
            return False
        cohort.start()
        self._cohorts.add(cohort)
        self._num_together += size
        self._pace.arrived(cohort.party)
        self._scheduler.add(cohort)
        return True

    def release(self, session: Session) -> None:
        """Let go of a session that has ended: its waiting work fails with the reason, its slot is freed.

        A chunk of it that is running just now fails when the run is over, and the slot is freed then.
        """
        if session.queue and isinstance(cohort := session.queue[0], Cohort):
            cohort.set_aside(session, ended(session.id, session.phase))
        for work in [work for work in session.queue if work not in self._running]:
            session.queue.remove(work)
            if isinstance(work, Cohort):
                continue
            self._waiting.discard(work)
            self._scheduler.discard(work)
            self._free_scratch(work, is_over=True)
            work.fail(ended(session.id, session.phase))
        self._pace.arrived(session)
        if not session.queue:
            self._free_slot(session)

    def abort(self, error: TidegateError) -> None:
        """Answer everything that waits with ``error``."""
        for cohort in list(self._cohorts):
            self._scheduler.discard(cohort)
            self._forget_together(cohort)
            for session in cohort.sessions:
                session.queue.clear()
            cohort.fail(error)
        for work in list(self._waiting):
            self._waiting.discard(work)
            self._scheduler.discard(work)
            self._free_scratch(work, is_over=True)
            if work.session is not None:
                work.session.queue.clear()
            work.fail(error)

    # ---- the tick, in order

    def plan(self, now: float) -> Plan | None:
        """Return the next run, or None where nothing waits."""
        plan = self._scheduler.plan(now)
        if plan is None:
            return None
        for work in plan.dropped:
            self._drop_any(work, _too_late())
        self._running.update(plan.works)
        self._running.update(plan.cohorts)
        self.meter.planned(plan.works, now)
        for cohort in plan.cohorts:
            self.meter.planned_together(cohort, now)
        return plan

    def split(self, plan: Plan) -> list[Work]:
        """Return the rows of a run that failed, to be tried alone: its cohorts disband."""
        works = list(plan.works)
        for cohort in plan.cohorts:
            works += self._disband(cohort)
        return works

    def retry(self, work: Work, length: int) -> Plan | None:
        """Return a run of one row of a run that failed, or None where the row is over in the meantime."""
        if work not in self._waiting:
            return None
        return Plan([work], length, [])

    def gather(self, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
        """Return the run's inputs, each [rows, steps, …], and states."""
        works, length = plan.works, plan.length
        sources = [cohort.find_slots() for cohort in plan.cohorts]
        parts = [cohort.inputs for cohort in plan.cohorts]
        if works:
            parts.insert(
                0,
                tuple(
                    np.stack([work.inputs[index][work.offset : work.offset + length] for work in works])
                    for index in range(len(works[0].inputs))
                ),
            )
            sources.insert(0, _slots([_source(work) for work in works]))
        inputs = [stack(arrays) for arrays in zip(*parts, strict=True)]
        return inputs, self._arena.gather(stack(sources), self._num_states)

    def read(self, plan: Plan, outputs: Outputs, states: list[Tensor], now: float) -> Batch:
        """Take the run's results in: who goes on, who has ended, and what the latter are told."""
        works = plan.works
        self._num_runs += 1
        num_rows = plan.num_rows
        self._num_rows += num_rows
        self._num_steps += num_rows * plan.length
        self._rows_per_run[1 << (num_rows - 1).bit_length()] += 1
        rows = []
        steps = self.meter.steps
        for index, work in enumerate(works):
            work.offset += plan.length
            steps[work.kind] += plan.length
            error = self._refusal(work, now)
            if error is not None:
                self._drop(work, error)
                continue
            if self._needs_scratch(work):
                work.scratch = self._arena.allocate()
            rows.append((index, work))
        answers, failures = self._reading.predict(rows, outputs)
        if failures:
            rows = [row for row in rows if row[1] not in failures]
            for work, failure in failures.items():
                self._break(work, failure)
        batch = Batch(rows, outputs, states, answers)
        first = len(works)
        for cohort in plan.cohorts:
            steps[STEP] += cohort.num_rows
            self._read_together(batch, first, cohort, now)
            first += cohort.num_rows
        return batch

    def scatter(self, batch: Batch) -> None:
        """Write the new states to where each row's next run, or its session's next chunk, will look for them."""
        kept = [(row, slot) for row, work in batch.rows if (slot := _target(work)) is not None]
        rows, slots = _slots([row for row, _ in kept]), _slots([slot for _, slot in kept])
        for first, cohort, _ in batch.cohorts:
            lanes = _slots(cohort.lanes)
            rows = np.concatenate((rows, first + lanes))
            slots = np.concatenate((slots, cohort.slots[lanes]))
        if not len(rows):
            return
        assert slots.all()  # the initial state is nobody's
        planes = self._reading.planes(batch)
        if len(rows) < len(batch.outputs[next(iter(batch.outputs))]):
            planes = self._arena.select(rows, planes)
        self._arena.scatter(slots, planes)

    def part(self, batch: Batch) -> list[Step]:
        """Take the chunks of durable sessions that end here out of the batch: they are to be stored first."""
        rows = [row for row in batch.rows if row[1].is_stored and not row[1].remaining]
        if not rows:
            return []
        stored = {row for row, _ in rows}
        batch.rows = [row for row in batch.rows if row[0] not in stored]
        states = self._arena.pack(_slots([row for row, _ in rows]), self._reading.planes(batch))
        steps = []
        for (row, work), state in zip(rows, states, strict=True):
            try:
                steps.append(self._step(batch, row, work, state))
            except Exception as error:  # noqa: BLE001 - told to the row that it concerns
                self._break(work, error)
        return steps

    def reply(self, batch: Batch, now: float) -> None:
        """Answer the chunks that ended, and let the others wait for their next run."""
        if self._quality is not None:
            _watch(lambda quality: quality.take(batch), self._quality)
        hungry: list[tuple[int, Generation]] = []
        for row, work in batch.rows:
            self._running.discard(work)
            try:
                if work.remaining:
                    self._scheduler.add(work)
                elif isinstance(work, Generation):
                    if not self._accept(work, _commit(work, work.transcript, now), now):
                        hungry.append((row, work))
                else:
                    self._answer(work, batch.answers[work], now)
            except Exception as error:  # noqa: BLE001 - told to the row that it concerns
                self._break(work, error)
        if hungry:
            self._feed(self._reading.logits(batch, [row for row, _ in hungry]), [work for _, work in hungry])
        for first, cohort, told in batch.cohorts:
            try:
                self._answer_together(batch, first, cohort, told, now)
            except Exception as error:
                log.exception("a message of %d lanes could not be answered", cohort.num_rows)
                self._drop_together(cohort, conceal(error, _UNUSABLE))

    def settle(self, steps: Sequence[Step], outcomes: Sequence[Outcome], now: float) -> None:
        """Answer the steps that were stored; those that others overtook are decided again, from the record."""
        hungry: list[Step] = []
        for step, outcome in zip(steps, outcomes, strict=True):
            work = step.work
            self._running.discard(work)
            if work not in self._waiting:  # the loop was stopped meanwhile
                continue
            try:
                if self._settle(step, outcome, now):
                    hungry.append(step)
            except Exception as error:  # noqa: BLE001 - told to the step that it concerns
                step.session.is_fresh = False  # its record says what became of it
                self._break(work, error)
        if hungry:
            logits = np.stack([step.logits for step in hungry if step.logits is not None])
            self._feed(logits, [step.work for step in hungry if isinstance(step.work, Generation)])

    def fail(self, plan: Plan, error: TidegateError) -> None:
        """Answer a failed run's own rows with the error: nobody else's."""
        # What the graph refuses is the request's fault, and no failure of the engine.
        self._num_failed_runs += not isinstance(error, InvalidInputError)
        for work in plan.works:
            self._drop(work, error)
        for cohort in plan.cohorts:
            self._drop_together(cohort, error)

    # ---- durable sessions, read again

    def resume(self, session: DurableSession, error: TidegateError | None = None) -> None:
        """Go on with a session whose record was read, or fail its waiting work with the reason why it was not."""
        session.is_reading = False
        if error is not None:
            for work in [work for work in session.queue if work not in self._running]:
                session.queue.remove(work)
                self._waiting.discard(work)
                work.fail(error)
        else:
            session.is_fresh = True
        if session.queue and session.queue[0] not in self._running:
            self._admit_head(session)
        elif not session.queue and session.phase is not Phase.OPEN:
            self._free_slot(session)
        session.last = None  # whoever repeats has the record read again

    def _step(self, batch: Batch, row: int, work: Work, state: bytes) -> Step:
        session, logits = work.session, None
        assert isinstance(session, DurableSession)
        position = session.position + work.length
        result: StepResult | Transcript
        if isinstance(work, Generation):
            result, logits = work.transcript_ahead, self._reading.logits(batch, [row])[0]
        else:
            result = StepResult(session.id, position, batch.answers[work])
        scored = None if self._quality is None else self._quality.score(batch, row, work)
        return Step(work, session, position, state, LastReply(work.start, work.fingerprint(), result), logits, scored)

    def _settle(self, step: Step, outcome: Outcome, now: float) -> bool:
        """Answer one step; return whether it is of a generation that goes on."""
        if not isinstance(outcome, bytes):
            self._overtaken(step, outcome)
            return False
        self._take_over(step, outcome, now)
        if isinstance(step.work, Generation):
            return not self._accept(step.work, step.position, now)
        if not step.work.ends:
            self._tell(step.work, step.last.result, now)
            return False
        step.session.end(Event.CLOSE)
        try:
            self._tell(step.work, step.last.result, now)
        finally:
            self.release(step.session)
        return False

    def _take_over(self, step: Step, revision: bytes, now: float) -> None:
        """The record is the step's: so are, from now on, the copy's position and its state, which lies in scratch."""
        session, work = step.session, step.work
        assert work.scratch is not None
        session.slot, work.scratch = work.scratch, session.slot
        session.revision = revision
        if self._quality is not None and step.scored is not None:
            self._quality.commit(step.scored, session)
        session.advance(work.length, None, now)

    def _overtaken(self, step: Step, error: TidegateError | None) -> None:
        """The step was not stored, or nobody knows: what is here of the session is not to be trusted any more."""
        step.session.is_fresh = False
        if error is not None or step.session.phase is not Phase.OPEN:
            self._drop(step.work, error or ended(step.session.id, step.session.phase))
        elif not step.work.can_start_over:
            self._drop(step.work, _moved(step.session))
        else:
            self._free_scratch(step.work, is_over=True)
            step.work.start_over()
            self._admit_head(step.session)

    def _must_read(self, work: Work, session: DurableSession) -> bool:
        """Whether the stored record decides first: before anything is run on a copy that may be old, and before a
        repeat or a conflict is told.
        """
        if not session.is_fresh:
            work.is_checked = True
            return True
        if work.is_checked or work.position is None or work.position == session.position:
            return False
        work.is_checked = True
        session.is_fresh = False
        return True

    # ---- inside a tick

    def _refusal(self, work: Work, now: float) -> TidegateError | None:
        """Return why a row's result is not wanted any more, or None; its session then stays as it was."""
        if work.is_abandoned or work.is_late(now):
            return _too_late()
        if work.session is not None and work.session.phase is not Phase.OPEN:
            return ended(work.session.id, work.session.phase)
        if self._needs_scratch(work) and not self.can_hold():
            return OverloadedError("the arena is full", reason="ARENA_FULL", retry_after=1.0)
        return None

    @staticmethod
    def _needs_scratch(work: Work) -> bool:
        """Whether the row goes on without being committed to a session, and has no place for its working state yet."""
        if work.scratch is not None:
            return False
        return work.is_stored or work.remaining > 0 or (work.session is None and isinstance(work, Generation))

    def _answer(self, work: Work, prediction: Prediction, now: float) -> None:
        result: StepResult | Prediction = prediction
        if work.session is not None:
            result = StepResult(work.session.id, work.session.position + work.length, prediction)
            _commit(work, result, now)
            # A step's best candidates, the commonest answer, are asked nothing.
            if work.options.every_step or work.options.top > FEW or prediction.next is None:
                self._count(work.session, prediction.num_bytes)
        self._tell(work, result, now)

    def _count(self, session: Session, num_bytes: int) -> None:
        """Let the reply that a session has just got count, where it is a large one."""
        if num_bytes > SMALL_REPLY_BYTES and isinstance(session.last, LastReply):
            session.last = LargeReply(session.last)
            self._replies.hold(session.last, num_bytes)

    # ---- cohorts

    def _read_together(self, batch: Batch, first: int, cohort: Cohort, now: float) -> None:
        if cohort.is_abandoned or cohort.is_late(now):
            self._drop_together(cohort, _too_late())
            return
        rows = slice(first, first + cohort.num_rows)
        try:
            predictions = self._reading.predict_together(batch.outputs, rows, cohort.options.top)
        except Exception:
            log.exception("the results of %d lanes could not be read together", cohort.num_rows)
            self._read_apart(batch, first, cohort)
            return
        told = Told(cohort.party.ids, cohort.starts, cohort.inputs, cohort.options, predictions, {}, self._reading.part)
        batch.cohorts.append((first, cohort, told))

    def _read_apart(self, batch: Batch, first: int, cohort: Cohort) -> None:
        """Read each lane by itself, so that one that cannot be read fails no other."""
        rows = [(first + lane, work) for lane, work in zip(cohort.lanes, self._disband(cohort), strict=True)]
        for _, work in rows:
            work.offset = work.length
        answers, failures = self._reading.predict(rows, batch.outputs)
        batch.rows += [row for row in rows if row[1] not in failures]
        batch.answers |= answers
        for work, failure in failures.items():
            self._break(work, failure)

    def _answer_together(self, batch: Batch, first: int, cohort: Cohort, told: Told, now: float) -> None:
        if self._quality is not None:
            _watch(lambda quality: quality.take_together(cohort, batch.outputs, first, told.drift), self._quality)
        reply, size = None, told.num_bytes
        if size > SMALL_REPLY_BYTES:
            reply = LargeReply(None, told)
            self._replies.hold(reply, size)
        cohort.commit(reply or told, now)
        self._running.discard(cohort)
        self._forget_together(cohort)
        self._leave(cohort)
        self._pace.answered(cohort.party, now)
        cohort.answer(told)

    def _drop_together(self, cohort: Cohort, error: TidegateError) -> None:
        """Answer all lanes with an error; the sessions stay as they were."""
        self._running.discard(cohort)
        if cohort in self._cohorts:
            self._forget_together(cohort)
            self._scheduler.discard(cohort)
            self._leave(cohort)
            cohort.fail(error)

    def _forget_together(self, cohort: Cohort) -> None:
        self._cohorts.remove(cohort)
        self._num_together -= cohort.num_rows

    def _disband(self, cohort: Cohort) -> list[Work]:
        """Let each lane that goes on be work of its own; return these, by rising lane."""
        self._forget_together(cohort)
        self._running.discard(cohort)
        lanes = cohort.disband()
        self._waiting.update(lanes)
        self._running.update(lanes)
        self._leave(cohort)
        if not lanes:
            cohort.answer(None)
        return lanes

    def _leave(self, cohort: Cohort) -> None:
        """Let the sessions' next work come, and give back the slots of sessions that ended."""
        for session in cohort.sessions:
            queue = session.queue
            if queue and queue[0] is cohort:
                del queue[0]
                if queue and session.phase is Phase.OPEN:
                    self._admit_head(session)
            if session.phase is not Phase.OPEN and not queue:
                self._free_slot(session)

    def _drop_any(self, work: Work | Cohort, error: TidegateError) -> None:
        if isinstance(work, Cohort):
            self._drop_together(work, error)
        else:
            self._drop(work, error)

    def _tell(self, work: Work, result: StepResult | Prediction, now: float) -> None:
        self._pace.answered(work.session, now)
        self._forget(work)
        work.answer(result)

    def _accept(self, work: Generation, position: int, now: float) -> bool:
        """Tell the steps that are committed up to ``position``; return whether the generation is over."""
        if work.kind == GENERATED:
            self.meter.num_generated += 1
        is_over = work.accept(position)
        if is_over:
            self._pace.answered(work.session, now)
            self._forget(work)
        return is_over

    def _feed(self, logits: Tensor, works: Sequence[Generation]) -> None:
        """Sample the next token of each generation from its row of ``logits``, and let it wait for its next run."""
        try:
            randoms = [uniform(work.seed, _position(work)) for work in works]
            tokens = sample(logits, [work.sampling for work in works], randoms)
        except Exception as error:  # noqa: BLE001 - told to the generation that it concerns
            if len(works) == 1:
                self._break(works[0], error)
            else:
                for row, work in enumerate(works):
                    self._feed(logits[row : row + 1], [work])
            return
        for work, token in zip(works, tokens, strict=True):
            self._free_scratch(work)
            work.push(token)
            self._scheduler.add(work)

    # ---- a session's queue

    def _admit_head(self, session: Session) -> None:
        """Decide what the head of the session's queue means at its position, until one is to be run or none is left."""
        while session.queue:
            work = session.queue[0]
            assert isinstance(work, Work)  # a cohort finds its sessions idle
            try:
                if self._start(work, session):
                    return
            except TidegateError as error:
                self.meter.num_conflicts += isinstance(error, PositionConflictError)
                work.fail(error)
            except Exception as error:  # it is this work's answer, and nobody else's
                log.exception("work of session %s could not be begun", session.id)
                work.fail(conceal(error, _UNUSABLE))
            self._waiting.discard(work)
            del session.queue[0]

    def _start(self, work: Work, session: Session) -> bool:
        """Return whether the work now waits in the scheduler; otherwise it is answered."""
        _check_held(session)
        if work.is_abandoned:
            return False
        if isinstance(session, DurableSession) and self._must_read(work, session):
            if not session.is_reading:
                session.is_reading = True
                self._unread.append(session)
            return True
        if isinstance(work, Turn):
            work.answer(work.act())
            return False
        if isinstance(work, Generation) and work.sampling.seed is None:
            work.seed = session.seed  # the record's, which may have been read after the work was made
        if session.decide(work.position, work.fingerprint, work.most_steps) is Verdict.REPEAT:
            self.meter.num_repeats += 1
            last = session.recall()
            assert isinstance(last, LastReply)
            if not isinstance(work, Generation):
                work.repeat(last)
                return False
            if work.resume(last):
                return False
        else:
            work.start = session.position
        if work.remaining:
            self._scheduler.add(work)
        else:
            assert isinstance(work, Generation)
            self._continue(work, session)
        return True

    def _continue(self, work: Generation, session: Session) -> None:
        """Let a generation without a prompt go on from the session's last step."""
        if session.position == 0 or session.slot is None:
            raise InvalidInputError("a session without steps needs a prompt to generate from", reason="EMPTY_SEQUENCE")
        self._feed(self._arena.read(session.slot, self._num_states)[None], [work])

    def _drop(self, work: Work, error: TidegateError) -> None:
        """Answer with an error; the session stays as it was before the work."""
        self._running.discard(work)
        if work in self._waiting:
            self._scheduler.discard(work)
            self._forget(work)
            work.fail(error)

    def _break(self, work: Work, error: Exception) -> None:
        """Answer work that met a fault of ours, unless it has its answer; whoever shared its run goes on."""
        self._drop(work, conceal(error, _UNUSABLE))

    def _forget(self, work: Work) -> None:
        """The work is over: give back what it held and let its session's next work come."""
        self._waiting.discard(work)
        self._free_scratch(work, is_over=True)
        session = work.session
        if session is None:
            return
        if work.kind == GENERATED and isinstance(work, Generation):
            self._count(session, work.transcript.num_bytes)
        del session.queue[0]
        if session.phase is Phase.OPEN:
            self._admit_head(session)
        elif not session.queue:
            self._free_slot(session)

    def _free_scratch(self, work: Work, *, is_over: bool = False) -> None:
        """A stateless generation keeps its working state until it is over, for it has no session to commit to."""
        if work.scratch is not None and (is_over or work.session is not None):
            self._arena.free(work.scratch)
            work.scratch = None

    def _free_slot(self, session: Session) -> None:
        if session.slot is not None:
            self._arena.free(session.slot)
            session.slot = None


def _slots(indices: Sequence[int]) -> Slots:
    return np.array(indices, dtype=np.intp)


def _source(work: Work) -> int:
    """Return the slot that a row's state comes from."""
    if work.scratch is not None:
        return work.scratch
    session = work.session
    return INITIAL if session is None or session.slot is None or session.position == 0 else session.slot


def _target(work: Work) -> int | None:
    """Return the slot that a row's new state goes to; None where nobody will ask for it."""
    if work.is_stored or work.session is None or work.remaining:
        return work.scratch
    return work.session.slot


def _position(work: Generation) -> int:
    return work.consumed if work.session is None else work.session.position


def _commit(work: Work, result: StepResult | Transcript, now: float) -> int:
    """Commit the work's steps to its session; return the position after them."""
    session = work.session
    if session is None:
        return 0
    session.advance(work.length, LastReply(work.start, work.fingerprint(), result), now)
    return session.position


def _check_held(session: Session) -> None:
    """Raise the reason why the session's work cannot be run on what is here of it."""
    # The copy of a durable session may leave the arena while somebody still holds it, and without its slot it would run
    # from the initial state, at a revision that the store takes.
    if session.is_durable and session.slot is None and session.phase in {Phase.OPEN, Phase.EVICTED}:
        raise UnavailableError(
            f"session {session.id} left the arena just now: send it again", reason="SESSION_MOVED", retry_after=0.0
        )
    session.check_open()


def _moved(session: Session) -> UnavailableError:
    return UnavailableError(
        f"session {session.id} was moved on by another replica: repeat with the position that this began at",
        reason="SESSION_MOVED",
        retry_after=0.0,
    )


def _watch(look: Callable[[Quality], None], quality: Quality) -> None:
    """Let what watches the model's quality look; a fault there costs nobody the answer."""
    try:
        look(quality)
    except Exception:
        log.exception("what a run says of the model's quality could not be counted")


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the request's time ran out before its steps were committed")
