"""What goes from one part of a tick to the next: a run's results, the steps that wait to be stored, and counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tidegate.core import Prediction, Tensor
from tidegate.engine.work import Work
from tidegate.errors import TidegateError
from tidegate.sessions.session import DurableSession, LastReply

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


class Step(NamedTuple):
    """A chunk of a durable session that has run and waits to be stored before anybody is told.

    ``position`` and ``state`` (as the arena dumps it) are those after the chunk; ``logits``, of a generation, its last
    step's.
    """

    work: Work
    session: DurableSession
    position: int
    state: bytes
    last: LastReply
    logits: Tensor | None


Outcome = bytes | TidegateError | None
"""What became of a step: the revision it was stored as; why it may not have been; or None, another was faster."""


class Counts(NamedTuple):
    """Counters since the start; ``rows_per_run`` counts runs by the least power of two that holds their rows."""

    num_runs: int
    num_rows: int
    num_steps: int
    num_failed_runs: int
    rows_per_run: dict[int, int]
    num_queued: int
