"""The engine: what happens to work between its arrival and its reply, but for waiting.

It owns the scheduler, the arena and the order of each session's work, and is synchronous and free of clocks:
``loop.py`` calls its parts in the order of a tick (plan, gather, *run*, read, *commit*, scatter, reply) and does the
waiting in between.

Who owns which state: a session's committed state lies in ``session.slot``. The working state of a chunk in several
pieces, and of a generation without a session, lies in ``work.scratch`` until the work is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tidegate.codecs import Codec
from tidegate.core import Prediction, StepResult, Tensor
from tidegate.engine.arena import INITIAL, ArenaLike, Slots
from tidegate.engine.pace import Pace
from tidegate.engine.sampler import sample, uniform
from tidegate.engine.scheduler import Plan, Scheduler
from tidegate.engine.work import Generation, Transcript, Work
from tidegate.errors import DeadlineExceededError, InternalError, InvalidInputError, OverloadedError, TidegateError
from tidegate.sessions.lifecycle import Phase
from tidegate.sessions.session import LastReply, Session, Verdict, ended

_HORIZON_SECONDS = 0.02

Outputs = dict[str, Tensor]
Row = tuple[int, Work]
"""A row of a run: its index in the run's arrays, and whose it is."""


@dataclass(slots=True)
class Batch:
    """A run's results on their way to the callers: the rows still wanted, and the predictions of the chunks that end
    here.
    """

    rows: list[Row]
    outputs: Outputs
    states: list[Tensor]
    answers: dict[Work, Prediction]


class Counts(NamedTuple):
    """Counters since the start; ``rows_per_run`` counts runs by the least power of two that holds their rows."""

    num_runs: int
    num_rows: int
    num_steps: int
    num_failed_runs: int
    rows_per_run: dict[int, int]
    num_queued: int


class Engine:
    """One model's work.

    Args:
        codec: Reads the outputs.
        arena: Holds the states; its plane ``num_states`` is the kept output, where the codec keeps one.
        num_states: How many of the arena's planes are states.
        scheduler: Says who runs next.
        max_queue: Chunks that may wait.
    """

    def __init__(self, codec: Codec, arena: ArenaLike, num_states: int, scheduler: Scheduler, max_queue: int) -> None:
        self._codec = codec
        self._arena = arena
        self._num_states = num_states
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._pace = Pace(_HORIZON_SECONDS)
        self._waiting: set[Work] = set()  # everything that is not answered yet
        self._running: frozenset[Work] = frozenset()
        self._num_runs = self._num_rows = self._num_steps = self._num_failed_runs = 0
        self._rows_per_run: Counter[int] = Counter()

    @property
    def num_waiting(self) -> int:
        """Work that is not answered yet."""
        return len(self._waiting)

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
        """Whether the arena has a slot for one more session."""
        return self._arena.can_allocate()

    def hold(self, session: Session) -> None:
        """Give the session its slot. Ask ``can_hold`` first."""
        session.slot = self._arena.allocate()

    def submit(self, work: Work) -> None:
        """Let work wait its turn, behind its session's other work.

        Raises:
            OverloadedError: The queue is full.
        """
        if len(self._waiting) >= self._max_queue:
            raise OverloadedError(f"{self._max_queue} chunks are waiting already", reason="QUEUE_FULL", retry_after=1.0)
        self._waiting.add(work)
        self._pace.arrived(work.session)
        if work.session is None:
            self._scheduler.add(work)
            return
        work.session.queue.append(work)
        if len(work.session.queue) == 1:
            self._admit_head(work.session)

    def release(self, session: Session) -> None:
        """Let go of a session that has ended: its waiting work fails with the reason, its slot is freed.

        A chunk of it that is running just now fails when the run is over, and the slot is freed then.
        """
        for work in [work for work in session.queue if work not in self._running]:
            session.queue.remove(work)
            self._waiting.discard(work)
            self._scheduler.discard(work)
            self._free_scratch(work, is_over=True)
            work.fail(ended(session.id, session.phase))
        self._pace.arrived(session)
        if not session.queue:
            self._free_slot(session)

    def abort(self, error: TidegateError) -> None:
        """Answer everything that waits with ``error``."""
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
            self._drop(work, _too_late())
        self._running = frozenset(plan.works)
        return plan

    def retry(self, work: Work, length: int) -> Plan | None:
        """Return a run of one row of a run that failed, or None where the row is over in the meantime."""
        if work not in self._waiting:
            return None
        self._running = frozenset((work,))
        return Plan([work], length, [])

    def gather(self, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
        """Return the run's inputs, each [rows, steps, …], and states."""
        works, length = plan.works, plan.length
        inputs = [
            np.stack([work.inputs[index][work.offset : work.offset + length] for work in works])
            for index in range(len(works[0].inputs))
        ]
        return inputs, self._arena.gather(_slots([_source(work) for work in works]), self._num_states)

    def read(self, plan: Plan, outputs: Outputs, states: list[Tensor], now: float) -> Batch:
        """Take the run's results in: who goes on, who has ended, and what the latter are told."""
        works = plan.works
        self._num_runs += 1
        self._num_rows += len(works)
        self._num_steps += len(works) * plan.length
        self._rows_per_run[1 << (len(works) - 1).bit_length()] += 1
        rows = []
        for index, work in enumerate(works):
            work.offset += plan.length
            error = self._refusal(work, now)
            if error is not None:
                self._drop(work, error)
                continue
            if self._needs_scratch(work):
                work.scratch = self._arena.allocate()
            rows.append((index, work))
        return Batch(rows, outputs, states, self._predict(rows, outputs))

    def refuse(self, batch: Batch, refusals: dict[Work, TidegateError]) -> None:
        """Drop the rows that could not be committed."""
        for work, error in refusals.items():
            self._drop(work, error)
        batch.rows = [row for row in batch.rows if row[1] not in refusals]

    def scatter(self, batch: Batch) -> None:
        """Write the new states to where each row's next run, or its session's next chunk, will look for them."""
        kept = [(row, slot) for row, work in batch.rows if (slot := _target(work)) is not None]
        if not kept:
            return
        planes = batch.states
        if self._codec.kept_output is not None:
            planes = [*planes, batch.outputs[self._codec.kept_output][:, -1]]
        rows = _slots([row for row, _ in kept])
        if len(kept) < len(batch.outputs[next(iter(batch.outputs))]):
            planes = self._arena.select(rows, planes)
        self._arena.scatter(_slots([slot for _, slot in kept]), planes)

    def reply(self, batch: Batch, now: float) -> None:
        """Answer the chunks that ended, and let the others wait for their next run."""
        hungry: list[tuple[int, Generation]] = []
        for row, work in batch.rows:
            if work.remaining:
                self._scheduler.add(work)
            elif isinstance(work, Generation):
                if work.accept(_commit(work, work.transcript, now)):
                    self._pace.answered(work.session, now)
                    self._forget(work)
                else:
                    hungry.append((row, work))
            else:
                self._answer(work, batch.answers[work], now)
        if hungry:
            assert self._codec.kept_output is not None
            logits = batch.outputs[self._codec.kept_output][[row for row, _ in hungry], -1]
            self._feed(logits, [work for _, work in hungry])
        self._running = frozenset()

    def fail(self, plan: Plan, error: Exception) -> None:
        """Answer a failed run's own rows with the error: nobody else's."""
        self._running = frozenset()
        self._num_failed_runs += 1
        for work in plan.works:
            self._drop(work, InternalError(f"the run failed: {error}"))

    # ---- inside a tick

    def _refusal(self, work: Work, now: float) -> TidegateError | None:
        """Return why a row's result is not wanted any more, or None; its session then stays as it was."""
        if work.is_abandoned or work.is_late(now):
            return _too_late()
        if work.session is not None and work.session.phase is not Phase.OPEN:
            return ended(work.session.id, work.session.phase)
        if self._needs_scratch(work) and not self._arena.can_allocate():
            return OverloadedError("the arena is full", reason="ARENA_FULL", retry_after=1.0)
        return None

    @staticmethod
    def _needs_scratch(work: Work) -> bool:
        """Whether the row goes on without being committed to a session, and has no place for its working state yet."""
        goes_on = work.remaining > 0 or (work.session is None and isinstance(work, Generation))
        return goes_on and work.scratch is None

    def _predict(self, rows: Sequence[Row], outputs: Outputs) -> dict[Work, Prediction]:
        """Return the predictions of the chunks that end in this run, and put the pieces of the others by."""
        answers: dict[Work, Prediction] = {}
        whole: dict[int, list[Row]] = {}
        for row, work in rows:
            if isinstance(work, Generation):
                continue
            if not work.remaining and not work.pieces and not work.ask.every_step:
                whole.setdefault(work.ask.top, []).append((row, work))
                continue
            work.pieces.append(self._codec.cut(outputs, row, work.ask, is_last=not work.remaining))
            if not work.remaining:
                answers[work] = self._codec.join(work.pieces, work.length, work.ask)
        for top, group in whole.items():
            length = group[0][1].length
            predictions = self._codec.predict(outputs, [row for row, _ in group], length, top)
            answers.update(zip((work for _, work in group), predictions, strict=True))
        return answers

    def _answer(self, work: Work, prediction: Prediction, now: float) -> None:
        result: StepResult | Prediction = prediction
        if work.session is not None:
            result = StepResult(work.session.id, work.session.position + work.length, prediction)
            _commit(work, result, now)
        self._pace.answered(work.session, now)
        self._forget(work)
        work.answer(result)

    def _feed(self, logits: Tensor, works: Sequence[Generation]) -> None:
        """Sample the next token of each generation from its row of ``logits``, and let it wait for its next run."""
        randoms = [uniform(work.seed, _position(work)) for work in works]
        for work, token in zip(works, sample(logits, [work.sampling for work in works], randoms), strict=True):
            self._free_scratch(work)
            work.push(token)
            self._scheduler.add(work)

    # ---- a session's queue

    def _admit_head(self, session: Session) -> None:
        """Decide what the head of the session's queue means at its position, until one is to be run or none is left."""
        while session.queue:
            work = session.queue[0]
            try:
                if self._start(work, session):
                    return
            except TidegateError as error:
                work.fail(error)
            self._waiting.discard(work)
            del session.queue[0]

    def _start(self, work: Work, session: Session) -> bool:
        """Return whether the work now waits in the scheduler; otherwise it is answered."""
        session.check_open()
        if work.is_abandoned:
            return False
        if session.decide(work.position, work.fingerprint) is Verdict.REPEAT:
            assert session.last is not None
            if not isinstance(work, Generation):
                work.repeat(session.last)
                return False
            if work.resume(session.last):
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
        if work in self._waiting:
            self._scheduler.discard(work)
            work.fail(error)
            self._forget(work)

    def _forget(self, work: Work) -> None:
        """The work is over: give back what it held and let its session's next work come."""
        self._waiting.discard(work)
        self._free_scratch(work, is_over=True)
        session = work.session
        if session is None:
            return
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
    if work.session is None or work.remaining:
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


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the request's time ran out before its steps were committed")
