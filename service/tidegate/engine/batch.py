"""What goes from one part of a tick to the next: a run's results, the steps that wait to be stored, and counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tidegate.api import Prediction, Tensor
from tidegate.drift import ChartState
from tidegate.engine.cohort import Cohort, Told
from tidegate.engine.session import DurableSession, LastReply
from tidegate.engine.work import Work
from tidegate.errors import TidegateError

Outputs = dict[str, Tensor]
Row = tuple[int, Work]
"""A row of a run: its index in the run's arrays, and whose it is."""


@dataclass(slots=True)
class Batch:
    """A run's results on their way to the callers: the rows still wanted, and the predictions of the chunks that end
    here. Those of a cohort begin at the row that stands before it.
    """

    rows: list[Row]
    outputs: Outputs
    states: list[Tensor]
    answers: dict[Work, Prediction]
    cohorts: list[tuple[int, Cohort, Told]] = field(default_factory=list)


class Surprises(NamedTuple):
    """Steps whose surprise a mean is made of, and the sum over them; those where it is no number; and outliers."""

    num_steps: int = 0
    total: float = 0.0
    num_nan: int = 0
    num_outliers: int = 0


class Scored(NamedTuple):
    """What a chunk's steps say of the model, and what its session keeps of that once the chunk is committed.

    Attributes:
        block_sum, chart, band: The session's, after the chunk.
        means: Of the blocks that ended.
        surprises: Of the chunk's steps.
        inside, outside: Inputs that the band before them held, or did not.
        unknown, beyond: Tokens that the vocabulary lacks, values beyond those of the training.
    """

    block_sum: float
    chart: ChartState | None
    means: Sequence[float] = ()
    surprises: Surprises = Surprises()
    band: tuple[float, float] | None = None
    inside: int = 0
    outside: int = 0
    unknown: int = 0
    beyond: int = 0


class Step(NamedTuple):
    """A chunk of a durable session that has run and waits to be stored before anybody is told.

    ``position`` and ``state`` (as the arena dumps it) are those after the chunk; ``logits``, of a generation, its last
    step's; ``scored`` is None where nobody watches the model.
    """

    work: Work
    session: DurableSession
    position: int
    state: bytes
    last: LastReply
    logits: Tensor | None
    scored: Scored | None


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
