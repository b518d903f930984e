"""The engine: what happens to requests between their arrival and their reply, but for waiting.

It owns the scheduler, the arena and the order of each session's requests, and is synchronous and free of clocks:
``loop.py`` calls its parts in the order of a tick (schedule, gather, *run*, read, commit, reply) and does the waiting
in between.

Who owns which state: a session's committed state lies in ``session.slot``. The working state of a chunk in several
pieces, of a generation without a session, and of a durable session's steps that are being stored, lies in
``request.scratch`` until the request is over. A commit swaps the two.

A request stands in the queue of each of its sessions, and starts when it is the head of all of them. It joins them all
at once, so no two requests wait for each other. A row that cannot go the way of the others (a repeat, a conflict, a
failed run, another replica was faster) is answered by itself or goes on as a request of one row.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

import numpy as np

from tidegate.api import LAST_POSITION, StepResult, Tensor
from tidegate.codecs import Codec
from tidegate.codecs.rows import FEW
from tidegate.engine.arena import INITIAL, ArenaLike, Slots
from tidegate.engine.lifecycle import Event, Phase
from tidegate.engine.output import Batch, OutputProcessor, Outputs
from tidegate.engine.quality import Quality
from tidegate.engine.replies import LargeReply, Replies
from tidegate.engine.request import GENERATED, Barrier, Generation, Outcome, Request, Step, StepBlock, Transcript
from tidegate.engine.sampler import sample, uniform
from tidegate.engine.scheduler import BatchingWindow, Plan, Scheduler
from tidegate.engine.session import DurableSession, LastReply, PositionVerdict, Session, ended
from tidegate.engine.stats import EngineStats
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
    """One model's requests.

    Args:
        codec: Reads the outputs.
        arena: Holds the states; its plane ``num_states`` is the kept output, where the codec keeps one.
        num_states: How many of the arena's planes are states.
        scheduler: Says who runs next.
        max_queue: Rows that may wait.
        make_room: Makes one slot free, if it can, where the arena is full; returns whether it did.
        replies: Counts the last replies that are large; None: none is dropped.
        raw: Reads the outputs for those who ask for them as they are.
        quality: Watches how well the model predicts; None where nobody does.
        defaults: What each of the model's settings is where nobody gives a value, of one row.
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
        defaults: Sequence[Tensor] = (),
    ) -> None:
        self._output = OutputProcessor(codec, raw)
        self._arena = arena
        self._num_states = num_states
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._replies = replies or Replies(sys.maxsize)
        self._waiting: set[Request] = set()  # everything that is not answered yet
        self._running: set[Request] = set()  # what is in a run, or being stored
        self._ready: deque[Request] = deque()  # what has become the head of all its sessions' queues
        self._unread: list[DurableSession] = []
        self._make_room = make_room
        self._quality = quality
        self._defaults = tuple(defaults)
        self.num_waiting = 0  # rows that are not answered yet
        self.window = BatchingWindow(_HORIZON_SECONDS)
        self.stats = EngineStats()

    @property
    def num_runnable(self) -> int:
        """Requests that wait for a run."""
        return len(self._scheduler)

    @property
    def has_full_run(self) -> bool:
        """Whether no further row would find room in the next run."""
        return self._scheduler.num_rows >= self._scheduler.max_rows

    @property
    def max_rows(self) -> int:
        """Rows of one request at most."""
        return self._scheduler.max_rows

    def take_unread(self) -> list[DurableSession]:
        """Return the sessions whose records must be read before their requests go on; `resume` says that one was."""
        unread, self._unread = self._unread, []
        return unread

    # ---- sessions and requests arrive

    def can_hold(self) -> bool:
        """Whether the arena has a slot for one more, after making room where that helps."""
        while not self._arena.can_allocate():
            if not self._make_room():
                return False
        return True

    def allocate_slot(self, session: Session) -> None:
        """Give the session its slot. Ask ``can_hold`` first."""
        session.slot = self._arena.allocate()

    def release_slot(self, session: Session) -> None:
        """Take the session's slot back, while only a `Barrier` of it is in hand: it moves to another engine."""
        self.window.on_arrival(session)
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
        session.reset_quality()
        if state:
            self._arena.load(session.slot, state)

    def submit(self, request: Request) -> None:
        """Let a request wait its turn, behind its sessions' others; it has at most ``max_rows`` rows.

        Raises:
            OverloadedError: The queue is full. Of a message, only the rows that have no room are told so.
        """
        room = self._max_queue - self.num_waiting
        if request.num_rows > room:
            error = OverloadedError(
                f"{self._max_queue} chunks are waiting already", reason="QUEUE_FULL", retry_after=1.0
            )
            if request.lanes is None:
                raise error
            for row in range(max(0, room), request.num_rows):
                request.answer(row, error)
            if room <= 0:
                return
            request.keep(range(room))
        self.num_waiting += request.num_rows
        self._waiting.add(request)
        self.window.on_arrival(request.caller)
        num_behind = 0
        for session in request.sessions:
            if session.queue:
                num_behind += 1
            session.queue.append(request)
        request.num_behind = num_behind
        if not num_behind:
            self._start(request)
            if self._ready:
                self._start_ready()

    def release(self, session: Session) -> None:
        """Let go of a session that has ended: its waiting rows fail with the reason, its slot is freed.

        A row of it that is running just now fails when the run is over, and the slot is freed then.
        """
        for request in session.queue:
            request.has_gone = True
        self._fail_waiting(session, None)
        self.window.on_arrival(session)
        if not session.queue:
            self._free_slot(session)
        self._start_ready()

    def abort(self, error: TidegateError) -> None:
        """Answer everything that waits with ``error``."""
        self._ready.clear()
        for request in list(self._waiting):
            self._waiting.discard(request)
            self._scheduler.discard(request)
            self._free_scratch(request, is_over=True)
            for session in request.sessions:
                session.queue.clear()
            request.fail(error)
        self.num_waiting = 0

    # ---- the tick, in order

    def schedule(self, now: float) -> Plan | None:
        """Return the next run, or None where nothing waits."""
        plan = self._scheduler.plan(now)
        if plan is None:
            return None
        for request in plan.dropped:
            self._drop(request, _deadline_error())
        if plan.dropped:
            self._start_ready()
        self._running.update(plan.requests)
        self.stats.add_plan(plan.requests, now)
        return plan

    def gather(self, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
        """Return the run's inputs, each [rows, steps, …], followed by its settings, each [rows, …], and states."""
        requests, length = plan.requests, plan.length
        slots: list[int] = []
        is_whole = True
        for request in requests:
            slots += _sources(request)
            is_whole = is_whole and request.length == length
        if is_whole:
            parts = [request.inputs for request in requests]
        else:
            parts = [
                tuple([array[:, request.offset : request.offset + length] for array in request.inputs])
                for request in requests
            ]
        inputs = [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        if self._defaults:
            inputs += [_settings_of(requests, place, default) for place, default in enumerate(self._defaults)]
        return inputs, self._arena.gather(_slots(slots), self._num_states)

    def read(self, plan: Plan, inputs: list[Tensor], outputs: Outputs, states: list[Tensor], now: float) -> Batch:
        """Take the run's results in: which rows go on, which have ended, and what the latter are told."""
        length, first = plan.length, 0
        self.stats.add_run(plan.num_rows, length)
        steps = self.stats.steps
        batch = Batch([], inputs, outputs, states)
        for request in plan.requests:
            num_rows = request.num_rows
            steps[request.kind] += length * num_rows
            request.offset += length
            request.rows = range(first, first + num_rows)
            first += num_rows
            if request.reply.done() or (request.deadline is not None and request.deadline <= now):
                self._drop(request, _deadline_error())
            elif self._is_wanted(request):
                batch.requests.append(request)
        if failures := self._output.process(batch):
            for request, found in groupby(failures, key=itemgetter(0)):
                bad = {row: conceal(error, _UNUSABLE) for _, row, error in found}
                for row, told in bad.items():
                    request.answer(row, told)
                self._retain_rows(request, [row for row in range(request.num_rows) if row not in bad])
            batch.requests = [request for request in batch.requests if request in self._waiting]
        if self._quality is not None:
            try:
                self._quality.take(batch)
            except Exception:  # a fault there costs nobody the answer
                log.exception("what a run says of the model's quality could not be counted")
        return batch

    def commit(self, batch: Batch, now: float) -> list[Step]:
        """Move the sessions on whose only truth is the arena; return the steps that are to be stored first."""
        steps: list[Step] = []
        stored = [request for request in batch.requests if request.is_stored and request.offset == request.length]
        if stored:  # before any slot is written: what fails here leaves all sessions as they were
            rows = [row for request in stored for row in request.rows]
            states = iter(self._arena.pack(_slots(rows), self._output.planes(batch)))
            for request in stored:
                some = [next(states) for _ in request.rows]
                try:
                    steps += self._steps_of(batch, request, some)
                except Exception as error:  # noqa: BLE001 - told to the rows that it concerns
                    self._fail_with_fault(request, error)
        self._scatter(batch)
        if stored:
            batch.requests = [request for request in batch.requests if request not in set(stored)]
        for request in batch.requests:
            if request.offset == request.length and request.sessions:
                try:
                    self._commit(request, now)
                except Exception as error:  # noqa: BLE001 - told to the rows that it concerns
                    self._fail_with_fault(request, error)
        return steps

    def reply(self, batch: Batch, now: float) -> None:
        """Answer the rows that ended, and let the others wait for their next run."""
        continuing: list[Generation] = []
        for request in batch.requests:
            if request not in self._waiting:
                continue
            self._running.discard(request)
            try:
                if request.offset < request.length:
                    self._scheduler.add(request)
                elif isinstance(request, Generation):
                    if not self._accept(request, request.position, now):
                        continuing.append(request)
                else:
                    self._answer(request, now)
            except Exception as error:  # noqa: BLE001 - told to the rows that it concerns
                self._fail_with_fault(request, error)
        if continuing:
            self._sample_next(self._output.logits(batch, [request.rows[0] for request in continuing]), continuing)
        self._start_ready()

    def on_steps_stored(self, steps: Sequence[Step], outcomes: Sequence[Outcome], now: float) -> None:
        """Answer the steps that were stored; those that others overtook are decided again, from the record."""
        continuing: list[tuple[Generation, Tensor]] = []
        for request, found in groupby(zip(steps, outcomes, strict=True), key=lambda pair: pair[0].request):
            pairs = list(found)
            self._running.discard(request)
            if request not in self._waiting:  # the loop was stopped meanwhile
                continue
            try:
                if self._finish_stored(request, pairs, now):
                    assert isinstance(request, Generation)
                    assert pairs[0][0].logits is not None
                    continuing.append((request, pairs[0][0].logits))
            except Exception as error:  # noqa: BLE001 - told to the rows that it concerns
                for step, _ in pairs:
                    step.session.is_fresh = False  # its record says what became of it
                self._fail_with_fault(request, error)
        if continuing:
            self._sample_next(np.stack([logits for _, logits in continuing]), [request for request, _ in continuing])
        self._start_ready()

    def fail(self, plan: Plan, error: TidegateError) -> None:
        """Answer a failed run's own rows with the error: nobody else's."""
        # What the graph refuses is the request's fault, and no failure of the engine.
        self.stats.num_failed_runs += not isinstance(error, InvalidInputError)
        for request in plan.requests:
            self._drop(request, error)
        self._start_ready()

    def split(self, plan: Plan) -> list[Request]:
        """Return the rows of a run that failed, each as a request, to be tried alone by `retry`."""
        alone: list[Request] = []
        for request in plan.requests:
            if request.num_rows == 1:
                alone.append(request)
                continue
            if request.has_gone and not self._drop_ended(request):
                continue
            children = self._retain_rows(request, (), range(request.num_rows))
            self._running.update(children)
            alone += children
        self._start_ready()
        return alone

    def retry(self, request: Request, length: int) -> Plan | None:
        """Return a run of one row of a run that failed, or None where the row is over in the meantime."""
        return Plan([request], length, []) if request in self._waiting else None

    # ---- durable sessions, read again

    def resume(self, session: DurableSession, error: TidegateError | None = None) -> None:
        """Go on with a session whose record was read, or fail its waiting rows with the reason why it was not."""
        session.is_reading = False
        if error is None:
            session.is_fresh = True
        else:
            self._fail_waiting(session, error)
        if session.queue:
            head = session.queue[0]
            if not head.num_behind and head not in self._running:
                self._ready.append(head)
        elif session.phase is not Phase.OPEN:
            self._free_slot(session)
        self._start_ready()
        session.last = None  # whoever repeats has the record read again

    # ---- inside a tick

    def _is_wanted(self, request: Request) -> bool:
        """Answer the rows whose session has ended, or that have no room for their working state; return whether any is
        left.
        """
        if request.has_gone and not self._drop_ended(request):
            return False
        if request.scratch or not (
            request.is_stored
            or request.offset < request.length
            or (isinstance(request, Generation) and not request.sessions)
        ):
            return True
        scratch: list[int] = []
        while len(scratch) < request.num_rows and self.can_hold():
            scratch.append(self._arena.allocate())
        for row in range(len(scratch), request.num_rows):
            request.answer(row, OverloadedError("the arena is full", reason="ARENA_FULL", retry_after=1.0))
        self._retain_rows(request, range(len(scratch)))
        request.scratch = scratch
        return bool(scratch)

    def _drop_ended(self, request: Request) -> bool:
        """Answer the rows whose session has ended; return whether any is left."""
        gone = [row for row, session in enumerate(request.sessions) if session.phase is not Phase.OPEN]
        for row in gone:
            session = request.sessions[row]
            request.answer(row, ended(session.id, session.phase))
        self._retain_rows(request, [row for row in range(request.num_rows) if row not in set(gone)])
        return request in self._waiting

    def _scatter(self, batch: Batch) -> None:
        """Write the new states to where each row's next run, or its session's next chunk, will look for them."""
        rows: list[int] = []
        slots: list[int] = []
        for request in batch.requests:
            if request.is_stored or not request.sessions or request.offset < request.length:
                if request.scratch:
                    rows += request.rows
                    slots += request.scratch
            else:
                rows += request.rows
                slots += [session.slot or INITIAL for session in request.sessions]
        if not rows:
            return
        targets = _slots(slots)
        assert targets.all()  # the initial state is nobody's
        planes = self._output.planes(batch)
        if len(rows) < len(batch.outputs[next(iter(batch.outputs))]):
            planes = self._arena.select(_slots(rows), planes)
        self._arena.scatter(targets, planes)

    def _steps_of(self, batch: Batch, request: Request, states: Sequence[bytes]) -> list[Step]:
        """Return the rows of a durable request as what is to be stored."""
        results: list[StepResult | Transcript]
        logits = None
        if isinstance(request, Generation):
            results, logits = [request.next_transcript], self._output.logits(batch, request.rows)[0]
        else:
            predictions = request.predictions
            if predictions is None:
                assert request.together is not None
                predictions = self._output.split(request.together)
                for row, drift in request.drift.items():
                    predictions[row].drift = drift
            results = [
                StepResult(session.id, session.position + request.length, prediction)
                for session, prediction in zip(request.sessions, predictions, strict=True)
            ]
        steps = []
        for row, (session, result, state) in enumerate(zip(request.sessions, results, states, strict=True)):
            assert isinstance(session, DurableSession)
            last = LastReply(request.starts[row], request.fingerprint(row), result)
            position = session.position + request.length
            steps.append(Step(request, row, session, position, state, last, logits, request.scored))
        return steps

    def _commit(self, request: Request, now: float) -> None:
        """Move the sessions on by what a request of ephemeral ones did, which they remember."""
        sessions, length = request.sessions, request.length
        if isinstance(request, Generation):
            last = LastReply(request.starts[0], request.fingerprint(0), request.transcript)
            sessions[0].advance(length, last, now)
        elif request.together is not None:
            block = self._block(request)
            recollection: StepBlock | LargeReply = block
            if (size := block.num_bytes) > SMALL_REPLY_BYTES:
                recollection = LargeReply(None, block)
                self._replies.hold(recollection, size)
            request.results = block
            for session in sessions:
                session.position += length
                session.last = recollection
                session.used_at = now
        else:
            assert request.predictions is not None
            results = []
            for row, (session, prediction) in enumerate(zip(sessions, request.predictions, strict=True)):
                result = StepResult(session.id, session.position + length, prediction)
                session.advance(length, LastReply(request.starts[row], request.fingerprint(row), result), now)
                # A step's best candidates, the commonest answer, are asked nothing.
                if request.options.every_step or request.options.top > FEW or prediction.next is None:
                    self._count(session, prediction.num_bytes)
                results.append(result)
            request.results = results

    def _block(self, request: Request) -> StepBlock:
        assert request.together is not None
        ids = [session.id for session in request.sessions]
        return StepBlock(
            ids,
            request.starts,
            request.inputs,
            request.options,
            request.together,
            request.drift,
            self._output.split,
            request.settings,
        )

    def _count(self, session: Session, num_bytes: int) -> None:
        """Let the reply that a session has just got count, where it is a large one."""
        if num_bytes > SMALL_REPLY_BYTES and isinstance(session.last, LastReply):
            session.last = LargeReply(session.last)
            self._replies.hold(session.last, num_bytes)

    def _answer(self, request: Request, now: float) -> None:
        self.window.on_answer(request.caller, now)
        self._finish_request(request)
        results = request.results if request.sessions else request.predictions
        if isinstance(results, StepBlock):
            request.answer_together(results)
        else:
            assert results is not None
            for row, result in enumerate(results):
                request.answer(row, result)

    def _accept(self, request: Generation, position: int, now: float) -> bool:
        """Tell the steps that are committed up to ``position``; return whether the generation is over."""
        if request.kind == GENERATED:
            self.stats.num_generated += 1
        is_over = request.accept(position)
        if is_over:
            self.window.on_answer(request.caller, now)
            self._finish_request(request)
        return is_over

    def _sample_next(self, logits: Tensor, requests: Sequence[Generation]) -> None:
        """Sample the next token of each generation from its row of ``logits``, and let it wait for its next run."""
        try:
            randoms = [uniform(request.seed, request.position) for request in requests]
            tokens = sample(logits, [request.sampling for request in requests], randoms)
        except Exception as error:  # noqa: BLE001 - told to the generation that it concerns
            if len(requests) == 1:
                self._fail_with_fault(requests[0], error)
            else:
                for row, request in enumerate(requests):
                    self._sample_next(logits[row : row + 1], [request])
            return
        for request, token in zip(requests, tokens, strict=True):
            self._free_scratch(request)
            request.push(token)
            self._scheduler.add(request)

    def _finish_stored(  # noqa: C901, PLR0912
        self, request: Request, pairs: Sequence[tuple[Step, Outcome]], now: float
    ) -> bool:
        """Answer a durable request's rows; return whether it is a generation that goes on."""
        written: list[int] = []
        overtaken: list[int] = []
        scratch = request.scratch = list(request.scratch)
        for step, outcome in pairs:
            session, row = step.session, step.row
            if isinstance(outcome, bytes):
                # The record is the step's: so are, from now on, the copy's position and its state.
                assert session.slot is not None
                session.slot, scratch[row] = scratch[row], session.slot
                session.revision = outcome
                session.advance(request.length, None, now)
                written.append(row)
                continue
            # Not stored, or nobody knows: what is here of the session is not to be trusted any more.
            session.is_fresh = False
            if outcome is not None or session.phase is not Phase.OPEN:
                request.answer(row, outcome or ended(session.id, session.phase))
            elif not request.can_start_over:
                request.answer(row, _session_moved_error(session))
            else:
                overtaken.append(row)
        if self._quality is not None and request.scored is not None and written:
            self._quality.commit(request.scored, request.sessions, written)
        if request.num_rows == 1 and overtaken:
            self._start_over(request)
            return False
        for child in self._retain_rows(request, written, overtaken):
            self._start_over(child)
        if not written:
            return False
        if isinstance(request, Generation):
            return not self._accept(request, pairs[0][0].position, now)
        if request.together is not None:
            request.results = self._block(request)
        else:
            request.results = [pairs[row][0].last.result for row in written]
        if not request.ends:
            self._answer(request, now)
            return False
        request.sessions[0].end(Event.CLOSE)
        try:
            self._answer(request, now)
        finally:
            self.release(pairs[0][0].session)
        return False

    # ---- the queues of sessions

    def _start_ready(self) -> None:
        while self._ready:
            request = self._ready.popleft()
            if request in self._waiting:
                self._start(request)

    def _start(self, request: Request) -> None:
        """Decide what a request means at its sessions' positions: it waits for a run, or is answered."""
        if request.reply.done():
            self._finish_request(request)
            return
        if not request.sessions:
            self._scheduler.add(request)
            return
        if isinstance(request, Barrier):
            self._act(request)
            return
        if isinstance(request, Generation) and request.sampling.seed is None:
            request.seed = request.sessions[0].seed  # the record's, which may have been read since the request was made
        positions = [session.position for session in request.sessions]
        if _can_apply(request, positions):
            request.starts = positions
        elif not self._decide_rows(request):
            return
        if request.length:
            self._scheduler.add(request)
        else:
            self._continue(request)

    def _decide_rows(self, request: Request) -> bool:  # noqa: C901
        """Decide row by row: what applies goes on, what waits for its session's record does so alone, the rest is
        answered. Return whether the request can be run.
        """
        kept: list[int] = []
        unread: list[int] = []
        starts: list[int] = []
        for row, session in enumerate(request.sessions):
            position = request.positions[row] if request.positions else None
            try:
                _check_held(session)
                if isinstance(session, DurableSession) and _must_read(request, session, position):
                    session.is_fresh = False
                    unread.append(row)
                    if not session.is_reading:
                        session.is_reading = True
                        self._unread.append(session)
                    continue
                verdict = session.decide(position, partial(request.fingerprint, row), request.most_steps)
                start = session.position
                if verdict is PositionVerdict.REPEAT:
                    self.stats.num_repeats += 1
                    last = session.recall()
                    assert isinstance(last, LastReply)
                    if not isinstance(request, Generation):
                        request.answer(row, last.result)
                        continue
                    if request.resume(last):
                        continue
                    start = last.start
                kept.append(row)
                starts.append(start)
            except TidegateError as error:
                self.stats.num_conflicts += isinstance(error, PositionConflictError)
                request.answer(row, error)
            except Exception as error:  # it is this row's answer, and nobody else's
                log.exception("a request of session %s could not be begun", session.id)
                request.answer(row, conceal(error, _UNUSABLE))
        if unread and request.num_rows == 1:
            request.is_checked = True
            return False
        for child in self._retain_rows(request, kept, unread):
            child.is_checked = True
        request.starts = starts
        return bool(kept)

    def _act(self, request: Barrier) -> None:
        (session,) = request.sessions
        try:
            _check_held(session)
            result: Any = request.act()
        except TidegateError as error:
            result = error
        except Exception as error:  # it is this request's answer
            log.exception("what was to be done to session %s failed", session.id)
            result = conceal(error, _UNUSABLE)
        self._finish_request(request)
        request.answer(0, result)

    def _continue(self, request: Request) -> None:
        """Let a generation without a prompt go on from the session's last step."""
        assert isinstance(request, Generation)
        (session,) = request.sessions
        if session.position == 0 or session.slot is None:
            error = InvalidInputError(
                "a session without steps needs a prompt to generate from", reason="EMPTY_SEQUENCE"
            )
            self._drop(request, error)
            return
        self._sample_next(self._arena.read(session.slot, self._num_states)[None], [request])

    def _start_over(self, request: Request) -> None:
        """Decide a request of one row again, which another replica has overtaken."""
        self._free_scratch(request, is_over=True)
        request.start_over()
        self._ready.append(request)

    def _fail_waiting(self, session: Session, error: TidegateError | None) -> None:
        """Answer the session's rows that wait, with why it has ended where there is no other error."""
        for request in [request for request in session.queue if request not in self._running]:
            row = request.sessions.index(session)
            request.answer(row, error or ended(session.id, session.phase))
            self._retain_rows(request, [other for other in range(request.num_rows) if other != row])

    def _retain_rows(self, request: Request, kept: Sequence[int], alone: Sequence[int] = ()) -> list[Request]:
        """Go on with some rows of a request. Those of ``alone`` go on as requests of their own at the same place, which
        are returned; the others have been answered, and leave.
        """
        children: list[Request] = []
        if len(kept) == request.num_rows:
            return children
        staying, parting = set(kept), set(alone)
        for row in range(request.num_rows):
            if row in staying:
                continue
            if row in parting:
                child = request.split_off(row)
                if request.sessions:
                    request.sessions[row].queue[0] = child
                self._waiting.add(child)
                children.append(child)
                continue
            self.num_waiting -= 1
            if request.scratch:
                self._arena.free(request.scratch[row])
            if request.sessions:
                self._leave(request.sessions[row], request)
        if kept:
            request.keep(kept)
        else:
            self._waiting.discard(request)
            self._running.discard(request)
            self._scheduler.discard(request)
        return children

    def _drop(self, request: Request, error: TidegateError) -> None:
        """Answer with an error; the sessions stay as they were before the request."""
        self._running.discard(request)
        if request in self._waiting:
            self._scheduler.discard(request)
            self._finish_request(request)
            request.fail(error)

    def _fail_with_fault(self, request: Request, error: Exception) -> None:
        """Answer a request that met a fault of ours, unless it has its answer; whoever shared its run goes on."""
        self._drop(request, conceal(error, _UNUSABLE))

    def _finish_request(self, request: Request) -> None:
        """The request is over: give back what it held and let its sessions' next ones come."""
        self._waiting.discard(request)
        self.num_waiting -= request.num_rows
        if request.scratch:
            self._free_scratch(request, is_over=True)
        if request.kind == GENERATED and request.sessions:
            assert isinstance(request, Generation)
            self._count(request.sessions[0], request.transcript.num_bytes)
        for session in request.sessions:
            queue = session.queue
            if len(queue) == 1 and session.phase is Phase.OPEN and queue[0] is request:
                del queue[0]  # as `_leave` does, for this is done for each row of each message
            else:
                self._leave(session, request)

    def _leave(self, session: Session, request: Request) -> None:
        """Take a request out of a session's queue; whatever heads all its queues then is ready to start."""
        queue = session.queue
        if queue[0] is request:
            del queue[0]
            if queue:
                queue[0].num_behind -= 1
                if not queue[0].num_behind:
                    self._ready.append(queue[0])
            elif session.phase is not Phase.OPEN:
                self._free_slot(session)
        else:
            queue.remove(request)
            request.num_behind -= 1
            if not request.num_behind:
                self._ready.append(request)

    def _free_scratch(self, request: Request, *, is_over: bool = False) -> None:
        """A stateless generation keeps its working state until it is over, for it has no session to commit to."""
        if request.scratch and (is_over or request.sessions):
            for slot in request.scratch:
                self._arena.free(slot)
            request.scratch = ()

    def _free_slot(self, session: Session) -> None:
        if session.slot is not None:
            self._arena.free(session.slot)
            session.slot = None


def _slots(indices: Sequence[int]) -> Slots:
    return np.array(indices, dtype=np.intp)


def _sources(request: Request) -> Sequence[int]:
    """Return the slots that the rows' states come from."""
    if request.scratch:
        return request.scratch
    if not request.sessions:
        return [INITIAL] * request.num_rows
    return [session.slot or INITIAL if session.position else INITIAL for session in request.sessions]


def _settings_of(requests: Sequence[Request], place: int, default: Tensor) -> Tensor:
    """Return one setting of a run's rows, [rows, …]: what the request gives, else the session's own, else the default.

    Nothing of a request's stays: a session's own values change with no step.
    """
    rows: list[Tensor] = []
    for request in requests:
        given = request.settings[place] if request.settings else None
        if given is not None or not request.sessions:
            rows += [default if given is None else given] * request.num_rows
            continue
        for session in request.sessions:
            own = session.settings[place] if session.settings else None
            rows.append(default if own is None else own)
    return np.array(rows, default.dtype)


def _can_apply(request: Request, positions: list[int]) -> bool:
    """Whether all sessions can be stepped as they are here, at the positions that the caller gave, if any."""
    if request.positions and request.positions != positions:
        return False
    for session in request.sessions:
        if session.phase is not Phase.OPEN:
            return False
    if request.is_stored:
        for session in request.sessions:
            if session.slot is None or not cast("DurableSession", session).is_fresh:
                return False
    return max(positions) + request.most_steps <= LAST_POSITION


def _must_read(request: Request, session: DurableSession, position: int | None) -> bool:
    """Whether the stored record decides first: before anything is run on a copy that may be old, and before a repeat or
    a conflict is told.
    """
    return not session.is_fresh or not (request.is_checked or position is None or position == session.position)


def _check_held(session: Session) -> None:
    """Raise the reason why the session's requests cannot be run on what is here of it."""
    # The copy of a durable session may leave the arena while somebody still holds it, and without its slot it would run
    # from the initial state, at a revision that the store takes.
    if session.is_durable and session.slot is None and session.phase in {Phase.OPEN, Phase.EVICTED}:
        raise UnavailableError(
            f"session {session.id} left the arena just now: send it again", reason="SESSION_MOVED", retry_after=0.0
        )
    session.check_open()


def _session_moved_error(session: Session) -> UnavailableError:
    return UnavailableError(
        f"session {session.id} was moved on by another replica: repeat with the position that this began at",
        reason="SESSION_MOVED",
        retry_after=0.0,
    )


def _deadline_error() -> DeadlineExceededError:
    return DeadlineExceededError("the request's time ran out before its steps were committed")
