"""A cohort: one step of each of many ephemeral sessions, asked for in one message, as one piece of work.

What the sessions share is planned, run and answered as arrays; a lane costs a few reads and writes of its session's
fields. What does not go that way is no cohort: sessions with work in hand, repeats, conflicts, chunks of several steps,
durable sessions. Where a cohort cannot stay one (its run failed), it disbands into the `Work` of its lanes.

Knows its sessions and its answer; nothing of runs, time or how inputs are encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tidegate.api import LAST_POSITION, Drift, Prediction, Predictions, StepOptions, StepResult, Tensor
from tidegate.engine.arena import INITIAL, Slots
from tidegate.engine.lifecycle import Phase
from tidegate.engine.session import LastReply, Recollection, Session
from tidegate.engine.work import Reply, Work, name_of
from tidegate.errors import TidegateError
from tidegate.sessions.party import Party

_LANE_BYTES = 48  # beside its arrays: where it started, and a reference to its session's id

_NO_SLOTS: Slots = np.empty(0, np.intp)

Part = Callable[[Predictions], list[Prediction]]


class Told(NamedTuple):
    """What a cohort was told: of each lane the answer, which is made only when somebody asks for it.

    Every session of the cohort remembers this as its last reply, so that a repeat can be served.

    Attributes:
        ids: Of the sessions, by lane. Not the sessions: they remember this.
        starts: Each session's position before its step.
        inputs: The graph's, each [lane, 1, …].
        options: What the replies were to hold.
        predictions: A row a lane.
        drift: By lane, where its session's own chart took in a block.
        part: Makes predictions of rows: the codec's.
    """

    ids: Sequence[str]
    starts: Sequence[int]
    inputs: tuple[Tensor, ...]
    options: StepOptions
    predictions: Predictions
    drift: dict[int, Drift]
    part: Part

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        told = self.predictions
        arrays = (
            *self.inputs,
            *(told.outputs or {}).values(),
            told.ids,
            told.probabilities,
            told.forecast,
            told.surprise,
        )
        return _LANE_BYTES * len(self.ids) + sum(array.nbytes for array in arrays if array is not None)

    def result(self, lane: int) -> StepResult:
        (prediction,) = self.part(self.predictions.row(lane))
        prediction.drift = self.drift.get(lane)
        return StepResult(self.ids[lane], self.starts[lane] + 1, prediction)

    def recall(self, session: Session) -> LastReply:
        """Return what the session would remember had it been asked alone."""
        lane = self.ids.index(session.id)
        name = name_of([array[lane] for array in self.inputs], self.options)
        return LastReply(self.starts[lane], name, self.result(lane))


class CohortReply(NamedTuple):
    """The answer to a cohort: ``told``, but for the lanes in ``aside``, which have an answer of their own.

    ``told`` is None where the cohort disbanded: then every lane is in ``aside``.
    """

    told: Told | None
    aside: Mapping[int, StepResult | TidegateError]

    def results(self, num_lanes: int) -> list[StepResult | TidegateError]:
        """Return each lane's answer."""
        return [self._result(lane) for lane in range(num_lanes)]

    def _result(self, lane: int) -> StepResult | TidegateError:
        if (own := self.aside.get(lane)) is not None:
            return own
        assert self.told is not None
        return self.told.result(lane)


class Cohort:
    """One step of each session of a party.

    Args:
        party: Whose sessions, by lane, are of one model.
        inputs: The graph's inputs, each [lane, 1, …].
        options: What each reply shall hold, neither raw nor every step.
        positions: Each session's position before the step, where the caller gave it; empty where it gave none.
        deadline: Monotonic seconds after which nothing must be committed.
        reply: Takes a `CohortReply`, or the error that all lanes share.
    """

    __slots__ = (
        "arrived", "aside", "deadline", "inputs", "options", "party", "positions", "reply", "sessions", "slots",
        "starts"
    )  # fmt: skip

    remaining = 1

    def __init__(
        self,
        party: Party,
        inputs: tuple[Tensor, ...],
        options: StepOptions,
        positions: Sequence[int],
        deadline: float | None,
        reply: Reply,
    ) -> None:
        self.party = party
        self.sessions = party.sessions
        self.inputs = inputs
        self.options = options
        self.positions = positions
        self.deadline = deadline
        self.reply = reply
        self.starts: Sequence[int] = ()
        self.slots: Slots = _NO_SLOTS
        self.aside: dict[int, StepResult | TidegateError] = {}
        self.arrived: float | None = None

    @property
    def num_rows(self) -> int:
        return len(self.sessions)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.reply.done()

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def can_start(self) -> bool:
        """Whether every session is open and idle, at the position that the caller says and not at its last one."""
        for session in self.sessions:
            if session.queue or session.phase is not Phase.OPEN:
                return False
        positions = [session.position for session in self.sessions]
        return positions == (self.positions or positions) and max(positions) < LAST_POSITION

    def start(self) -> None:
        """Make every session busy with this. Ask ``can_start`` first."""
        self.starts = [session.position for session in self.sessions]
        for session in self.sessions:
            session.queue.append(self)

    def find_slots(self) -> Slots:
        """Note where the sessions' states lie, for as long as it runs; return where they are to be read."""
        self.slots = np.array([session.slot or INITIAL for session in self.sessions], np.intp)
        return self.slots if 0 not in self.starts else np.where(np.array(self.starts) == 0, INITIAL, self.slots)

    def set_aside(self, session: Session, error: TidegateError) -> None:
        """Answer the lane of a session with an error; it stays as it was."""
        self.aside[self.sessions.index(session)] = error

    @property
    def lanes(self) -> Sequence[int]:
        """The lanes that go together, rising."""
        if not self.aside:
            return range(len(self.sessions))
        return [lane for lane in range(len(self.sessions)) if lane not in self.aside]

    def commit(self, told: Recollection, now: float) -> None:
        """Move the sessions of the lanes that go together on by their step, which they remember as ``told``."""
        sessions = self.sessions
        for session in sessions if not self.aside else [sessions[lane] for lane in self.lanes]:
            session.position += 1
            session.last = told
            session.used_at = now

    def answer(self, told: Told | None) -> None:
        """Answer all lanes, unless the caller has gone."""
        if not self.reply.done():
            self.reply.set_result(CohortReply(told, self.aside))

    def fail(self, error: TidegateError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def disband(self) -> list[Work]:
        """Return the work of each lane that goes together, at the head of its session's queue instead of this."""
        works = []
        for lane in self.lanes:
            session = self.sessions[lane]
            inputs = tuple(array[lane] for array in self.inputs)
            position = self.positions[lane] if self.positions else None
            work = Work(session, inputs, self.options, position, self.deadline, _LaneReply(self, lane))
            work.start = self.starts[lane]
            session.queue[0] = work
            works.append(work)
        return works


class _LaneReply:
    """Where the result of a disbanded cohort's lane goes."""

    __slots__ = ("_cohort", "_lane")

    def __init__(self, cohort: Cohort, lane: int) -> None:
        self._cohort = cohort
        self._lane = lane

    def done(self) -> bool:
        return self._lane in self._cohort.aside or self._cohort.is_abandoned

    def set_result(self, result: Any, /) -> None:
        self._put(result)

    def set_exception(self, error: BaseException, /) -> None:
        assert isinstance(error, TidegateError)
        self._put(error)

    def _put(self, result: StepResult | TidegateError) -> None:
        self._cohort.aside[self._lane] = result
        if len(self._cohort.aside) == self._cohort.num_rows:
            self._cohort.answer(None)


Number = TypeVar("Number", bound=np.generic)


def stack(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """Return rows of several origins, [rows, …] each, one after the other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
