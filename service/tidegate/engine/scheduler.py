"""The scheduling policy, pure: which waiting work shares the next run, and for how many steps.

All rows of a run have the same number of steps, because padding costs real time. Work waits in one of three queues by
the steps it still has: single steps, short ones and long ones. The queues take turns, so a single step never waits
for more than one piece of each other kind, and a long prompt always advances. Within a queue rows run in lockstep: as
many steps as the shortest has left, then who is done leaves and the others come again, behind those that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tidegate.engine.cohort import Cohort
from tidegate.engine.work import Work

SHORT = 2
LONG = 16
_CALM = 8


class Plan(NamedTuple):
    """The next run: ``length`` steps of each of ``works``, one of each lane of ``cohorts``, whose rows come behind; and
    the work that fell out because its time or its caller is gone.
    """

    works: list[Work]
    length: int
    dropped: list[Work | Cohort]
    cohorts: Sequence[Cohort] = ()

    @property
    def num_rows(self) -> int:
        return len(self.works) + sum(cohort.num_rows for cohort in self.cohorts)


class Scheduler:
    """Queues of waiting work.

    Args:
        max_rows: Rows of one run.
        max_steps: Rows times steps of one run.
        max_piece: Steps of a long row in one run while single steps are about.
    """

    def __init__(self, max_rows: int, max_steps: int, max_piece: int = 68) -> None:
        self._max_rows = min(max_rows, max_steps)
        self._max_steps = max_steps
        self._max_piece = max_piece
        # Insertion-ordered sets: first come, first served, and removal anywhere costs nothing.
        self._queues: tuple[dict[Work | Cohort, None], ...] = ({}, {}, {})
        self._turn = 0
        self._calm = _CALM

    @property
    def max_rows(self) -> int:
        """Rows of one run."""
        return self._max_rows

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues)

    def add(self, work: Work | Cohort) -> None:
        """Let work wait behind its like."""
        remaining = work.remaining
        self._queues[0 if remaining < SHORT else 1 if remaining < LONG else 2][work] = None

    def discard(self, work: Work | Cohort) -> None:
        """Take waiting work out; work that does not wait is left alone."""
        for queue in self._queues:
            queue.pop(work, None)

    def plan(self, now: float) -> Plan | None:
        """Take the next run's work out of the queues, or return None where nothing waits."""
        for _ in self._queues:
            kind, self._turn = self._turn, (self._turn + 1) % len(self._queues)
            if self._queues[kind]:
                self._calm = min(self._calm + 1, _CALM) if kind == len(self._queues) - 1 else 0
                return self._take(self._queues[kind], now)
        return None

    def _take(self, queue: dict[Work | Cohort, None], now: float) -> Plan:
        works: list[Work] = []
        cohorts: list[Cohort] = []
        dropped: list[Work | Cohort] = []
        length, room = self._piece, self._max_rows
        for work in queue:
            if work.is_abandoned or work.is_late(now):
                dropped.append(work)
                continue
            if isinstance(work, Cohort):
                if work.num_rows > room:  # first come, first served: nobody behind it overtakes it
                    break
                cohorts.append(work)
                room -= work.num_rows
            else:
                works.append(work)
                room -= 1
            length = min(length, work.remaining)
            if not room:
                break
        for work in (*works, *cohorts, *dropped):
            del queue[work]
        num_rows = self._max_rows - room
        return Plan(works, max(1, min(length, self._max_steps // max(1, num_rows))), dropped, cohorts)

    @property
    def _piece(self) -> int:
        """Longer pieces while only long work has run for a while: fewer runs, and nobody waits."""
        return self._max_piece * 4 if self._calm == _CALM else self._max_piece
